"""One's own photos, of which all, some or none have labels.

`open_folder` opens those to be scored, `open_photos` those to learn from. Samples are read one at a
time, from any thread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from maskclip.core.errors import MaskCLIPError
from maskclip.core.samples import UNLABELED, Sample
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.annotations import Annotations, MaskFolder, open_annotations
from maskclip.data.datasets import DatasetError, Labeled
from maskclip.data.images import image_size
from maskclip.data.masks import Ids, LabelRule
from maskclip.data.sources import find_sources


@dataclass(frozen=True, eq=False, kw_only=True)
class Photos(Labeled):
    """One's own images, of which all, some or none have labels.

    Attributes:
        folder: the folder of the images.
        files: their paths relative to it.
        annotations: the labels of some of them; None if there are none.
        labels: the folder or file of these, as it was named.
        unlabeled: what pixels without a label are: UNLABELED, to be labelled by a teacher, or the
            vocabulary's ignored label, not to be scored.
        kept: the share of labelled images that are kept for validation, and the seed of the choice;
            None if none are.
    """

    folder: Path
    files: tuple[str, ...] = field(repr=False)
    annotations: Annotations[Any] | None = field(default=None, repr=False)
    labels: Path | None = None
    unlabeled: int = UNLABELED
    kept: tuple[float, int] | None = None

    @property
    def names(self) -> Sequence[str]:
        """The ids of the images, in order: their paths, without suffixes if they are scored."""
        return self._names

    @cached_property
    def _names(self) -> Sequence[str]:
        stems = tuple(map(_stem, self.files))
        scored = self.unlabeled != UNLABELED and len(set(stems)) == len(stems)
        return stems if scored else self.files

    def image_path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.folder / self.files[index]

    def has_labels(self, index: int) -> bool:
        """Return whether an image has labels."""
        return self.annotations is not None and self.files[index] in self.annotations.photos

    def labels_at(self, index: int) -> str:
        """Return where an image's labels are, or are expected."""
        file, annotations = self.files[index], self.annotations
        if annotations is None:
            return "no labels"
        return annotations.where(file) if self.has_labels(index) else annotations.expected(file)

    def unused_masks(self) -> list[Path]:
        """Return the masks that no image has; sorted."""
        return [] if self.annotations is None else self.annotations.unused

    def read_ids(self, index: int, size: tuple[int, int] | None = None) -> Ids:
        """Read the labels of an image; where it has none, all pixels are ignored."""
        if self.annotations is not None and self.has_labels(index):
            return self.annotations.read(self.files[index], size)
        width, height = size or image_size(self.image_path(index))
        return np.full((height, width), self.vocabulary.ignore, np.int32)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        """Read an image with its labels.

        Raises:
            MaskCLIPError: a file is missing or broken, sizes differ, or labels are out of range.
        """
        sample = super().__getitem__(index)
        if self.unlabeled == self.vocabulary.ignore:
            return sample
        labels = np.where(sample.labels == self.vocabulary.ignore, self.unlabeled, sample.labels)
        return Sample(sample.name, sample.image, labels)

    def paths(self, index: int) -> tuple[Path, ...]:
        """Return the image alone: labels of many images may be in one file."""
        return (self.image_path(index),)

    def check(self, count: int) -> None:
        """Read the headers of the first `count` images.

        Raises:
            MaskCLIPError: some are missing or not images; the message names the first.
        """
        found = (_problem(self.folder / name) for name in self.files[:count])
        broken = [problem for problem in found if problem is not None]
        if broken:
            rest = f" (and {len(broken) - 1:,} more)" if len(broken) > 1 else ""
            raise DatasetError(f"{broken[0]}{rest}: fix it, or remove it from the folder")

    def metadata(self) -> dict[str, Any]:
        """Return which images and labels these are, ready for JSON, with hashes of both."""
        digest = hashlib.sha256(os.fsencode("\n".join(self.files))).hexdigest()[:16]
        content = {**super().metadata(), "folders": [str(self.folder.resolve())], "list": digest}
        if self.annotations is not None:
            content["labels"] = {
                "kind": self.annotations.title,
                "place": str(self.labels),
                "content": self.annotations.fingerprint(),
                "kept": self.kept,
            }
        return content

    @property
    def notes(self) -> Sequence[str]:
        """What users should know about the labels, one line each."""
        return () if self.annotations is None else tuple(self.annotations.notes)

    def split_off(self, share: float, *, seed: int) -> tuple[Photos, Photos]:
        """Return the images to learn from, and a share of the labelled ones to validate on.

        Which these are depends on the seed and their names alone, so that a few more photos change
        little.

        Args:
            share: of the labelled images, in (0, 1); at least one.
            seed: of the choice.

        Raises:
            DatasetError: there are fewer than two labelled images.
        """
        labeled = [] if self.annotations is None else list(self.annotations.photos)
        if len(labeled) < 2:
            raise DatasetError(
                f"to validate, two labelled photos or more are needed, got {len(labeled)}"
            )
        ranked = sorted(labeled, key=lambda file: _rank(file, seed))
        count = min(max(round(share * len(labeled)), 1), len(labeled) - 1)
        chosen = set(ranked[:count])
        learnt = tuple(file for file in self.files if file not in chosen)
        kept = tuple(file for file in self.files if file in chosen)
        return replace(self, files=learnt, kept=(share, seed)), replace(
            self, files=kept, split="validation", unlabeled=self.vocabulary.ignore
        )


def _rank(file: str, seed: int) -> bytes:
    return hashlib.sha256(os.fsencode(f"{seed}:{file}")).digest()


def open_folder(
    images: Path, labels: Path, vocabulary: Vocabulary, *, missing: bool = False
) -> Photos:
    """Open one's own images with their labels as a data set; they are matched by name.

    Images without labels are left out, which `Annotations.notes` says.

    Args:
        images: the folder of images.
        labels: a folder of masks, or the export of a tool: see `open_annotations`.
        vocabulary: the classes.
        missing: whether images without a mask stay, to be reported; not those without a region.

    Raises:
        MaskCLIPError: a folder is missing; there is no image or no label; two images have the same
            name; the labels have other classes.
    """
    photos = open_photos(images, vocabulary, labels)
    annotations = photos.annotations
    assert annotations is not None
    files = sorted(photos.files, key=lambda file: (_stem(file), file))
    if isinstance(annotations, MaskFolder):
        for one, other in pairwise(files):
            if _stem(one) == _stem(other):
                raise DatasetError(f"{images}: {one} and {other} would share a mask: rename one")
    if not (missing and isinstance(annotations, MaskFolder)):
        bare = [file for file in files if file not in annotations.photos]
        annotations.note_photos(
            "photo has no labels and is left out", "photos have no labels and are left out", bare
        )
        files = [file for file in files if file in annotations.photos]
    rule = annotations.rule
    return replace(
        photos, name="folder", files=tuple(files), rule=rule, unlabeled=vocabulary.ignore
    )


def _stem(file: str) -> str:
    return Path(file).with_suffix("").as_posix()


def _problem(path: Path) -> str | None:
    """Return what is wrong with the header of an image file, None if nothing is."""
    try:
        image_size(path)
    except MaskCLIPError as error:
        return str(error)
    return None


def open_photos(folder: Path, vocabulary: Vocabulary, labels: Path | None = None) -> Photos:
    """Open the images of a folder and its subfolders; those without labels are UNLABELED.

    Args:
        folder: the images.
        vocabulary: the classes.
        labels: the labels of some of them: see `open_annotations`.

    Raises:
        MaskCLIPError: the folder or the labels are missing; it holds no images, or none of them has
            labels.
    """
    if not folder.is_dir():
        raise DatasetError(f"no folder of images: {folder}")
    outside = None
    if labels is not None and labels.is_dir():
        if labels.samefile(folder):
            raise DatasetError(
                f"{folder}: photos and labels in one folder: put them into a folder each"
            )
        outside = labels
    files = tuple(source.relative_path for source in find_sources([folder], outside=outside))
    annotations = None
    if labels is not None:
        annotations = open_annotations(labels, files, vocabulary)
        files = tuple(file for file in files if file not in annotations.rejected)
        if not annotations.photos:
            raise DatasetError(_no_labels(annotations, [*files, *annotations.rejected]))
    return Photos(
        name="photos",
        split="all",
        vocabulary=vocabulary,
        rule=LabelRule.of(vocabulary),
        folder=folder,
        files=files,
        annotations=annotations,
        labels=labels,
    )


def _no_labels(annotations: Annotations[Any], photos: Sequence[str]) -> str:
    expected = annotations.expected(photos[0])
    there = f"; there is {annotations.unused[0]}" if annotations.unused else ""
    notes = f" ({annotations.notes[0]})" if annotations.notes else ""
    return f"none of the {len(photos):,} photos has labels: expected {expected}{there}{notes}"
