"""Samples in files, and the benchmarks among them, by name.

`open_dataset` finds the files that a `Spec` describes; own photos are in `data.photos`. Samples are
read one at a time, from any thread.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from maskclip.core.errors import MaskCLIPError
from maskclip.core.palettes import Color, voc_colors
from maskclip.core.samples import Sample, Samples
from maskclip.core.text import read_text
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.images import load_image
from maskclip.data.masks import Ids, LabelRule, MaskError, check_ids, read_ids
from maskclip.data.sources import files_below
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
class Labeled(Samples):
    """Samples in files, whose labels are in files as well; by index.

    Attributes:
        rule: the classes and the ignored label; what mask values mean.
    """

    rule: LabelRule

    @abstractmethod
    def image_path(self, index: int) -> Path:
        """Return the image file of a sample."""

    @abstractmethod
    def has_labels(self, index: int) -> bool:
        """Return whether the labels of a sample are there; they may be damaged."""

    @abstractmethod
    def labels_at(self, index: int) -> str:
        """Return where a sample's labels are, or are expected, for messages."""

    @abstractmethod
    def read_ids(self, index: int, size: tuple[int, int] | None = None) -> Ids:
        """Read the labels (H, W) of a sample; some may be out of range.

        Args:
            index: of the sample.
            size: (width, height) of the image, compared before anything is decoded.

        Raises:
            MaskCLIPError: missing, damaged, or of another size.
        """

    def unused_masks(self) -> list[Path]:
        """Return the masks that no sample has; sorted."""
        return []

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        """Read a sample.

        Raises:
            MaskCLIPError: a file is missing or broken, sizes differ, or labels are out of range.
        """
        image = load_image(self.image_path(index))
        try:
            labels = self.read_ids(index, image.size)
            check_ids(labels, self.rule, self.labels_at(index))
        except MaskError as error:
            raise MaskError(f"{error}{_FIND_ALL}") from None
        return Sample(self.names[index], image, labels)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(Labeled):
    """A benchmark, whose files lie where its `Spec` says.

    Attributes:
        root: the folder of all data sets.
        parts: where the files are.
        items: the samples.
    """

    root: Path
    parts: tuple[Part, ...]
    items: tuple[Item, ...] = field(repr=False)

    @property
    def names(self) -> Sequence[str]:
        """The ids of the samples, in order."""
        return [item.name for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def image_path(self, index: int) -> Path:
        """Return the image file of a sample."""
        item = self.items[index]
        part = self.parts[item.part]
        return self.root / part.images / item.folder / f"{item.name}{part.image_suffix}"

    def mask_path(self, index: int) -> Path:
        """Return the mask file of a sample."""
        item = self.items[index]
        part = self.parts[item.part]
        return self.root / part.masks / item.folder / f"{item.name}{part.mask_suffix}"

    def read_ids(self, index: int, size: tuple[int, int] | None = None) -> Ids:
        """Read a mask, whose values may be out of range."""
        return read_ids(self.mask_path(index), self.rule, size=size)

    def has_labels(self, index: int) -> bool:
        """Return whether the mask is there, if perhaps inaccessible."""
        return not is_missing(self.mask_path(index))

    def labels_at(self, index: int) -> str:
        """Return the path of the mask; where it is missing, also how to make it."""
        return str(self.mask_path(index))

    def unused_masks(self) -> list[Path]:
        """Return masks without an image; not where a list chooses some of the files."""
        known: dict[tuple[str, str], set[str]] = {}  # folder and suffix -> masks that samples have
        for item in self.items:
            part = self.parts[item.part]
            if part.listing is None:
                mask = PurePosixPath(item.folder, f"{item.name}{part.mask_suffix}")
                known.setdefault((part.masks, part.mask_suffix), set()).add(str(mask))
        return sorted(
            path
            for (masks, suffix), of_samples in known.items()
            for path in files_below(self.root / masks)
            if path.name.endswith(suffix)
            and path.relative_to(self.root / masks).as_posix() not in of_samples
        )

    def paths(self, index: int) -> tuple[Path, ...]:
        """Return the image and the mask of a sample."""
        return self.image_path(index), self.mask_path(index)

    def check(self, count: int) -> None:
        """Check that the first `count` samples differ and have both files; none is opened.

        Raises:
            DatasetError: says how many do not, and names the first.
        """
        items = self.items[:count]
        if not items:
            return
        (first, times), *_ = Counter((item.folder, item.name) for item in items).most_common(1)
        if times > 1:
            raise DatasetError(
                f"{self.name} {self.split}: {first[1]} is listed {times} times and would be "
                "scored as often: see `maskclip data check`"
            )
        paths = [
            path(index) for index in range(len(items)) for path in (self.image_path, self.mask_path)
        ]
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


def _check_folders(part: Part, root: Path, name: str) -> None:
    images, masks = root / part.images, root / part.masks
    if not images.is_dir():
        raise DatasetError(
            f"{name}: no folder {images}: `data` is the folder that holds "
            f"{part.images.partition('/')[0]}"
        )
    if not masks.is_dir():
        raise DatasetError(f"{name}: no folder {masks}{how_to_make(part, root)}")


def is_missing(path: Path) -> bool:
    """Return whether there is no such file; if it is inaccessible, opening it says why."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


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
    paths = sorted(p for p in files_below(images) if p.name.endswith(part.image_suffix))
    if not paths:
        raise DatasetError(f"no images *{part.image_suffix} in {images}")
    where = root / part.masks
    if not any(path.name.endswith(part.mask_suffix) for path in files_below(where)):
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
