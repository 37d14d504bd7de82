"""Evaluate a predictor on a data set, in one process or in several."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from PIL import Image

from maskclip.core.errors import MaskCLIPError
from maskclip.core.metrics import ConfusionMatrix, Scores
from maskclip.core.prefetch import prefetch
from maskclip.core.samples import Ids, Sample, Samples
from maskclip.data.corruptions import corrupt
from maskclip.data.masks import LabelRule, doubt
from maskclip.tasks.evaluation.examples import BestAndWorst, Example
from maskclip.tasks.evaluation.predictors import Predictor
from maskclip.tasks.evaluation.settings import Run

Progress = Callable[[Iterable[Sample], int], Iterable[Sample]]
"""Passes so many samples on, and shows the progress."""

_LIBRARIES = ("maskclip", "torch", "open_clip_torch", "numpy", "pillow")  # they affect scores
_READERS = 2  # threads that read, decode and corrupt images while the network runs
_AHEAD = 4  # samples that are read in advance
_LAUNCHER_VARIABLES = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT = timedelta(days=2)  # for the slowest process; torchrun ends all when one dies


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The scores of one predictor on one data set.

    Attributes:
        samples: the data set.
        scores: the scores.
        metadata: what is needed to repeat the evaluation, ready for JSON.
        best, worst: example images, best first and worst first.
        doubts: what looks wrong with masks or predictions, one line each.
    """

    samples: Samples
    scores: Scores
    metadata: dict[str, Any]
    best: list[Example] = field(repr=False)
    worst: list[Example] = field(repr=False)
    doubts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `result.json`: scores in percent, None for undefined ones."""
        scores, names = self.scores, self.samples.vocabulary.names
        zero_shot = scores.zero_shot(self.samples.unseen)._asdict()
        return {
            "miou": percent(scores.miou),
            "pixel_accuracy": percent(scores.pixel_accuracy),
            "frequency_weighted_iou": percent(scores.frequency_weighted_iou),
            "zero_shot": {part: percent(value) for part, value in zero_shot.items()}
            if self.samples.unseen
            else None,
            "iou": _by_name(names, scores.iou),
            "accuracy": _by_name(names, scores.accuracy),
            **self.metadata,
            **({"doubts": list(self.doubts)} if self.doubts else {}),
        }


def percent(fraction: float) -> float | None:
    """Return a fraction in percent, None for NaN, which JSON does not have."""
    return None if math.isnan(fraction) else 100 * float(fraction)


def _by_name(names: tuple[str, ...], scores: npt.NDArray[np.float64]) -> dict[str, float | None]:
    return dict(zip(names, map(percent, scores.tolist()), strict=True))


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that share one evaluation, and which of them this is; one by default.

    Attributes:
        rank: index of this process.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in order of rank, in each of them."""
        values: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return the value of the main process in each of them."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the processes that `torchrun` started, while the block runs; without it, this one.

    They communicate over gloo, since they exchange only counts, on the CPU. Each uses its own GPU.

    Raises:
        MaskCLIPError: the environment is that of several processes, but not set by a launcher.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ProcessGroup()
        return
    missing = [name for name in _LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        raise MaskCLIPError(
            f"WORLD_SIZE is set but {', '.join(missing)} not: start with torchrun, or unset it"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def evaluate(
    predictor: Predictor,
    samples: Samples,
    run: Run,
    *,
    group: ProcessGroup | None = None,
    progress: Progress = lambda samples, _: samples,
) -> EvaluationResult:
    """Evaluate a predictor; several processes take a share each, and all return the same scores.

    Args:
        predictor: labels images.
        samples: the data set.
        run: which images of it.
        group: the processes that share the work; None is this one alone.
        progress: is given the samples of this process as they are read.

    Raises:
        MaskCLIPError: a sample cannot be used; there is no result then.
    """
    group = group or ProcessGroup()
    share = range(group.rank, run.count(samples), group.world_size)
    examples = BestAndWorst()
    ignored = 0

    def on_sample(sample: Sample, prediction: Ids, of_image: Scores) -> None:
        nonlocal ignored
        ignored += bool((sample.labels == samples.vocabulary.ignore).any())
        examples.update(sample, prediction, of_image)

    scores = score(
        predictor,
        progress(read_samples(samples, share, run), len(share)),
        classes=len(samples.vocabulary),
        ignore=samples.vocabulary.ignore,
        on_sample=on_sample,
    )
    best, worst = BestAndWorst.merge(group.all_gather(examples))
    doubts = find_doubts(
        scores, samples, masks=run.count(samples), ignored=sum(group.all_gather(ignored))
    )
    return EvaluationResult(samples, scores, describe(predictor, samples, run), best, worst, doubts)


def find_doubts(scores: Scores, samples: Samples, *, masks: int, ignored: int) -> tuple[str, ...]:
    """Return what the counts of pixels say about masks and predictions, one line each.

    Args:
        scores: of all samples.
        samples: the data set.
        masks: how many samples were scored.
        ignored: how many of them have ignored pixels.
    """
    words, counts = samples.vocabulary, scores.confusion
    true, total = counts.sum(axis=1)[:-1], max(int(counts[:-1].sum()), 1)
    shifted = _shift(counts[:-1, :-1], total)
    doubts: list[str | None] = []
    if samples.official is None and shifted is None:  # the masks of benchmarks are what they are
        doubts.append(doubt(words.names, true, LabelRule.of(words), masks=masks, ignored=ignored))
    unknown = int(counts[:-1, -1].sum())
    if unknown:
        doubts.append(
            f"{100 * unknown / total:.1f} % of the labelled pixels have no prediction, and count "
            "as wrong"
        )
    doubts.append(shifted)
    return tuple(line for line in doubts if line is not None)


def _shift(counts: npt.NDArray[np.int64], total: int) -> str | None:
    """Return that predictions and masks are one apart, None if they are not.

    Args:
        counts: (K, K) pixels [true, predicted].
        total: number of labelled pixels.
    """
    hits = int(counts.trace())
    for shift, found, masks in ((1, "high", "low"), (-1, "low", "high")):
        shifted = np.sort(counts.diagonal(shift))
        # One class confused with the next is no shift; two and most of the pixels are.
        if (
            len(shifted) > 1
            and shifted.sum() > max(2 * hits, total / 2)
            and (shifted[-2] > total / 100)
        ):
            return (
                f"predictions are one too {found} in {100 * shifted.sum() / total:.0f} % of the "
                f"pixels, and right in {100 * hits / total:.0f} %, or the masks are one too "
                f"{masks}: do the ids of one of the two count from 1? All must count from 0"
            )
    return None


def score(
    predict: Callable[[str, Image.Image], Ids],
    samples: Iterable[Sample],
    *,
    classes: int,
    ignore: int,
    on_sample: Callable[[Sample, Ids, Scores], None] | None = None,
) -> Scores:
    """Predict every sample and compare it with its ground truth; memory is constant.

    If torch.distributed is initialised, the scores are those of the samples of all processes.

    Args:
        predict: (id, RGB image W x H) -> class ids (H, W).
        samples: images with ground truth.
        classes: the number of classes.
        ignore: the label of ignored pixels.
        on_sample: called with each sample, its prediction and the scores of this image alone.

    Raises:
        ValueError: a prediction has another shape than its ground truth.
    """
    metric = ConfusionMatrix(classes, ignore=ignore)
    for sample in samples:
        prediction = predict(sample.name, sample.image)
        predicted = torch.from_numpy(prediction.astype(np.int64))
        truth = torch.from_numpy(sample.labels.astype(np.int64))
        of_image: Scores = metric(predicted, truth)
        if on_sample is not None:
            on_sample(sample, prediction, of_image)
    scores: Scores = metric.compute()
    return scores


def describe(predictor: Predictor, samples: Samples, run: Run) -> dict[str, Any]:
    """Return what is needed to repeat an evaluation, ready for JSON."""
    return {
        **samples.metadata(),
        "images": run.count(samples),
        "corruption": None if run.corruption is None else str(run.corruption),
        "seed": run.seed,
        **predictor.metadata(),
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def read_samples(samples: Samples, indices: range, run: Run) -> Iterator[Sample]:
    """Read samples in threads, a few in advance of the network."""
    executor = ThreadPoolExecutor(_READERS)
    return prefetch(executor, partial(_sample, samples, run), indices, ahead=_AHEAD)


def _sample(samples: Samples, run: Run, index: int) -> Sample:
    sample = samples[index]
    if run.corruption is None:
        return sample
    image = corrupt(sample.image, run.corruption, seed=run.seed, name=sample.name)
    return Sample(sample.name, image, sample.labels)
