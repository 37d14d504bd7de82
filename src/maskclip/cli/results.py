"""How figures are printed: a table, and beside them what they hang on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskclip.cli.console import console, print_table


def figure(percent: float | None) -> str:
    """Return a figure in percent, with two decimals as the field reports it."""
    return "n/a" if percent is None else f"{percent:.2f}"


def show_result(result: Mapping[str, Any]) -> None:
    """Print what `result.json` holds: per class, best first, and in all."""
    from maskclip.tasks.evaluation.evaluate import headline, settings

    present = [(name, iou) for name, iou in result["iou"].items() if iou is not None]
    rows = [
        (name, figure(iou), figure(result["accuracy"][name]))
        for name, iou in sorted(present, key=lambda pair: -pair[1])
    ]
    print_table("class", "IoU %", "accuracy %", rows=rows, right=("IoU %", "accuracy %"))
    screen = console()
    absent = len(result["iou"]) - len(present)
    if absent:
        screen.print(f"in neither truth nor prediction, not counted: {absent} classes")
    screen.print(headline(result), style="bold", markup=False, soft_wrap=True)
    screen.print(settings(result), markup=False, soft_wrap=True)
    if result["zero_shot"] is not None:
        parts = ", ".join(f"{part} {figure(value)}" for part, value in result["zero_shot"].items())
        screen.print(f"mIoU % by the zero-shot split: {parts}", soft_wrap=True)
    screen.print(
        f"mIoU {figure(result['miou'])} %{beside(result)}, pixel accuracy "
        f"{figure(result['pixel_accuracy'])} %, frequency-weighted IoU "
        f"{figure(result['frequency_weighted_iou'])} %",
        style="bold",
        soft_wrap=True,
    )


def beside(result: Mapping[str, Any]) -> str:
    """Return what stands beside a measured mIoU: the published one, or nothing."""
    published = result["published"]
    if published is None:
        return ""
    images, official = result["images"], result["official_images"]
    where = "" if images == official else f" on all {official:,} images"
    return f" (published{where}: {published['miou']})"


def show_sweep(cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Print mIoU by corruption and severity; `cells` are results by name of cell."""
    from maskclip.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption
    from maskclip.tasks.evaluation.evaluate import headline, settings
    from maskclip.tasks.evaluation.sweep import CLEAN, cell_name

    clean = figure(cells[CLEAN]["miou"])
    rows = []
    for kind in CORRUPTIONS:
        line = [cells[cell_name(Corruption(kind, step))]["miou"] for step in SEVERITIES]
        known = [value for value in line if value is not None]
        mean = sum(known) / len(known) if known else None
        rows.append((kind, clean, *map(figure, line), figure(mean)))
    columns = ("clean", *map(str, SEVERITIES), "mean")
    console().print(headline(cells[CLEAN]), style="bold", markup=False, soft_wrap=True)
    print_table("mIoU % under", *columns, rows=rows, right=columns)
    console().print(settings(cells[CLEAN]), markup=False, soft_wrap=True)
