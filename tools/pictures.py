"""Draw the picture of real photos in the README: `python -m tools.pictures docs/photo.jpg`.

The photos come with scikit-image: chelsea and coffee are CC0, rocket is in the public domain.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from skimage import data_dir  # type: ignore[attr-defined]

import maskclip

PHOTOS = ("chelsea.png", "coffee.png")
HEIGHT, GAP = 240, 8  # px


def row(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures side by side, all of one height."""
    same = [one.resize((round(one.width * HEIGHT / one.height), HEIGHT)) for one in pictures]
    width = sum(one.width for one in same) + GAP * (len(same) - 1)
    out, left = Image.new("RGB", (width, HEIGHT), "white"), 0
    for one in same:
        out.paste(one, (left, 0))
        left += one.width + GAP
    return out


def main() -> None:
    """Write the photos, and their labels below them."""
    segmenter, words = maskclip.load("photo"), maskclip.Vocabulary.builtin("photo")
    photos = [Image.open(Path(data_dir, name)).convert("RGB") for name in PHOTOS]
    found = [segmenter.segment(photo, words, background=0.5, regions="slic") for photo in photos]
    above, below = row(photos), row([one.overlay(legend=False) for one in found])
    whole = Image.new("RGB", (above.width, 2 * HEIGHT + GAP), "white")
    whole.paste(above, (0, 0))
    whole.paste(below, (0, HEIGHT + GAP))
    whole.save(sys.argv[1], quality=88)


if __name__ == "__main__":
    main()
