"""What can be scored, and the loop that scores it. It knows nothing of models or data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image

from maskclip.core.metrics import ConfusionMatrix, Scores
from maskclip.core.samples import Ids, Sample

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
