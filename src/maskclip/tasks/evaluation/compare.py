"""Readings side by side: models by methods, each with several refinements, on the same images.

A photo is read and encoded once by each reading, and scored once for every refinement of it. A
refinement's time is that of the encoding and of its own scoring, so that figures are those of the
refinement alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from maskclip.clip.checkpoint import MissingWeightsError
from maskclip.clip.towers import UnsupportedMethodError, UnsupportedTowerError
from maskclip.clip.weights import remembering
from maskclip.core.config import Options
from maskclip.core.device import Cost, costing, is_out_of_memory, machine
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import CLEAN
from maskclip.core.methods import AUTO, get_method
from maskclip.core.metrics import ConfusionMatrix, Counts, Scores, influences
from maskclip.core.regions import SLIC
from maskclip.core.samples import Ids, Sample, Samples
from maskclip.tasks.evaluation.cells import COMPARED, REASON, Cell, Content, Work, run_cells
from maskclip.tasks.evaluation.evaluate import (
    EvaluationResult,
    ProcessGroup,
    Progress,
    describe,
    find_doubts,
    read_samples,
)
from maskclip.tasks.evaluation.predictors import ModelPredictor, load_predictor, settle_method
from maskclip.tasks.evaluation.settings import Evaluation, Run, options_under

LEFT_OUT = (UnsupportedMethodError, UnsupportedTowerError, MissingWeightsError)
"""Errors of a model that a method cannot read, or that cannot be had."""

LACKING = "lacking"
"""The key of a cell that cannot be measured because its model cannot be had."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A model by a method on a data set, and the cells in which its maps are refined.

    Attributes:
        evaluation: the settings of all cells, but for the refinement.
        samples: the data set.
        run: which images of it.
        cells: name of the cell -> what refines it, of `refined`.
    """

    evaluation: Evaluation
    samples: Samples
    run: Run
    cells: Mapping[str, tuple[str, ...]]

    def open(self, device: str) -> dict[str, ModelPredictor | MaskCLIPError]:
        """Load the model; return the predictor of each cell, or why there is none.

        Raises:
            MaskCLIPError: the model cannot be had, or not be read by the method.
        """
        base, why = settle_method(self.evaluation, self.samples)
        named = base.model.method  # that of a student is its own, whatever is named
        method = CLEAN if named == AUTO else get_method(named)
        predictor = load_predictor(base, self.samples, device=device, why=why)
        assert isinstance(predictor, ModelPredictor)
        found: dict[str, ModelPredictor | MaskCLIPError] = {}
        for name, refine in self.cells.items():
            options = refined(base.options, refine)
            options = options_under(base.protocol, options, self.samples, method)
            try:
                found[name] = predictor.refined(options)
            except MaskCLIPError as error:
                found[name] = error
        return found


def refined(options: Options, names: tuple[str, ...]) -> Options:
    """Return options with these refinements in place of others; `slic` lets superpixels vote."""
    by_names = tuple(name for name in names if name != SLIC)
    return replace(
        options,
        refine=by_names,
        refine_size=options.refine_size if by_names else None,
        pamr_iterations=options.pamr_iterations if "pamr" in by_names else None,
        pamr_dilations=options.pamr_dilations if "pamr" in by_names else None,
        regions=SLIC if SLIC in names else None,
    )


def run_readings(
    readings: Sequence[Reading],
    out: Path,
    *,
    device: str = "auto",
    group: ProcessGroup | None = None,
    progress: Callable[[Reading], Progress] = lambda _: lambda samples, _: samples,
    leave_out: tuple[type[MaskCLIPError], ...] = LEFT_OUT,
) -> Iterator[Cell]:
    """Measure the cells of all readings that have no result yet; whole readings are shared out.

    Args:
        readings: in the order of measuring.
        out: the folder of the results, one JSON file a cell.
        device: as `load` takes it.
        group: the processes that share the readings; each gets all cells.
        progress: of a reading, as `evaluate` takes it.
        leave_out: errors of loading that leave a reading out, with the reason, instead of ending
            everything.

    Raises:
        MaskCLIPError: a model cannot be loaded, a sample not be read, or a result that is there is
            of other settings.
    """
    group = group or ProcessGroup()
    with remembering():
        works = []
        lacking: dict[tuple[str | None, ...], MissingWeightsError] = {}
        for reading in readings:
            config = reading.evaluation.model
            model = (config.name, config.weights, config.tokenizer)
            try:
                if model in lacking:  # not looked for again by each method
                    raise lacking[model]
                predictors = reading.open(device)
            except leave_out as error:
                if isinstance(error, MissingWeightsError):
                    lacking[model] = error
                yield from _impossible(dict.fromkeys(reading.cells, error))
                continue
            wanted, refused = {}, {}
            for name, one in predictors.items():
                if isinstance(one, MaskCLIPError):
                    refused[name] = one
                else:
                    wanted[name] = describe(one, reading.samples, reading.run)
            yield from _impossible(refused)
            works.append(Work(wanted, _measuring(reading, device, progress(reading)), COMPARED))
            del predictors, one  # only one model is held at a time
        yield from run_cells(works, out, group=group, apart=True)


def _impossible(reasons: Mapping[str, MaskCLIPError]) -> Iterator[Cell]:
    for name, error in reasons.items():
        if isinstance(error, MissingWeightsError):
            yield Cell(name, {REASON: error.reason, LACKING: True}, kept=False)
        else:
            yield Cell(name, {REASON: str(error)}, kept=False)


def _measuring(
    reading: Reading, device: str, progress: Progress
) -> Callable[[Sequence[str]], Iterator[tuple[str, Content]]]:
    def measure_missing(names: Sequence[str]) -> Iterator[tuple[str, Content]]:
        opened = reading.open(device)
        predictors = {name: opened[name] for name in names}
        ready = {name: one for name, one in predictors.items() if isinstance(one, ModelPredictor)}
        return measure(ready, reading.samples, reading.run, progress=progress)

    return measure_missing


@dataclass(eq=False)
class _Tally:
    """What is counted for one cell."""

    matrix: ConfusionMatrix
    overlaps: list[Counts] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[int | None] = field(default_factory=list)

    def add(self, sample: Sample, ids: Ids, costs: Sequence[Cost]) -> None:
        predicted, truth = (
            torch.from_numpy(each.astype(np.int64)) for each in (ids, sample.labels)
        )
        of_image: Scores = self.matrix(predicted, truth)
        self.overlaps.append(of_image.overlaps)
        self.seconds.append(sum(cost.seconds for cost in costs))
        self.memory += [cost.memory for cost in costs]

    def figures(self) -> dict[str, Any]:
        """Return the figures of a cell beside its scores, ready for JSON."""
        known = [peak for peak in self.memory if peak is not None]
        moved = 100 * influences(np.stack(self.overlaps)) if self.overlaps else np.zeros(0)
        return {
            "seconds": median(self.seconds) if self.seconds else None,
            "memory_mib": max(known) / 2**20 if len(known) == len(self.memory) > 0 else None,
            "influences": [round(value, 6) for value in moved.tolist()],
        }


def measure(
    predictors: Mapping[str, ModelPredictor],
    samples: Samples,
    run: Run,
    *,
    progress: Progress = lambda samples, _: samples,
) -> Iterator[tuple[str, Content]]:
    """Evaluate predictors that share a network, in this process alone; yield name and content.

    The content is that of `EvaluationResult.to_dict`, with `seconds` (the median of an image),
    `memory_mib` (the peak; None where it is not to be had), `influences` (of each image on mIoU, in
    percent) and the `machine`; or a reason why there is none.

    Raises:
        MaskCLIPError: a sample cannot be read.
    """
    words, count = samples.vocabulary, run.count(samples)
    tallies = {
        name: _Tally(ConfusionMatrix(len(words), ignore=words.ignore, alone=True))
        for name in predictors
    }
    left = dict(predictors)
    ignored = 0
    for sample in progress(read_samples(samples, range(count), run), count):
        ignored += bool((sample.labels == words.ignore).any())
        for name, reason in _measure_one(sample, left, tallies).items():
            del left[name]
            yield name, {REASON: reason}
        if not left:
            return
    for name, predictor in left.items():
        scores: Scores = tallies[name].matrix.compute()
        doubts = find_doubts(scores, samples, masks=count, ignored=ignored)
        described = describe(predictor, samples, run)
        result = EvaluationResult(samples, scores, described, [], [], doubts)
        where = {"machine": machine(predictor.segmenter.device)}
        yield name, {**result.to_dict(), **tallies[name].figures(), **where}


def _measure_one(
    sample: Sample, predictors: Mapping[str, ModelPredictor], tallies: Mapping[str, _Tally]
) -> dict[str, str]:
    """Encode an image, score it by each predictor; return why some cannot, by name."""
    first, reasons = next(iter(predictors.values())), {}
    device = first.segmenter.device
    try:
        with costing(device) as encoding:
            encoded = first.encode(sample.image, then=predictors.values())
    except Exception as error:
        return dict.fromkeys(predictors, _reason(error))
    for name, predictor in predictors.items():
        try:
            with costing(device) as scoring:
                ids = predictor.score(encoded)
        except Exception as error:
            reasons[name] = _reason(error)
            continue
        tallies[name].add(sample, ids, (encoding, scoring))
    return reasons


def _reason(error: Exception) -> str:
    """Return why a cell cannot be, of what a user can mend; anything else is raised again."""
    if isinstance(error, MaskCLIPError):
        return str(error)
    if is_out_of_memory(error):
        return "memory ran out"
    raise error
