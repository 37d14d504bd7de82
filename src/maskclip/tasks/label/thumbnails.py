"""Small pictures of labelled photos, for the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from maskclip.core.draw import Labels, overlay
from maskclip.core.files import atomic_path
from maskclip.core.palettes import BLACK
from maskclip.core.vocabulary import Vocabulary

FOLDER = "thumbnails"
SIDE = 240
"""The longest side of a photo in its thumbnail, in px."""


def thumbnail_path(out: Path, name: str) -> Path:
    """Return the file of a photo's thumbnail."""
    return out / FOLDER / f"{name}.jpg"


def reduced(photo: Image.Image) -> Image.Image:
    """Return a copy of an RGB photo that fits into `SIDE` x `SIDE` px."""
    small = photo.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    return small


def write_thumbnail(small: Image.Image, labels: Labels, vocabulary: Vocabulary, path: Path) -> None:
    """Write a photo and its labels side by side; where nothing is said the photo shows.

    Args:
        small: the photo, `reduced`.
        labels: (H, W) class ids, or the ignored label, of the photo at its own size.
        vocabulary: the classes.
        path: a JPEG, written whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    rows, columns = (
        (np.arange(size) * whole) // size
        for size, whole in zip((small.height, small.width), labels.shape, strict=True)
    )
    ids = labels[np.ix_(rows, columns)]
    unsaid = ids == vocabulary.ignore
    ids = np.where(unsaid, ids.dtype.type(len(vocabulary)), ids)
    blended = overlay(small, ids, (*vocabulary.colors, BLACK))
    blended.paste(small, mask=Image.fromarray(unsaid))
    both = Image.new("RGB", (2 * small.width, small.height))
    both.paste(small, (0, 0))
    both.paste(blended, (small.width, 0))
    with atomic_path(path) as temporary:
        both.save(temporary, quality=80)
