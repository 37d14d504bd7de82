"""Sizes and sliding windows: where a network looks at an image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Window = tuple[range, range]
"""The rows and the columns of the network's input that one forward sees."""


def fit_within(size: tuple[int, int], *, short: int, long: int) -> tuple[int, int]:
    """Return the (H, W) that fits an image into a short and a long side, keeping its shape.

    The factor is the smaller of long / longest side and short / shortest side, and sizes are
    int(x * factor + 0.5), as the published test pipeline does (published code, S3); at least 1.
    """
    factor = min(long / max(size), short / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along an axis so that they cover it; the last one is moved back.

    An axis no longer than the window gets one start, 0.
    """
    if length <= window:
        return [0]
    count = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def cut(size: tuple[int, int], *, window: int | None, stride: int | None) -> list[Window]:
    """Cut an image of `size` (H, W) into windows; without `window` it is one."""
    if window is None:
        return [(range(size[0]), range(size[1]))]
    step = stride or max(1, window // 2)
    rows, columns = (
        [range(start, min(start + window, length)) for start in window_starts(length, window, step)]
        for length in size
    )
    return [(r, c) for r in rows for c in columns]


def pad_bottom_right(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Zero-pad (B, C, H, W) at the bottom and the right to `size`."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, size[1] - width, 0, size[0] - height))
