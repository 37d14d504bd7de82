"""ViTs: a stack of self-attention blocks, the last of which a method reads.

B images, N tokens, C tower channels, D embedding channels, h x w grid positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from maskclip.clip.attention import class_token, read_again, read_blocks, run_block
from maskclip.clip.feedback import alike
from maskclip.clip.purification import read_purified
from maskclip.clip.towers.base import Seen, to_map, unsupported, whole_cells
from maskclip.clip.towers.networks import Network
from maskclip.core.method import Method
from maskclip.core.methods import needed_blocks, needed_patches


class ViTTower:
    """A ViT: its last block read by a method, one feature a patch."""

    layout = torch.contiguous_format

    def __init__(self, network: Network, method: Method) -> None:
        self.network = network
        self.method = method
        self.cell = network.cell
        self.class_token = network.prefix > 0

    def check(self, *, keys: bool) -> None:
        """See `Tower`."""
        method, count = self.method, self.network.depth
        needed = needed_blocks(method)
        if count < needed:
            raise unsupported(method, f"needs {needed} blocks, and this ViT has {count}")
        if keys and method.purification is not None:
            raise unsupported(method, "has no keys: drop key smoothing")

    def check_size(self, height: int, width: int) -> None:
        """See `Tower`."""
        patches = math.prod(whole_cells(side, self.cell) // self.cell for side in (height, width))
        needed = needed_patches(self.method)
        if patches < needed:
            raise unsupported(
                self.method,
                f"needs more than {needed - 1} patches, and {width}x{height} px have {patches}: "
                "choose a larger short side, or another method",
            )

    def dense(
        self, images: Tensor, *, keys: bool, image: bool, proxy: Tensor | None = None
    ) -> Seen:
        """See `Tower`; the last block computes only what its kernels and these arguments need."""
        method, network = self.method, self.network
        self.check_size(images.shape[2], images.shape[3])
        x, grid = network.tokens(images, method)
        blocks = network.blocks(grid)
        if method.purification is not None:
            tokens, key, entering, parts = read_purified(blocks, x, method, grid=grid)
        else:
            tokens, key, entering, parts = read_blocks(
                blocks, x, method, grid=grid, prefix=network.prefix, keys=keys, proxy=proxy
            )
        if key is not None and method.project_keys:
            key = blocks[-1].output(key)
        return Seen(
            to_map(network.features(tokens), grid),
            None if key is None else to_map(key, grid),
            network.features(class_token(blocks[-1], entering)) if image else None,
            *((parts, self._read_again) if parts else ()),
        )

    def _read_again(self, parts: Mapping[str, Tensor], classes: Tensor) -> Tensor:
        """Return features (B, D, h, w) where the classes (B, h, w) of patches are known."""
        how, prefix = self.method.feedback, self.network.prefix
        assert how is not None
        grid, found = (classes.shape[1], classes.shape[2]), []
        block = self.network.blocks(grid)[-1]
        for index, own in enumerate(classes):  # each image has rows of its own
            of_one = {name: part[index : index + 1] for name, part in parts.items()}
            near = alike(own, how, of_one["value"], prefix=prefix)
            found.append(
                read_again(block, of_one, self.method, grid=grid, alike=near, prefix=prefix)
            )
        return to_map(self.network.features(torch.cat(found)), grid)

    def staged(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `Tower`; a ViT has one grid."""
        return [], self.dense(images, keys=False, image=False).features

    def pooled(self, images: Tensor) -> Tensor:
        """See `Tower`."""
        x, grid = self.network.tokens(images, self.method)
        *blocks, last = self.network.blocks(grid)
        for block in blocks:
            x = run_block(block, x)
        return self.network.features(class_token(last, x))
