"""How good labels are: one additive confusion matrix, and the figures that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from maskclip.core.vocabulary import IGNORE

Figures = npt.NDArray[np.float64]


@dataclass(eq=False)  # not frozen: torchmetrics rebuilds what compute() returns
class Scores:
    """Figures of a data set, as fractions; per class NaN where they are 0 / 0.

    Attributes:
        iou: (K,) intersection over union.
        accuracy: (K,) share of the class's pixels that were found.
        precision: (K,) share of the pixels called so that are.
        pixel_accuracy: share of all labelled pixels that are right.
    """

    iou: Figures
    accuracy: Figures
    precision: Figures
    pixel_accuracy: float

    @property
    def miou(self) -> float:
        """Mean IoU over classes that are in the truth or in a prediction."""
        present = self.iou[~np.isnan(self.iou)]
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
        """Return the figures of everything counted so far."""
        counts = self.confusion.cpu().numpy()
        hit = counts.diagonal()[:-1].astype(np.float64)
        true, called = counts.sum(axis=1)[:-1], counts.sum(axis=0)[:-1]
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN: nothing to judge
            return Scores(
                iou=hit / (true + called - hit),
                accuracy=hit / true,
                precision=hit / called,
                pixel_accuracy=float(hit.sum() / true.sum()) if true.sum() else float("nan"),
            )
