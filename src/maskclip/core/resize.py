"""Sizes and windows of what a network sees; upsampling and argmax without K full-size maps.

Bilinear interpolation is separable: per axis, every output position reads two input positions, and
three after two resizes in a row. Of one grid's maps, only classes that can win in a cell are
interpolated (`cells`). Overlapping windows mix the points of several grids: their K maps are made
in bands of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.core import cells

BAND_BYTES = 4 * 2**20
"""Memory for one band of rows of all classes' values; the peak is a few times this."""


Window = tuple[range, range]
"""The rows and the columns of the network's input that one forward sees."""


def fit_within(size: tuple[int, int], *, short: int, long: int) -> tuple[int, int]:
    """Return the (H, W) of an image resized, with its aspect ratio, into a short and a long side.

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
    centers = torch.arange(outputs.start, outputs.stop, dtype=torch.float64) + 0.5
    source = (centers * scale - start - 0.5).clamp(0, inputs - 1)
    low = source.long()
    return Taps(low, (low + 1).clamp_max(inputs - 1), (source - low).float(), inputs)


@dataclass(frozen=True)
class Geometry:
    """Where grid maps lie in the labels made of them.

    Attributes:
        windows: what the network saw of its input: every window of `cut`.
        covered: (height, width) of input pixels that a window's grid spans; more than the window
            where padding was added.
        seen: (height, width) of the network's whole input.
        output: (H, W) of the labels.
        resizes: 1, from each grid to the output, where overlaps are averaged; 2, from each grid to
            its window's own pixels, where overlaps are averaged, and from these to the output.
    """

    windows: Sequence[Window]
    covered: tuple[int, int]
    seen: tuple[int, int]
    output: tuple[int, int]
    resizes: int


@dataclass(frozen=True)
class Tile:
    """What one window adds to the output: rows @ maps @ columns.T, from (top, left) on.

    Averaging where windows overlap is in the weights, so the output is the plain sum of all tiles.

    Attributes:
        maps: (K, h, w) float32.
        rows, columns: (n, h) and (m, w).
        top, left: the first output row and column.
    """

    maps: Tensor
    rows: Tensor
    columns: Tensor
    top: int
    left: int

    @property
    def bottom(self) -> int:
        """The output row after the last one."""
        return self.top + self.rows.shape[0]

    @property
    def right(self) -> int:
        """The output column after the last one."""
        return self.left + self.columns.shape[0]


def lay_out(maps: Tensor, geometry: Geometry) -> list[Tile]:
    """Return the tile of each window.

    Args:
        maps: (n, K, h, w), those of n windows.
        geometry: where they lie.
    """
    rows, columns = (
        _spans(
            [window[axis] for window in geometry.windows],
            maps.shape[axis + 2],
            per_pixel=maps.shape[axis + 2] / geometry.covered[axis],
            seen=geometry.seen[axis],
            output=geometry.output[axis],
            resizes=geometry.resizes,
        )
        for axis in (0, 1)
    )
    return [
        Tile(
            of_window,
            rows[window[0]].weights.to(maps.device),
            columns[window[1]].weights.to(maps.device),
            rows[window[0]].first,
            columns[window[1]].first,
        )
        for of_window, window in zip(maps, geometry.windows, strict=True)
    ]


class _Span(NamedTuple):
    """The positions from `first` on that a window's grid adds to, with its weights (n, inputs)."""

    first: int
    weights: Tensor


def _spans(
    windows: Sequence[range], inputs: int, *, per_pixel: float, seen: int, output: int, resizes: int
) -> dict[range, _Span]:
    """Return what the grids of windows add to an axis of the output.

    `per_pixel` is grid positions per input pixel. Windows are a product of rows and columns, so
    the number of windows over a pixel is one too, and each axis can be averaged on its own.
    """
    positions = output if resizes == 1 else seen
    spans = {}
    count = torch.zeros(positions)
    for window in dict.fromkeys(windows):
        ratio = seen / positions
        # The positions whose centres lie in the window.
        first, last = (math.ceil(edge / ratio - 0.5) for edge in (window.start, window.stop))
        scale, start = ratio * per_pixel, window.start * per_pixel
        taps = bilinear_taps(inputs, range(first, last), scale=scale, start=start)
        spans[window] = _Span(first, taps.matrix())
        count[first:last] += 1
    averaged = {
        window: _Span(first, weights / count[first : first + len(weights), None])
        for window, (first, weights) in spans.items()
    }
    if resizes == 1:
        return averaged
    taps = bilinear_taps(seen, range(output), scale=seen / output)
    return {window: _resized(span, taps) for window, span in averaged.items()}


def _resized(span: _Span, taps: Taps) -> _Span:
    """Follow a span by another resize of its axis."""
    first, weights = span
    full = weights.new_zeros(taps.inputs, weights.shape[1])
    full[first : first + len(weights)] = weights
    # Taps ascend: those before `start` end above the span, those from `stop` on begin below it.
    start = int((taps.high < first).sum())
    stop = int((taps.low < first + len(weights)).sum())
    down = taps.weight[start:stop, None]
    return _Span(start, torch.lerp(full[taps.low[start:stop]], full[taps.high[start:stop]], down))


def label(
    maps: Tensor, geometry: Geometry, *, dtype: torch.dtype = torch.int32
) -> tuple[Tensor, Tensor]:
    """Enlarge maps to the output, average them where windows overlap, and take the best class.

    Args:
        maps: (n, K, h, w) float32, those of n windows, which cover the network's input.
        geometry: where they lie.
        dtype: of the labels.

    Returns:
        labels (H, W), ties to the lower class; scores (H, W) float32, the winner's value.
    """
    labels = torch.empty(geometry.output, dtype=dtype, device=maps.device)
    scores = torch.empty(geometry.output, dtype=torch.float32, device=maps.device)
    for place, winner, best in _parts(maps, geometry):
        labels[place], scores[place] = winner.to(dtype), best
    return labels, scores


Part = tuple[Any, Tensor, Tensor]
"""Some output pixels (what indexes them), their winning class, and its value."""


def _parts(maps: Tensor, geometry: Geometry) -> Iterator[Part]:
    """Label all pixels of the output, some at a time."""
    if len(maps) > 1:
        yield from _by_bands(maps, geometry)
        return
    if geometry.output[0] >= 2 * maps.shape[2]:
        (tile,) = lay_out(maps, geometry)
        if max(map(cells.most_points, (tile.rows, tile.columns))) <= cells.MOST_POINTS:
            for part in cells.label(tile.maps, tile.rows, tile.columns):
                yield (part.rows[:, None], part.columns), part.labels, part.scores
            return
    # Cells are small: bands take fewer steps.
    yield from _by_taps(maps[0], geometry) if geometry.resizes == 1 else _by_bands(maps, geometry)


def _taps(maps: Tensor, geometry: Geometry) -> list[Taps]:
    """Return what one grid (K, h, w) adds to the rows and to the columns of the output."""
    grid, output = maps.shape[1:], geometry.output
    pixels = (seen / out for seen, out in zip(geometry.seen, output, strict=True))
    return [
        bilinear_taps(inputs, range(out), scale=each * inputs / covered)
        for inputs, out, each, covered in zip(grid, output, pixels, geometry.covered, strict=True)
    ]


def _by_taps(maps: Tensor, geometry: Geometry) -> Iterator[Part]:
    """Label bands of rows of a grid that is about as fine as the output."""
    rows, columns = _taps(maps, geometry)
    low, high, across = (
        part.to(maps.device) for part in (columns.low, columns.high, columns.weight)
    )
    step = max(1, BAND_BYTES // (4 * maps.shape[0] * len(columns)))
    for top in range(0, len(rows), step):
        part = slice(top, min(top + step, len(rows)))
        first, last = int(rows.low[part][0]), int(rows.high[part][-1])
        band = maps[:, first : last + 1]
        wide = torch.lerp(band.index_select(2, low), band.index_select(2, high), across)
        above, below = (
            wide.index_select(1, (edge[part] - first).to(maps.device))
            for edge in (rows.low, rows.high)
        )
        best, winner = torch.lerp(above, below, rows.weight[part, None].to(maps.device)).max(dim=0)
        yield part, winner, best


def enlarge(maps: Tensor, geometry: Geometry) -> Tensor:
    """Enlarge maps, as `label` takes them, to the output: all classes at once, (K, H, W) float32.

    For what needs them all, since `label` is there to avoid just this.
    """
    return _band(lay_out(maps, geometry), range(geometry.output[0]), geometry.output[1])


def bands(maps: Tensor, geometry: Geometry) -> Iterator[tuple[slice, Tensor]]:
    """Yield some output rows at a time, and what `enlarge` makes there: (K, rows, W)."""
    height, width = geometry.output
    tiles = lay_out(maps, geometry)
    step = max(1, BAND_BYTES // (4 * maps.shape[1] * width))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        yield slice(top, bottom), _band(tiles, range(top, bottom), width)


def _by_bands(maps: Tensor, geometry: Geometry) -> Iterator[Part]:
    """Label bands of rows from all their classes' values."""
    for rows, values in bands(maps, geometry):
        best, winner = values.max(dim=0)
        yield rows, winner, best


def _band(tiles: list[Tile], band: range, width: int) -> Tensor:
    """Return all classes' values (K, rows, width) of some rows of the output."""
    maps = tiles[0].maps
    total = maps.new_zeros((maps.shape[0], len(band), width))
    for tile in tiles:
        first, last = max(band.start, tile.top), min(band.stop, tile.bottom)
        if first < last:
            rows = tile.rows[first - tile.top : last - tile.top]
            place = slice(first - band.start, last - band.start), slice(tile.left, tile.right)
            total[:, *place] += rows @ tile.maps @ tile.columns.T
    return total
