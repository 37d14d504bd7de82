"""What can be scored, and the loop that scores it. It knows nothing of models or data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from maskclip.core.metrics import ConfusionMatrix, Scores
from maskclip.core.segmentation import Segmentation

Predictor = Callable[[Image.Image], Segmentation]
"""Labels an image at its own size."""

Sample = tuple[Image.Image, npt.NDArray[np.integer]]
"""An image and its true labels (H, W)."""


def score(predict: Predictor, samples: Iterable[Sample], *, classes: int) -> Scores:
    """Predict every sample and compare it with its truth; memory does not grow with their number.

    Args:
        predict: image -> segmentation.
        samples: images with their true labels; 255 is ignored.
        classes: the number of classes.
    """
    metric = ConfusionMatrix(classes)
    for image, truth in samples:
        found = predict(image)
        metric.update(
            torch.from_numpy(found.labels.astype(np.int64)),
            torch.from_numpy(truth.astype(np.int64)),
        )
    scores: Scores = metric.compute()
    return scores
