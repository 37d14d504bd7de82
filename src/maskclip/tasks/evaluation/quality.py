"""The chart of a comparison: quality against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from maskclip.tasks.evaluation.plotting import (
    COLORS,
    DASHES,
    DPI,
    FAINT_INK,
    INK,
    MARKERS,
    Target,
    label,
    set_grid,
    set_title,
    write_empty_figure,
    write_figure,
)

Curves = Mapping[tuple[str, str], Sequence[tuple[str, float, float]]]
"""(model, method) -> (refinement, seconds, mIoU in %) of each refinement."""

_PANEL, _NAMES, _HEIGHT = 4.6, 1.5, 4.6  # inches
_LETTER = 0.155  # inches from one name to the next
_LEGEND_COLUMNS = 6


def quality_chart(curves: Curves, path: Target, *, title: str) -> None:
    """Draw mIoU against time: a panel a model, a line a method, a mark a refinement.

    A line leads from the fastest to the slowest refinement, and on to the method's name at the
    right; the best point has a ring.

    Args:
        curves: what was measured; times are above 0.
        path: of the PNG.
        title: above the panels.

    Raises:
        OSError: the file cannot be written.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        write_empty_figure(path, title=title)
        return
    models = list(dict.fromkeys(model for model, _ in curves))
    refinements = list(dict.fromkeys(name for name, _, _ in points))
    methods = list(dict.fromkeys(method for _, method in curves))
    best = max(points, key=lambda point: point[2])
    low, high = min(point[2] for point in points), max(point[2] for point in points)
    room = 0.05 * max(high - low, 1.0)
    width = len(models) * (_PANEL + _NAMES)
    figure = Figure(figsize=(width, _HEIGHT), dpi=DPI)
    for index, model in enumerate(models):
        left = index * (_PANEL + _NAMES) / width
        axes = figure.add_axes((left, 0, _PANEL / width, 1))
        _scale(axes, [seconds for _, seconds, _ in points])
        axes.set_ylim(low - room, high + room)
        set_grid(axes, "both")
        ends = {}
        for (name, method), unsorted in curves.items():
            if name == model:
                curve = sorted(unsorted, key=lambda point: point[1])
                turn, index_of = divmod(methods.index(method), len(COLORS))
                color = COLORS[index_of]
                dashes = DASHES[turn % len(DASHES)]  # when colours repeat
                _draw(axes, curve, refinements, color=color, dashes=dashes, best=best)
                ends[method] = (curve[-1][1], curve[-1][2], color)
        _name(axes, ends)
        axes.set_xlabel("seconds an image", color=FAINT_INK)
        axes.text(0.02, 0.98, label(model), transform=axes.transAxes, va="top", color=INK)
        if index == 0:
            axes.set_ylabel("mIoU, %", color=FAINT_INK)
    lift = _explain(figure.axes[0], refinements)
    set_title(figure.axes[0], title, width=max(width - 1, 6), lift=lift)
    write_figure(figure, path)


def _scale(axes: Axes, seconds: Sequence[float]) -> None:
    """Give the axis of time a logarithmic scale, from the fastest to the slowest of all panels."""
    axes.set_xscale("log")
    low, high = min(seconds), max(seconds)
    room = max(high / low, 2.0) ** 0.06
    axes.set_xlim(low / room, high * room)
    subs = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _draw(
    axes: Axes,
    curve: Sequence[tuple[str, float, float]],
    refinements: Sequence[str],
    *,
    color: str,
    dashes: str,
    best: tuple[str, float, float],
) -> None:
    line = [x for _, x, _ in curve], [y for _, _, y in curve]
    axes.plot(*line, color=color, linestyle=dashes, linewidth=1)
    for point in curve:
        name, x, y = point
        marker = MARKERS[refinements.index(name) % len(MARKERS)]
        axes.plot([x], [y], color=color, marker=marker, markersize=5.5, linestyle="")
        if point is best:
            axes.plot(
                [x], [y], marker="o", markersize=13, markeredgecolor=INK, markerfacecolor="none"
            )


def _name(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Write names right of the axes, at the height of their lines' ends, none over another."""
    low, high = axes.get_ylim()
    step = _LETTER / _HEIGHT
    heights: list[float] = []
    order = sorted(ends, key=lambda name: ends[name][1])
    for name in order:
        wanted = (ends[name][1] - low) / (high - low)
        heights.append(max(wanted, heights[-1] + step) if heights else wanted)
    over = max(heights[-1] - 1, 0.0) if heights else 0.0
    for index in reversed(range(len(order))):  # from the top down, where they ran out of it
        limit = 1.0 if index == len(order) - 1 else heights[index + 1] - step
        heights[index] = min(heights[index], limit) if over else heights[index]
    for name, height in zip(order, heights, strict=True):
        x, y, color = ends[name]
        axes.annotate(
            label(name),
            (x, y),
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=color,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "alpha": 0.45},
            annotation_clip=False,
        )


def _explain(axes: Axes, refinements: Sequence[str]) -> float:
    """Say above the axes which mark is which refinement; return how many points that takes."""
    if len(refinements) < 2:
        return 0.0
    handles = [
        axes.plot([], [], color=FAINT_INK, marker=MARKERS[i % len(MARKERS)], linestyle="")[0]
        for i in range(len(refinements))
    ]
    axes.legend(
        handles,
        [label(name) for name in refinements],
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        borderaxespad=0.2,
        ncols=min(len(refinements), _LEGEND_COLUMNS),
        fontsize=9,
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    return 16.0 * -(-len(refinements) // _LEGEND_COLUMNS) + 4
