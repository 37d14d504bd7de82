"""All corruptions at all severities: a result file each, and from where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from maskclip.core.files import write_json
from maskclip.core.samples import Samples
from maskclip.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption, all_corruptions
from maskclip.tasks.evaluation.charts import severity_chart
from maskclip.tasks.evaluation.evaluate import (
    Progress,
    Report,
    describe,
    evaluate,
    headline,
    settings,
)
from maskclip.tasks.evaluation.predictors import MeasuredPredictor
from maskclip.tasks.evaluation.processes import Processes
from maskclip.tasks.evaluation.report import earlier_result
from maskclip.tasks.evaluation.settings import Run

CLEAN = "clean"
_OF_A_CELL = {  # what a result says of its own cell alone
    "miou", "pixel_accuracy", "frequency_weighted_iou", "zero_shot", "iou", "accuracy",
    "corruption", "published",
}  # fmt: skip


class Cell(NamedTuple):
    """One of the measurements.

    `result` is what its file holds; `kept` is whether an earlier run had made it.
    """

    name: str
    result: dict[str, Any]
    kept: bool


def cell_name(corruption: Corruption | None) -> str:
    """Return what a cell and its file are called."""
    return CLEAN if corruption is None else f"{corruption.name}_{corruption.severity}"


def measure_cells(
    predictor: MeasuredPredictor,
    samples: Samples,
    run: Run,
    out: Path,
    *,
    processes: Processes,
    progress: Progress,
    to_result: Callable[[Report, Run], dict[str, Any]] = lambda report, _: report.to_dict(),
) -> Iterator[Cell]:
    """Measure the clean images and the 40 corruptions; results that are there are kept.

    Args:
        predictor: labels images.
        samples: the data set.
        run: which images each cell sees; its corruption is set here.
        out: the folder of the results.
        processes: which of several processes this is.
        progress: sees every sample pass.
        to_result: makes of a measurement what its file holds.

    Raises:
        MaskCLIPError: a sample cannot be used, or a result there is of another measurement.
    """
    runs = [replace(run, corruption=corruption) for corruption in (None, *all_corruptions())]
    # The first process looks, for all: another one could find a file that was written meanwhile.
    files = [out / f"{cell_name(one.corruption)}.json" for one in runs]
    kept = processes.agree(
        [
            earlier_result(file, describe(predictor, samples, one))
            for file, one in zip(files, runs, strict=True)
        ]
        if processes.first
        else None
    )
    for one, file, result in zip(runs, files, kept, strict=True):
        name = cell_name(one.corruption)
        if result is not None:
            yield Cell(name, result, kept=True)
            continue
        report = evaluate(predictor, samples, one, processes=processes, progress=progress)
        result = to_result(report, one)
        if processes.first:
            write_json(result, file)
        yield Cell(name, result, kept=False)


def write_sweep(cells: dict[str, dict[str, Any]], out: Path) -> list[Path]:
    """Write the table of mIoU (`sweep.json`) and its picture; return their paths.

    The table says what was measured, and how, as the clean result does.

    Args:
        cells: the result of each cell, by name.
        out: the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    miou = {name: cell["miou"] for name, cell in cells.items()}
    table = {
        "clean": miou[CLEAN],
        "corrupted": {
            kind: [miou[cell_name(Corruption(kind, severity))] for severity in SEVERITIES]
            for kind in CORRUPTIONS
        },
        **{name: value for name, value in cells[CLEAN].items() if name not in _OF_A_CELL},
    }
    chart, figures = out / "severity.png", out / "sweep.json"
    severity_chart(
        table["corrupted"],
        table["clean"],
        chart,
        title=f"{headline(cells[CLEAN])}\n{settings(cells[CLEAN])}",
    )
    write_json(table, figures)
    return [chart, figures]
