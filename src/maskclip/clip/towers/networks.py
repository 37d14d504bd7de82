"""The networks that are stacks of self-attention blocks, as one tower reads them: a view each.

B images, N tokens, C tower channels, D embedding channels, h x w grid positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from maskclip.clip.blocks import Block, OpenCLIPBlock, TimmBlock
from maskclip.clip.positions import position_table, rotary_table
from maskclip.clip.towers.base import UnsupportedTowerError, whole_cells
from maskclip.clip.towers.pools import CoCaPool, Pool, TimmPool
from maskclip.core.method import Method
from maskclip.core.resize import pad_bottom_right


class Network(Protocol):
    """What a tower needs of a ViT, whoever wrote it."""

    cell: int
    """Pixels of a patch's side."""
    prefix: int
    """How many tokens are of no patch: 0, or 1, the class token, which is the first."""
    depth: int
    """How many blocks there are."""
    pool: Pool | None
    """The attention that makes the image's embedding after the blocks, if it is one."""
    by_class: bool
    """Whether the class token is the image's embedding: the last block's attention makes it."""
    whole_block: bool
    """Whether public code that reads each position's own value keeps residual and MLP."""

    def tokens(self, images: Tensor, method: Method) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens (B, N, C) that enter the first block, and the grid (h, w)."""
        ...

    def blocks(self, grid: tuple[int, int]) -> Sequence[Block]:
        """Return the blocks, as they are for a grid."""
        ...

    def features(self, tokens: Tensor) -> Tensor:
        """Turn tokens that leave the last block (..., C) into features (..., D); without a pool."""
        ...

    def mean(self, tokens: Tensor) -> Tensor:
        """Return the images' own embeddings (B, D) of tokens (B, N, C), where a mean makes them."""
        ...


class OpenCLIPViT:
    """open_clip's VisionTransformer: CLIP's own, CLIPA's (a mean), CoCa's (an attention pool)."""

    prefix = 1
    whole_block = False

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.depth = len(visual.transformer.resblocks)
        patch = visual.conv1.kernel_size
        if patch[0] != patch[1]:
            raise UnsupportedTowerError(f"patches of {patch} are not square")
        self.cell = int(patch[0])
        self.pool: Pool | None = None if visual.attn_pool is None else CoCaPool(visual)
        self.by_class = self.pool is None and visual.pool_type == "tok"

    def tokens(self, images: Tensor, method: Method) -> tuple[Tensor, tuple[int, int]]:
        """See `Network`."""
        visual = self.visual
        patches = visual.conv1(_in_whole_cells(images, self.cell))
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

    def mean(self, tokens: Tensor) -> Tensor:
        """See `Network`."""
        patches = tokens[:, 1:]
        if self.visual.final_ln_after_pool:
            return self.features(patches.mean(dim=1))
        return cast(Tensor, self.visual.ln_post(patches).mean(dim=1) @ self.visual.proj)


class TimmViT:
    """timm's VisionTransformer or Eva in open_clip's wrapper, whatever makes its embedding."""

    def __init__(self, visual: Any) -> None:
        self.head, self.trunk = visual.head, visual.trunk
        trunk = self.trunk
        self.depth = len(trunk.blocks)
        self.prefix = int(trunk.num_prefix_tokens)
        side = trunk.patch_embed.feat_ratio(as_scalar=False)
        if side[0] != side[1]:
            raise UnsupportedTowerError(f"patches of {tuple(side)} are not square")
        self.cell = int(side[0])
        self.by_class = trunk.attn_pool is None and trunk.global_pool == "token"
        self.whole_block = hasattr(trunk, "rope")  # of Eva (CLIPSelf)
        self.pool: Pool | None = None
        if trunk.attn_pool is not None:
            # the pool of Eva attends to the class token too
            left_out = 0 if getattr(trunk, "pool_include_prefix", True) else self.prefix
            self.pool = TimmPool(
                trunk.attn_pool, before=trunk.norm, after=self._head, left_out=left_out
            )

    def tokens(self, images: Tensor, method: Method) -> tuple[Tensor, tuple[int, int]]:
        """See `Network`."""
        trunk = self.trunk
        patches = self._patches(_in_whole_cells(images, self.cell))
        grid = (patches.shape[2], patches.shape[3])
        x = patches.flatten(2).transpose(1, 2)
        if hasattr(trunk.patch_embed, "norm"):
            x = trunk.patch_embed.norm(x)
        native, apart = tuple(trunk.patch_embed.grid_size), trunk.no_embed_class
        own = 0 if apart else self.prefix  # rows of the table that are of no patch
        table: Tensor | None = None
        if trunk.pos_embed is not None:
            table = position_table(trunk.pos_embed[0], native, grid, method, prefix=own)
        if apart and table is not None:
            x = x + table.to(x.dtype)
        if self.prefix:
            x = torch.cat([trunk.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        if not apart and table is not None:
            x = x + table.to(x.dtype)
        return trunk.norm_pre(x), grid

    def _patches(self, images: Tensor) -> Tensor:
        """Return the map (B, C, h, w) of what patches are before their positions."""
        embed = self.trunk.patch_embed
        if hasattr(embed, "backbone"):
            images = embed.backbone(images)
        found: Tensor = embed.proj(images)
        return found

    def blocks(self, grid: tuple[int, int]) -> Sequence[Block]:
        """See `Network`; with rotary positions, they are those of the grid."""
        rope = getattr(self.trunk, "rope", None)
        turns = None if rope is None else rotary_table(rope, grid)
        return [TimmBlock(block, turns) for block in self.trunk.blocks]

    def features(self, tokens: Tensor) -> Tensor:
        """See `Network`."""
        return self._head(self.trunk.norm(tokens))

    def mean(self, tokens: Tensor) -> Tensor:
        """See `Network`."""
        return self._head(self.trunk.norm(tokens)[:, self.prefix :].mean(dim=1))

    def _head(self, tokens: Tensor) -> Tensor:
        """Turn what was pooled into an embedding."""
        found: Tensor = self.head(self.trunk.head(self.trunk.fc_norm(tokens)))
        return found


def _in_whole_cells(images: Tensor, cell: int) -> Tensor:
    """Pad images at the bottom and right to whole patches."""
    height, width = images.shape[-2:]
    return pad_bottom_right(images, (whole_cells(height, cell), whole_cells(width, cell)))
