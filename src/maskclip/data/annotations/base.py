"""Labels of a set of photos, as read from the files of any tool."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.text import brief, counted, printable
from maskclip.core.vocabulary import BACKGROUND, Vocabulary
from maskclip.data.images import MAX_PIXELS
from maskclip.data.kinds import image_suffixes
from maskclip.data.masks import Ids, LabelRule, size_error

MAX_BYTES = 512 << 20
"""The most bytes of a file of annotations; COCO's largest has 470 MB."""

_MOST_NAMES = 3  # photos that a note names

Reference = TypeVar("Reference")


class AnnotationError(MaskCLIPError):
    """Labels that cannot be used; the message says which and why, in one line."""


class Annotations(ABC, Generic[Reference]):
    """The labels of some photos, as a tool left them; read one by one, from any thread.

    Pixels without a label have the vocabulary's `ignore`.

    Attributes:
        title: what these are, for people.
        place: the file or folder that was named.
        rule: the classes and the ignored label; what values of masks mean, where there are masks.
        photos: the photos that have labels, in the order in which they were given.
        notes: what users should know, one line each.
        unused: files of labels that belong to none of the photos; sorted.
        rejected: the photos of which people said that nothing is to be learnt.
    """

    title: ClassVar[str]

    def __init__(self, place: Path, vocabulary: Vocabulary) -> None:
        self.place = place
        self.vocabulary = vocabulary
        self.rule = LabelRule.of(vocabulary)
        self.photos: dict[str, Reference] = {}
        self.notes: list[str] = []
        self.unused: list[Path] = []
        self.rejected: set[str] = set()

    @abstractmethod
    def read(self, photo: str, size: tuple[int, int] | None = None) -> Ids:
        """Return the class ids (H, W) of a photo; those of masks may be out of range.

        Args:
            photo: one of `photos`.
            size: (width, height) of the photo, upright; None where it is not known.

        Raises:
            MaskCLIPError: they are damaged, or of another size.
        """

    @abstractmethod
    def where(self, photo: str) -> str:
        """Return where the labels of a photo are, for messages."""

    def expected(self, photo: str) -> str:
        """Return where the labels of a photo that has none were looked for, for messages."""
        return f"{photo} in {self.place}"

    @abstractmethod
    def files(self) -> Iterable[Path]:
        """Return all files of labels, whether they are of `photos` or not."""

    def fingerprint(self) -> str:
        """Return a hash of the content of the files, 16 hex digits.

        Photos that come or go do not change it.

        Raises:
            OSError: a file cannot be read.
        """
        digest = hashlib.sha256(self.title.encode())
        for path in sorted(set(self.files())):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    def empty(self, size: tuple[int, int]) -> Ids:
        """Return labels (H, W) of which all are ignored, for a (width, height).

        Raises:
            AnnotationError: these are no pixels, or too many.
        """
        if not 0 < size[0] * size[1] <= MAX_PIXELS or min(size) < 0:
            raise AnnotationError(
                f"{self.place}: annotations for {size[0]}x{size[1]} pixels, expected a photo's "
                f"size, of at most {MAX_PIXELS:,}"
            )
        return np.full(size[::-1], self.vocabulary.ignore, np.int32)

    def check_size(self, photo: str, found: tuple[int, int], size: tuple[int, int] | None) -> None:
        """Compare the (width, height) of a photo's labels with the photo's own, if it is known.

        Raises:
            SizeError: they differ.
        """
        if size is not None and found != size:
            raise size_error(f"{self.where(photo)}: the annotations are for", found, size)

    def note_unknown(self, names: Sequence[str]) -> None:
        """Add a note about images of a file that are none of the photos."""
        self.note_photos(
            "of its images is none of the photos", "of its images are none of the photos", names
        )

    def note_photos(self, one: str, many: str, names: Sequence[str]) -> None:
        """Add a note about some photos: how many they are, and the names of the first.

        Args:
            one: what is said of one, after "1".
            many: what is said of several.
            names: of the photos; of none, nothing is said.
        """
        if names:
            dots = ", ..." if len(names) > _MOST_NAMES else ""
            some = ", ".join(names[:_MOST_NAMES])
            self.notes.append(
                printable(f"{self.place}: {counted(len(names), one, many)} ({some}{dots})")
            )

    def note_left_out(self, kinds: Counter[str]) -> None:
        """Add a note about regions of kinds that are no masks."""
        if kinds:
            listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
            self.notes.append(
                printable(f"{self.place}: left out, because they do not say pixels: {listed}")
            )


class PhotoNames:
    """Finds the photo that a path in a file of annotations means.

    Tools keep the path they were given, or only its end, with the suffix or without. So a photo is
    found where one of the two paths is the end of the other, upper and lower case apart if need be.

    Args:
        photos: relative paths, POSIX.
    """

    def __init__(self, photos: Sequence[str]) -> None:
        self._by_end: dict[str, list[str]] = {}
        for photo in photos:
            path = PurePosixPath(photo)
            for name in {path.name.casefold(), _without_suffix(path).name.casefold()}:
                self._by_end.setdefault(name, []).append(photo)

    def find(self, name: str) -> str | None:
        """Return the photo that is meant; None if it is none of them.

        Raises:
            AnnotationError: it may be one or another.
        """
        path = PurePosixPath(name.replace("\\", "/"))
        for form in (path, _without_suffix(path)):
            near = self._by_end.get(form.name.casefold(), [])
            for fold in (str, str.casefold):
                found = _best(form, near, fold)
                if len(found) > 1:
                    raise AnnotationError(
                        f"{name} may be {found[0]} or {found[1]}: name the folder of the photos "
                        "that the labels' paths are relative to"
                    )
                if found:
                    return found[0]
        return None


def _best(path: PurePosixPath, photos: Iterable[str], fold: Any) -> list[str]:
    """Return the photos that share most of their path's end with `path`, and all of one of both.

    One that is the same is better than one that is in a folder besides.
    """
    lengths: dict[str, tuple[int, bool]] = {}
    parts = [fold(part) for part in path.parts if part != "/"]
    for photo in photos:
        whole = PurePosixPath(photo)
        for form in (whole, _without_suffix(whole)):
            other = [fold(part) for part in form.parts]
            shared = min(len(parts), len(other))
            if shared and parts[-shared:] == other[-shared:]:
                lengths[photo] = max(lengths.get(photo, (0, False)), (shared, parts == other))
    return [photo for photo, length in lengths.items() if length == max(lengths.values())]


def _without_suffix(path: PurePosixPath) -> PurePosixPath:
    return path.with_suffix("") if path.suffix.lower() in image_suffixes() else path


def class_ids(names: Iterable[str], vocabulary: Vocabulary, place: Path) -> dict[str, int]:
    """Return the id of each name of a class; that of a background that is no class is `ignore`.

    Raises:
        AnnotationError: a name is not in the vocabulary; names the nearest.
    """
    known = {name: label for label, name in enumerate(vocabulary.names)}
    ids = {}
    for name in names:
        folded = " ".join(name.split())
        if folded in known:
            ids[name] = known[folded]
        elif folded == BACKGROUND:
            ids[name] = vocabulary.ignore
        else:
            near = did_you_mean(folded, vocabulary.names)
            raise AnnotationError(
                f"{place}: its class {folded!r} is not among the classes given{near}: names must "
                "be the same"
            )
    return ids


def mapping(value: object, what: str, place: Path) -> Mapping[str, Any]:
    """Return a JSON object.

    Raises:
        AnnotationError: it is something else.
    """
    if not isinstance(value, dict):
        raise AnnotationError(f"{place}: expected {what}, got {brief(value)}")
    return value


def sequence(value: object, what: str, place: Path) -> Sequence[Any]:
    """Return a JSON list.

    Raises:
        AnnotationError: it is something else.
    """
    if not isinstance(value, list):
        raise AnnotationError(f"{place}: expected {what}, got {brief(value)}")
    return value


def whole(value: object, what: str, place: Path) -> int:
    """Return a whole number from 0.

    Raises:
        AnnotationError: it is something else.
    """
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    if type(number) is not int or not 0 <= number < 2**63:
        raise AnnotationError(f"{place}: expected {what}, got {brief(value)}")
    return number


def text(value: object, what: str, place: Path) -> str:
    """Return a string that is not empty.

    Raises:
        AnnotationError: it is something else.
    """
    if not isinstance(value, str) or not value:
        raise AnnotationError(f"{place}: expected {what}, got {brief(value)}")
    return value
