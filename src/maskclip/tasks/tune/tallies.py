"""What labels hit of the truth, by their scores: sums from which thresholds are chosen at once.

A class's own threshold changes nothing but its own intersection over union, where what is dropped
counts as missed: so the best ones are found class by class, without labelling again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from maskclip.core.draw import Labels

BINS = 100
"""Of scores in [0, 1]; thresholds are at their lower ends."""

Counts = npt.NDArray[np.int64]
Bins = npt.NDArray[np.intp]

_LEAST_GAIN = 0.002  # in a class's IoU, for which a threshold is worth having


@dataclass(frozen=True, eq=False)
class Tally:
    """The pixels of some photos whose true class is known.

    Attributes:
        hits: (K, BINS), those labelled with class k rightly, by their score.
        labeled: (K, BINS), all that are labelled with class k.
        true: (K,), those that are of class k.
    """

    hits: Counts
    labeled: Counts
    true: Counts

    @classmethod
    def of(
        cls,
        labels: Labels,
        scores: npt.NDArray[np.float32],
        truth: Labels,
        classes: Sequence[int],
        *,
        count: int,
    ) -> Self:
        """Count a photo.

        Args:
            labels: (H, W), what was found; what is no label of `classes` is of no class.
            scores: (H, W), of the labels; below 0 and above 1 they count as these.
            truth: (H, W) true classes; those from `count` on are ignored.
            classes: what each label is among the true classes; -1 for none of them.
            count: K.
        """
        known = truth < count
        true = truth[known].astype(np.int64)
        table = np.full(np.iinfo(labels.dtype).max + 1, -1)
        table[: len(classes)] = classes
        found = table[labels[known]]
        bins = (scores[known] * BINS).astype(np.int64).clip(0, BINS - 1)
        place, some = found * BINS + bins, found >= 0

        def counted(which: npt.NDArray[np.bool_]) -> Counts:
            sums = np.bincount(place[which], minlength=count * BINS).astype(np.int64)
            return sums.reshape(count, BINS)

        return cls(
            counted(some & (found == true)),
            counted(some),
            np.bincount(true, minlength=count).astype(np.int64),
        )

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.hits + other.hits, self.labeled + other.labeled, self.true + other.true)

    def at(self, needed: Bins) -> Overlaps:
        """Return the counts of labels whose score reaches what their class (K,) needs."""
        rows = np.arange(len(self.true))
        return Overlaps(
            _from(self.hits)[rows, needed], _from(self.labeled)[rows, needed], self.true
        )


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The pixels of K classes, (K,) each: rightly labelled, labelled at all, and truly of them."""

    hits: Counts
    labeled: Counts
    true: Counts

    def __add__(self, other: Overlaps) -> Overlaps:
        return Overlaps(
            self.hits + other.hits, self.labeled + other.labeled, self.true + other.true
        )

    @property
    def ious(self) -> npt.NDArray[np.float64]:
        """(K,), NaN where a class is nowhere in the truth."""
        union = self.true + self.labeled - self.hits
        return np.where(self.true > 0, self.hits / np.maximum(union, 1), np.nan)

    @property
    def miou(self) -> float:
        """The mean over the classes that are somewhere in the truth; 0 where there are none."""
        ious = self.ious
        return float(np.nanmean(ious)) if not np.isnan(ious).all() else 0.0


def _from(counts: Counts) -> Counts:
    """Return the sums (K, BINS) of each bin and those above it."""
    return counts[:, ::-1].cumsum(axis=1)[:, ::-1]


def best_thresholds(tally: Tally, needed: Bins) -> Bins:
    """Return the bins (K,) at which each class's IoU is greatest, where that gains enough.

    Of bins that are as good the lowest is taken; classes that are nowhere in the truth keep theirs.
    """
    hits, labeled = _from(tally.hits), _from(tally.labeled)
    union = tally.true[:, None] + labeled - hits
    ious = hits / np.maximum(union, 1)
    best = ious.argmax(axis=1)
    rows = np.arange(len(needed))
    gains = ious[rows, best] - ious[rows, needed] > _LEAST_GAIN
    return np.where(gains & (tally.true > 0), best, needed)


def folds(names: Sequence[str], count: int) -> list[list[int]]:
    """Share photos out by a hash of their names: each fold's indices, as many as the others'."""
    ranked = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    return [sorted(ranked[start::count]) for start in range(min(count, len(names)))]
