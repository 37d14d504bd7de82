"""ModifiedResNet, read through its attention pool.

B images, C tower channels, D embedding channels, h x w grid positions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.clip.attention import ORDINARY, mix, mixes_positions
from maskclip.clip.positions import position_table
from maskclip.clip.towers.base import (
    Seen,
    UnsupportedMethodError,
    padded,
    to_map,
    unsupported,
)
from maskclip.core.method import Method
from maskclip.core.methods import for_any_tower


class ResNetTower:
    """ModifiedResNet: stage 4 through the attention pool's value and output projections.

    Of a method, its kernels count: other than by the identity, positions are read by the whole
    pool. There is no block around it, so `residual` and `mlp` are not used.
    """

    class_token = False
    layout = torch.channels_last
    cell = 32

    def __init__(self, visual: Any, method: Method) -> None:
        self.visual = visual
        self.method = method

    def check(self, *, keys: bool) -> None:
        """See `Tower`."""
        method = self.method
        if not for_any_tower(method):
            raise unsupported(
                method,
                "reads the blocks of a ViT, and this model is a ResNet: choose a ViT, as "
                "ViT-B-16, or a method for any network: clean, published or baseline",
            )
        if mixes_positions(method.pool):
            raise unsupported(method, "has kernels of a pool: those of a ResNet's are `kernels`")
        if keys and mixes_positions(method.kernels):
            raise UnsupportedMethodError(
                f"a ResNet read by the method {method.name!r} has no key smoothing: drop it, "
                "or use the clean or published method"
            )

    def check_size(self, height: int, width: int) -> None:
        """See `Tower`; any size will do."""

    def dense(
        self, images: Tensor, *, keys: bool, image: bool, proxy: Tensor | None = None
    ) -> Seen:
        """See `Tower`; positions have no embedding (published code, R3), but in `image`."""
        return self._read(self._stages(images)[-1], keys=keys, image=image)

    def staged(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `Tower`; the maps of all stages but the last."""
        *finer, last = self._stages(images, kept=True)
        return finer, self._read(last, keys=False, image=False).features

    def _read(self, x: Tensor, *, keys: bool, image: bool) -> Seen:
        pool = self.visual.attnpool
        own = self._pool(x) if image else None
        if mixes_positions(self.method.kernels):
            return Seen(_attend(pool, x, self.method), None, own)
        features = _pointwise(pool.c_proj, _pointwise(pool.v_proj, x))
        return Seen(features, _pointwise(pool.k_proj, x) if keys else None, own)

    def pooled(self, images: Tensor) -> Tensor:
        """See `Tower`; the position table is resized to the grid."""
        return self._pool(self._stages(images)[-1])

    def _stages(self, images: Tensor, *, kept: bool = False) -> list[Tensor]:
        """Return the last stage's map (B, C, h, w), after those of the others if they are kept."""
        visual = self.visual
        x = visual.stem(padded(images, self.cell, self.method))
        maps: list[Tensor] = []
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = stage(x)
            maps = [*maps, x] if kept else [x]
        return maps

    def _pool(self, x: Tensor) -> Tensor:
        """Return what the attention pool makes of the mean of a map (B, C, h, w): (B, D)."""
        pool = self.visual.attnpool
        native = math.isqrt(len(pool.positional_embedding) - 1)
        grid = (x.shape[2], x.shape[3])
        table = position_table(pool.positional_embedding, (native, native), grid, self.method)
        tokens = _with_mean(x) + table.to(x.dtype)
        parts = {
            "query": pool.q_proj(tokens[:, :1]),
            "key": pool.k_proj(tokens),
            "value": pool.v_proj(tokens),
        }
        out: Tensor = pool.c_proj(mix(parts, ORDINARY, heads=pool.num_heads))
        return out[:, 0]


def _attend(pool: Any, x: Tensor, method: Method) -> Tensor:
    """Apply an attention pool to every position of a map (B, C, h, w), not only to the mean.

    Positions and their mean attend to each other without position embedding (published code, R4).
    """
    tokens = _with_mean(x)
    parts = {"query": pool.q_proj, "key": pool.k_proj, "value": pool.v_proj}
    parts = {name: projection(tokens) for name, projection in parts.items()}
    mixed = mix(parts, method.kernels, heads=pool.num_heads)
    return to_map(pool.c_proj(mixed[:, 1:]), (x.shape[2], x.shape[3]))


def _with_mean(x: Tensor) -> Tensor:
    """Turn a map (B, C, h, w) into tokens (B, 1 + hw, C), their mean first."""
    positions = x.flatten(2).transpose(1, 2)
    return torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1)


def _pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer at every position of a map (B, C, h, w)."""
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)
