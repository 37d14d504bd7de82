"""The networks that are stacks of self-attention blocks, as one tower reads them: a view each.

B images, N tokens, C tower channels, D embedding channels, h x w grid positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from maskclip.clip.blocks import Block, OpenCLIPBlock
from maskclip.clip.positions import position_table
from maskclip.clip.towers.base import UnsupportedTowerError, whole_cells
from maskclip.core.method import Method
from maskclip.core.resize import pad_bottom_right


class Network(Protocol):
    """What a tower needs of a ViT, whoever wrote it."""

    cell: int
    """Pixels of a patch's side."""
    prefix: int
    """How many tokens are of no patch; they are the first."""
    depth: int
    """How many blocks there are."""

    def tokens(self, images: Tensor, method: Method) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens (B, N, C) that enter the first block, and the grid (h, w)."""
        ...

    def blocks(self, grid: tuple[int, int]) -> Sequence[Block]:
        """Return the blocks, as they are for a grid."""
        ...

    def features(self, tokens: Tensor) -> Tensor:
        """Turn tokens that leave the last block (..., C) into features (..., D)."""
        ...


class OpenCLIPViT:
    """open_clip's VisionTransformer, whose class token is the image's embedding."""

    prefix = 1

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.depth = len(visual.transformer.resblocks)
        patch = visual.conv1.kernel_size
        if patch[0] != patch[1]:
            raise UnsupportedTowerError(f"patches of {patch} are not square")
        self.cell = int(patch[0])

    def tokens(self, images: Tensor, method: Method) -> tuple[Tensor, tuple[int, int]]:
        """See `Network`."""
        visual = self.visual
        height, width = images.shape[-2:]
        size = (whole_cells(height, self.cell), whole_cells(width, self.cell))
        patches = visual.conv1(pad_bottom_right(images, size))
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)
        token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = torch.cat([token, patches], dim=1)
        native = tuple(visual.grid_size)
        table = position_table(visual.positional_embedding, native, grid, method)
        return visual.ln_pre(x + table.to(x.dtype)), grid

    def blocks(self, grid: tuple[int, int]) -> Sequence[Block]:
        """See `Network`; they are the same for any grid."""
        return [OpenCLIPBlock(block) for block in self.visual.transformer.resblocks]

    def features(self, tokens: Tensor) -> Tensor:
        """See `Network`."""
        return cast(Tensor, self.visual.ln_post(tokens) @ self.visual.proj)
