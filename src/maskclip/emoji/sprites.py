"""The cut-out objects of the embedded world: one sheet of emoji, some of which come in colours.

`sprites/index.json` names the objects in the order of their cells on `sprites/sheet.png`; `hue`
(degrees) is the hue of the part that can take another colour. The sheet was rendered by
`tools.emoji_clip.render_sprites`.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources

import numpy as np
from PIL import Image

CELL = 128  # side of a cell of the sheet, in pixels
COLUMNS = 8
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
    lines = json.loads(sprites_folder().joinpath("index.json").read_text(encoding="utf-8"))
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
    with sprites_folder().joinpath("sheet.png").open("rb") as file, Image.open(file) as image:
        return image.convert("RGBA")


def sprites_folder() -> resources.abc.Traversable:
    """Return the folder of the sheet, its index and its licence."""
    return resources.files("maskclip.emoji").joinpath("sprites")
