"""A question about a photo, on its way to its answer: prepared, encoded, scored."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.clip.prompts import never_saw, text_rows
from maskclip.core.config import BY_PHOTO, Options, RefinementValues, ViewValues
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.resize import window_starts
from maskclip.core.segmentation import Segmentation
from maskclip.core.vocabulary import Vocabulary
from maskclip.tasks.photo_segmenter import EncodedPhoto, Segmenter
from maskclip.tasks.photos import ImageSource, Size, network_size, score_photo
from maskclip.tasks.segmenter import CLIPSegmenter

MOST_SEEN = 2**24
"""Pixels of all windows of a photo that a network may see for one question."""
MOST_AT_ONCE = 2**22
"""The same of one window, or of the whole photo where there are none: attention grows faster."""
MOST_MAPS = 2**27
"""Values of the maps of all classes at the size at which a photo refines them."""

_WORDS_AT_ONCE = 4
_VIEW = tuple(ViewValues.__annotations__)
_REFINEMENT = tuple(RefinementValues.__annotations__)


class SlowError(Exception):
    """A question was not answered in time."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """A photo, and what is wanted of it.

    Attributes:
        photo: returns it, RGB and upright; called where the network has to see it.
        size: its (height, width).
        digest: tells photos apart.
        model, method: of `Models.get`.
        vocabulary: the classes, with their background; None for a student's own.
        options: how the photo is cut, and its maps refined.
        shown: the picture, at its size, that labels are wanted of; None is the photo itself.
        heat: the class whose map is wanted beside the labels; None for none.
        keep: whether what the network sees is kept for further questions.
        visitor: who asks; those who do have turns.
    """

    photo: Callable[[], Image.Image]
    size: Size
    digest: str
    model: str
    method: str
    vocabulary: Vocabulary | None
    options: Options
    shown: Image.Image | None = None
    heat: int | None = None
    keep: bool = True
    visitor: str = ""


class Answer(NamedTuple):
    """What became of a question.

    Attributes:
        found: labels and scores.
        heat: (H, W) float32, the map of the class that was wanted: what its scores are made of.
        method: by name, where `auto` was wanted.
        why: why `auto` became it.
        kept: whether the network did not have to run.
        notes: what works, and probably not as the visitor thinks.
    """

    found: Segmentation
    heat: npt.NDArray[np.float32] | None
    method: str
    why: str
    kept: bool
    notes: tuple[str, ...]


class Reading:
    """A question on its way to its answer.

    Args:
        question: what is wanted.
        segmenter: of its model and method.
        until: when its time is up, by `time.monotonic`.

    Attributes:
        network: what decides what the network sees in a photo: equal ones share what is kept.
        encoded: what it saw, where that is known.
        kept: whether it was known before.

    Raises:
        MaskCLIPError: the words or options cannot be used, or would take minutes or gigabytes.
        SlowError: time was up before all new words were encoded; those that were are kept.
    """

    def __init__(self, question: Question, segmenter: Segmenter, *, until: float) -> None:
        self.question, self.segmenter = question, segmenter
        self.encoded: EncodedPhoto | None = None
        self.kept = False
        options = question.options
        with _noting() as self.notes:
            if isinstance(segmenter, CLIPSegmenter) and question.vocabulary is not None:
                words = question.vocabulary.flat_prompts
                self.notes += _encode_words(segmenter, words, until=until)
            self.vocabulary = segmenter.prepare(question.vocabulary, options=options)
            _check_size(question, len(self.vocabulary), segmenter)
            scoring = segmenter.scoring(self.vocabulary, options)
        self._view = {name: getattr(options, name) for name in _VIEW}
        self._keys, self._image = scoring.needs_keys, scoring.needs_image
        if self._keys:
            segmenter.check_keys()
        if self._image:
            segmenter.check_image()
        view = tuple(self._view.values())
        self.network = (question.model, segmenter.method, view, self._keys, self._image)

    def encode(self, photos: list[ImageSource]) -> list[EncodedPhoto]:
        """Return what the network sees in photos, of this question or of others like it."""
        view: Any = self._view
        return self.segmenter.encode(photos, keys=self._keys, image=self._image, **view)

    def answer(self) -> Answer:
        """Return the answer, when the photo is encoded."""
        assert self.encoded is not None
        question = self.question
        picture = question.photo() if question.shown is None else question.shown
        encoded = _at_size(self.encoded, picture)
        refinement: Any = {name: getattr(question.options, name) for name in _REFINEMENT}
        with _noting():  # what there is to say was said when the words were prepared
            found = self.segmenter.score(encoded, self.vocabulary, **refinement)
            heat = None if question.heat is None else self._heat(encoded, question.heat)
        return Answer(
            found=found,
            heat=heat,
            method=self.segmenter.method.name,
            why=self.segmenter.why,
            kept=self.kept,
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _heat(self, encoded: EncodedPhoto, label: int) -> npt.NDArray[np.float32]:
        """Return the map of one class (H, W)."""
        if label >= len(self.vocabulary):
            raise MaskCLIPError(
                f"no class {label}: there are 0 to {len(self.vocabulary) - 1}, by their ids"
            )
        scoring = self.segmenter.scoring(self.vocabulary, self.question.options)
        return score_photo(encoded.encoded, scoring).of(label)


def _encode_words(segmenter: CLIPSegmenter, words: Sequence[str], *, until: float) -> list[str]:
    """Encode words that are not cached, some at a time; return what there is to say of them."""
    unknown: list[str] = []
    for start in range(0, len(words), _WORDS_AT_ONCE):
        if time.monotonic() > until:
            raise SlowError
        some = words[start : start + _WORDS_AT_ONCE]
        rows = text_rows(
            segmenter.clip, some, templates=segmenter.templates, device=segmenter.device
        )
        unknown += rows.unknown
    return [never_saw(segmenter.clip, unknown)] if unknown else []


def _at_size(encoded: EncodedPhoto, picture: Image.Image) -> EncodedPhoto:
    """Return an encoded photo whose labels will be those of a picture of it."""
    seen = encoded.encoded
    geometry = replace(seen.geometry, output=(picture.height, picture.width))
    return replace(encoded, photo=picture, encoded=seen._replace(geometry=geometry))


def bytes_of(encoded: EncodedPhoto) -> int:
    """Return about how much memory is held by what a network saw in a photo."""
    dense = encoded.dense
    tensors = [dense.features, dense.keys, dense.image, encoded.encoded.guide]
    if dense.again is not None:
        tensors += [dense.again.images, *dense.again.parts.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _check_size(question: Question, classes: int, segmenter: Segmenter) -> None:
    """Refuse what would take minutes or gigabytes.

    Raises:
        MaskCLIPError: the windows, or the maps that are refined, are too many or too large.
    """
    options = question.options
    height, width = network_size(question.size, options, segmenter.network)
    seen = at_once = height * width
    if options.window is not None:
        sides = [min(side, options.window) for side in (height, width)]
        stride = options.stride or max(1, options.window // 2)
        rows, columns = (
            len(window_starts(length, side, stride))
            for length, side in zip((height, width), sides, strict=True)
        )
        at_once = sides[0] * sides[1]
        seen = rows * columns * at_once
    if seen > MOST_SEEN or at_once > MOST_AT_ONCE:
        raise MaskCLIPError(
            f"the model would see {seen:,} pixels of this photo, {at_once:,} at once, and at most "
            f"{MOST_SEEN:,} and {MOST_AT_ONCE:,} are allowed: take a smaller `short_side`, or "
            "other windows"
        )
    if set(options.refine) & set(BY_PHOTO) and classes * height * width > MOST_MAPS:
        raise MaskCLIPError(
            f"{classes} classes at {width}x{height} pixels are too much to refine by the photo: "
            "take fewer words, a smaller `short_side` or `refine=none`"
        )


@contextmanager
def _noting() -> Iterator[list[str]]:
    """Collect what a user is warned of, while the block runs."""
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", MaskCLIPWarning)
        warnings.showwarning = lambda message, *_, **__: notes.append(str(message))
        yield notes
