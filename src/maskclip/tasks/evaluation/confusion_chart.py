"""A picture of a confusion matrix: which classes are taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from maskclip.tasks.evaluation.plotting import (
    DPI,
    FAINT_INK,
    GRID,
    INK,
    Target,
    class_labels,
    count_classes,
    set_title,
    write_empty_figure,
    write_figure,
)

_Floats = npt.NDArray[np.floating[Any]]

_ABSENT = "#d5d8dc"
_TICKS = (0, 1, 5, 10, 25, 50, 75, 100)  # of the colour bar, in %
_FEW = 25  # classes up to which cells hold their figures and absent classes stay
_MATRIX_SIDE = 21.5  # inches, from which cells shrink and labels thin out


def confusion_chart(
    confusion: npt.NDArray[np.int64], names: Sequence[str], path: Target, *, title: str
) -> None:
    """Draw how the pixels of each true class were called, in % of them, as a coloured matrix.

    The last row and column, "other", are shown where they hold counts. Beyond 25 classes, those in
    neither truth nor prediction are left out, and the caption counts them.

    Args:
        confusion: (K + 1, K + 1) counts [true, predicted]; the last index is what is no class.
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

    caption = "% of the true class's pixels"
    if not total.all():
        caption += "; grey rows: not in the truth"
    if not drawn.all():
        left_out = count_classes(int((~drawn).sum()))
        caption += f"; left out: {left_out} in neither truth nor prediction"
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
    """Draw shares (R, C) in 0..100, NaN as grey, in square cells with a colour bar beside them."""
    cell = _cell_side(max(shares.shape))
    width, height = cell * len(columns), cell * len(rows)
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    image = axes.imshow(
        shares,
        cmap=matplotlib.colormaps["Blues"].with_extremes(bad=_ABSENT),
        norm=PowerNorm(0.5, vmin=0, vmax=100),  # the root: one pixel in a hundred is seen
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
    """Return inches: room for names in a small matrix, for figures up to 25 classes, for cells."""
    roomy = min(0.85, 3.4 / longest)
    return max(roomy, min(0.42, max(0.125, 9 / longest), _MATRIX_SIDE / longest))


def _label_cells(axes: Axes, rows: Sequence[str], columns: Sequence[str], cell: float) -> None:
    """Name every row and column, or every n-th where cells are lower than letters."""
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
    """Hang the bar right of the matrix, whose width and height are in inches."""
    length = min(max(height, 2.0), 3.5)
    place = (1 + 0.2 / width, 1 - length / height, 0.16 / width, length / height)
    bar_axes = axes.inset_axes(place)
    figure.colorbar(image, cax=bar_axes, ticks=_TICKS)
    bar_axes.set_yticklabels([f"{tick} %" for tick in _TICKS], fontsize=8)
    bar_axes.spines[:].set_visible(False)
