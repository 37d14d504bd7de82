"""Is a data set whole? Its lists, its pairs of files and the values of its masks are looked at.

Masks are read in full and their pixels counted. Of images only the headers are read, which give
their sizes: pixels of images are not decoded, so a photo cut short in the middle is not noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from maskclip.core.prefetch import map_ahead
from maskclip.data.datasets import Dataset, Item, how_to_make
from maskclip.data.images import ImageError, image_size
from maskclip.data.masks import Ids, LabelRule, MaskError, read_ids

_AHEAD = 8  # samples in flight for each worker: none waits for work, and memory stays flat
_MOST_VALUES = 5  # named of a mask's wrong values: a photo taken for a mask has 256

Counts = npt.NDArray[np.int64]
Kind = Literal[
    "number of images",
    "listed twice",
    "missing image",
    "unreadable image",
    "missing mask",
    "unreadable mask",
    "other size",
    "wrong values",
]


class Problem(NamedTuple):
    """Something that keeps a data set from being whole, said in one line."""

    kind: Kind
    message: str


@dataclass(frozen=True)
class Checked:
    """What was found of one sample.

    Attributes:
        problems: what is wrong with it.
        pixels: number of pixels of each class (K,), int64; zeros where the mask cannot be read.
        ignored: number of pixels that do not count.
    """

    problems: tuple[Problem, ...]
    pixels: Counts
    ignored: int = 0


@dataclass(eq=False)
class CheckReport:
    """What was found of a data set, so far.

    Attributes:
        dataset: the data set.
        samples: how many pairs of files are to be checked.
        images: how many different images there are: fewer, where two lists share one.
        problems: what is wrong.
        spare_masks: masks without an image, which nobody reads; sorted.
        pixels: number of pixels of each class (K,), int64.
        images_with: number of images that have a pixel of each class (K,), int64.
        ignored, images_with_ignored: the same of pixels that do not count.
    """

    dataset: Dataset
    samples: int
    images: int
    problems: list[Problem]
    spare_masks: list[Path]
    pixels: Counts = field(init=False)
    images_with: Counts = field(init=False)
    ignored: int = 0
    images_with_ignored: int = 0

    def __post_init__(self) -> None:
        self.pixels = np.zeros(len(self.dataset.vocabulary), np.int64)
        self.images_with = np.zeros_like(self.pixels)

    def add(self, checked: Checked) -> None:
        """Take in what was found of a sample."""
        self.problems += checked.problems
        self.pixels += checked.pixels
        self.images_with += checked.pixels > 0
        self.ignored += checked.ignored
        self.images_with_ignored += checked.ignored > 0

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong; masks without an image do no harm."""
        return not self.problems

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """The part of each class (K,) in the labelled pixels, in percent; zeros without any."""
        return 100 * self.pixels / max(int(self.pixels.sum()), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return what the report file holds."""
        columns = (self.images_with.tolist(), self.pixels.tolist(), self.shares.tolist())
        return {
            "dataset": self.dataset.name,
            "split": self.dataset.split,
            "images": self.images,
            "official": self.dataset.official,
            "whole": self.whole,
            "problems": [problem._asdict() for problem in self.problems],
            "masks_without_image": [str(path) for path in self.spare_masks],
            "classes": [
                {"name": name, "images": images, "pixels": pixels, "percent": percent}
                for name, images, pixels, percent in zip(
                    self.dataset.vocabulary.names, *columns, strict=True
                )
            ],
            "ignored": {"images": self.images_with_ignored, "pixels": self.ignored},
        }


def start_report(dataset: Dataset) -> CheckReport:
    """Look at the lists and folders of a data set; its samples are then to be added.

    Raises:
        OSError: a folder cannot be read.
    """
    listed: dict[tuple[str, str, str], list[Item]] = {}
    for item in dataset.items:
        # By image: trainaug has two lists for one folder of images.
        key = (dataset.parts[item.part].images, item.folder, item.name)
        listed.setdefault(key, []).append(item)
    problems = _wrong_number(dataset, len(listed))
    problems += [_listed_twice(dataset, items) for items in listed.values() if len(items) > 1]
    return CheckReport(dataset, len(_pairs(dataset)), len(listed), problems, _spare_masks(dataset))


def check_samples(dataset: Dataset, *, workers: int = 1) -> Iterator[Checked]:
    """Look at the two files of every sample, in order; one that is listed twice, once.

    What is wrong with a file is in the result and the others go on.

    Args:
        dataset: of `open_dataset` or `open_folder`.
        workers: threads.
    """
    pool = ThreadPoolExecutor(workers)
    return map_ahead(pool, partial(_check, dataset), _pairs(dataset), ahead=_AHEAD * workers)


def _pairs(dataset: Dataset) -> tuple[Item, ...]:
    """Return the samples in order, each pair of files once."""
    return tuple(dict.fromkeys(dataset.items))


def _wrong_number(dataset: Dataset, images: int) -> list[Problem]:
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


def _spare_masks(dataset: Dataset) -> list[Path]:
    """Find masks without an image, where no list says that some files are not of this split."""
    known: dict[tuple[str, str], set[str]] = {}  # folder and suffix -> masks that samples have
    for item in dataset.items:
        part = dataset.parts[item.part]
        if part.listing is None:
            mask = PurePosixPath(item.folder, f"{item.name}{part.mask_suffix}")
            known.setdefault((part.masks, part.mask_suffix), set()).add(str(mask))
    return sorted(
        path
        for (masks, suffix), of_samples in known.items()
        for path in (dataset.root / masks).rglob(f"*{suffix}")
        if not path.name.startswith(".")
        and path.relative_to(dataset.root / masks).as_posix() not in of_samples
    )


def _check(dataset: Dataset, item: Item) -> Checked:
    problems: list[Problem] = []
    image, mask = dataset.image_path(item), dataset.mask_path(item)
    size = ids = None
    if _is_missing(image):
        problems.append(Problem("missing image", f"no image {image}"))
    else:
        try:
            size = image_size(image)
        except ImageError as error:
            problems.append(Problem("unreadable image", str(error)))
    if _is_missing(mask):
        remedy = how_to_make(dataset.parts[item.part], dataset.root)
        problems.append(Problem("missing mask", f"no mask {mask}{remedy}"))
    else:
        try:
            ids = read_ids(mask, dataset.rule)
        except MaskError as error:
            problems.append(Problem("unreadable mask", str(error)))
    if ids is None:
        return Checked(tuple(problems), np.zeros(dataset.rule.classes, np.int64))
    if size is not None and ids.shape != size[::-1]:
        problems.append(_other_size(mask, ids, size))
    return _counted(mask, ids, dataset.rule, problems)


def _is_missing(path: Path) -> bool:
    """Tell whether there is no such file; of one that is out of reach, opening says why."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _other_size(mask: Path, ids: Ids, size: tuple[int, int]) -> Problem:
    height, width = ids.shape
    turned = (height, width) == size
    why = ": one of them is turned; images follow their EXIF orientation" if turned else ""
    return Problem(
        "other size",
        f"{mask}: the mask is {width}x{height} but its image {size[0]}x{size[1]}{why}",
    )


def _counted(mask: Path, ids: Ids, rule: LabelRule, problems: list[Problem]) -> Checked:
    """Count the pixels of each class; values without a meaning are one more problem."""
    pixels = np.bincount(ids[(ids >= 0) & (ids < rule.classes)], minlength=rule.classes)
    ignored = int(np.count_nonzero(ids == rule.ignore))
    if int(pixels.sum()) + ignored < ids.size:
        problems = [*problems, _wrong_values(mask, rule.strange(ids), rule)]
    return Checked(tuple(problems), pixels.astype(np.int64), ignored)


def _wrong_values(mask: Path, strange: dict[int, int], rule: LabelRule) -> Problem:
    """Name the values as they stand in the file, where ids without a zero are one more."""
    first = int(rule.reduce_zero)
    strange = {rule.value(id_): count for id_, count in strange.items()}
    ranked = sorted(strange.items(), key=lambda pair: (-pair[1], pair[0]))
    named = [f"{value} ({count:,} px)" for value, count in ranked[:_MOST_VALUES]]
    others = ranked[_MOST_VALUES:]
    if others:
        named.append(f"{len(others)} more ({sum(count for _, count in others):,} px)")
    return Problem(
        "wrong values",
        f"{mask}: no class has the value {', '.join(named)}: expected "
        f"{first}..{rule.classes - 1 + first}, or {'0 and ' * first}{rule.ignore} for pixels that "
        "do not count",
    )
