"""The cut-out objects of the embedded world: one sheet of emoji, some of which come in colours.

`python -m maskclip.emoji.sprites --font NotoColorEmoji.ttf` renders `sprites/sheet.png` again from
`sprites/index.json` (Debian: package fonts-noto-color-emoji; SIL Open Font License 1.1, see
`sprites/LICENSE`). The index names the objects in the order of their cells; `hue` (degrees) is the
hue of the part that can take another colour.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from maskclip.core.files import atomic_path

CELL = 128  # side of a cell of the sheet, in pixels
COLUMNS = 8
FONT_SIZE = 109  # the one size in which the font holds its bitmaps
COLORS = {"red": 0, "yellow": 48, "green": 120, "blue": 218, "purple": 285}  # hues in degrees
HUE_REACH = 40  # pixels whose hue is this close to the object's own take the new colour

HELD_OUT_PAIRS: tuple[tuple[str, str], ...] = (
    ("purple", "car"),
    ("green", "umbrella"),
    ("blue", "balloon"),
    ("yellow", "backpack"),
    ("red", "shirt"),
    ("green", "book"),
    ("purple", "dress"),
    ("yellow", "bucket"),
)
"""Pairs of a colour and an object that no training example shows or names: for testing whether a
model that knows green cars and purple books recognises a purple car."""


@dataclass(frozen=True)
class Entry:
    """One line of the index: an object, its character, and its own hue when it comes in colours."""

    name: str
    character: str
    hue: int | None


@functools.cache
def index() -> dict[str, Entry]:
    """Return the objects by name, in the order of their cells on the sheet."""
    lines = json.loads(_folder().joinpath("index.json").read_text(encoding="utf-8"))
    entries = [
        Entry(line["name"], chr(int(line["character"].removeprefix("U+"), 16)), line.get("hue"))
        for line in lines
    ]
    return {entry.name: entry for entry in entries}


def object_names() -> tuple[str, ...]:
    """Return the names of all objects, in the order of the index."""
    return tuple(index())


def colored_pairs() -> tuple[tuple[str, str], ...]:
    """Return every (colour, object) that can be drawn, the held-out pairs included."""
    colorable = [entry.name for entry in index().values() if entry.hue is not None]
    return tuple((color, name) for name in colorable for color in COLORS)


@functools.cache
def sprite(name: str, color: str | None = None) -> Image.Image:
    """Return an object cut out and trimmed, as an RGBA image of at most 128 x 128 px; do not edit.

    Raises:
        ValueError: there is no such object, or it does not come in that colour.
    """
    if name not in index():
        raise ValueError(f"unknown object {name!r}: expected one of {', '.join(index())}")
    row, column = divmod(list(index()).index(name), COLUMNS)
    cell = _sheet().crop((column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL))
    trimmed = cell.crop(cell.getchannel("A").getbbox())
    if color is None:
        return trimmed
    hue = index()[name].hue
    if hue is None or color not in COLORS:
        raise ValueError(
            f"there is no {color} {name}: colours are {', '.join(COLORS)}, "
            f"for {', '.join(dict.fromkeys(pair[1] for pair in colored_pairs()))}"
        )
    return _recolor(trimmed, hue, COLORS[color])


def _recolor(image: Image.Image, own_hue: int, hue: int) -> Image.Image:
    hsv = np.asarray(image.convert("RGB").convert("HSV")).astype(np.float32)
    degrees = hsv[..., 0] * (360 / 256)
    offset = (degrees - own_hue + 180) % 360 - 180
    paint = (np.abs(offset) <= HUE_REACH) & (hsv[..., 1] > 50)
    changed = np.stack(
        [
            (hue + 0.25 * offset) % 360 * (256 / 360),
            np.clip(hsv[..., 1] * 1.25, 150, 255),  # pale paint, such as the shirt's, is deepened
            hsv[..., 2],
        ],
        axis=-1,
    )
    result = np.where(paint[..., None], changed, hsv).clip(0, 255).astype(np.uint8)
    colored = Image.fromarray(result, "HSV").convert("RGB")
    colored.putalpha(image.getchannel("A"))
    return colored


@functools.cache
def _sheet() -> Image.Image:
    with _folder().joinpath("sheet.png").open("rb") as file, Image.open(file) as image:
        return image.convert("RGBA")


def _folder() -> resources.abc.Traversable:
    return resources.files("maskclip.emoji").joinpath("sprites")


def render_sheet(font_file: Path) -> Image.Image:
    """Render every object of the index from a colour bitmap font into one RGBA sheet.

    Raises:
        OSError: the font cannot be read, or has no bitmaps of size 109.
    """
    font = ImageFont.truetype(font_file, FONT_SIZE)
    rows = -(-len(index()) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for position, entry in enumerate(index().values()):
        glyph = Image.new("RGBA", (CELL + 32, CELL + 32))
        ImageDraw.Draw(glyph).text((8, 8), entry.character, font=font, embedded_color=True)
        glyph = glyph.crop(glyph.getbbox())
        glyph.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        row, column = divmod(position, COLUMNS)
        left = column * CELL + (CELL - glyph.width) // 2
        sheet.paste(glyph, (left, row * CELL + (CELL - glyph.height) // 2))
    return _without_invisible_color(sheet)


def _without_invisible_color(sheet: Image.Image) -> Image.Image:
    pixels: NDArray[np.uint8] = np.array(sheet)
    pixels[pixels[..., 3] == 0] = 0  # colours nobody sees would only make the file larger
    return Image.fromarray(pixels)


def main() -> None:
    """Write the sheet beside the index."""
    parser = argparse.ArgumentParser(description="Render the sprite sheet again from its font.")
    parser.add_argument(
        "--font", type=Path, default="/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    )
    parser.add_argument("--out", type=Path, default=str(_folder().joinpath("sheet.png")))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with atomic_path(arguments.out) as temporary:
        render_sheet(arguments.font).save(temporary, optimize=True)
    logging.info("%s: %d bytes", arguments.out, arguments.out.stat().st_size)


if __name__ == "__main__":
    main()
