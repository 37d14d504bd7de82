"""Data sets on disk: benchmarks by name, and folders of one's own images.

`open_dataset` finds the files that a `Spec` describes, `open_folder` one's own images and masks,
`open_photos` images without masks. Samples are read one at a time, from any thread.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskclip.core.errors import MaskCLIPError
from maskclip.core.palettes import Color, voc_colors
from maskclip.core.samples import UNLABELED, Sample, Samples
from maskclip.core.text import read_text
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.images import image_size, load_image
from maskclip.data.masks import LabelRule, MaskError, load_labels
from maskclip.data.sources import find_sources
from maskclip.data.specs import SPECS, Part, Spec

_FIND_ALL = " (`maskclip data check` lists all such masks)"


class DatasetError(MaskCLIPError):
    """A data set that is missing or incomplete; the message says what is missing, in one line."""


class Item(NamedTuple):
    """Where a sample's two files are; kept small, as there may be 100,000 of them."""

    name: str
    folder: str
    part: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(Samples):
    """Samples in files.

    Attributes:
        rule: what mask values mean.
        root: the folder of all data sets.
        parts: where the files are.
        items: the samples.
    """

    rule: LabelRule
    root: Path
    parts: tuple[Part, ...]
    items: tuple[Item, ...] = field(repr=False)

    @property
    def names(self) -> Sequence[str]:
        """The ids of the samples, in order."""
        return [item.name for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        """Read a sample.

        Raises:
            MaskCLIPError: a file is missing or broken, sizes differ, or labels are out of range.
        """
        item = self.items[index]
        image = load_image(self.image_path(item))
        path = self.mask_path(item)
        try:
            labels = load_labels(path, self.rule)
        except MaskError as error:
            raise MaskError(f"{error}{_FIND_ALL}") from None
        if labels.shape != (image.height, image.width):
            raise MaskError(
                f"{path}: the mask is {labels.shape[1]}x{labels.shape[0]} but its image "
                f"{image.width}x{image.height}{_FIND_ALL}"
            )
        return Sample(item.name, image, labels)

    def paths(self, index: int) -> tuple[Path, ...]:
        """Return the image and the mask of a sample."""
        item = self.items[index]
        return self.image_path(item), self.mask_path(item)

    def check(self, count: int) -> None:
        """Check that the first `count` samples differ and have both files; none is opened.

        Raises:
            DatasetError: says how many do not, and names the first.
        """
        items = self.items[:count]
        (first, times), *_ = Counter((item.folder, item.name) for item in items).most_common(1)
        if times > 1:
            raise DatasetError(
                f"{self.name} {self.split}: {first[1]} is listed {times} times and would be "
                "scored as often: see `maskclip data check`"
            )
        paths = [path(item) for item in items for path in (self.image_path, self.mask_path)]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise DatasetError(
                f"{self.name} {self.split}: {len(missing):,} of {len(paths):,} files are missing, "
                f"the first {missing[0]}: see `maskclip data check`"
            )

    def metadata(self) -> dict[str, Any]:
        """Return which samples these are, ready for JSON, with a hash of their list."""
        folders = [
            [str((self.root / folder).resolve()) for folder in (part.images, part.masks)]
            for part in self.parts
        ]
        content = "\n".join(f"{item.part}/{item.folder}/{item.name}" for item in self.items)
        digest = hashlib.sha256(os.fsencode(content)).hexdigest()[:16]
        return {**super().metadata(), "folders": folders, "list": digest}

    def image_path(self, item: Item) -> Path:
        """Return the image file of an item."""
        part = self.parts[item.part]
        return self.root / part.images / item.folder / f"{item.name}{part.image_suffix}"

    def mask_path(self, item: Item) -> Path:
        """Return the mask file of an item."""
        part = self.parts[item.part]
        return self.root / part.masks / item.folder / f"{item.name}{part.mask_suffix}"


def open_dataset(name: str, root: Path, *, split: str = "val") -> Dataset:
    """Find the samples of a data set by name.

    Args:
        name: of `SPECS`.
        root: the folder that holds `VOCdevkit`, `coco_stuff164k` and so on.
        split: of its splits.

    Raises:
        DatasetError: an unknown name or split; a folder, a list or all images are missing.
    """
    if name not in SPECS:
        raise DatasetError(f"unknown data set {name!r}: expected one of {', '.join(SPECS)}")
    spec = SPECS[name]
    if split not in spec.splits:
        raise DatasetError(f"{name} has no split {split!r}: expected {', '.join(spec.splits)}")
    chosen = spec.splits[split]
    vocabulary = Vocabulary.builtin(name)
    items: list[Item] = []
    for number, part in enumerate(chosen.parts):
        _check_folders(part, root, name)
        items += _listed(part, number, root) if part.listing else _found(part, number, root)
    rule = LabelRule(
        len(vocabulary),
        vocabulary.ignore,
        reduce_zero=spec.reduce_zero,
        colors=_mask_colors(spec, vocabulary),
    )
    return Dataset(
        name=name,
        split=split,
        vocabulary=vocabulary,
        official=chosen.official,
        unseen=spec.unseen,
        scale=spec.scale,
        windows_short=spec.windows_short,
        rule=rule,
        root=root,
        parts=chosen.parts,
        items=tuple(items),
    )


def open_folder(images: Path, masks: Path, vocabulary: Vocabulary) -> Dataset:
    """Open one's own images and masks as a data set; they are matched by name.

    Masks hold the ids of the vocabulary, or its colours, in PNGs named as the images are.

    Raises:
        DatasetError: a folder is missing; two images have the same name.
        ImageError: there is no image.
    """
    for folder, what in ((images, "images"), (masks, "masks")):
        if not folder.is_dir():
            raise DatasetError(f"no folder of {what}: {folder}")
    found = (Path(source.relative_path) for source in find_sources([images]))
    files = sorted(found, key=lambda file: (file.with_suffix(""), file.suffix))
    for one, other in pairwise(files):
        if one.with_suffix("") == other.with_suffix(""):
            raise DatasetError(f"{images}: {one} and {other} would share a mask: rename one")
    suffixes = sorted({file.suffix for file in files})
    return Dataset(
        name="folder",
        split="all",
        vocabulary=vocabulary,
        rule=LabelRule.of(vocabulary),
        root=Path(),
        parts=tuple(Part(str(images), str(masks), image_suffix=suffix) for suffix in suffixes),
        items=tuple(
            Item(file.with_suffix("").as_posix(), "", suffixes.index(file.suffix)) for file in files
        ),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Photos(Samples):
    """Images without labels: every pixel is UNLABELED.

    Attributes:
        folder: the folder of the images.
        files: their paths relative to it.
    """

    folder: Path
    files: tuple[str, ...] = field(repr=False)

    @property
    def names(self) -> Sequence[str]:
        """The ids of the images, in order: their paths."""
        return self.files

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        """Read an image.

        Raises:
            MaskCLIPError: it is missing or broken.
        """
        name = self.files[index]
        image = load_image(self.folder / name)
        labels = np.full((image.height, image.width), UNLABELED, dtype=np.int16)
        return Sample(name, image, labels)

    def paths(self, index: int) -> tuple[Path, ...]:
        """Return the image alone."""
        return (self.folder / self.files[index],)

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
        """Return which images these are, ready for JSON."""
        digest = hashlib.sha256(os.fsencode("\n".join(self.files))).hexdigest()[:16]
        return {**super().metadata(), "folders": [str(self.folder.resolve())], "list": digest}


def _problem(path: Path) -> str | None:
    """Return what is wrong with the header of an image file, None if nothing is."""
    try:
        image_size(path)
    except MaskCLIPError as error:
        return str(error)
    return None


def open_photos(folder: Path, vocabulary: Vocabulary) -> Photos:
    """Open the images of a folder and its subfolders as an unlabelled data set.

    Raises:
        DatasetError: the folder is missing.
        ImageError: it holds no images.
    """
    if not folder.is_dir():
        raise DatasetError(f"no folder of images: {folder}")
    files = tuple(source.relative_path for source in find_sources([folder]))
    return Photos(name="photos", split="all", vocabulary=vocabulary, folder=folder, files=files)


def _check_folders(part: Part, root: Path, name: str) -> None:
    images, masks = root / part.images, root / part.masks
    if not images.is_dir():
        raise DatasetError(
            f"{name}: no folder {images}: --data is the folder that holds "
            f"{part.images.partition('/')[0]}"
        )
    if not masks.is_dir():
        raise DatasetError(f"{name}: no folder {masks}{how_to_make(part, root)}")


def how_to_make(part: Part, root: Path) -> str:
    """Return the end of an error message: how to make the masks; empty if no conversion does."""
    if part.conversion is None:
        return ""
    return f": make the masks with `maskclip data convert {part.conversion} --data {root}`"


def _listed(part: Part, number: int, root: Path) -> list[Item]:
    """Return the samples of a list; whether their files exist is not checked here."""
    listing = root / str(part.listing)
    try:
        names = read_text(listing, "a list of samples").split()
    except FileNotFoundError:
        raise DatasetError(f"no list of samples {listing}{how_to_make(part, root)}") from None
    except MaskCLIPError as error:
        raise DatasetError(str(error)) from None
    if not names:
        raise DatasetError(f"{listing}: the list of samples is empty")
    return [Item(name, "", number) for name in names]


def _found(part: Part, number: int, root: Path) -> list[Item]:
    """Return a sample for each image of a folder and its subfolders, by name."""
    images = root / part.images
    # Hidden files are what macOS adds to archives.
    paths = sorted(p for p in images.rglob(f"*{part.image_suffix}") if p.name[0] != ".")
    if not paths:
        raise DatasetError(f"no images *{part.image_suffix} in {images}")
    if not any((root / part.masks).rglob(f"*{part.mask_suffix}")):
        where = root / part.masks
        raise DatasetError(f"no masks *{part.mask_suffix} in {where}{how_to_make(part, root)}")
    return [
        Item(
            path.name.removesuffix(part.image_suffix),
            path.parent.relative_to(images).as_posix(),
            number,
        )
        for path in paths
    ]


def _mask_colors(spec: Spec, vocabulary: Vocabulary) -> tuple[Color, ...]:
    match spec.palette:
        case "voc":
            return voc_colors(256)
        case "own":
            return vocabulary.colors
        case _:
            return ()
