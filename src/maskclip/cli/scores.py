"""Run an evaluation, a sweep of corruptions or readings side by side, and print what they give."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from maskclip.cli.console import (
    as_options,
    print_line,
    print_path,
    print_table,
    track,
    warning_line,
)
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.methods import method_name
from maskclip.core.samples import Sample, Samples
from maskclip.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption
from maskclip.recipes import published_row
from maskclip.tasks.evaluation import results as files
from maskclip.tasks.evaluation.cells import REASON, Content
from maskclip.tasks.evaluation.compare import LEFT_OUT, Reading, run_readings
from maskclip.tasks.evaluation.evaluate import EvaluationResult, ProcessGroup, Progress, evaluate
from maskclip.tasks.evaluation.predictors import Predictor
from maskclip.tasks.evaluation.results import UNCORRUPTED, cell_name, headline, settings_line
from maskclip.tasks.evaluation.settings import Evaluation, Run


def run_once(
    evaluation: Evaluation | None,
    predictor: Predictor,
    samples: Samples,
    run: Run,
    *,
    out: Path | None,
    group: ProcessGroup,
) -> None:
    """Evaluate a predictor; print the scores, and write them if there is a folder for them.

    Args:
        evaluation: finds the published result to print; None for predictions from files.
        predictor, samples, run, group: as for `tasks.evaluation.evaluate`.
        out: folder of the files.
    """
    result = evaluate(predictor, samples, run, group=group, progress=_progress(group))
    if not group.is_main:
        return
    content = _with_published(evaluation, result, run)
    for line in result.doubts:  # before the figures, which may mean something else
        warning_line(line)
    _show_scores(content)
    if out is not None:
        _show_paths(files.write_result(result, content, out))


def run_sweep(
    evaluation: Evaluation | None,
    predictor: Predictor,
    samples: Samples,
    run: Run,
    *,
    out: Path,
    group: ProcessGroup,
) -> None:
    """Evaluate a predictor under all corruptions; print and write the scores.

    Args:
        evaluation, predictor, samples, run, group: as for `run_once`.
        out: folder of the files; cells that are there are kept.
    """
    cells = {}
    for cell in files.run_sweep(
        predictor,
        samples,
        run,
        out,
        group=group,
        progress=_progress(group),
        to_content=partial(_with_published, evaluation),
    ):
        cells[cell.name] = cell.result
        if group.is_main:
            note = f"{_published(cell.result)}{' (kept)' if cell.kept else ''}"
            line = f"{cell.name}: mIoU {_percent(cell.result['miou'])} %{note}"
            print_line(line)
    if group.is_main:
        _show_sweep(cells)
        _show_paths(files.write_sweep(cells, out))


def measure_readings(
    readings: Sequence[Reading],
    out: Path,
    *,
    device: str,
    group: ProcessGroup,
    leave_out: tuple[type[MaskCLIPError], ...] = LEFT_OUT,
) -> dict[str, Content]:
    """Measure readings with a bar for each, and say what each cell gave; return all cells.

    Reasons why there are no figures name options.

    The arguments are those of `tasks.evaluation.compare.run_readings`.
    """
    cells = {}
    with warnings.catch_warnings():
        warnings.simplefilter("once", MaskCLIPWarning)  # not again for each method
        for cell in run_readings(
            readings, out, device=device, group=group, progress=_bars(readings), leave_out=leave_out
        ):
            cells[cell.name] = cell.result
            if REASON in cell.result:
                cells[cell.name] = {**cell.result, REASON: as_options(cell.result[REASON])}
            elif group.is_main:
                kept = " (kept)" if cell.kept else ""
                print_line(f"{cell.name}: mIoU {_percent(cell.result['miou'])} %{kept}")
    return cells


def _bars(readings: Sequence[Reading]) -> Callable[[Reading], Progress]:
    """Return bars that say which of the readings they are of."""

    def bar(reading: Reading) -> Progress:
        config = reading.evaluation.model
        where = f"{readings.index(reading) + 1} of {len(readings)}"
        what = f"{where}: {config.name} {method_name(config.method)}"
        return lambda samples, total: track(samples, what=what, total=total)

    return bar


def _with_published(
    evaluation: Evaluation | None, result: EvaluationResult, run: Run
) -> dict[str, Any]:
    """Return the content of a result file: the scores, and the published ones beside them."""
    row = None if evaluation is None else published_row(evaluation, run.corruption)
    published = None if row is None else {"miou": row.miou, "source": row.source}
    return {**result.to_dict(), "published": published}


def _progress(group: ProcessGroup) -> Progress:
    def pass_on(samples: Iterable[Sample], total: int) -> Iterable[Sample]:
        return track(samples, what="images", total=total) if group.is_main else samples

    return pass_on


def _show_scores(result: Mapping[str, Any]) -> None:
    """Print the content of `result.json`: the classes, best first, and the means."""
    present = [(name, iou) for name, iou in result["iou"].items() if iou is not None]
    rows = [
        (name, _percent(iou), _percent(result["accuracy"][name]))
        for name, iou in sorted(present, key=lambda pair: -pair[1])
    ]
    print_table("class", "IoU %", "accuracy %", rows=rows, right=("IoU %", "accuracy %"))
    absent = len(result["iou"]) - len(present)
    if absent:
        count = "1 class" if absent == 1 else f"{absent} classes"
        print_line(f"not counted: {count} in neither ground truth nor prediction")
    predicted = sum(result["accuracy"][name] is None for name, _ in present)
    if predicted:
        one = predicted == 1
        print_line(
            f"{'1 class is' if one else f'{predicted} classes are'} predicted but nowhere in the "
            f"ground truth: {'its' if one else 'their'} IoU is 0, and the mean counts it"
        )
    print_line(headline(result), style="bold")
    print_line(settings_line(result))
    if result["zero_shot"] is not None:
        parts = ", ".join(
            f"{part} {_percent(value)}" for part, value in result["zero_shot"].items()
        )
        print_line(f"mIoU % by the zero-shot split: {parts}")
    print_line(
        f"mIoU {_percent(result['miou'])} %{_published(result)}, pixel accuracy "
        f"{_percent(result['pixel_accuracy'])} %, frequency-weighted IoU "
        f"{_percent(result['frequency_weighted_iou'])} %",
        style="bold",
    )


def _show_sweep(cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Print mIoU by corruption and severity; `cells` are results by name of cell."""
    clean = _percent(cells[UNCORRUPTED]["miou"])
    rows = []
    for kind in CORRUPTIONS:
        line = [cells[cell_name(Corruption(kind, step))]["miou"] for step in SEVERITIES]
        known = [value for value in line if value is not None]
        mean = sum(known) / len(known) if known else None
        rows.append((kind, clean, *map(_percent, line), _percent(mean)))
    columns = ("clean", *map(str, SEVERITIES), "mean")
    print_line(headline(cells[UNCORRUPTED]), style="bold")
    print_table("mIoU % under", *columns, rows=rows, right=columns)
    print_line(settings_line(cells[UNCORRUPTED]))


def _show_paths(paths: Iterable[Path]) -> None:
    for path in paths:
        print_path(path)


def _percent(value: float | None) -> str:
    """Return a score in percent with two decimals, as papers report it."""
    return "n/a" if value is None else f"{value:.2f}"


def _published(result: Mapping[str, Any]) -> str:
    """Return what is printed after a measured mIoU: the published one, or nothing."""
    published = result.get("published")
    if published is None:
        return ""
    images, official = result["images"], result["official_images"]
    where = "" if images == official else f" on all {official:,} images"
    return f" (published{where}: {published['miou']})"
