"""What can be scored, and the loop that scores it. It knows nothing of models or data sets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from maskclip.core.metrics import ConfusionMatrix, Scores
from maskclip.core.vocabulary import Vocabulary

Ids = npt.NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Sample:
    """An image with its truth.

    Attributes:
        name: its id within the data set.
        image: RGB, W x H.
        labels: (H, W) class ids, or the ignored one.
    """

    name: str
    image: Image.Image
    labels: Ids


@dataclass(frozen=True, eq=False, kw_only=True)
class Samples(Sequence[Sample], ABC):
    """A split of a data set; its samples are read when they are asked for, from any thread.

    Attributes:
        name, split: what users type.
        vocabulary: its classes.
        official: how many samples there officially are; None where nobody says.
        unseen: ids of the classes that the zero-shot split holds back.
        scale: (long, short) side of the published test size in px (reference fact S3).
        windows_short: short side in px under the protocol of sliding windows.
    """

    name: str
    split: str
    vocabulary: Vocabulary
    official: int | None = None
    unseen: tuple[int, ...] = ()
    scale: tuple[int, int] = (2048, 512)
    windows_short: int = 336

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The ids of the samples, in order."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        """Read a sample.

        Raises:
            MaskCLIPError: its files cannot be used.
        """

    def __len__(self) -> int:
        return len(self.names)

    def check(self, count: int) -> None:  # nothing to do where nothing can be missing
        """Make sure that the first `count` samples are there, before any is used.

        Raises:
            MaskCLIPError: some are not.
        """

    def facts(self) -> dict[str, Any]:
        """Return which samples these are, ready for JSON."""
        return {"dataset": self.name, "split": self.split, "official_images": self.official}


Predictor = Callable[[str, Image.Image], Ids]
"""Labels an image: (id, RGB image W x H) -> class ids (H, W)."""

Watcher = Callable[[Sample, Ids, Scores], None]
"""Sees every sample with its prediction and the figures of this image alone."""


def score(
    predict: Predictor,
    samples: Iterable[Sample],
    *,
    classes: int,
    ignore: int,
    watch: Watcher | None = None,
) -> Scores:
    """Predict every sample and compare it with its truth; memory does not grow with their number.

    Where torch.distributed runs, the figures are those of the samples of all processes together.

    Args:
        predict: labels an image.
        samples: images with their truth.
        classes: the number of classes.
        ignore: the label of pixels that do not count.
        watch: is shown each sample.

    Raises:
        ValueError: a prediction has another shape than its truth.
    """
    metric = ConfusionMatrix(classes, ignore=ignore)
    for sample in samples:
        prediction = predict(sample.name, sample.image)
        found = torch.from_numpy(prediction.astype(np.int64))
        truth = torch.from_numpy(sample.labels.astype(np.int64))
        alone: Scores = metric(found, truth)
        if watch is not None:
            watch(sample, prediction, alone)
    scores: Scores = metric.compute()
    return scores
