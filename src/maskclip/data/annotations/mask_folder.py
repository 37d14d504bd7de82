"""Folders of masks: named as the photos are, by any of the habits that people and tools have.

Or that of a labelling which people corrected, of which the masks they accepted or edited count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from maskclip.core.text import counted, read_text
from maskclip.core.vocabulary import BACKGROUND, Vocabulary
from maskclip.data.annotations.base import AnnotationError, Annotations, class_ids
from maskclip.data.corrections import FOLDER, LABELS, REJECTED, Corrections
from maskclip.data.kinds import image_suffixes
from maskclip.data.masks import MASK_SUFFIXES, Ids, LabelRule, MaskError, read_ids
from maskclip.data.names import output_names
from maskclip.data.sources import regular_files_below

CLASS_LIST = "classes.txt"

_ENDING = re.compile(
    r"[ ._-](masks?|labels?|labelids|labeltrainids|seg|segmentation|gt|annotations?)$",
    re.IGNORECASE,
)


class MaskFolder(Annotations[Path]):
    """Masks `NAME.png`, or with another lossless suffix, or `NAME_mask.png` and the like.

    Values are those of the vocabulary, or its colours. A `classes.txt` among the masks, as `label`
    writes it, says what their values are instead, if it has other classes or another order.

    Args:
        place: the folder.
        photos: the names of photos: relative paths, with an image's suffix or without.
        vocabulary: the classes.
    """

    title = "masks"

    def __init__(self, place: Path, photos: Sequence[str], vocabulary: Vocabulary) -> None:
        super().__init__(place, vocabulary)
        self._values = self.rule
        self._table: Ids | None = None
        self._own_list = place / CLASS_LIST
        self._own_names(self._own_list)
        self.photos, self.unused = find_masks(place, photos)

    def _own_names(self, path: Path) -> None:
        """Take the meaning of values from a list of classes beside the masks, if there is one."""
        try:
            lines = read_text(path, "the classes of the masks").splitlines()
        except FileNotFoundError:
            return
        names = [" ".join(line.partition("=")[0].split()) for line in lines]
        self._take_names([name for name in names if name and not name.startswith("#")], path)

    def _take_names(self, names: Sequence[str], path: Path) -> None:
        """Let values mean these classes, which a file names."""
        if not names or tuple(names) == self.vocabulary.names:
            return
        ids = class_ids(names, self.vocabulary, path)
        if len(ids) < len(names):
            raise AnnotationError(f"{path}: a class is named twice")
        self._table = np.array([ids[name] for name in names], np.int32)
        self._values = LabelRule.of(_as_labeled(names))
        self.notes.append(f"{path}: the masks' values are its {len(names):,} classes, in its order")

    def read(self, photo: str, size: tuple[int, int] | None = None) -> Ids:
        """Read the mask; ids that are no class stay out of range."""
        values = read_ids(self.photos[photo], self._values, size=size)
        if self._table is None:
            return values
        table = np.append(self._table, self.vocabulary.ignore).astype(np.int32)
        places = np.where(values == self._values.ignore, len(self._table), values)
        wrong = np.unique(values[(places < 0) | (places > len(self._table))]).tolist()
        if wrong:
            hint = self._values.counted_from_one(wrong, zero=bool((values == 0).any()))
            raise MaskError(
                f"{self.photos[photo]}: the value {wrong[0]} is out of range: expected "
                f"{self._values.expected}, in the order of the masks' own list of classes{hint}"
            )
        return table[places]

    def where(self, photo: str) -> str:
        """Return the path of the mask."""
        return str(self.photos[photo])

    def expected(self, photo: str) -> str:
        """Return the path of the mask by the plainest name."""
        return str(self.place / f"{_stem(photo)}.png")

    def files(self) -> Iterable[Path]:
        """Return the masks, and the list of classes."""
        listed = [self._own_list] if self._own_list.is_file() else []
        return [*listed, *self.photos.values(), *self.unused]


def _as_labeled(names: Sequence[str]) -> Vocabulary:
    """Return the classes with the colours that `label` gives to these names in this order."""
    if names[0] != BACKGROUND:
        return Vocabulary.parse(names)
    return Vocabulary.parse(names[1:]).with_background([BACKGROUND])


def find_masks(folder: Path, photos: Sequence[str]) -> tuple[dict[str, Path], list[Path]]:
    """Return the mask of each photo that has one, and the masks of no photo.

    Raises:
        AnnotationError: there is no such folder, or a photo has several masks.
        ImageError: the folder cannot be read.
    """
    if not folder.is_dir():
        raise AnnotationError(f"no folder of masks: {folder}")
    listed = sorted(
        path.relative_to(folder).as_posix()
        for path in regular_files_below(folder, image_suffixes())
    )
    owners = _names_of_masks(photos)
    folded = {name.casefold(): photo for name, photo in reversed(owners.items())}
    candidates: dict[str, list[str]] = {}
    for path in listed:
        names = names_of_mask(_stem(path))
        exact = [owners[name] for name in names if name in owners]
        near = [folded[name.casefold()] for name in names if name.casefold() in folded]
        for owner in [*exact, *near][:1]:
            candidates.setdefault(owner, []).append(path)
    found = {
        photo: folder / _one_of(candidates[photo], photo, folder)
        for photo in photos
        if photo in candidates
    }
    unused = {folder / path for path in listed if _is_lossless(path)} - set(found.values())
    return found, sorted(unused)


def _names_of_masks(photos: Sequence[str]) -> dict[str, str]:
    """Return the photo of each name that a mask may have, without its ending and suffix.

    The names are a photo's own without suffix, unless an earlier photo has the same; the one that
    `label` gives to it then; and its own with the suffix.
    """
    owners: dict[str, str] = {}
    for photo, ours in zip(photos, output_names(photos), strict=True):
        for name in (_stem(photo), ours, photo):
            owners.setdefault(name, photo)
    return owners


def names_of_mask(stem: str) -> list[str]:
    """Return the names of photos that a mask of this path, without suffix, may belong to."""
    plain = _ENDING.sub("", stem)
    return [stem, plain] if plain != stem and not plain.endswith("/") and plain else [stem]


def _one_of(paths: list[str], photo: str, folder: Path) -> str:
    """Return the only mask of a photo; of a lossy and a lossless one, the latter."""
    left = [path for path in paths if _is_lossless(path)] or paths
    if len(left) > 1:
        raise AnnotationError(
            f"{folder}: {left[0]} and {left[1]} are both masks of {photo}: keep one of them"
        )
    return left[0]


def _is_lossless(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in MASK_SUFFIXES


def _stem(path: str) -> str:
    """Return a path without the suffix of an image, if it has one."""
    pure = PurePosixPath(path)
    known = pure.suffix.lower() in image_suffixes() and pure.stem.strip(".")
    return pure.with_suffix("").as_posix() if known else path


class CorrectedLabels(MaskFolder):
    """The labels of photos that people accepted or edited; of others nothing is said.

    Args:
        place: the folder of the labelling.
        photos: the names of photos: relative paths, with an image's suffix or without.
        vocabulary: the classes.

    Raises:
        MaskCLIPError: the journal of corrections is damaged, or has other classes.
    """

    title = "corrected labels"

    def __init__(self, place: Path, photos: Sequence[str], vocabulary: Vocabulary) -> None:
        corrections = Corrections(place)
        self._classes = corrections.classes
        super().__init__(place / LABELS, photos, vocabulary)
        self.place, self._files, self.unused = place, list(corrections.files()), []
        found, self.photos = self.photos, {}
        for photo, path in found.items():
            name = path.relative_to(place / LABELS).with_suffix("").as_posix()
            correction = corrections.of(name)
            if correction.state == REJECTED:
                self.rejected.add(photo)
            elif correction.reviewed:
                self.photos[photo] = corrections.labels_file(name)
        if self.rejected:
            left_out = counted(len(self.rejected), "rejected photo is", "rejected photos are")
            self.notes.append(f"{place}: {left_out} left out")

    def _own_names(self, path: Path) -> None:
        """Take the meaning of values from the journal."""
        self._take_names(self._classes, path.parents[1] / FOLDER)

    def expected(self, photo: str) -> str:
        """Return what would be a label."""
        return f"photos that were accepted or corrected in {self.place}"

    def files(self) -> Iterable[Path]:
        """Return the journal and the labels that it speaks of."""
        return [*self._files, *self.photos.values()]
