"""Position tables of image towers, for grids of any size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.core.method import Method


def position_table(
    table: Tensor,
    native: tuple[int, int],
    grid: tuple[int, int],
    method: Method,
    *,
    prefix: int = 1,
) -> Tensor:
    """Return a position table (N, C) for a grid, resized where needed (published code, V6).

    An exported program has one path for all sizes, and always resizes: the native grid to itself,
    which changes nothing, and under `"count"` also a grid of as many positions in another shape,
    which `"count"` itself would read in raster order.

    Args:
        table: of a native grid, what belongs to no position first.
        native: (h, w).
        grid: (h, w) of the result.
        method: says when and how.
        prefix: how many rows belong to no position.
    """
    if not torch.compiler.is_exporting():
        count = method.position_resize == "count"
        if grid[0] * grid[1] == native[0] * native[1] if count else grid == native:
            return table
    maps = table[prefix:].float().view(1, *native, -1).permute(0, 3, 1, 2)
    maps = _resized(maps, grid, method.position_filter)
    return torch.cat([table[:prefix].float(), maps.flatten(2)[0].T])


def rotary_table(rope: Any, grid: tuple[int, int]) -> Tensor:
    """Return the sines and cosines (hw, 2c) of timm's rotary positions for a grid, float32.

    Where the network was trained on one grid, positions of others lie within it, as those of a
    position table do.

    Args:
        rope: timm's `RotaryEmbeddingCat`; its own table is of one grid.
        grid: (h, w).
    """
    from timm.layers.pos_embed_sincos import (
        build_rotary_pos_embed,  # only networks of timm have them
    )

    parts = build_rotary_pos_embed(
        list(grid),
        bands=rope.bands.float(),
        in_pixels=rope.in_pixels,
        ref_feat_shape=rope.ref_feat_shape,
        grid_offset=rope.grid_offset,
        grid_indexing=rope.grid_indexing,
        rotate_half=rope.rotate_half,
        device=rope.bands.device,
    )
    return torch.cat(parts, dim=-1)


def _resized(maps: Tensor, grid: tuple[int, int], how: str) -> Tensor:
    """Resize a position table (1, C, h, w) to a grid; `how` as in `Method.position_filter`."""
    if how == "offset":
        factors = [(side + 0.1) / native for side, native in zip(grid, maps.shape[2:], strict=True)]
        return F.interpolate(
            maps,
            scale_factor=factors,
            mode="bicubic",
            align_corners=False,
            recompute_scale_factor=False,
        )
    mode = "bilinear" if how == "bilinear" else "bicubic"
    return F.interpolate(
        maps, size=grid, mode=mode, align_corners=False, antialias=how == "antialiased"
    )
