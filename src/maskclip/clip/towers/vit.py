"""ViTs: a stack of self-attention blocks, the last of which a method reads.

B images, N tokens, C tower channels, D embedding channels, h x w grid positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from maskclip.clip.attention import (
    class_token,
    mix,
    mixes_positions,
    named,
    read_again,
    read_blocks,
    run_block,
)
from maskclip.clip.blocks import Block
from maskclip.clip.feedback import alike
from maskclip.clip.purification import read_purified
from maskclip.clip.towers.base import Seen, to_map, unsupported, whole_cells
from maskclip.clip.towers.networks import Network
from maskclip.core.method import Method
from maskclip.core.methods import (
    keeps_values,
    needed_blocks,
    needed_patches,
    needs_class_token,
)


class ViTTower:
    """A ViT: its last block read by a method, one feature a patch."""

    layout = torch.contiguous_format

    def __init__(self, network: Network, method: Method) -> None:
        self.network = network
        self.method = _settled(method, whole=network.whole_block)
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
        if needs_class_token(method) and not self.network.prefix:
            raise unsupported(
                method,
                "reads patches by the class token, which this network has not: choose another, "
                "such as naclip",
            )
        self._check_pool()

    def _check_pool(self) -> None:
        """Refuse kernels of an attention pool that the network has not, or cannot be read by."""
        method, pool = self.method, self.network.pool
        if not mixes_positions(method.pool):
            return
        if pool is None:
            raise unsupported(method, "mixes within an attention pool, which this network has not")
        if not pool.queries and {"qk", "qq"} & dict(method.pool).keys():
            raise unsupported(
                method,
                "compares queries of positions, which the pool of this network cannot make: take "
                "kk or vv",
            )

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
        blocks, prefix = network.blocks(grid), network.prefix
        if keeps_values(method) and not network.by_class:
            return self._dense_before_pooling(blocks, x, grid, keys=keys, image=image)
        if method.purification is not None:
            tokens, key, entering, parts = read_purified(
                blocks, x, method, grid=grid, prefix=prefix
            )
        else:
            tokens, key, entering, parts = read_blocks(
                blocks, x, method, grid=grid, prefix=prefix, keys=keys, proxy=proxy
            )
        if key is not None and method.project_keys:
            key = blocks[-1].output(key)
        return Seen(
            to_map(self._features(tokens), grid),
            None if key is None else to_map(key, grid),
            self._embedding(blocks[-1], entering) if image else None,
            *((parts, self._read_again) if parts else ()),
        )

    def _dense_before_pooling(
        self,
        blocks: Sequence[Block],
        x: Tensor,
        grid: tuple[int, int],
        *,
        keys: bool,
        image: bool,
    ) -> Seen:
        """Run all blocks as they are, and read what a pool or a mean makes the embedding of."""
        network, last = self.network, blocks[-1]
        for block in blocks[:-1]:
            x = run_block(block, x)
        entering, x = x, run_block(last, x)
        key: Tensor | None = None
        if keys:
            pool = network.pool
            if pool is None:
                key = last.project(last.enter(entering), {"key"})["key"]
            else:
                key = pool.project(x, {"key"})["key"]
            if self.method.project_keys:
                key = (pool or last).output(key)
        return Seen(
            to_map(self._features(x[:, network.prefix :]), grid),
            None if key is None else to_map(key[:, network.prefix :], grid),
            self._pooled(x) if image else None,
        )

    def _features(self, tokens: Tensor) -> Tensor:
        """Turn patches that leave the last block (B, hw, C) into features (B, hw, D)."""
        pool = self.network.pool
        if pool is None:
            return self.network.features(tokens)
        kernels = self.method.pool
        return pool.finish(mix(pool.project(tokens, named(kernels)), kernels, heads=pool.heads))

    def _embedding(self, last: Block, x: Tensor) -> Tensor:
        """Return the images' own embeddings (B, D), of what enters the last block (B, N, C)."""
        if self.network.by_class:
            return self.network.features(class_token(last, x))
        return self._pooled(run_block(last, x))

    def _pooled(self, x: Tensor) -> Tensor:
        """Return the images' own embeddings (B, D), of what leaves the last block (B, N, C)."""
        pool = self.network.pool
        return self.network.mean(x) if pool is None else pool.embed(x)

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
        return to_map(self._features(torch.cat(found)), grid)

    def staged(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `Tower`; a ViT has one grid."""
        return [], self.dense(images, keys=False, image=False).features

    def pooled(self, images: Tensor) -> Tensor:
        """See `Tower`."""
        x, grid = self.network.tokens(images, self.method)
        *blocks, last = self.network.blocks(grid)
        for block in blocks:
            x = run_block(block, x)
        return self._embedding(last, x)


def _settled(method: Method, *, whole: bool) -> Method:
    """Return a method that says of residual and MLP what it left to the family of the network."""
    whole = whole and keeps_values(method)
    residual = whole if method.residual is None else method.residual
    return replace(method, residual=residual, mlp=whole if method.mlp is None else method.mlp)
