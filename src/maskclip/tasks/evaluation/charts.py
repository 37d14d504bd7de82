"""Pictures of evaluation results: IoU per class, severity curves, any lines through points.

Each function draws one figure and writes it as a PNG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maskclip.core.palettes import Color
from maskclip.tasks.evaluation.plotting import (
    DPI,
    FAINT_INK,
    INK,
    TITLE_LINE,
    Target,
    class_labels,
    count_classes,
    folded_title,
    label,
    set_grid,
    set_title,
    write_above,
    write_empty_figure,
    write_figure,
)

Points = Sequence[tuple[float, float]]  # x, y; NaN where a line has a gap
_Floats = npt.NDArray[np.floating[Any]]

# Okabe and Ito's colours, which colour-blind readers tell apart; brown for their pale yellow.
_CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#8c510a")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", "-.", ":")

_BARS_A_COLUMN, _MOST_COLUMNS = 60, 4
_LONGEST_AXIS = 60  # characters
_MOST_MARKERS = 60  # points of a line; more are drawn as the line alone
_LEGEND_ROWS = 18


def iou_chart(
    iou: _Floats,
    names: Sequence[str],
    path: Target,
    *,
    title: str,
    colors: Sequence[Color] | None = None,
) -> None:
    """Draw the IoU of each class as a bar, best first, and their mean as a line.

    Args:
        iou: (K,) in [0, 1]; NaN where a class is absent, which is left out and counted.
        names: K class names.
        path: of the PNG.
        title: above the bars.
        colors: of the K bars; all alike by default.

    Raises:
        ValueError: `iou`, `names` and `colors` differ in length.
        OSError: the file cannot be written.
    """
    percent = 100 * np.asarray(iou, dtype=np.float64)
    if percent.shape != (len(names),) or (colors is not None and len(colors) != len(names)):
        of_colors = "" if colors is None else f" and {len(colors)} colours"
        raise ValueError(
            f"expected one figure for each name and colour, got figures {percent.shape} for "
            f"{len(names)} names{of_colors}"
        )
    present = np.flatnonzero(np.isfinite(percent))
    if not present.size:
        write_empty_figure(path, title=title)
        return
    order = present[np.argsort(-percent[present], kind="stable")]
    labels = class_labels(names)
    absent = len(names) - len(order)
    figure = _bars(
        percent[order],
        [labels[index] for index in order],
        [_CYCLE[0] if colors is None else _hex(colors[index]) for index in order],
        title=title,
        caption="IoU, %" + (f"; {count_classes(absent)} absent" if absent else ""),
    )
    write_figure(figure, path)


def _bars(
    percent: _Floats, labels: Sequence[str], fills: Sequence[str], *, title: str, caption: str
) -> Figure:
    """Draw horizontal bars, top to bottom, in as many columns as keep the page short."""
    columns = min(_MOST_COLUMNS, math.ceil(len(labels) / _BARS_A_COLUMN))
    rows = math.ceil(len(labels) / columns)
    width = max(6.4, 4.8 * columns)
    lines = folded_title(title, width=width - 2)
    height = 1.1 + TITLE_LINE * len(lines) + 0.19 * max(rows, 3)
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    mean = float(percent.mean())
    for column, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        part = slice(column * rows, (column + 1) * rows)
        _draw_bars(axes, percent[part], labels[part], fills[part])
        axes.set_xlim(0, 100)
        axes.set_ylim(max(rows, 3) - 0.4, -0.6)  # one bar alone is no beam
        axes.axvline(mean, color="white", linewidth=2.5)  # seen on dark bars, too
        axes.axvline(mean, color=INK, linewidth=1, linestyle="--")
        set_grid(axes, "x")
    first = figure.axes[0]
    write_above(first, f"mean {mean:.1f}", across=mean / 100, up=3, ha="center")
    set_title(first, title, caption, width=width - 2, lift=13)
    return figure


def _draw_bars(axes: Axes, percent: _Floats, labels: Sequence[str], fills: Sequence[str]) -> None:
    """Draw bars with their names left and their figures right of them."""
    places = np.arange(len(percent))
    axes.barh(places, percent, height=0.74, color=fills, edgecolor="#9aa0a6", linewidth=0.3)
    axes.set_yticks(places, labels)
    axes.tick_params(labelsize=8)
    for place, share in zip(places, percent, strict=True):
        axes.annotate(
            f"{share:.1f}",
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(26, 0),
            textcoords="offset points",
            ha="right",
            va="center_baseline",
            fontsize=8,
            color=FAINT_INK,
        )


def severity_chart(
    lines: Mapping[str, Sequence[float | None]], clean: float | None, path: Target, *, title: str
) -> None:
    """Draw mIoU against the severity of corruptions, one line each, all from the clean figure.

    Args:
        lines: per corruption the mIoU in percent at severity 1, 2, ...; None leaves a gap.
        clean: mIoU in percent without corruption; None when unknown.
        path: of the PNG.
        title: above the lines.

    Raises:
        OSError: the file cannot be written.
    """
    start, *_ = _with_gaps([clean])
    figures = {name: _with_gaps(values) for name, values in lines.items()}
    if not any(math.isfinite(y) for values in figures.values() for y in values):
        write_empty_figure(path, title=title)
        return
    curves = {
        name: [(float(severity), y) for severity, y in enumerate([start, *values])]
        for name, values in figures.items()
    }
    # Listed as they end, so that the legend reads down like the picture.
    order = sorted(figures, key=lambda name: -_last_figure(figures[name]))
    figure, axes = _plot(curves, order=order, title=title)
    axes.set_xlabel("severity", color=FAINT_INK)
    axes.set_ylabel("mIoU, %", color=FAINT_INK)
    last = max(5, *map(len, figures.values()))
    axes.set_xticks(range(last + 1), ["clean", *map(str, range(1, last + 1))])
    axes.set_xlim(-0.25, last + 0.25)
    axes.set_ylim(bottom=0)
    if math.isfinite(start):
        axes.axhline(start, color=FAINT_INK, linewidth=1, linestyle=":", zorder=1)
    write_figure(figure, path)


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _last_figure(values: Sequence[float]) -> float:
    return next((value for value in reversed(values) if math.isfinite(value)), 0.0)


def line_chart(
    lines: Mapping[str, Points], path: Target, *, title: str, x_label: str, y_label: str
) -> None:
    """Draw named lines through points (x, y); NaN leaves a gap.

    Raises:
        OSError: the file cannot be written.
    """
    if not any(math.isfinite(y) for points in lines.values() for _, y in points):
        write_empty_figure(path, title=title)
        return
    figure, axes = _plot(lines, order=list(lines), title=title)
    axes.set_xlabel(label(x_label, limit=_LONGEST_AXIS), color=FAINT_INK)
    axes.set_ylabel(label(y_label, limit=_LONGEST_AXIS), color=FAINT_INK)
    write_figure(figure, path)


def _plot(lines: Mapping[str, Points], *, order: Sequence[str], title: str) -> tuple[Figure, Axes]:
    """Draw the lines with a legend beside them, in which they are listed in `order`."""
    figure = Figure(figsize=(6.4, 4), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    handles = {}
    for index, (name, points) in enumerate(lines.items()):
        turn = index // len(_CYCLE)  # the second time round other marks and dashes
        (handles[name],) = axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=_CYCLE[index % len(_CYCLE)],
            marker=_MARKERS[(index + turn) % len(_MARKERS)] if len(points) <= _MOST_MARKERS else "",
            linestyle=_DASHES[turn % len(_DASHES)],
            markersize=5,
            linewidth=1.6,
        )
    set_grid(axes, "both")
    set_title(axes, title, width=6)
    axes.legend(
        [handles[name] for name in order],
        [label(name) for name in order],
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        borderaxespad=0,
        fontsize=9,
        frameon=False,
        ncols=math.ceil(len(order) / _LEGEND_ROWS),
    )
    return figure, axes


def _hex(color: Color) -> str:
    red, green, blue = color
    return f"#{red:02x}{green:02x}{blue:02x}"
