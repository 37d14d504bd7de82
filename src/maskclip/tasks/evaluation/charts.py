"""Charts of evaluation results: IoU of classes, confusion matrix, curves; each written as a PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from maskclip.core.palettes import Color
from maskclip.tasks.evaluation.plotting import (
    COLORS,
    DASHES,
    DPI,
    FAINT_INK,
    GRID,
    INK,
    MARKERS,
    TITLE_LINE,
    Target,
    class_labels,
    count_classes,
    label,
    set_grid,
    set_title,
    wrapped_title,
    write_above,
    write_empty_figure,
    write_figure,
)

Points = Sequence[tuple[float, float]]  # x, y; NaN where a line has a gap
_Floats = npt.NDArray[np.floating[Any]]


_BARS_PER_COLUMN, _MOST_COLUMNS = 60, 4
_LONGEST_AXIS = 60  # characters
_MOST_MARKERS = 60  # points of a line that get a marker; with more, none does
_LEGEND_ROWS = 18

_ABSENT = "#d5d8dc"  # rows of the confusion matrix without ground truth
_TICKS = (0, 1, 5, 10, 25, 50, 75, 100)  # of the colour bar, in %
_FEW = 25  # classes up to which cells hold numbers and absent classes stay
_MATRIX_SIDE = 21.5  # inches; larger matrices get smaller cells and fewer labels


def iou_chart(
    iou: _Floats,
    names: Sequence[str],
    path: Target,
    *,
    title: str,
    colors: Sequence[Color] | None = None,
    without_truth: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Draw the IoU of each class as a bar, best first, and their mean as a line.

    Args:
        iou: (K,) in [0, 1]; NaN for classes in neither ground truth nor prediction, which are left
            out of bars and mean, and counted.
        names: K class names.
        path: of the PNG.
        title: above the bars.
        colors: of the K bars; None draws them all in one colour.
        without_truth: (K,), which classes were predicted but are nowhere in the ground truth: they
            are marked, because their IoU is 0 whatever a model does, and the mean counts them.

    Raises:
        ValueError: `iou`, `names` and `colors` differ in length.
        OSError: the file cannot be written.
    """
    percent = 100 * np.asarray(iou, dtype=np.float64)
    if percent.shape != (len(names),) or (colors is not None and len(colors) != len(names)):
        of_colors = "" if colors is None else f" and {len(colors)} colours"
        raise ValueError(
            f"expected one IoU for each name and colour, got shape {percent.shape} for "
            f"{len(names)} names{of_colors}"
        )
    present = np.flatnonzero(np.isfinite(percent))
    if not present.size:
        write_empty_figure(path, title=title)
        return
    order = present[np.argsort(-percent[present], kind="stable")]
    labels = class_labels(names)
    absent = len(names) - len(order)
    marked = np.zeros(len(names), bool) if without_truth is None else without_truth
    caption = "IoU, %"
    if absent:
        caption += f"; {count_classes(absent)} in neither ground truth nor prediction left out"
    if marked[order].any():
        caption += "; * not in the ground truth: 0, and counted in the mean"
    figure = _bars(
        percent[order],
        [f"{labels[index]} *" if marked[index] else labels[index] for index in order],
        [COLORS[0] if colors is None else _hex(colors[index]) for index in order],
        title=title,
        caption=caption,
    )
    write_figure(figure, path)


def _bars(
    percent: _Floats, labels: Sequence[str], fills: Sequence[str], *, title: str, caption: str
) -> Figure:
    """Draw horizontal bars from the top, in several columns if there are many."""
    columns = min(_MOST_COLUMNS, math.ceil(len(labels) / _BARS_PER_COLUMN))
    rows = math.ceil(len(labels) / columns)
    width = max(6.4, 4.8 * columns)
    lines = wrapped_title(title, width=width - 2)
    height = 1.1 + TITLE_LINE * len(lines) + 0.19 * max(rows, 3)
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    mean = float(percent.mean())
    for column, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        part = slice(column * rows, (column + 1) * rows)
        _draw_bars(axes, percent[part], labels[part], fills[part])
        axes.set_xlim(0, 100)
        axes.set_ylim(max(rows, 3) - 0.4, -0.6)  # a single bar is not drawn too thick
        axes.axvline(mean, color="white", linewidth=2.5)  # visible on dark bars, too
        axes.axvline(mean, color=INK, linewidth=1, linestyle="--")
        set_grid(axes, "x")
    first = figure.axes[0]
    write_above(first, f"mean {mean:.1f}", across=mean / 100, up=3, ha="center")
    set_title(first, title, caption, width=width - 2, lift=13)
    return figure


def _draw_bars(axes: Axes, percent: _Floats, labels: Sequence[str], fills: Sequence[str]) -> None:
    """Draw bars with their names on the left and their values on the right."""
    rows = np.arange(len(percent))
    axes.barh(rows, percent, height=0.74, color=fills, edgecolor="#9aa0a6", linewidth=0.3)
    axes.set_yticks(rows, labels)
    axes.tick_params(labelsize=8)
    for row, value in zip(rows, percent, strict=True):
        axes.annotate(
            f"{value:.1f}",
            (1, row),
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
    """Draw mIoU against the severity of corruptions, one line each, from that of clean images.

    Args:
        lines: the mIoU of each corruption in percent at severity 1, 2, ...; None leaves a gap.
        clean: mIoU in percent without corruption; None if unknown.
        path: of the PNG.
        title: above the lines.

    Raises:
        OSError: the file cannot be written.
    """
    start, *_ = _with_gaps([clean])
    miou = {name: _with_gaps(values) for name, values in lines.items()}
    if not any(math.isfinite(y) for values in miou.values() for y in values):
        write_empty_figure(path, title=title)
        return
    curves = {
        name: [(float(severity), y) for severity, y in enumerate([start, *values])]
        for name, values in miou.items()
    }
    # In the order of their last points, so that the legend matches the chart from top to bottom.
    order = sorted(miou, key=lambda name: -_last_finite(miou[name]))
    figure, axes = _plot(curves, order=order, title=title)
    axes.set_xlabel("severity", color=FAINT_INK)
    axes.set_ylabel("mIoU, %", color=FAINT_INK)
    last = max(5, *map(len, miou.values()))
    axes.set_xticks(range(last + 1), ["clean", *map(str, range(1, last + 1))])
    axes.set_xlim(-0.25, last + 0.25)
    axes.set_ylim(bottom=0)
    if math.isfinite(start):
        axes.axhline(start, color=FAINT_INK, linewidth=1, linestyle=":", zorder=1)
    write_figure(figure, path)


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _last_finite(values: Sequence[float]) -> float:
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
    """Draw the lines, and a legend beside them in the given order."""
    figure = Figure(figsize=(6.4, 4), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    handles = {}
    for index, (name, points) in enumerate(lines.items()):
        turn = index // len(COLORS)  # when colours repeat, markers and dashes differ
        (handles[name],) = axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[(index + turn) % len(MARKERS)] if len(points) <= _MOST_MARKERS else "",
            linestyle=DASHES[turn % len(DASHES)],
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


def confusion_chart(
    confusion: npt.NDArray[np.int64], names: Sequence[str], path: Target, *, title: str
) -> None:
    """Draw a confusion matrix, in percent of the pixels of each true class.

    The last row and column, "other", are drawn only if they hold counts. With more than 25 classes,
    those in neither ground truth nor prediction are left out and counted in the caption.

    Args:
        confusion: (K + 1, K + 1) counts [true, predicted]; the last index is for values that are
            not a class.
        names: K class names.
        path: of the PNG.
        title: above the matrix.

    Raises:
        ValueError: the counts are not (K + 1, K + 1).
        OSError: the file cannot be written.
    """
    counts, classes = np.asarray(confusion), len(names)
    if counts.shape != (classes + 1, classes + 1):
        raise ValueError(
            f"expected counts ({classes + 1}, {classes + 1}) for {classes} names, "
            f"got {counts.shape}"
        )
    if not counts.any():
        write_empty_figure(path, title=title)
        return
    drawn = (counts.sum(axis=0) + counts.sum(axis=1) > 0)[:-1] | (classes <= _FEW)
    rows = np.flatnonzero([*drawn, counts[-1].any()])
    columns = np.flatnonzero([*drawn, counts[:, -1].any()])
    total = counts[rows].sum(axis=1, keepdims=True)
    shares = np.full((len(rows), len(columns)), np.nan)
    np.divide(100.0 * counts[np.ix_(rows, columns)], total, out=shares, where=total > 0)

    caption = "% of the pixels of the true class"
    if not total.all():
        caption += "; grey rows: not in the ground truth"
    if not drawn.all():
        left_out = count_classes(int((~drawn).sum()))
        caption += f"; left out: {left_out} in neither ground truth nor prediction"
    labels = [*class_labels(names), "other"]
    figure = _matrix(
        shares,
        [labels[row] for row in rows],
        [labels[column] for column in columns],
        title=title,
        caption=caption,
    )
    write_figure(figure, path)


def _matrix(
    shares: _Floats, rows: Sequence[str], columns: Sequence[str], *, title: str, caption: str
) -> Figure:
    """Draw shares (R, C) in 0..100, NaN in grey, as square cells, and a colour bar beside them."""
    cell = _cell_side(max(shares.shape))
    width, height = cell * len(columns), cell * len(rows)
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    image = axes.imshow(
        shares,
        cmap=matplotlib.colormaps["Blues"].with_extremes(bad=_ABSENT),
        norm=PowerNorm(0.5, vmin=0, vmax=100),  # square root: 1 % is visible
        interpolation="nearest",
        aspect="auto",
    )
    _label_cells(axes, rows, columns, cell)
    if max(shares.shape) <= _FEW + 1:
        _print_shares(axes, shares)
    axes.set_xlabel("predicted", color=FAINT_INK)
    axes.set_ylabel("true", color=FAINT_INK)
    set_title(axes, title, caption, width=max(width, 4.5))
    _draw_color_bar(figure, axes, image, width=width, height=height)
    return figure


def _cell_side(longest: int) -> float:
    """Return inches: with room for names if there are few classes, for numbers up to 25."""
    roomy = min(0.85, 3.4 / longest)
    return max(roomy, min(0.42, max(0.125, 9 / longest), _MATRIX_SIDE / longest))


def _label_cells(axes: Axes, rows: Sequence[str], columns: Sequence[str], cell: float) -> None:
    """Label every row and column, or every n-th if cells are smaller than letters."""
    size = min(9.0, max(7.0, 72 * cell * 0.7))
    step = math.ceil(7.0 / (72 * cell))
    flat = all(len(name) * size * 0.65 < 72 * cell for name in columns)
    axes.set_xticks(
        range(0, len(columns), step), columns[::step], rotation=0 if flat else 90, fontsize=size
    )
    axes.set_yticks(range(0, len(rows), step), rows[::step], fontsize=size)
    axes.tick_params(length=0 if step == 1 else 2)
    axes.spines[:].set_visible(False)
    if max(len(rows), len(columns)) <= 100:
        axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white" if cell > 0.2 else GRID, linewidth=cell * 3)
        axes.tick_params(which="minor", length=0)


def _print_shares(axes: Axes, shares: _Floats) -> None:
    for row, column in np.argwhere(shares > 0):
        share = shares[row, column]
        text = "<0.1" if share < 0.05 else f"{share:.1f}" if share < 9.95 else f"{share:.0f}"
        ink = "white" if share > 36 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)


def _draw_color_bar(
    figure: Figure, axes: Axes, image: AxesImage, *, width: float, height: float
) -> None:
    """Draw the colour bar to the right of the matrix, whose width and height are in inches."""
    length = min(max(height, 2.0), 3.5)
    bounds = (1 + 0.2 / width, 1 - length / height, 0.16 / width, length / height)
    bar_axes = axes.inset_axes(bounds)
    figure.colorbar(image, cax=bar_axes, ticks=_TICKS)
    bar_axes.set_yticklabels([f"{tick} %" for tick in _TICKS], fontsize=8)
    bar_axes.spines[:].set_visible(False)
