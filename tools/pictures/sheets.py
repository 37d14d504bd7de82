"""Pictures side by side, each with a line below it, and what their colours stand for."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from maskclip.core.vocabulary import Vocabulary

GAP, LINE = 8, 20  # px
FONT = ImageFont.load_default(14)


class Panel(NamedTuple):
    """A picture, and what is written below it."""

    picture: Image.Image
    text: str


def sheet(
    *panels: Panel,
    columns: int = 2,
    side: int = 240,
    height: int | None = None,
    words: Vocabulary | None = None,
) -> Image.Image:
    """Return pictures in rows, each with a line below it; the colours of words come last.

    Pictures get the size side x height, and are square without a height.
    """
    height = height or side
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    texts = [["\n".join(textwrap.wrap(panel.text, side // 7)) for panel in row] for row in rows]
    heights = [height + LINE * max(len(text.splitlines()) for text in row) + 4 for row in texts]
    width = columns * (side + GAP) - GAP
    key = [] if words is None else _key(words, width)
    out = Image.new("RGB", (width, sum(heights) + LINE * len(key)), "white")
    draw, top = ImageDraw.Draw(out), 0
    for row, lines, tall in zip(rows, texts, heights, strict=True):
        for index, (panel, text) in enumerate(zip(row, lines, strict=True)):
            left = index * (side + GAP)
            out.paste(panel.picture.resize((side, height), Image.Resampling.LANCZOS), (left, top))
            draw.multiline_text((left + 2, top + height + 2), text, "black", FONT)
        top += tall
    for line in key:
        for left, name, color in line:
            draw.rectangle((left, top + 3, left + 12, top + 15), color)
            draw.text((left + 18, top + 1), name, "black", FONT)
        top += LINE
    return out


def _key(words: Vocabulary, width: int) -> list[list[tuple[int, str, tuple[int, int, int]]]]:
    """Return lines of (left, name, colour) that are no wider than the sheet."""
    lines: list[list[tuple[int, str, tuple[int, int, int]]]] = [[]]
    left = 2
    for name, color in zip(words.names, words.colors, strict=True):
        needed = 18 + round(FONT.getlength(name)) + 16
        if left + needed > width:
            lines.append([])
            left = 2
        lines[-1].append((left, name, color))
        left += needed
    return lines
