"""The files of an evaluation, and of a sweep of all corruptions, which can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maskclip.core.files import write_json
from maskclip.core.samples import Samples
from maskclip.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption, all_corruptions
from maskclip.tasks.evaluation.cells import SCORED, Cell, Work, run_cells
from maskclip.tasks.evaluation.charts import confusion_chart, iou_chart, severity_chart
from maskclip.tasks.evaluation.evaluate import (
    EvaluationResult,
    ProcessGroup,
    Progress,
    describe,
    evaluate,
)
from maskclip.tasks.evaluation.examples import contact_sheet
from maskclip.tasks.evaluation.predictors import Predictor
from maskclip.tasks.evaluation.settings import Run

UNCORRUPTED = "clean"
"""The name of the sweep's evaluation of uncorrupted images."""

_OF_ONE_CELL = {  # keys of a cell's result that the table of the sweep leaves out
    "miou", "pixel_accuracy", "frequency_weighted_iou", "zero_shot", "iou", "accuracy",
    "corruption", "published",
}  # fmt: skip


def headline(metadata: Mapping[str, Any]) -> str:
    """Return one line that says what was evaluated, and on which data."""
    what = metadata.get("model") or metadata["predictions"]
    images, official = metadata["images"], metadata["official_images"]
    complete = official in (None, images)
    count = f"{images:,} images" if complete else f"{images:,} of {official:,} images"
    where = f"{metadata['dataset']} {metadata['split']}, {count}"
    under = "" if metadata["corruption"] is None else f" under {metadata['corruption']}"
    return f"{what} on {where}{under}"


def settings_line(metadata: Mapping[str, Any]) -> str:
    """Return one line of the settings that scores depend on."""
    if metadata["protocol"] is None:
        return "predictions read from files"
    options = {
        name: " ".join(value)
        if isinstance(value, list | tuple)
        else value
        if isinstance(value, str)
        else f"{value:g}"
        for name, value in metadata["options"].items()
        if value is not None and value != () and value != []
    }
    whose = metadata.get("settings_of")
    return " · ".join(
        [
            *(
                f"{name} {metadata[name]}"
                + (f" (settings: {whose})" if name == "protocol" and whose else "")
                for name in ("protocol", "method", "proxy", "templates", "language", "background")
                if name in metadata  # a student has only a protocol
            ),
            *(f"{name.replace('_', ' ')} {value}" for name, value in options.items()),
            metadata["precision"],
        ]
    )


def write_result(result: EvaluationResult, content: dict[str, Any], out: Path) -> list[Path]:
    """Write the scores and charts of an evaluation into a folder; return the paths.

    Args:
        result: the evaluation.
        content: of `result.json`: `result.to_dict()`, and anything else that belongs there.
        out: the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    vocabulary = result.samples.vocabulary
    title = f"{headline(result.metadata)}\n{settings_line(result.metadata)}"
    paths = [out / name for name in ("confusion.png", "iou.png", "images.png", "result.json")]
    confusion, bars, images, scores = paths
    scores.unlink(missing_ok=True)  # written last, so it never lies beside charts of another run
    confusion_chart(result.scores.confusion, vocabulary.names, confusion, title=title)
    iou_chart(
        result.scores.iou,
        vocabulary.names,
        bars,
        title=title,
        colors=vocabulary.colors,
        without_truth=np.isnan(result.scores.accuracy) & np.isfinite(result.scores.iou),
    )
    contact_sheet(
        result.best,
        result.worst,
        images,
        names=vocabulary.names,
        colors=vocabulary.colors,
        ignore=vocabulary.ignore,
        title=title,
    )
    write_json(content, scores)
    return paths


def cell_name(corruption: Corruption | None) -> str:
    """Return the name of a cell, which is that of its file without `.json`."""
    return UNCORRUPTED if corruption is None else f"{corruption.name}_{corruption.severity}"


def run_sweep(
    predictor: Predictor,
    samples: Samples,
    run: Run,
    out: Path,
    *,
    group: ProcessGroup | None = None,
    progress: Progress = lambda samples, _: samples,
    to_content: Callable[[EvaluationResult, Run], dict[str, Any]] = lambda one, _: one.to_dict(),
) -> Iterator[Cell]:
    """Evaluate uncorrupted images and the 40 corruptions; results that exist are kept.

    Args:
        predictor: labels images.
        samples: the data set.
        run: which images each cell sees; its corruption is replaced.
        out: the folder of the results, one JSON file for each cell.
        group, progress: as for `evaluate`.
        to_content: returns the content of a cell's file.

    Raises:
        MaskCLIPError: a sample cannot be used, or a result there is of another evaluation.
    """
    group = group or ProcessGroup()

    def work(one: Run) -> Work:
        name = cell_name(one.corruption)

        def measure(_: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
            result = evaluate(predictor, samples, one, group=group, progress=progress)
            yield name, to_content(result, one)

        return Work({name: describe(predictor, samples, one)}, measure, SCORED)

    runs = [replace(run, corruption=corruption) for corruption in (None, *all_corruptions())]
    return run_cells([work(one) for one in runs], out, group=group)


def write_sweep(cells: dict[str, dict[str, Any]], out: Path) -> list[Path]:
    """Write the table of mIoU (`sweep.json`) and its chart; return the paths.

    The table also holds the settings of the evaluation of uncorrupted images.

    Args:
        cells: the result of each cell, by name.
        out: the folder.

    Raises:
        OSError: the folder cannot be written.
    """
    miou = {name: cell["miou"] for name, cell in cells.items()}
    uncorrupted = cells[UNCORRUPTED]
    table = {
        "clean": miou[UNCORRUPTED],
        "corrupted": {
            kind: [miou[cell_name(Corruption(kind, severity))] for severity in SEVERITIES]
            for kind in CORRUPTIONS
        },
        **{key: value for key, value in uncorrupted.items() if key not in _OF_ONE_CELL},
    }
    chart, scores = out / "severity.png", out / "sweep.json"
    title = f"{headline(uncorrupted)}\n{settings_line(uncorrupted)}"
    severity_chart(table["corrupted"], table["clean"], chart, title=title)
    write_json(table, scores)
    return [chart, scores]
