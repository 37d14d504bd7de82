"""Upsampling and argmax without K full-size maps, for whole images and for sliding windows.

Bilinear interpolation is separable: per axis, every output position reads two input positions.
After one resize an output pixel lies in a cell between four grid points, its values are convex
combinations of the corners', and a class whose best corner lies under another's worst corner
cannot win anywhere in the cell: only the cell's candidates are interpolated. Overlapping windows,
and two resizes in a row, mix more than four points: their K maps are made in bands of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskclip.core.windows import Window

BAND_BYTES = 4 * 2**20
"""Memory for one band of rows of all classes' values; the peak is a few times this."""


@dataclass(frozen=True)
class Taps:
    """Bilinear interpolation along one axis: out = (1 - weight) * in[low] + weight * in[high].

    Attributes:
        low, high: (n,) int64, ascending; high is low + 1, or low at the last input position.
        weight: (n,) float32 in [0, 1].
        inputs: the number of input positions.
    """

    low: Tensor
    high: Tensor
    weight: Tensor
    inputs: int

    def __len__(self) -> int:
        return self.low.shape[0]

    def matrix(self) -> Tensor:
        """Return the same map as a dense matrix (n, inputs)."""
        full = torch.zeros(len(self), self.inputs)
        rows = torch.arange(len(self))
        full[rows, self.low] = 1 - self.weight
        full[rows, self.high] += self.weight
        return full


def bilinear_taps(inputs: int, outputs: range, *, scale: float, start: float = 0.0) -> Taps:
    """Return bilinear interpolation with pixel centres aligned (align_corners=False).

    Args:
        inputs: number of input positions; the border is repeated outside.
        outputs: the output positions wanted.
        scale: input positions per output position.
        start: where input position 0 begins, in input positions from output 0 (a window's place).
    """
    centres = torch.arange(outputs.start, outputs.stop, dtype=torch.float64) + 0.5
    source = (centres * scale - start - 0.5).clamp(0, inputs - 1)
    low = source.long()
    return Taps(low, (low + 1).clamp_max(inputs - 1), (source - low).float(), inputs)


@dataclass(frozen=True)
class Tile:
    """Maps of one window (or of the whole image) and where they lie in the output.

    Attributes:
        maps: (K, h, w) float32 on the grid.
        rows, columns: per axis the resizes from the grid to the output pixels it covers, one or
            two of them.
        top, left: the first output row and column it covers.
    """

    maps: Tensor
    rows: tuple[Taps, ...]
    columns: tuple[Taps, ...]
    top: int = 0
    left: int = 0

    @property
    def bottom(self) -> int:
        """The output row after the last one it covers."""
        return self.top + len(self.rows[-1])

    @property
    def right(self) -> int:
        """The output column after the last one it covers."""
        return self.left + len(self.columns[-1])


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
        _axis(
            maps.shape[axis + 1],
            window[axis],
            per_pixel=maps.shape[axis + 1] / covered[axis],
            ratio=seen[axis] / output[axis],
            resizes=resizes,
        )
        for axis in (0, 1)
    ]
    (rows, top), (columns, left) = axes
    return Tile(maps, rows, columns, top, left)


def _axis(
    inputs: int, window: range, *, per_pixel: float, ratio: float, resizes: int
) -> tuple[tuple[Taps, ...], int]:
    """Return one axis' resizes and the first output position they fill.

    `per_pixel` is grid positions per input pixel, `ratio` input pixels per output pixel.
    """
    first, last = (math.ceil(edge / ratio - 0.5) for edge in (window.start, window.stop))
    filled = range(first, last)
    if resizes == 1:
        scale, start = ratio * per_pixel, window.start * per_pixel
        return (bilinear_taps(inputs, filled, scale=scale, start=start),), first
    to_window = bilinear_taps(inputs, range(len(window)), scale=per_pixel)
    to_output = bilinear_taps(len(window), filled, scale=ratio, start=window.start)
    return (to_window, to_output), first


def label(tiles: Sequence[Tile], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Enlarge the tiles' maps, average them where tiles overlap, and take the best class.

    Args:
        tiles: together they cover every output pixel.
        size: (H, W) of the output.

    Returns:
        labels (H, W) int32, ties to the lower class; scores (H, W) float32, the winner's value.
    """
    device = tiles[0].maps.device
    labels = torch.empty(size, dtype=torch.int32, device=device)
    scores = torch.empty(size, dtype=torch.float32, device=device)
    by_cells = len(tiles) == 1 and len(tiles[0].rows) == 1
    parts = _by_cells(tiles[0]) if by_cells else _by_bands(tiles, size)
    for rows, winner, best in parts:
        labels[rows], scores[rows] = winner.to(torch.int32), best
    return labels, scores


Part = tuple[slice, Tensor, Tensor]
"""Some output rows, the winning class of their pixels, and its value."""


def _by_cells(tile: Tile) -> Iterator[Part]:
    """Label the rows of grid cells one by one, interpolating only the classes that can win."""
    maps = tile.maps
    (rows,), (columns,) = tile.rows, tile.columns
    cell, across = columns.low.to(maps.device), columns.weight.to(maps.device)
    beside = torch.arange(1, maps.shape[2] + 1, device=maps.device).clamp_max(maps.shape[2] - 1)
    starts = torch.searchsorted(rows.low, torch.arange(rows.inputs + 1)).tolist()
    for row in range(rows.inputs):
        part = slice(starts[row], starts[row + 1])
        if part.start == part.stop:
            continue
        above, below = maps[:, row], maps[:, min(row + 1, rows.inputs - 1)]  # K x w
        classes = _candidates(above, below, beside)  # n x w
        top, bottom = (
            torch.lerp(
                edge.gather(0, classes).index_select(1, cell),
                edge.index_select(1, beside).gather(0, classes).index_select(1, cell),
                across,
            )
            for edge in (above, below)
        )  # n x W
        winner, best = _running_best(top, bottom, rows.weight[part].to(maps.device))
        yield part, classes.index_select(1, cell).gather(0, winner), best


def _running_best(top: Tensor, bottom: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best of n rows of values, and which it is, between a top and a bottom edge.

    One class at a time, so that what is at work fits into a processor's cache.

    Args:
        top, bottom: (n, W).
        down: (r,), how far down each output row lies between them.

    Returns:
        winner (r, W) int64, ties to the first; best (r, W).
    """
    weight = down[:, None]
    best = torch.lerp(top[0], bottom[0], weight)
    winner = torch.zeros_like(best, dtype=torch.int64)
    for index in range(1, top.shape[0]):
        values = torch.lerp(top[index], bottom[index], weight)
        winner.masked_fill_(values > best, index)
        torch.maximum(best, values, out=best)
    return winner, best


def _candidates(above: Tensor, below: Tensor, beside: Tensor) -> Tensor:
    """Return the classes that can win in each cell of a row, ascending: (n, w) int64.

    A class stays when its best corner reaches the best of all worst corners. Cells with fewer
    than n such classes are filled up with others, which lose.
    """
    low, high = torch.minimum(above, below), torch.maximum(above, below)
    high = torch.maximum(high, high.index_select(1, beside))
    worst = torch.minimum(low, low.index_select(1, beside)).amax(dim=0)
    count = int((high >= worst).sum(dim=0).max())
    return high.topk(count, dim=0, sorted=False).indices.sort(dim=0).values


def _by_bands(tiles: Sequence[Tile], size: tuple[int, int]) -> Iterator[Part]:
    """Label bands of rows from all their classes' values."""
    height, width = size
    device = tiles[0].maps.device
    # An axis as one matrix: two resizes compose, and a product is faster than gathering.
    axes = [
        (_composed(tile.rows).to(device), _composed(tile.columns).T.to(device)) for tile in tiles
    ]
    step = max(1, BAND_BYTES // (4 * tiles[0].maps.shape[0] * width))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        total = tiles[0].maps.new_zeros((tiles[0].maps.shape[0], bottom - top, width))
        count = total.new_zeros((1, bottom - top, width))
        for tile, (rows, columns) in zip(tiles, axes, strict=True):
            first, last = max(top, tile.top), min(bottom, tile.bottom)
            if first < last:
                place = (slice(None), slice(first - top, last - top), slice(tile.left, tile.right))
                total[place] += rows[first - tile.top : last - tile.top] @ tile.maps @ columns
                count[place] += 1
        best, winner = total.div_(count).max(dim=0)
        yield slice(top, bottom), winner, best


def _composed(resizes: tuple[Taps, ...]) -> Tensor:
    """Return the one matrix (outputs, inputs) of resizes done in order."""
    matrix = resizes[0].matrix()
    for taps in resizes[1:]:
        matrix = taps.matrix() @ matrix
    return matrix
