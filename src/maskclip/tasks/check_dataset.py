"""Check a data set for errors: its lists, its pairs of files and the values of its masks.

Masks are read in full and their pixels counted. Images are read only up to their headers, which
give their sizes: a photo truncated in the middle is not noticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from maskclip.core.errors import MaskCLIPError
from maskclip.core.prefetch import prefetch
from maskclip.data.annotations import MaskFolder
from maskclip.data.datasets import Dataset, Item, Labeled, how_to_make, is_missing
from maskclip.data.images import ImageError, image_size
from maskclip.data.masks import Ids, LabelRule, MaskError, SizeError, doubt
from maskclip.data.photos import Photos

_AHEAD = 8  # samples in flight per worker: none is idle, and memory stays bounded
_LOOKED_AT = 200  # masks, before a training
_MOST_VALUES = 5  # invalid values of a mask that are named; a photo in place of a mask has 256

Counts = npt.NDArray[np.int64]
Kind = Literal[
    "number of images",
    "listed twice",
    "missing image",
    "unreadable image",
    "missing mask",
    "unreadable mask",
    "other size",
    "invalid values",
    "suspicious masks",
]


class Problem(NamedTuple):
    """One error in a data set; the message is one line."""

    kind: Kind
    message: str


@dataclass(frozen=True)
class SampleCheck:
    """The result for one sample.

    Attributes:
        problems: what is wrong with it.
        pixels: number of pixels of each class (K,), int64; zeros if the mask cannot be read.
        ignored: number of ignored pixels.
        invalid: the ids that are neither a class nor ignored.
    """

    problems: tuple[Problem, ...]
    pixels: Counts
    ignored: int = 0
    invalid: frozenset[int] = frozenset()


@dataclass(eq=False)
class CheckReport:
    """The results for a data set, so far.

    Attributes:
        dataset: the data set.
        samples: number of pairs of files to check.
        images: number of different images; smaller than `samples` if two lists share some.
        problems: what is wrong.
        masks_without_image: masks that no sample uses; sorted. They do no harm.
        pixels: number of pixels of each class (K,), int64.
        images_with: number of images that have a pixel of each class (K,), int64.
        ignored, images_with_ignored: the same for ignored pixels.
        notes: what is not wrong, but should be known; one line each.
    """

    dataset: Labeled
    samples: int
    images: int
    problems: list[Problem]
    masks_without_image: list[Path]
    pixels: Counts = field(init=False)
    images_with: Counts = field(init=False)
    ignored: int = 0
    images_with_ignored: int = 0
    notes: list[str] = field(init=False)
    _masks: int = field(default=0, init=False)
    _invalid: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(len(self.dataset.vocabulary), np.int64)
        self.images_with = np.zeros_like(self.pixels)
        self.notes = list(self.dataset.notes)

    def add(self, sample: SampleCheck) -> None:
        """Add the result for a sample."""
        self.problems += sample.problems
        self._masks += bool(sample.pixels.any() or sample.ignored)
        self._invalid |= sample.invalid
        self.pixels += sample.pixels
        self.images_with += sample.pixels > 0
        self.ignored += sample.ignored
        self.images_with_ignored += sample.ignored > 0

    def conclude(self) -> None:
        """Judge the masks as a whole, after all samples were added.

        That they have one class at most, and ignored pixels all, is a problem; that some classes
        are absent, a note; a benchmark that is not complete lacks classes.
        """
        if self.counted_from_one:
            self.notes.append(self.counted_from_one.removeprefix("; "))
        found = self.doubt
        if found is not None and np.count_nonzero(self.pixels) <= 1:
            self.problems.append(Problem("suspicious masks", found))
        elif found is not None and self.dataset.official is None:
            self.notes.append(found)

    @property
    def doubt(self) -> str | None:
        """What looks wrong with the masks so far, in one line."""
        names, rule = self.dataset.vocabulary.names, self.dataset.rule
        return doubt(names, self.pixels, rule, masks=self._masks, ignored=self.images_with_ignored)

    @property
    def counted_from_one(self) -> str:
        """The hint that the ids of the masks so far count from 1; empty if they do not."""
        return self.dataset.rule.counted_from_one(self._invalid, zero=bool(self.pixels[0]))

    @property
    def valid(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """The share of each class (K,) in the labelled pixels, in percent; zeros without any."""
        return 100 * self.pixels / max(int(self.pixels.sum()), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the report file."""
        columns = (self.images_with.tolist(), self.pixels.tolist(), self.shares.tolist())
        return {
            "dataset": self.dataset.name,
            "split": self.dataset.split,
            "images": self.images,
            "official": self.dataset.official,
            "valid": self.valid,
            "problems": [problem._asdict() for problem in self.problems],
            "notes": self.notes,
            "masks_without_image": [str(path) for path in self.masks_without_image],
            "classes": [
                {"name": name, "images": images, "pixels": pixels, "percent": percent}
                for name, images, pixels, percent in zip(
                    self.dataset.vocabulary.names, *columns, strict=True
                )
            ],
            "ignored": {"images": self.images_with_ignored, "pixels": self.ignored},
        }


def check_lists(dataset: Labeled) -> CheckReport:
    """Check the lists and folders of a data set; the results of its samples are added later.

    Raises:
        OSError: a folder cannot be read.
    """
    images, problems = len(dataset), []
    if isinstance(dataset, Dataset):
        listed = _by_image(dataset)
        images = len(listed)
        problems += _number_of_images(dataset, images)
        problems += [_listed_twice(dataset, items) for items in listed.values() if len(items) > 1]
    return CheckReport(dataset, len(_pairs(dataset)), images, problems, dataset.unused_masks())


def _by_image(dataset: Dataset) -> dict[tuple[str, str, str], list[Item]]:
    """Return the samples of each image: trainaug has two lists for one folder of images."""
    listed: dict[tuple[str, str, str], list[Item]] = {}
    for item in dataset.items:
        key = (dataset.parts[item.part].images, item.folder, item.name)
        listed.setdefault(key, []).append(item)
    return listed


def check_samples(dataset: Labeled, *, workers: int = 1) -> Iterator[SampleCheck]:
    """Check the two files of every sample, in order; one that is listed twice, once.

    Args:
        dataset: of `open_dataset` or `open_folder`.
        workers: number of threads.
    """
    pool = ThreadPoolExecutor(workers)
    return prefetch(pool, partial(_check, dataset), _pairs(dataset), ahead=_AHEAD * workers)


def doubt_labels(photos: Photos) -> str | None:
    """Return what looks wrong with the masks that are to be learnt from, in one line.

    Reads a few hundred at most, and no more once nothing can be wrong. Masks that cannot be read
    are passed over.

    Raises:
        MaskError: their ids count from 1: what is in range would be learnt as another class.
    """
    if type(photos.annotations) is not MaskFolder:  # others hold names, not ids
        return None
    labeled = [index for index in range(len(photos)) if photos.has_labels(index)]
    chosen = labeled[:: -(-len(labeled) // _LOOKED_AT)]
    report = CheckReport(photos, len(chosen), len(chosen), [], [])
    for sample in prefetch(ThreadPoolExecutor(2), partial(_check, photos), chosen, ahead=_AHEAD):
        report.add(sample)
        if report.pixels[0] and report.doubt is None:
            return None
    rule = photos.rule
    if report.counted_from_one:
        raise MaskError(
            f"{photos.labels}: label {rule.classes} is out of range: expected classes "
            f"{rule.expected}{report.counted_from_one}"
        )
    if report.doubt is None or len(chosen) == len(labeled):
        return report.doubt
    return f"of {len(chosen):,} masks that were looked at: {report.doubt}"


def _pairs(dataset: Labeled) -> Sequence[int]:
    """Return the samples in order, each pair of files once."""
    if not isinstance(dataset, Dataset):
        return range(len(dataset))
    first: dict[Item, int] = {}
    for index, item in enumerate(dataset.items):
        first.setdefault(item, index)
    return list(first.values())


def _number_of_images(dataset: Dataset, images: int) -> list[Problem]:
    if dataset.official is None or images == dataset.official:
        return []
    missing = dataset.official - images
    difference = f"{missing:,} are missing from" if missing > 0 else f"{-missing:,} too many in"
    places = dict.fromkeys(str(dataset.root / (p.listing or p.images)) for p in dataset.parts)
    return [
        Problem(
            "number of images",
            f"{images:,} of {dataset.official:,} images: {difference} {' and '.join(places)}",
        )
    ]


def _listed_twice(dataset: Dataset, items: list[Item]) -> Problem:
    lists = dict.fromkeys(str(dataset.root / str(dataset.parts[i.part].listing)) for i in items)
    return Problem(
        "listed twice",
        f"{items[0].name} is listed {len(items)} times: keep one line in {' and '.join(lists)}",
    )


def _check(dataset: Labeled, index: int) -> SampleCheck:
    problems: list[Problem] = []
    image, labels = dataset.image_path(index), dataset.labels_at(index)
    size = ids = None
    if is_missing(image):
        problems.append(Problem("missing image", f"no image {image}"))
    else:
        try:
            size = image_size(image)
        except ImageError as error:
            problems.append(Problem("unreadable image", str(error)))
    if not dataset.has_labels(index):
        problems.append(Problem("missing mask", f"no mask {labels}{_remedy(dataset, index)}"))
    else:
        try:
            ids = dataset.read_ids(index, size)  # of another size, it is not decoded
        except SizeError as error:
            problems.append(Problem("other size", str(error)))
        except MaskCLIPError as error:
            problems.append(Problem("unreadable mask", str(error)))
    if ids is None:
        return SampleCheck(tuple(problems), np.zeros(dataset.rule.classes, np.int64))
    return _counted(labels, ids, dataset.rule, problems)


def _remedy(dataset: Labeled, index: int) -> str:
    if not isinstance(dataset, Dataset):
        return ""
    return how_to_make(dataset.parts[dataset.items[index].part], dataset.root)


def _counted(mask: str, ids: Ids, rule: LabelRule, problems: list[Problem]) -> SampleCheck:
    """Count the pixels of each class; invalid values are one more problem."""
    pixels = np.bincount(ids[(ids >= 0) & (ids < rule.classes)], minlength=rule.classes)
    ignored = int(np.count_nonzero(ids == rule.ignore))
    invalid = rule.invalid(ids) if int(pixels.sum()) + ignored < ids.size else {}
    if invalid:
        problems = [*problems, _invalid_values(mask, invalid, rule)]
    return SampleCheck(tuple(problems), pixels.astype(np.int64), ignored, frozenset(invalid))


def _invalid_values(mask: str, invalid: dict[int, int], rule: LabelRule) -> Problem:
    """Name the values as they are in the file, which are ids plus one if zero is reduced."""
    counts = {rule.value(label): count for label, count in invalid.items()}
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    named = [f"{value} ({count:,} px)" for value, count in ranked[:_MOST_VALUES]]
    others = ranked[_MOST_VALUES:]
    if others:
        named.append(f"{len(others)} more ({sum(count for _, count in others):,} px)")
    return Problem(
        "invalid values",
        f"{mask}: no class has the value {', '.join(named)}: expected {rule.expected}",
    )
