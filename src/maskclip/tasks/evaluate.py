"""How good a model is on the embedded world: scenes never trained on, all classes as candidates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core.files import atomic_path
from maskclip.core.metrics import Scores
from maskclip.core.predictor import Ids, Sample, score
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import EVALUATION_SEEDS, iter_scenes
from maskclip.tasks.options import DEFAULT_OPTIONS, Options
from maskclip.tasks.segment import Segmenter

Progress = Callable[[range], Iterable[int]]
"""Passes scene seeds on, showing how far the job is."""


def evaluate_emoji(
    segmenter: Segmenter,
    *,
    limit: int | None = None,
    size: int = 256,
    options: Options = DEFAULT_OPTIONS,
    progress: Progress = iter,
) -> dict[str, Any]:
    """Score a segmenter on the held-out scenes of the embedded world.

    Args:
        segmenter: the model to score.
        limit: use the first so many scenes only.
        size: side of the scenes in px.
        options: how images are cut and maps refined.
        progress: sees every seed pass.

    Returns:
        What `result.json` holds: `miou`, `pixel_accuracy` and `iou` by class name in percent
        (None for classes in neither truth nor prediction), and what is needed to repeat it.
    """
    vocabulary = Vocabulary.builtin("emoji")
    seeds = EVALUATION_SEEDS[:limit]

    def predict(_: str, image: Image.Image) -> Ids:
        return segmenter.segment(image, vocabulary, **asdict(options)).labels

    samples = (
        Sample(str(seed), Image.fromarray(scene.image), scene.labels)
        for seed, scene in zip(seeds, iter_scenes(progress(seeds), size=size), strict=True)
    )
    scores = score(predict, samples, classes=len(vocabulary), ignore=vocabulary.ignore)
    return {
        "dataset": "emoji",
        **_figures(scores, vocabulary),
        "scenes": {"first_seed": seeds.start, "count": len(seeds), "size": size},
        "model": segmenter.clip.name,
        "weights": segmenter.clip.fingerprint,
        "method": segmenter.method.name,
        "templates": segmenter.templates,
        "precision": str(segmenter.precision).removeprefix("torch."),
        "options": asdict(options),
        "versions": {name: version(name) for name in ("maskclip", "torch", "open_clip_torch")},
    }


def _figures(scores: Scores, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "miou": _percent(scores.miou),
        "pixel_accuracy": _percent(scores.pixel_accuracy),
        "iou": dict(zip(vocabulary.names, map(_percent, scores.iou), strict=True)),
    }


def _percent(fraction: float | npt.NDArray[np.float64]) -> float | None:
    value = 100 * float(fraction)
    return None if math.isnan(value) else value


def write_result(result: dict[str, Any], out: Path) -> Path:
    """Write `result.json` into a folder, whole or not at all; return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    path = out / "result.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path
