"""The metrics of semantic segmentation, all computed from one additive confusion matrix."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import IGNORE

MAX_SCORED = 16_384
"""The most classes that are scored: their counts take 2 GiB."""

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class SplitMeans(NamedTuple):
    """Mean IoU of the seen and of the unseen classes, and the harmonic mean of the two."""

    seen: float
    unseen: float
    harmonic: float


@dataclass(eq=False)  # not frozen: torchmetrics rebuilds what compute() returns
class Scores:
    """The metrics of a confusion matrix, as fractions; NaN where they are 0 / 0.

    Attributes:
        confusion: (K + 1, K + 1) counts of pixels [true, predicted]; the last index is for values
            that are not a class.
    """

    confusion: Counts

    @property
    def iou(self) -> Floats:
        """(K,) intersection over union; NaN for a class in neither ground truth nor prediction."""
        return _ratio(*self.overlaps)

    @property
    def accuracy(self) -> Floats:
        """(K,) share of the pixels of a class that are predicted as it (recall)."""
        return _ratio(self._hit, self._true)

    @property
    def precision(self) -> Floats:
        """(K,) share of the pixels predicted as a class that are of it."""
        return _ratio(self._hit, self._predicted)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that are in the ground truth or in a prediction."""
        return _mean(self.iou)

    @property
    def classes(self) -> int:
        """Number of classes that have a pixel in the ground truth."""
        return int(np.count_nonzero(self._true))

    @property
    def pixel_accuracy(self) -> float:
        """Share of all labelled pixels that are correct."""
        return float(_ratio(self._hit.sum(), self._true.sum()))

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU, each class weighted by its share of the labelled pixels."""
        total = self._true.sum()
        return float(np.nansum(self.iou * self._true) / total) if total else float("nan")

    def zero_shot(self, unseen: Collection[int]) -> SplitMeans:
        """Return the mean IoU of seen and unseen classes, and the harmonic mean of the two."""
        held_back = np.isin(np.arange(len(self._hit)), list(unseen))
        seen, new = _mean(self.iou[~held_back]), _mean(self.iou[held_back])
        both = seen + new
        return SplitMeans(seen, new, 2 * seen * new / both if both else both)

    @property
    def overlaps(self) -> Counts:
        """(2, K) pixels of the intersection and of the union of each class."""
        return np.stack([self._hit, self._true + self._predicted - self._hit])

    @property
    def _hit(self) -> Counts:
        return self.confusion.diagonal()[:-1]

    @property
    def _true(self) -> Counts:
        return np.asarray(self.confusion.sum(axis=1)[:-1])

    @property
    def _predicted(self) -> Counts:
        return np.asarray(self.confusion.sum(axis=0)[:-1])


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN: undefined
        return np.asarray(np.divide(part, whole, dtype=np.float64))


def _mean(values: Floats) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def influences(overlaps: Counts) -> Floats:
    """Return how much each image moves mean IoU: its derivative by the image's weight.

    The standard error of mean IoU is about the root of the sum of their squares (the infinitesimal
    jackknife, Jaeckel 1972); that of the difference of two predictors on the same images, of the
    squares of the differences. A class that is in m images weighs sqrt(m / (m - 1)) as much, as
    the errors of so few would be too small otherwise; one that is in a single image tells nothing.

    Args:
        overlaps: (n, 2, K) `Scores.overlaps` of each image alone.

    Returns:
        (n,) in the unit of mean IoU as a fraction; they sum to 0.
    """
    total = overlaps.sum(axis=0)
    present = total[1] > 0
    hits, unions = (overlaps[:, part][:, present] for part in (0, 1))
    hit, union = total[:, present]
    images = np.count_nonzero(unions, axis=0)
    own = np.sqrt(images / np.maximum(images - 1, 1)) / max(len(union), 1)
    return np.asarray(((hits - unions * (hit / union)) / union * own).sum(axis=1))


class ConfusionMatrix(Metric):
    """Counts of (true class, predicted class), summed over images and, unless `alone`, processes.

    Pixels with the label `ignore` are left out. Other values outside [0, K) count in one extra row
    and column: they belong to no class, but the other value of such a pixel still counts in the
    union of its class (published code, E1 and E2).

    Raises:
        MaskCLIPError: there are more than `MAX_SCORED` classes.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, classes: int, *, ignore: int = IGNORE, alone: bool = False) -> None:
        super().__init__(sync_on_compute=not alone)
        if classes > MAX_SCORED:
            raise MaskCLIPError(
                f"{classes:,} classes cannot be scored: a count for each pair of them takes "
                f"{8 * classes**2 / 2**30:.0f} GiB; expected at most {MAX_SCORED:,}"
            )
        self.classes = classes
        self.ignore = ignore
        size = classes + 1
        self.add_state(
            "confusion", torch.zeros(size, size, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count the pixels of an image or a batch; both are integer tensors of one shape.

        Raises:
            ValueError: the shapes differ.
        """
        if prediction.shape != label.shape:
            raise ValueError(
                f"expected a prediction of the label's shape {tuple(label.shape)}, "
                f"got {tuple(prediction.shape)}"
            )
        counted = label != self.ignore
        size = self.classes + 1
        rows, columns = (
            torch.where((values < 0) | (values >= self.classes), self.classes, values)
            for values in (label[counted].long(), prediction[counted].long())
        )
        counts = torch.bincount(rows * size + columns, minlength=size * size)
        self.confusion += counts.view(size, size)

    def compute(self) -> Scores:
        """Return the metrics of everything counted so far, by all processes."""
        return Scores(self.confusion.cpu().numpy().copy())
