"""Formats of one file for each photo: label images, overlays, scores, summaries, probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core.draw import Labels, overlay, overlay_with_legend, palette_image
from maskclip.core.files import atomic_path, write_json, write_text
from maskclip.core.palettes import BLACK, IGNORED_COLOR, Color
from maskclip.core.segmentation import score_image, summary_dict
from maskclip.data.formats.base import Format, Labeled, PhotoFile


class PerPhotoFormat(Format):
    """A format of one file for each photo, `NAME` and the format's ending.

    Attributes:
        ending: of the file's name.
    """

    ending: ClassVar[str]

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the photo's file."""
        return (self.out / f"{name}{self.ending}",)

    def finish(self, photos: Iterable[PhotoFile]) -> list[str]:
        """Do nothing: no file is about the whole set."""
        return []

    def _save(self, image: Image.Image, name: str, **options: Any) -> None:
        with atomic_path(*self.files(name)) as temporary:
            image.save(temporary, **options)


class LabelImage(PerPhotoFormat):
    """`labels`: `NAME_labels.png`, an image whose pixel values are class ids.

    A palette image in the vocabulary's colours; beyond 255 classes 16-bit grey. Ignored pixels are
    255, or 65,535.
    """

    ending = "_labels.png"

    def write(self, item: Labeled) -> None:
        """Write the image."""
        labels = self.class_ids(item)
        if labels.dtype == np.uint8:
            image = palette_image(labels, self._colors())
        else:
            image = Image.fromarray(labels)
        self._save(image, item.name)

    def _colors(self) -> tuple[Color, ...]:
        """Return the palette; that of the ignored label comes where it is needed."""
        return self.vocabulary.colors


class Palette(LabelImage):
    """`png`: `NAME.png`, label images as Pascal VOC has them, and `classes.txt`.

    They are those of `LabelImage` with all 256 colours, VOC's cream for the ignored label among
    them. `classes.txt` names the classes, one a line, from id 0.
    """

    ending = ".png"

    def finish(self, photos: Iterable[PhotoFile]) -> list[str]:
        """Write the names of the classes."""
        write_text("".join(f"{name}\n" for name in self.vocabulary.names), self.out / "classes.txt")
        return []

    def _colors(self) -> tuple[Color, ...]:
        unused = self.vocabulary.ignore - len(self.vocabulary)
        return (*self.vocabulary.colors, *[BLACK] * unused, IGNORED_COLOR)


class Overlay(PerPhotoFormat):
    """`overlay`: `NAME_overlay.png`, the photo under the colours of its classes, with a legend.

    Ignored pixels show the photo. The picture is larger than the photo by the legend, and a tiny
    photo is enlarged.
    """

    ending = "_overlay.png"
    photo_side = math.inf

    def write(self, item: Labeled) -> None:
        """Write the picture.

        Raises:
            ValueError: the photo is not given, or not at its own size.
        """
        words = self.vocabulary
        picture = overlay_with_legend(
            item.require_photo(), self.class_ids(item), words.names, words.colors
        )
        self._save(picture, item.name)


class Scores(PerPhotoFormat):
    """`scores`: `NAME_scores.png`, 8-bit grey, 255 times the score of each pixel's class."""

    ending = "_scores.png"
    wants_scores = True

    def write(self, item: Labeled) -> None:
        """Write the image.

        Raises:
            ValueError: the scores are not given.
        """
        self._save(score_image(item.require_scores()), item.name)


class Summary(PerPhotoFormat):
    """`json`: `NAME.json`, the photo's size and the coverage and mean score of its classes."""

    ending = ".json"
    wants_scores = True

    def write(self, item: Labeled) -> None:
        """Write the summary.

        Raises:
            ValueError: the scores are not given.
        """
        summary = summary_dict(self.class_ids(item), item.require_scores(), self.vocabulary)
        write_json(summary, *self.files(item.name))


class Probabilities(PerPhotoFormat):
    """`probabilities`: `NAME.npz`, read by `numpy.load`, from which the labels were made.

    - `probabilities`: (n, K, h, w) float32, of K classes on the grids of n windows (1 without
      `--window`). Half precision would give other labels where two classes are close.
    - `size`: (2,) int64, H and W of the photo; `seen`: (2,), of what the network saw, in px.
    - `windows`: (n, 2, 2), where the rows, then the columns, of each window begin and end in that.
    - `covered`: (2,), how many of these px a grid spans from the start of its window on; more than
      the window where it was padded.
    - `classes`: (K,) the classes' names.

    Between the centres of cells values are interpolated linearly, beyond them they are constant,
    and where windows overlap they are averaged. The class of the largest is the label, except
    where it was dropped as unsure or small; docs/formats.md has a reader of a few lines.
    """

    ending = ".npz"
    wants_probabilities = True

    def write(self, item: Labeled) -> None:
        """Write the archive.

        Raises:
            ValueError: the probabilities are not given, or do not fit the classes and the photo.
        """
        maps, where, count = item.probabilities, item.geometry, len(self.vocabulary)
        if maps is None or maps.ndim != 4 or maps.shape[1] != count or maps.size == 0:
            got = "none" if maps is None else f"{maps.shape}"
            raise ValueError(f"{item.name}: expected probabilities (n, {count}, h, w), got {got}")
        if where is None or (len(where.windows), where.output) != (len(maps), item.labels.shape):
            raise ValueError(f"{item.name}: expected the place of {len(maps)} grids in the photo")
        windows = [[(axis.start, axis.stop) for axis in window] for window in where.windows]
        with atomic_path(*self.files(item.name)) as temporary:
            np.savez_compressed(
                temporary,
                probabilities=maps.astype(np.float32, copy=False),
                size=np.array(where.output, np.int64),
                seen=np.array(where.seen, np.int64),
                windows=np.array(windows, np.int64),
                covered=np.array(where.covered, np.int64),
                classes=np.array(self.vocabulary.names),
            )


class Thumbnails(PerPhotoFormat):
    """`NAME.jpg`: a small copy of the photo, without and with the colours of its classes."""

    ending = ".jpg"
    photo_side = 320

    def write(self, item: Labeled) -> None:
        """Write the two pictures, side by side.

        Raises:
            ValueError: the photo is not given.
        """
        small = fit_photo(item.require_photo(), self.photo_side)
        labels = _reduced(self.class_ids(item), (small.height, small.width))
        words = self.vocabulary
        both = Image.new("RGB", (2 * small.width, small.height))
        both.paste(small, (0, 0))
        both.paste(overlay(small, labels, words.colors), (small.width, 0))
        self._save(both, item.name, quality=80)


def fit_photo(photo: Image.Image, side: float) -> Image.Image:
    """Return an RGB photo, reduced to fit into `side` x `side` px."""
    if max(photo.size) <= side:
        return photo
    small = photo.copy()
    small.thumbnail((side, side), Image.Resampling.BILINEAR)
    return small


def _reduced(labels: Labels, size: tuple[int, int]) -> Labels:
    """Return the nearest label to the upper left of each cell of a grid of `size` (h, w)."""
    rows, columns = (
        (np.arange(small) * whole) // small for small, whole in zip(size, labels.shape, strict=True)
    )
    reduced: npt.NDArray[np.uint8] | npt.NDArray[np.uint16] = labels[np.ix_(rows, columns)]
    return reduced
