"""How good labels are: one additive confusion matrix, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from maskclip.core.vocabulary import IGNORE

Figures = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class SplitMeans(NamedTuple):
    """Mean IoU of the classes whose labels training saw, of those it did not, and both in one."""

    seen: float
    unseen: float
    harmonic: float


@dataclass(eq=False)  # not frozen: torchmetrics rebuilds what compute() returns
class Scores:
    """Figures that follow from a confusion matrix, as fractions; NaN where they are 0 / 0.

    Attributes:
        confusion: (K + 1, K + 1) counts of pixels [true, predicted]; the last index is what is no
            class.
    """

    confusion: Counts

    @property
    def iou(self) -> Figures:
        """(K,) intersection over union; NaN for a class in neither truth nor prediction."""
        return _ratio(self._hit, self._true + self._called - self._hit)

    @property
    def accuracy(self) -> Figures:
        """(K,) share of the class's pixels that were found."""
        return _ratio(self._hit, self._true)

    @property
    def precision(self) -> Figures:
        """(K,) share of the pixels called so that are."""
        return _ratio(self._hit, self._called)

    @property
    def miou(self) -> float:
        """Mean IoU over classes that are in the truth or in a prediction."""
        return _mean(self.iou)

    @property
    def pixel_accuracy(self) -> float:
        """Share of all labelled pixels that are right."""
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
    def _hit(self) -> Counts:
        return self.confusion.diagonal()[:-1]

    @property
    def _true(self) -> Counts:
        return np.asarray(self.confusion.sum(axis=1)[:-1])

    @property
    def _called(self) -> Counts:
        return np.asarray(self.confusion.sum(axis=0)[:-1])


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Figures:
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN: nothing to judge
        return np.asarray(np.divide(part, whole, dtype=np.float64))


def _mean(figures: Figures) -> float:
    present = figures[~np.isnan(figures)]
    return float(present.mean()) if present.size else float("nan")


class ConfusionMatrix(Metric):
    """Counts of (true class, predicted class), summed over images and processes.

    As the published evaluation does (reference, Evaluation): pixels labelled 255 are dropped;
    another value outside [0, K) is dropped from its own histogram only, so that its counterpart
    still counts in the union. Such values are kept in one extra row and column.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, classes: int, *, ignore: int = IGNORE) -> None:
        super().__init__()
        self.classes = classes
        self.ignore = ignore
        size = classes + 1
        self.add_state(
            "confusion", torch.zeros(size, size, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count one image or batch; both integer tensors of one shape.

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
        """Return the figures of everything counted so far, by all processes."""
        return Scores(self.confusion.cpu().numpy().copy())
