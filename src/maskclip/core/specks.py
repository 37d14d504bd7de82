"""Regions so small that a line around each would be all that is seen of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SPECK = 15
"""A speck has fewer pixels than this many squares as wide as a line is, and is less than this many
lines tall. The page has the same rule (`specks.js`)."""

Ints = npt.NDArray[np.int64]


def specks(labels: npt.NDArray[np.unsignedinteger], line: int = 1) -> npt.NDArray[np.bool_]:
    """Return which pixels (H, W) are in a speck: a small region of one label, connected by sides.

    Runs of pixels of a row are joined, not pixels: of large label maps there are few.

    Args:
        labels: (H, W).
        line: the width in px of the lines between regions.
    """
    least, width = SPECK * line**2, labels.shape[1]
    begins = np.ones(labels.shape, np.bool_)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=labels.size)
    values = labels.reshape(-1)[starts]
    short = np.flatnonzero(lengths < least)
    number = np.full(len(starts), -1)
    number[short] = np.arange(len(short))

    below, under = _touching(starts, lengths, short, width)
    same = values[short[below]] == values[under]
    below, under = below[same], under[same]
    above, over = _touching(starts, lengths, short, -width)
    above = above[(values[short[above]] == values[over]) & (number[over] < 0)]
    joined = number[under] >= 0
    region = _joined(len(short), below[joined], number[under[joined]])

    large = np.zeros(len(short), np.bool_)
    large[region[below[~joined]]] = large[region[above]] = True  # beside a run that is not short
    area = np.bincount(region, weights=lengths[short], minlength=len(short))
    rows = starts[short] // width
    bottom, top = np.zeros_like(rows), np.full_like(rows, len(labels))
    np.maximum.at(bottom, region, rows)
    np.minimum.at(top, region, rows)
    small = ~large & (area < least) & (bottom - top + 1 < SPECK * line)

    found = np.zeros(labels.size, np.bool_)
    chosen = short[small[region]]
    found[_ranges(starts[chosen], lengths[chosen])[1]] = True
    return found.reshape(labels.shape)


def _touching(starts: Ints, lengths: Ints, those: Ints, step: int) -> tuple[Ints, Ints]:
    """Return pairs of runs that touch: places in `those`, and runs of the row a step away."""
    size = starts[-1] + lengths[-1]
    first, last = starts[those] + step, starts[those] + lengths[those] - 1 + step
    inside = np.flatnonzero((first >= 0) & (first < size))
    first = np.searchsorted(starts, first[inside], "right") - 1
    last = np.searchsorted(starts, last[inside], "right") - 1
    which, runs = _ranges(first, last - first + 1)
    return inside[which], runs


def _ranges(starts: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Return the numbers of ranges one after another, after the place of the range of each."""
    which = np.repeat(np.arange(len(starts)), counts)
    before = np.cumsum(counts) - counts
    return which, starts[which] + np.arange(len(which)) - before[which]


def _joined(count: int, one: Ints, other: Ints) -> Ints:
    """Return for each of so many things the first of those that it is joined with, by pairs."""
    first = np.arange(count)
    while len(one):
        one, other = first[one], first[other]
        apart = one != other
        one, other = one[apart], other[apart]
        np.minimum.at(first, np.maximum(one, other), np.minimum(one, other))
        while (first[first] != first).any():
            first = first[first]
    return first
