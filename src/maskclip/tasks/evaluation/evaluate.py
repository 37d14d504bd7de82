"""How good is it: any predictor, on any data set, by a protocol, also under corruption."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maskclip.core.config import Options
from maskclip.core.device import choose_device
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import CLEAN, PUBLISHED, get_method
from maskclip.core.metrics import Figures, Scores
from maskclip.core.prefetch import prefetch
from maskclip.core.samples import Sample, Samples
from maskclip.data.corruptions import corrupt
from maskclip.tasks.evaluation.contact_sheet import Example
from maskclip.tasks.evaluation.examples import Extremes
from maskclip.tasks.evaluation.predictors import (
    MeasuredPredictor,
    StudentPredictor,
    ZeroShotPredictor,
)
from maskclip.tasks.evaluation.processes import Processes
from maskclip.tasks.evaluation.protocols import method_under, options_under
from maskclip.tasks.evaluation.scoring import score
from maskclip.tasks.evaluation.settings import Evaluation, Run
from maskclip.tasks.segmenter import Segmenter, load, names_student

Progress = Callable[[Iterable[Sample], int], Iterable[Sample]]
"""Passes so many samples on, showing how far the job is."""

_LIBRARIES = ("maskclip", "torch", "open_clip_torch", "numpy", "pillow")  # figures hang on them
_READERS = 2  # threads that read, decode and corrupt while the network works
_AHEAD = 4  # samples read before they are asked for


@dataclass(frozen=True, eq=False)
class Report:
    """The figures of one measurement.

    Attributes:
        samples: the data set.
        scores: the figures.
        metadata: what is needed to repeat it, ready for JSON.
        best, worst: some images, best first and worst first.
    """

    samples: Samples
    scores: Scores
    metadata: dict[str, Any]
    best: list[Example] = field(repr=False)
    worst: list[Example] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what `result.json` holds: figures in percent, None where there is nothing."""
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
        }


def percent(fraction: float) -> float | None:
    """Return a fraction in percent, None for NaN, which JSON does not know."""
    return None if math.isnan(fraction) else 100 * float(fraction)


def _by_name(names: tuple[str, ...], figures: Figures) -> dict[str, float | None]:
    return dict(zip(names, map(percent, figures.tolist()), strict=True))


def load_predictor(
    evaluation: Evaluation, samples: Samples, *, device: str = "auto"
) -> MeasuredPredictor:
    """Load the model of an evaluation and give it the data set's classes.

    Raises:
        MaskCLIPError: the model cannot be had, or an option cannot be used.
    """
    options = options_under(evaluation.protocol, evaluation.options, samples)
    vocabulary = samples.vocabulary
    if evaluation.background is not None:
        if not vocabulary.has_background:
            raise MaskCLIPError(f"{samples.name} has no background class: leave the background out")
        vocabulary = vocabulary.with_background(evaluation.background)
    if names_student(evaluation.model):
        return _load_student(evaluation, samples, options, device=device)
    segmenter = load(
        evaluation.model,
        weights=evaluation.weights,
        method=method_under(evaluation.protocol, get_method(evaluation.method)),
        device=device,
        precision=evaluation.precision,
        templates=evaluation.templates,
    )
    assert isinstance(segmenter, Segmenter)
    segmenter.text_rows(vocabulary)  # names that do not fit are refused before any image is read
    return ZeroShotPredictor(segmenter, vocabulary, options, evaluation.protocol)


def _load_student(
    evaluation: Evaluation, samples: Samples, options: Options, *, device: str
) -> MeasuredPredictor:
    from maskclip.tasks.student_segmenter import load_student, refuse_options_of_clip

    method = get_method(evaluation.method)
    refuse_options_of_clip(
        evaluation.model,
        weights=evaluation.weights is not None,
        method=method != CLEAN,
        templates=evaluation.templates != "published",
        background=evaluation.background is not None,
    )
    published = evaluation.protocol == "published"
    segmenter = load_student(
        Path(evaluation.model),
        method=method_under(evaluation.protocol, PUBLISHED if published else method),
        device=choose_device(device),
        precision=evaluation.precision,
    )
    try:
        vocabulary = segmenter.prepare(samples.vocabulary, options=options)
    except MaskCLIPError as error:
        raise MaskCLIPError(f"{samples.name}: {error}") from None
    return StudentPredictor(segmenter, vocabulary, options, evaluation.protocol)


def evaluate(
    predictor: MeasuredPredictor,
    samples: Samples,
    run: Run,
    *,
    processes: Processes | None = None,
    progress: Progress = lambda samples, _: samples,
) -> Report:
    """Measure a predictor; with several processes, each does its share and all get the figures.

    Args:
        predictor: labels images.
        samples: the data set.
        run: which images it sees.
        processes: which of several processes this is.
        progress: sees every sample of this process pass.

    Raises:
        MaskCLIPError: a sample cannot be used. Nothing is reported of the others then.
    """
    processes = processes or Processes()
    share = range(processes.rank, run.count(samples), processes.world)
    kept = Extremes()
    scores = score(
        predictor,
        progress(_read(samples, share, run), len(share)),
        classes=len(samples.vocabulary),
        ignore=samples.vocabulary.ignore,
        watch=kept.watch,
    )
    best, worst = kept.of_all(processes)
    return Report(samples, scores, describe(predictor, samples, run), best, worst)


def describe(predictor: MeasuredPredictor, samples: Samples, run: Run) -> dict[str, Any]:
    """Return what is needed to repeat a measurement, ready for JSON."""
    return {
        **samples.metadata(),
        "images": run.count(samples),
        "corruption": None if run.corruption is None else str(run.corruption),
        "seed": run.seed,
        **predictor.metadata(),
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def headline(metadata: Mapping[str, Any]) -> str:
    """Return one line that says what was measured, and on what."""
    what = metadata.get("model") or metadata["predictions"]
    images, official = metadata["images"], metadata["official_images"]
    whole = official in (None, images)
    count = f"{images:,} images" if whole else f"{images:,} of {official:,} images"
    where = f"{metadata['dataset']} {metadata['split']}, {count}"
    under = "" if metadata["corruption"] is None else f" under {metadata['corruption']}"
    return f"{what} on {where}{under}"


def settings(metadata: Mapping[str, Any]) -> str:
    """Return one line of what figures hang on; they are not to be compared across it."""
    if metadata["protocol"] is None:
        return "scored as they are"
    options = {name: value for name, value in metadata["options"].items() if value is not None}
    return " · ".join(
        [
            *(
                f"{name} {metadata[name]}"
                for name in ("protocol", "method", "templates", "background")
                if name in metadata  # a student has a protocol alone
            ),
            *(f"{name.replace('_', ' ')} {value:g}" for name, value in options.items()),
            metadata["precision"],
        ]
    )


def _read(samples: Samples, indices: range, run: Run) -> Iterator[Sample]:
    """Read samples in threads, a few ahead of the network."""
    executor = ThreadPoolExecutor(_READERS)
    return prefetch(executor, partial(_sample, samples, run), indices, ahead=_AHEAD)


def _sample(samples: Samples, run: Run, index: int) -> Sample:
    sample = samples[index]
    if run.corruption is None:
        return sample
    image = corrupt(sample.image, run.corruption, seed=run.seed, name=sample.name)
    return Sample(sample.name, image, sample.labels)
