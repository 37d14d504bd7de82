"""What a format gets of a photo, what it has to do with it, and what several formats share."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import json_escaped
from maskclip.core.vocabulary import BACKGROUND, Vocabulary

if TYPE_CHECKING:
    from maskclip.core.resize import Geometry


@dataclass(frozen=True, eq=False)
class Labeled:
    """One photo of H x W pixels with its labels.

    Attributes:
        name: of its files in every format, unique in the set: a relative POSIX path without suffix.
        image: the photo's path as users know it, POSIX, relative or absolute.
        labels: (H, W) uint8 or uint16 class ids; ignored pixels have the vocabulary's `ignore`
            (255, or 65,535 beyond 255 classes).
        scores: (H, W) float32, the score of each pixel's label, where scores are known.
        probabilities: (n, K, h, w) float32, of every class on the grids of the photo's n windows,
            from which the labels were made. Only for formats that want them.
        geometry: where these grids lie in the photo.
        photo: RGB, of W x H pixels, or reduced to what the formats want (`Format.photo_side`).

    Raises:
        ValueError: a name that leads out of the output folder, shapes or types that do not fit.
    """

    name: str
    image: str
    labels: Labels
    scores: npt.NDArray[np.float32] | None = None
    probabilities: npt.NDArray[np.float32] | None = None
    geometry: Geometry | None = None
    photo: Image.Image | None = None

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.name).parts
        if not parts or "/".join(parts) != self.name or parts[0] == "/" or ".." in parts:
            raise ValueError(f"expected a plain relative path as name, got {self.name!r}")
        if self.labels.ndim != 2 or self.labels.size == 0:
            raise ValueError(f"expected labels (H, W) of some pixels, got {self.labels.shape}")
        if self.labels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"expected labels of uint8 or uint16, got {self.labels.dtype}")
        if self.scores is not None and self.scores.shape != self.labels.shape:
            raise ValueError(
                f"expected scores of the labels' shape {self.labels.shape}, got {self.scores.shape}"
            )

    def require_scores(self) -> npt.NDArray[np.float32]:
        """Return the scores.

        Raises:
            ValueError: they are not given.
        """
        if self.scores is None:
            raise ValueError(f"{self.name}: expected scores, got none")
        return self.scores

    def require_photo(self) -> Image.Image:
        """Return the photo.

        Raises:
            ValueError: it is not given.
        """
        if self.photo is None:
            raise ValueError(f"{self.name}: expected the photo, got none")
        return self.photo

    def check_paths(self) -> None:
        """Refuse paths that cannot be written into a text file.

        Raises:
            MaskCLIPError: the name or the photo's path is not valid UTF-8.
        """
        for path in (self.name, self.image):
            if any("\ud800" <= letter <= "\udfff" for letter in path):
                raise MaskCLIPError(f"the path {path!r} is not valid UTF-8: rename the photo")


class PhotoFile(NamedTuple):
    """A photo of a set that was written.

    Attributes:
        name: of its files, as in `Labeled`.
        image: its path as users know it, as in `Labeled`.
        path: where it lies, absolute.
    """

    name: str
    image: str
    path: str

    @property
    def suffix(self) -> str:
        """The photo's suffix, with its dot."""
        return PurePosixPath(self.image).suffix

    @property
    def is_renamed(self) -> bool:
        """Whether its files are called otherwise, because another photo has that name."""
        return f"{self.name}{self.suffix}" != self.image


@dataclass(frozen=True, kw_only=True)
class FormatOptions:
    """What users choose of single formats; it decides only what `Format.finish` writes.

    Attributes:
        things: `coco`: names of classes that are things.
        url_prefix: `label-studio`: the URL of the folder of the photos, as Label Studio sees it;
            None has it serve them from its disk.
        link: `yolo`: whether links to the photos are made where they are looked for.
        validate: `yolo`: the share of photos that are kept for validation, 0 to 1.
        seed: `yolo`: of the choice of these.

    Raises:
        MaskCLIPError: a share out of range, a prefix that is no URL.
    """

    things: tuple[str, ...] = ()
    url_prefix: str | None = None
    link: bool = False
    validate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validate < 1:
            raise MaskCLIPError(
                f"the share kept for validation is from 0 up to 1, without 1, got {self.validate:g}"
            )
        url = self.url_prefix
        if url is not None and not url.startswith(("http://", "https://", "s3://", "gs://", "/")):
            raise MaskCLIPError(
                "the prefix of photos' URLs begins with https://, http://, s3://, gs:// or /, got "
                f"{url!r}"
            )


DEFAULT_FORMAT_OPTIONS = FormatOptions()


class Format(ABC):
    """A way to write the labels of a set of photos.

    `write` may be called from several processes, for different photos, and again for the same one:
    it leaves the same bytes. `finish` is called once all are written, and may be repeated. Every
    file appears whole or not at all, and depends on nothing but the photos, their labels and paths.

    Args:
        vocabulary: the classes.
        out: the folder of the files.
        options: what users choose of single formats.

    Attributes:
        wants_probabilities: whether `write` needs `Labeled.probabilities`.
        may_be_empty: whether a file of 0 bytes is one that `write` has written.
        wants_scores: whether `write` uses `Labeled.scores`.
        photo_side: whether `write` needs `Labeled.photo`: 0 is not at all; else a photo that fits
            into so many px is enough, and infinity is the photo at its own size.

    Raises:
        MaskCLIPError: the format cannot hold such a vocabulary.
    """

    wants_probabilities: ClassVar[bool] = False
    may_be_empty: ClassVar[bool] = False
    wants_scores: ClassVar[bool] = False
    photo_side: ClassVar[float] = 0

    def __init__(
        self, vocabulary: Vocabulary, out: Path, options: FormatOptions = DEFAULT_FORMAT_OPTIONS
    ) -> None:
        self.vocabulary = vocabulary
        self.out = out
        self.options = options

    @abstractmethod
    def files(self, name: str) -> tuple[Path, ...]:
        """Return the files that `write` leaves of a photo."""

    @abstractmethod
    def write(self, item: Labeled) -> None:
        """Write a photo's own files.

        Raises:
            MaskCLIPError: the format cannot hold this photo.
            ValueError: the labels do not fit the vocabulary.
            OSError: a file cannot be written.
        """

    @abstractmethod
    def finish(self, photos: Iterable[PhotoFile]) -> list[str]:
        """Write the files of the whole set from what `write` left; only the list is in memory.

        Args:
            photos: those that were written, in any order.

        Returns:
            Lines for the user: how the files are imported, and what an importer would not find.

        Raises:
            MaskCLIPError: a file that `write` left is missing.
            OSError: a file cannot be read or written.
        """

    def class_ids(self, item: Labeled) -> Labels:
        """Return the labels in the vocabulary's type.

        Raises:
            ValueError: some are neither a class nor the ignored label.
        """
        labels, count = item.labels, len(self.vocabulary)
        wrong = labels[(labels >= count) & (labels != self.vocabulary.ignore)]
        if wrong.size:
            raise ValueError(
                f"{item.name}: expected labels below {count}, the number of classes, or "
                f"{self.vocabulary.ignore}, got {wrong[0]}"
            )
        if self.vocabulary.label_dtype is np.uint8:
            return labels.astype(np.uint8, copy=False)
        return labels.astype(np.uint16, copy=False)


def ordered(photos: Iterable[PhotoFile]) -> list[PhotoFile]:
    """Return each photo once, in the order of the files of a set."""
    return sorted(set(photos))


def renamed(photos: Sequence[PhotoFile], why: str, remedy: str) -> list[str]:
    """Return the line about photos whose files have other names than they, if there are any."""
    found = [photo for photo in photos if photo.is_renamed]
    if not found:
        return []
    count = "1 photo has" if len(found) == 1 else f"{len(found):,} photos have"
    return [
        f"{why}, and {count} the name of another ({found[0].image}, whose labels are called "
        f"{found[0].name}): {remedy}"
    ]


def is_one_line(text: str) -> bool:
    """Return whether every reader of lines takes a text for one line."""
    return len(text.splitlines()) == 1 and text.splitlines()[0] == text


def foreground(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the ids of all classes except the background, which has no regions of its own."""
    background = 0 if vocabulary.has_background else -1
    names = enumerate(vocabulary.names)
    return tuple(label for label, name in names if label != background and name != BACKGROUND)


def some_foreground(vocabulary: Vocabulary, format_name: str) -> tuple[int, ...]:
    """Return `foreground`.

    Raises:
        MaskCLIPError: there is none.
    """
    classes = foreground(vocabulary)
    if not classes:
        raise MaskCLIPError(
            f"the format {format_name} has no background, and there is no other class: "
            "name a class, or leave the format out"
        )
    return classes


def present(labels: Labels, classes: Iterable[int]) -> list[int]:
    """Return those of `classes` that label a pixel, ascending."""
    return sorted(set(np.unique(labels).tolist()).intersection(classes))


def compact_json(value: Any) -> str:
    """Return JSON on one line, without spaces."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return json_escaped(text)


def write_items(items: Iterable[str], file: TextIO) -> None:
    """Write JSON texts as a JSON list, one by one."""
    file.write("[")
    for index, item in enumerate(items):
        file.write(f",\n{item}" if index else f"\n{item}")
    file.write("\n]")


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file that `write` left, without their ends.

    Raises:
        MaskCLIPError: it is missing.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield line.removesuffix("\n")
    except FileNotFoundError:
        raise missing(path) from None


def missing(path: Path) -> MaskCLIPError:
    """Return the error about a missing file that `write` left."""
    return MaskCLIPError(f"{path} is missing: run the same command again, which makes it anew")
