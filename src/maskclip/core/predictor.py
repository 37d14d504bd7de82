"""What can be scored, and the loop that scores it. It knows nothing of models or data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from maskclip.core.metrics import ConfusionMatrix, Scores
from maskclip.core.segmentation import Segmentation
from maskclip.core.vocabulary import IGNORE

Predictor = Callable[[Image.Image], Segmentation]
"""Labels an image at its own size."""

Sample = tuple[Image.Image, npt.NDArray[np.integer]]
"""An image and its true labels (H, W)."""


def score(
    predict: Predictor, samples: Iterable[Sample], *, classes: int, ignore: int = IGNORE
) -> Scores:
    """Predict every sample and compare it with its truth; memory does not grow with their number.

    Args:
        predict: image -> segmentation.
        samples: images with their true labels.
        classes: the number of classes.
        ignore: the label of pixels that do not count.
    """
    metric = ConfusionMatrix(classes, ignore=ignore)
    for image, truth in samples:
        found = predict(image)
        metric.update(
            torch.from_numpy(found.labels.astype(np.int64)),
            torch.from_numpy(truth.astype(np.int64)),
        )
    scores: Scores = metric.compute()
    return scores
