"""What the charts share: style, labels that the font can draw, and writing PNGs atomically.

Figures are built without pyplot, so no global state changes. They are saved with a tight bounding
box: labels and legends may be outside the axes, which makes the image larger.
"""

from __future__ import annotations

import os
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from maskclip.core.files import atomic_path

Target = str | os.PathLike[str]

DPI = 120
TITLE_LINE = 0.2  # inches
INK, FAINT_INK, GRID = "#202124", "#5f6368", "#e3e5e8"

# Okabe and Ito's colours, distinguishable by colour-blind readers; brown replaces pale yellow.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#8c510a")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_LONGEST_NAME, _LONGEST_TITLE = 28, 400  # characters


def set_title(axes: Axes, title: str, caption: str = "", *, width: float, lift: float = 0) -> None:
    """Write title and caption above the axes, wrapped to `width` inches, `lift` points higher."""
    for line in reversed(textwrap.wrap(caption, int(width * 15))):
        write_above(axes, line, across=0, up=lift + 5, ha="left")
        lift += 12
    text = "\n".join(map(_no_formula, wrapped_title(title, width=width)))
    axes.set_title(text, loc="left", fontsize=12, color=INK, pad=lift + 9)


def wrapped_title(title: str, *, width: float) -> list[str]:
    """Return the lines of a title wrapped to `width` inches; each is `TITLE_LINE` high."""
    lines = (_printable(line, limit=_LONGEST_TITLE) for line in title.splitlines())
    return [part for line in lines for part in textwrap.wrap(line, int(width * 11))]


def write_above(
    axes: Axes, text: str, *, across: float, up: float, ha: Literal["left", "center"]
) -> None:
    """Write small text above the axes, at `across` in 0..1 and `up` in points."""
    axes.annotate(
        text,
        (across, 1),
        xycoords="axes fraction",
        xytext=(0, up),
        textcoords="offset points",
        ha=ha,
        va="bottom",
        fontsize=9,
        color=FAINT_INK,
    )


def set_grid(axes: Axes, which: Literal["both", "x", "y"]) -> None:
    """Draw a faint grid behind the data, without frame and ticks."""
    axes.grid(axis=which, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def write_figure(figure: Figure, path: Target) -> None:
    """Write the figure as a PNG.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.15)


def write_empty_figure(path: Target, *, title: str) -> None:
    """Write a PNG that says "nothing to show".

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(5, 0.9), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(0.5, 0.5, "nothing to show", ha="center", va="center", color=FAINT_INK)
    set_title(axes, title, width=4.5)
    write_figure(figure, path)


def class_labels(names: Sequence[str]) -> list[str]:
    """Return the names as `label` does; those with boxes for letters get a number before them."""
    labels = [label(name) for name in names]
    return [f"{index}: {text}" if "□" in text else text for index, text in enumerate(labels)]


def label(words: str, *, limit: int = _LONGEST_NAME) -> str:
    """Return words as one short line that the font can draw and that is never read as a formula."""
    return _no_formula(_printable(words, limit=limit))


def count_classes(count: int) -> str:
    """Return "1 class", "2 classes", ..."""
    return f"{count} class" if count == 1 else f"{count} classes"


def _printable(words: str, *, limit: int) -> str:
    """Return words in one line, shortened, with boxes for letters that the font does not have.

    matplotlib draws such boxes as well, but warns about each.
    """
    kept = [c for c in words[: 4 * limit] if c.isspace() or unicodedata.category(c)[0] != "C"]
    letters = " ".join("".join(kept).split())
    faces = [
        get_font(findfont(FontProperties(family=[family])))
        for family in FontProperties().get_family()
    ]
    known = [any(face.get_char_index(ord(letter)) for face in faces) for letter in letters]
    text = "".join(letter if has else "□" for letter, has in zip(letters, known, strict=True))
    if len(text) > limit:
        text = text[: limit - 1].rstrip() + "…"
    return text or "□"


def _no_formula(text: str) -> str:
    return text.replace("$", r"\$")
