"""Labels of enlarged maps without enlarging them all: cell by cell, only classes that can win.

An output pixel mixes the values of few neighbouring grid points: 2 x 2 after one bilinear resize,
and up to 3 x 3 after two, where it lies across two cells. Its values are convex combinations of
these, so a class whose best point there lies under another's worst cannot win.

Pixels that mix the same points make a block. What can win in a cell's whole neighbourhood is found
among all maps at once; after that all is sparse: entries (cell, class), by which blocks of like
counts are compared together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BYTES = 2 * 2**20
"""Memory for what is at work at once; the peak is a few times this."""

MOST_POINTS = 3
"""Grid points along an axis that a pixel may mix here."""

Choose = Callable[[Tensor, Tensor], Tensor]

_CACHE = 2**18  # bytes of a few classes' maps, of which several stay near the processor
_TOGETHER = (1, 2, 4, 8, 16, 32, 64, 128, 255)
"""Counts of classes that are compared at once: each block is filled up to the next."""


class Part(NamedTuple):
    """Some pixels of the output, by their rows (R,) and columns (C,), which may come twice.

    Attributes:
        rows, columns: int64.
        labels: (R, C) int32, ties to the lower class.
        scores: (R, C), the winner's value.
    """

    rows: Tensor
    columns: Tensor
    labels: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Runs:
    """Positions of an axis in n runs of L that mix the same grid points; short ones end twice.

    Attributes:
        low: (n,) the first of these points.
        positions: (n, L).
        weights: (n, L, points).
    """

    low: Tensor
    positions: Tensor
    weights: Tensor

    @property
    def points(self) -> int:
        """How many grid points a position mixes."""
        return self.weights.shape[2]

    def at(self, chosen: Tensor) -> Runs:
        """Return some of the runs."""
        return Runs(self.low[chosen], self.positions[chosen], self.weights[chosen])


def most_points(matrix: Tensor) -> int:
    """Return how many neighbouring grid points an output position mixes at most.

    Args:
        matrix: (n, inputs), the weights of the grid points along an axis.
    """
    return int(_reach(matrix)[1].max())


def label(maps: Tensor, rows: Tensor, columns: Tensor) -> Iterator[Part]:
    """Yield the labels of rows @ maps @ columns.T, parts of all its pixels.

    Args:
        maps: (K, h, w) float32, finite.
        rows, columns: (H, h) and (W, w), not negative, each row's sum 1, with at most
            `MOST_POINTS` neighbours above 0.
    """
    down, across = _runs(rows, maps.device), _runs(columns, maps.device)
    points = max(runs.points for runs in (*down, *across))
    largest = max(r.positions.shape[1] * c.positions.shape[1] for r, c in product(down, across))
    step = max(1, BYTES // (16 * maps.shape[2] * largest))
    least, most = (float(end) for end in torch.aminmax(maps))
    slack = 8 * torch.finfo(maps.dtype).eps * max(-least, most)  # of rounding in a mean
    for top in range(0, maps.shape[1], step):
        for entries in _entries(maps, range(top, min(top + step, maps.shape[1])), points, slack):
            inside = entries.rows
            for tall, wide in product(down, across):
                own = (tall.low >= inside.start) & (tall.low < inside.stop)
                if own.any():
                    here = tall.at(own.nonzero()[:, 0])
                    yield _labeled(entries.within(tall.points, wide.points, slack), here, wide)


def _reach(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first grid point above 0 of each position, and how many from there to the last."""
    above = (matrix > 0).float()
    low = above.argmax(dim=1)
    return low, matrix.shape[1] - above.flip(1).argmax(dim=1) - low


def _runs(matrix: Tensor, device: torch.device) -> list[Runs]:
    """Cut an axis into runs, those of two points and those of more apart.

    A run is at most a cell long: those at the border are longer, and would fill up all others.
    """
    matrix = matrix.cpu()
    low, count = _reach(matrix)
    count = count.clamp_min(2)  # of one point too, whose neighbour has no weight
    padded = F.pad(matrix, (0, MOST_POINTS))
    longest = -(-matrix.shape[0] // matrix.shape[1])
    starts = ((low.diff() != 0) | (count.diff() != 0)).nonzero()[:, 0] + 1
    edges = [0, *starts.tolist(), len(low)]
    pieces = [
        (start, min(start + longest, end))
        for begin, end in pairwise(edges)
        for start in range(begin, end, longest)
    ]
    counts, found = count.tolist(), []
    for points in sorted(set(counts)):
        own = [(start, end) for start, end in pieces if counts[start] == points]
        length = max(end - start for start, end in own)
        positions = torch.tensor(
            [[min(start + i, end - 1) for i in range(length)] for start, end in own]
        )
        first = low[positions[:, 0]]
        taken = first[:, None, None] + torch.arange(points)
        weights = padded[positions[:, :, None], taken]
        found.append(Runs(first.to(device), positions.to(device), weights.to(device)))
    return found


@dataclass(frozen=True)
class _Entries:
    """Classes that can win in cells of some grid rows, by cell, then by class.

    Attributes:
        rows: the grid rows.
        width: cells from a grid row to the next, more than there are in a row.
        cells: (N,) which cell, from the first of these rows on.
        classes: (N,) which class.
        values: (N, p, p) of the p x p grid points from the cell's own on.
    """

    rows: range
    width: int
    cells: Tensor
    classes: Tensor
    values: Tensor

    def within(self, rows: int, columns: int, slack: float) -> _Entries:
        """Return those that can win among the first rows and columns of a neighbourhood."""
        if (rows, columns) == self.values.shape[1:]:
            return self
        values = self.values[:, :rows, :columns].flatten(1)
        worst = values.new_full((len(self.rows) * self.width,), -torch.inf)
        worst.scatter_reduce_(0, self.cells, values.amin(dim=1), "amax")
        loses = values.amax(dim=1) < worst[self.cells] - slack
        stay = loses.logical_not().nonzero()[:, 0]
        return _Entries(
            self.rows,
            self.width,
            self.cells[stay],
            self.classes[stay],
            self.values[stay, :rows, :columns],
        )


def _entries(maps: Tensor, rows: range, points: int, slack: float) -> Iterator[_Entries]:
    """Yield the classes that can win in the neighbourhoods of the cells of some grid rows."""
    classes, cells = _candidates(maps, rows, points, slack)
    if len(cells) * 8 * points**2 > 4 * BYTES and len(rows) > 1:  # maps of noise
        half = len(rows) // 2
        for some in (rows[:half], rows[half:]):
            yield from _entries(maps, some, points, slack)
        return
    cells, order = cells.sort(stable=True)
    classes = classes[order]
    (_, height, width), columns = maps.shape, maps.shape[2] + points - 1
    offsets = torch.arange(points, device=maps.device)
    down = (rows.start + cells[:, None] // columns + offsets).clamp_max(height - 1)
    across = (cells[:, None] % columns + offsets).clamp_max(width - 1)
    values = maps[classes[:, None, None], down[:, :, None], across[:, None]]
    yield _Entries(rows, columns, cells, classes.int(), values)


def _candidates(maps: Tensor, rows: range, points: int, slack: float) -> Tensor:
    """Return which classes can win in which cells (2, N), by class; few classes at a time.

    Cells are counted along rows that are longer by what lies beyond the border.
    """
    columns = maps.shape[2] + points - 1
    few = torch.split(maps, max(1, _CACHE // (4 * len(rows) * columns)))

    def extreme(choose: Choose, some: Tensor) -> Tensor:
        flat = _padded(some, rows, points - 1).flatten(1)
        for stride in (columns, 1):
            count, whole = flat.shape[1] - (points - 1) * stride, flat
            flat = whole[:, :count]
            for offset in range(stride, points * stride, stride):
                flat = choose(flat, whole[:, offset : offset + count])
        return flat

    worst = torch.stack([extreme(torch.minimum, some).amax(dim=0) for some in few]).amax(dim=0)
    found, first = [], 0
    for some in few:
        loses = extreme(torch.maximum, some) < worst - slack  # nothing does where values are NaN
        classes, cells = loses.logical_not().nonzero().unbind(1)
        found.append(torch.stack([classes + first, cells]))
        first += len(some)
    return torch.cat(found, dim=1)


def _padded(maps: Tensor, rows: range, more: int) -> Tensor:
    """Return some grid rows and the next ones, the last row and column repeated: (K, rows, w)."""
    classes, height, width = maps.shape
    band = maps.new_empty((classes, len(rows) + more, width + more))
    inside = min(rows.stop + more, height) - rows.start
    band[:, :inside, :width] = maps[:, rows.start : rows.start + inside]
    band[:, inside:, :width] = maps[:, -1:]
    band[:, :, width:] = band[:, :, width - 1 : width]
    return band


def _labeled(entries: _Entries, down: Runs, across: Runs) -> Part:
    """Compare the classes of all blocks: runs of rows by runs of columns."""
    count = torch.bincount(entries.cells, minlength=len(entries.rows) * entries.width)
    cells = ((down.low - entries.rows.start)[:, None] * entries.width + across.low).flatten()
    counts, ends = count[cells], count.cumsum(0)[cells]
    size = (down.positions.shape[1], across.positions.shape[1])
    labels = entries.classes.new_empty((len(cells), *size))
    scores = entries.values.new_empty(labels.shape)
    most = int(counts.max())
    for fewer, together in pairwise((0, *_TOGETHER[:-1], max(most, _TOGETHER[-1]))):
        if fewer >= most:
            break
        chosen = ((counts > fewer) & (counts <= together)).nonzero()[:, 0]
        step = max(1, BYTES // (8 * min(together, _TOGETHER[-1]) * size[0] * size[1]))
        for blocks in torch.split(chosen, step):
            rows, columns = (
                runs.weights[of]
                for runs, of in (
                    (down, blocks // len(across.low)),
                    (across, blocks % len(across.low)),
                )
            )
            taken = (ends - counts)[blocks, None] + torch.arange(together, device=cells.device)
            taken = torch.minimum(taken, ends[blocks, None] - 1)  # the last one again
            label, score = _best(entries, taken, rows, columns)
            labels.index_copy_(0, blocks, label)
            scores.index_copy_(0, blocks, score)
    shape = (len(down.low), len(across.low), *size)
    return Part(
        down.positions.flatten(),
        across.positions.flatten(),
        *(
            blocks.view(shape).transpose(1, 2).reshape(shape[0] * size[0], -1)
            for blocks in (labels, scores)
        ),
    )


def _best(entries: _Entries, taken: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best class of each pixel of m blocks, ties to the first, and its value.

    Args:
        entries: the classes, and their values at the grid points.
        taken: (m, n) which entries are compared in each block.
        rows, columns: (m, L, points) and (m, M, points), the weights of these.

    Returns:
        labels (m, L, M) int32; scores (m, L, M).
    """
    label = score = None
    for some in torch.split(taken, _TOGETHER[-1], dim=1):
        at_points = entries.values[some]  # m x n x points x points
        edges = [
            _mixed(row.unsqueeze(-2).unbind(-1), columns[:, None].unbind(-1))
            for row in at_points.unbind(2)
        ]  # of m x n x M
        values = _mixed([edge[:, :, None] for edge in edges], rows[:, None, :, None].unbind(-1))
        best = values.amax(dim=1)
        # The first that is the best; `max`, which returns both at once, takes four times as long.
        ahead = torch.arange(some.shape[1], 0, -1, dtype=torch.uint8, device=taken.device)
        found = (values == best[:, None]).view(torch.uint8) * ahead[:, None, None]
        place = (some.shape[1] - found.amax(dim=1).long()).clamp_max(some.shape[1] - 1)
        winner = entries.classes[some].gather(1, place.flatten(1)).view_as(place)
        if label is None or score is None:
            label, score = winner, best
        else:
            label = torch.where(best > score, winner, label)
            score = torch.maximum(score, best)
    assert label is not None
    assert score is not None
    return label, score


def _mixed(parts: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return the sum of parts by weights, whose own sum is 1."""
    if len(parts) == 2:
        return torch.lerp(parts[0], parts[1], weights[1])
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total += part * weight
    return total
