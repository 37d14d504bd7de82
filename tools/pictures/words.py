"""What goes wrong with words, and what mends it (docs/words.md)."""

from __future__ import annotations

from PIL import Image

from tools.pictures.scenes import labelled, plain
from tools.pictures.sheets import sheet


def missing() -> Image.Image:
    """Return what happens where words are missing, and what mends it."""
    things = ("penguin", "house")
    return sheet(
        plain(5),
        labelled(5, "penguin, house", things),
        labelled(5, "and --background 0.6", things, background=0.6),
        labelled(5, "and --background grass,sky", things, background=["grass", "sky"]),
    )


def color() -> Image.Image:
    """Return a backpack by the wrong colour, by two colours and by none."""
    others = ("bus", "sand", "brick wall")
    return sheet(
        plain(6),
        labelled(6, "red backpack, bus, sand, brick wall", ("red backpack", *others)),
        labelled(6, "and green backpack", ("red backpack", *others, "green backpack")),
        labelled(6, "backpack, bus, sand, brick wall", ("backpack", *others)),
    )


def size() -> Image.Image:
    """Return small things, seen at two sizes, and refined."""
    names = ("sheep", "sunflower", "road")
    return sheet(
        plain(9),
        labelled(9, "--short-side 128 --refine none", names, short_side=128, refine="none"),
        labelled(9, "--short-side 416 --refine none", names, short_side=416, refine="none"),
        labelled(9, "--short-side 416", names, short_side=416),
    )
