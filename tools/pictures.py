"""Draw the pictures of README and docs: `python -m tools.pictures [NAME ...]`, all by default.

Photos come with scikit-image (chelsea and coffee are CC0), drawn scenes from the embedded world.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from skimage import data_dir  # type: ignore[attr-defined]

import maskclip
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import draw_scene

DOCS = Path(__file__).resolve().parents[1] / "docs"
PHOTOS = ("chelsea.png", "coffee.png")
SIDE, HEIGHT, GAP, LINE = 240, 240, 8, 18  # px
COLORS = [(230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (240, 228, 66)]

Panel = tuple[Image.Image, str]


def row(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures side by side, all of one height."""
    same = [one.resize((round(one.width * HEIGHT / one.height), HEIGHT)) for one in pictures]
    width = sum(one.width for one in same) + GAP * (len(same) - 1)
    out, left = Image.new("RGB", (width, HEIGHT), "white"), 0
    for one in same:
        out.paste(one, (left, 0))
        left += one.width + GAP
    return out


def sheet(*panels: Panel) -> Image.Image:
    """Return pictures side by side, each with a line below it."""
    font = ImageFont.load_default(13)
    out = Image.new("RGB", (len(panels) * (SIDE + GAP) - GAP, HEIGHT + LINE), "white")
    draw = ImageDraw.Draw(out)
    for index, (picture, text) in enumerate(panels):
        left = index * (SIDE + GAP)
        out.paste(picture.resize((SIDE, HEIGHT)), (left, 0))
        draw.text((left + 2, HEIGHT + 2), text, "black", font)
    return out


def scene(seed: int) -> npt.NDArray[np.uint8]:
    """Return a drawn scene, (H, W, 3)."""
    return draw_scene(seed, size=(320, 320)).image


def photo() -> Image.Image:
    """Return two photos, and their labels below them."""
    segmenter, words = maskclip.load("photo"), maskclip.Vocabulary.builtin("photo")
    photos = [Image.open(Path(data_dir, name)).convert("RGB") for name in PHOTOS]
    found = [segmenter.segment(photo, words, background=0.5, regions="slic") for photo in photos]
    above, below = row(photos), row([one.overlay(legend=False) for one in found])
    whole = Image.new("RGB", (above.width, 2 * HEIGHT + GAP), "white")
    whole.paste(above, (0, 0))
    whole.paste(below, (0, HEIGHT + GAP))
    return whole


def labelled(seed: int, text: str, names: Sequence[str], **options: Any) -> Panel:
    """Return the labels that the embedded model gives a drawn scene."""
    loaded = maskclip.load(options.pop("model", "emoji"), method=options.pop("method", "clean"))
    given = Vocabulary.parse(names, colors=COLORS[: len(names)])
    return loaded.segment(scene(seed), given, **options).overlay(legend=False), text


def plain(seed: int) -> Panel:
    """Return a drawn scene."""
    return Image.fromarray(scene(seed)), "the scene"


def words_missing() -> Image.Image:
    """Return what happens where words are missing, and what mends it."""
    things = ("penguin", "house")
    return sheet(
        plain(5),
        labelled(5, "penguin, house", things),
        labelled(5, "and --background 0.6", things, background=0.6),
        labelled(5, "and --background grass,sky", things, background=["grass", "sky"]),
    )


def words_color() -> Image.Image:
    """Return a backpack by the wrong colour, by two colours and by none."""
    others = ("bus", "sand", "brick wall")
    return sheet(
        plain(6),
        labelled(6, "red backpack, bus, sand, brick wall", ("red backpack", *others)),
        labelled(6, "and green backpack", ("red backpack", *others, "green backpack")),
        labelled(6, "backpack, bus, sand, brick wall", ("backpack", *others)),
    )


def words_size() -> Image.Image:
    """Return small things, seen at two sizes, and refined."""
    names = ("sheep", "sunflower", "road")
    return sheet(
        plain(9),
        labelled(9, "--short-side 128 --refine none", names, short_side=128, refine="none"),
        labelled(9, "--short-side 416 --refine none", names, short_side=416, refine="none"),
        labelled(9, "--short-side 416", names, short_side=416),
    )


def reading() -> Image.Image:
    """Return a CLIP read by its own attention, as MaskCLIP reads it, and refined by the photo."""
    names = ("train", "truck", "sand", "sky")
    ordinary = {"model": "emoji-vit", "method": "baseline", "refine": "none"}
    return sheet(
        plain(3),
        labelled(3, "CLIP's own attention", names, **ordinary),
        labelled(3, "MaskCLIP", names, model="emoji-vit", refine="none"),
        labelled(3, "MaskCLIP, refined by the photo", names, model="emoji-vit", refine="pamr"),
    )


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "photo": photo,
    "words-missing": words_missing,
    "words-color": words_color,
    "words-size": words_size,
    "reading": reading,
}


def main() -> None:
    """Draw the pictures that are named, or all."""
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]().save(DOCS / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main()
