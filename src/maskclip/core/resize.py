"""Upsampling and argmax without K full-size maps, for whole images and for sliding windows.

Bilinear interpolation is separable and linear, so an axis is described once, by `Taps`: for every
output position the few input positions it reads and their weights. Two resizes in a row compose
into one. Labels are made in bands of rows: K maps exist only for the band at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BAND_BYTES = 16 * 2**20
"""Memory for one band of interpolated maps; a few times this is the peak."""


Window = tuple[range, range]
"""The rows and the columns of the network's input that one forward sees."""


@dataclass(frozen=True)
class Taps:
    """A linear map along one axis: out[i] = sum over t of weight[i, t] * in[index[i, t]].

    Attributes:
        index: (n, t) int64.
        weight: (n, t) float32; rows sum to one.
    """

    index: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return self.index.shape[0]

    def __getitem__(self, rows: slice) -> Taps:
        return Taps(self.index[rows], self.weight[rows])

    def to(self, device: torch.device) -> Taps:
        """Return the same taps on a device."""
        return Taps(self.index.to(device), self.weight.to(device))

    def apply(self, maps: Tensor, *, dim: int) -> Tensor:
        """Map axis `dim` of `maps` from the input length to `len(self)`."""
        shape = [1] * maps.ndim
        shape[dim] = len(self)
        out = maps.index_select(dim, self.index[:, 0]) * self.weight[:, 0].view(shape)
        for t in range(1, self.index.shape[1]):
            out.addcmul_(maps.index_select(dim, self.index[:, t]), self.weight[:, t].view(shape))
        return out

    def after(self, first: Taps) -> Taps:
        """Return the one map that does `first`, then this one."""
        index = first.index[self.index].flatten(1)
        weight = (first.weight[self.index] * self.weight.unsqueeze(2)).flatten(1)
        return Taps(index, weight)


def bilinear_taps(inputs: int, outputs: range, *, scale: float, start: float = 0.0) -> Taps:
    """Return the taps of bilinear interpolation with pixel centres aligned (align_corners=False).

    Args:
        inputs: number of input positions; the border is repeated outside.
        outputs: the output positions wanted.
        scale: input positions per output position.
        start: where input position 0 begins, in input positions from output 0 (a window's place).
    """
    centres = torch.arange(outputs.start, outputs.stop, dtype=torch.float64) + 0.5
    source = (centres * scale - start - 0.5).clamp(0, inputs - 1)
    low = source.long()
    high = (low + 1).clamp_max(inputs - 1)
    weight = (source - low).float()
    return Taps(torch.stack([low, high], dim=1), torch.stack([1 - weight, weight], dim=1))


@dataclass(frozen=True)
class Tile:
    """Maps of one window (or of the whole image) and where they lie in the output.

    Attributes:
        maps: (K, h, w) float32 on the grid.
        rows, columns: taps from the grid to the output pixels that the tile covers.
        top, left: the first output row and column it covers.
    """

    maps: Tensor
    rows: Taps
    columns: Taps
    top: int = 0
    left: int = 0

    @property
    def bottom(self) -> int:
        """The output row after the last one it covers."""
        return self.top + len(self.rows)

    @property
    def right(self) -> int:
        """The output column after the last one it covers."""
        return self.left + len(self.columns)


def label(tiles: Sequence[Tile], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Enlarge the tiles' maps, average them where tiles overlap, and take the best class.

    Args:
        tiles: together they cover every output pixel.
        size: (H, W) of the output.

    Returns:
        labels (H, W) int32, ties to the lower class; scores (H, W) float32, the winner's value.
    """
    height, width = size
    classes = tiles[0].maps.shape[0]
    device = tiles[0].maps.device
    rows_per_band = max(1, BAND_BYTES // (4 * classes * width))
    labels = torch.empty(size, dtype=torch.int32, device=device)
    scores = torch.empty(size, dtype=torch.float32, device=device)
    for top in range(0, height, rows_per_band):
        bottom = min(top + rows_per_band, height)
        band = _band(tiles, top, bottom, width)
        best, winner = band.max(dim=0)
        labels[top:bottom], scores[top:bottom] = winner.to(torch.int32), best
    return labels, scores


def _band(tiles: Sequence[Tile], top: int, bottom: int, width: int) -> Tensor:
    """Return the averaged maps of output rows [top, bottom): (K, bottom - top, width)."""
    if len(tiles) == 1:
        return _enlarge(tiles[0], top, bottom)
    maps = tiles[0].maps
    total = maps.new_zeros((maps.shape[0], bottom - top, width))
    count = maps.new_zeros((1, bottom - top, width))
    for tile in tiles:
        first, last = max(top, tile.top), min(bottom, tile.bottom)
        if first < last:
            place = (slice(None), slice(first - top, last - top), slice(tile.left, tile.right))
            total[place] += _enlarge(tile, first, last)
            count[place] += 1
    return total.div_(count)


def _enlarge(tile: Tile, top: int, bottom: int) -> Tensor:
    rows = tile.rows[top - tile.top : bottom - tile.top]
    return tile.columns.apply(rows.apply(tile.maps, dim=1), dim=2)


def fit_within(size: tuple[int, int], *, short: int, long: int) -> tuple[int, int]:
    """Return the (H, W) that fits an image into a short and a long side, keeping its shape.

    The factor is the smaller of long / longest side and short / shortest side, and sizes are
    int(x * factor + 0.5), as the published test pipeline does (reference fact S3); at least 1.
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


def place(
    maps: Tensor,
    window: Window,
    *,
    covered: tuple[int, int],
    seen: tuple[int, int],
    output: tuple[int, int],
    resizes: int,
) -> Tile:
    """Return the tile that a window's maps fill: the output pixels whose centres lie in it.

    Args:
        maps: (K, h, w) on the window's grid.
        window: the rows and columns of the network's input that it saw.
        covered: input pixels that the grid spans; more than the window where padding was added.
        seen: (height, width) of the network's whole input.
        output: (H, W) of the labels.
        resizes: 1, from grid to output; 2, by way of the window's own pixels.
    """
    axes = [
        _axis_taps(
            maps.shape[axis + 1],
            window[axis],
            per_pixel=maps.shape[axis + 1] / covered[axis],
            ratio=seen[axis] / output[axis],
            resizes=resizes,
        )
        for axis in (0, 1)
    ]
    (rows, top), (columns, left) = axes
    return Tile(maps, rows.to(maps.device), columns.to(maps.device), top, left)


def _axis_taps(
    inputs: int, window: range, *, per_pixel: float, ratio: float, resizes: int
) -> tuple[Taps, int]:
    """Return one axis' taps and the first output position they fill.

    `per_pixel` is grid positions per input pixel, `ratio` input pixels per output pixel.
    """
    first, last = (math.ceil(edge / ratio - 0.5) for edge in (window.start, window.stop))
    filled = range(first, last)
    if resizes == 1:
        scale, start = ratio * per_pixel, window.start * per_pixel
        return bilinear_taps(inputs, filled, scale=scale, start=start), first
    to_window = bilinear_taps(inputs, range(len(window)), scale=per_pixel)
    to_output = bilinear_taps(len(window), filled, scale=ratio, start=window.start)
    return to_output.after(to_window), first


def windows(size: tuple[int, int], *, window: int | None, stride: int | None) -> list[Window]:
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
