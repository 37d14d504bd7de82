"""What the models of the package make of photos and of drawn scenes (README, docs/models.md)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from skimage import data_dir  # type: ignore[attr-defined]

import maskclip
from maskclip.core.vocabulary import Vocabulary
from tools.pictures.scenes import OPACITY, plain, segment
from tools.pictures.sheets import Panel, sheet

DEMO = range(4)  # the seeds of `make demo`


def photo_file(name: str) -> Image.Image:
    """Return a photo of scikit-image."""
    with Image.open(Path(data_dir, name)) as photo:
        return photo.convert("RGB")


def photos() -> Image.Image:
    """Return two photos, and their labels below them."""
    segmenter, words = maskclip.load("photo"), Vocabulary.builtin("photo")
    given = [photo_file(name) for name in ("chelsea.png", "coffee.png")]
    found = [segmenter.segment(photo, words, background=0.5, regions="slic") for photo in given]
    names = [", ".join(list(one.coverage())) for one in found]
    panels = [Panel(photo, "") for photo in given]
    panels += [
        Panel(one.overlay(legend=False), text) for one, text in zip(found, names, strict=True)
    ]
    return sheet(*panels, side=360, height=240)


def scenes() -> Image.Image:
    """Return drawn scenes, and their labels among all words of the embedded world."""
    words = Vocabulary.builtin("emoji")
    found = [segment(seed, words) for seed in DEMO]
    below = [
        Panel(one.overlay(legend=False, opacity=OPACITY), ", ".join(one.coverage()))
        for one in found
    ]
    above = [plain(seed)._replace(text="") for seed in DEMO]
    return sheet(*above, *below, columns=len(above), side=184)
