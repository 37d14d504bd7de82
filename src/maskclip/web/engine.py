"""One thread that owns the models; a bounded queue of questions before it. No HTTP.

A question is a photo and what is asked of it. Those that wait together are encoded together, where
photos are of one size; what a network saw in a photo is kept, and scored again with other words.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from maskclip.core.config import Options, RefinementValues, ViewValues
from maskclip.core.dense import pool_synonyms
from maskclip.core.device import is_out_of_memory
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.refinement import probabilities
from maskclip.core.resize import enlarge, window_starts
from maskclip.core.segmentation import Segmentation
from maskclip.core.vocabulary import Vocabulary
from maskclip.tasks.photo_segmenter import EncodedPhoto, ImageSource, PhotoSegmenter
from maskclip.tasks.photos import BATCH, Size, network_size, score_photo
from maskclip.web.kept import Kept
from maskclip.web.models import Models

MOST_SEEN = 2**24
"""Pixels of all windows of a photo that a network may see for one question."""
MOST_MAPS = 2**27
"""Values of the maps of all classes at the size at which a photo refines them."""

_VIEW = tuple(ViewValues.__annotations__)
_REFINEMENT = tuple(RefinementValues.__annotations__)


class BusyError(Exception):
    """So many questions wait that another one would not be answered soon."""


class SlowError(Exception):
    """A question was not answered in time."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """A photo, and what is asked of it.

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


class Answer(NamedTuple):
    """What became of a question.

    Attributes:
        found: labels and scores.
        heat: (H, W) float32, the map of the class that was asked for: what its scores are made of.
        method: by name, where `auto` was asked for.
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


class _Waiting(NamedTuple):
    question: Question
    future: Future[Answer]
    deadline: float


class Engine:
    """Answers questions in a thread of its own.

    Args:
        models: which nobody else may use from now on.
        queue_size: how many questions may wait.
        timeout: seconds that a question may wait for its turn.
        patience: seconds for which a question waits for others to be encoded with.
        kept_bytes, kept_seconds: how much of what networks saw is kept, and how long unused.
    """

    def __init__(
        self,
        models: Models,
        *,
        queue_size: int = 32,
        timeout: float = 60.0,
        patience: float = 0.004,
        kept_bytes: int = 512 * 2**20,
        kept_seconds: float = 1800.0,
    ) -> None:
        self.models, self.timeout = models, timeout
        self._patience = patience
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(queue_size)
        self._kept: Kept[Any, EncodedPhoto] = Kept(kept_bytes, kept_seconds)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maskclip-engine", daemon=True)
        self._thread.start()

    def ask(self, question: Question) -> Future[Answer]:
        """Put a question; the future has its answer, or its error, and can be cancelled.

        Raises:
            BusyError: too many wait, or the engine stops.
        """
        future: Future[Answer] = Future()
        if self._closed.is_set():
            raise BusyError("the service is stopping")
        try:
            waiting = _Waiting(question, future, time.monotonic() + self.timeout)
            self._queue.put_nowait(waiting)
        except queue.Full:
            raise BusyError("too many requests wait") from None
        return future

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return self._queue.qsize()

    @property
    def held(self) -> int:
        """The bytes of what is kept of photos."""
        return self._kept.held

    def forget(self, digest: str) -> None:
        """Let go of what the network saw in a photo."""
        for key in self._kept.keys():  # noqa: SIM118
            if key[0] == digest:
                self._kept.remove(key)

    def stop(self, *, seconds: float = 30.0) -> None:
        """Answer what waits, then end; later questions are refused."""
        if not self._closed.is_set():
            self._closed.set()
            threading.Thread(target=self._queue.put, args=(None,), daemon=True).start()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            batch, ended = self._next()
            if batch:
                with torch.inference_mode():
                    self._answer_all(batch)
            if ended:
                return

    def _next(self) -> tuple[list[_Waiting], bool]:
        """Return the next questions, and whether no more will come."""
        batch: list[_Waiting] = []
        until = 0.0
        while len(batch) < BATCH:
            try:
                one = self._queue.get(timeout=max(0.0, until - time.monotonic()) if batch else None)
            except queue.Empty:
                break
            if one is None:
                return batch, True
            if not one.future.set_running_or_notify_cancel():
                continue
            if time.monotonic() > one.deadline:
                one.future.set_exception(SlowError())
                continue
            batch.append(one)
            until = until or time.monotonic() + self._patience
        return batch, False

    def _answer_all(self, batch: Sequence[_Waiting]) -> None:
        """Answer questions; those of one model and view are encoded together."""
        groups: dict[Any, list[_Reading]] = {}
        for one in batch:
            try:
                with _noting() as notes:
                    reading = self._prepare(one, notes)
            except Exception as error:
                one.future.set_exception(self._public(error, one.question))
            else:
                groups.setdefault(reading.network, []).append(reading)
        for readings in groups.values():
            self._encode(readings)
            for reading in readings:
                self._score(reading)

    def _prepare(self, one: _Waiting, notes: list[str]) -> _Reading:
        question = one.question
        options = question.options
        segmenter = self.models.get(question.model, question.method, options)
        vocabulary = segmenter.prepare(question.vocabulary, options=options)
        _check_size(question, len(vocabulary), segmenter)
        scoring = segmenter.scoring(vocabulary, options)
        keys, image = scoring.needs_keys, scoring.needs_image
        view = tuple(getattr(options, name) for name in _VIEW)
        network = (question.model, segmenter.method, view, keys, image)
        reading = _Reading(one, segmenter, vocabulary, network, notes)
        reading.encoded = self._kept.get((question.digest, network))
        reading.kept = reading.encoded is not None
        return reading

    def _encode(self, readings: Sequence[_Reading]) -> None:
        """Run the network on the photos that it has not seen; on each alone, if that fails."""
        missing: dict[str, list[_Reading]] = {}
        for reading in readings:
            if reading.encoded is None:
                missing.setdefault(reading.question.digest, []).append(reading)
        if not missing:
            return
        firsts = [same[0] for same in missing.values()]
        try:
            found = firsts[0].encode([one.question.photo() for one in firsts])
        except Exception as error:
            if len(missing) > 1:
                for same in missing.values():
                    self._encode(same)
                return
            for reading in next(iter(missing.values())):
                reading.fail(self._public(error, reading.question))
            return
        for (digest, same), encoded in zip(missing.items(), found, strict=True):
            for reading in same:
                reading.encoded = encoded
            if any(reading.question.keep for reading in same):
                slim = replace(encoded, photo=_NOTHING)  # who asks again brings the photo along
                self._kept.put((digest, same[0].network), slim, _bytes_of(encoded))

    def _score(self, reading: _Reading) -> None:
        if reading.encoded is None:
            return
        try:
            reading.waiting.future.set_result(reading.answer())
        except Exception as error:
            reading.fail(self._public(error, reading.question))

    def _public(self, error: Exception, question: Question) -> Exception:
        """Return an error that tells nothing of this machine."""
        if isinstance(error, OSError) and not isinstance(error, MaskCLIPError):
            return RuntimeError("a file of the model cannot be read")
        if is_out_of_memory(error):
            return MaskCLIPError(
                "memory ran out: take a smaller photo, a smaller `short_side` or fewer words"
            )
        if isinstance(error, MaskCLIPError):
            offered = self.models.offers[question.model]
            return MaskCLIPError(str(error).replace(offered.source, offered.name))
        return error


class _Reading:
    """A question on its way to its answer."""

    def __init__(
        self,
        waiting: _Waiting,
        segmenter: PhotoSegmenter,
        vocabulary: Vocabulary,
        network: Any,
        notes: list[str],
    ) -> None:
        self.waiting, self.question = waiting, waiting.question
        self.segmenter, self.vocabulary, self.network = segmenter, vocabulary, network
        self.notes = notes
        self.encoded: EncodedPhoto | None = None
        self.kept = False

    def fail(self, error: Exception) -> None:
        self.waiting.future.set_exception(error)

    def encode(self, photos: list[ImageSource]) -> list[EncodedPhoto]:
        """Return what the network sees in photos."""
        *_, view, keys, image = self.network
        values: Any = dict(zip(_VIEW, view, strict=True))
        return self.segmenter.encode(photos, keys=keys, image=image, **values)

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
        found = score_photo(encoded.encoded, scoring)
        maps = found.maps
        if scoring.prompts_compete:
            maps = pool_synonyms(probabilities(maps, scoring.temperature), scoring.classes)
            label -= scoring.threshold is not None
            if label < 0:  # a background by threshold has no map: it is where the others are low
                maps, label = 1 - maps.amax(dim=1, keepdim=True), 0
        return enlarge(maps[:, label : label + 1], found.geometry)[0].cpu().numpy()


def _at_size(encoded: EncodedPhoto, picture: Image.Image) -> EncodedPhoto:
    """Return an encoded photo whose labels will be those of a picture of it."""
    seen = encoded.encoded
    geometry = replace(seen.geometry, output=(picture.height, picture.width))
    return replace(encoded, photo=picture, encoded=seen._replace(geometry=geometry))


def _bytes_of(encoded: EncodedPhoto) -> int:
    """Return about how much memory is held by what a network saw in a photo."""
    dense = encoded.dense
    tensors = [dense.features, dense.keys, dense.image, encoded.encoded.guide]
    if dense.again is not None:
        tensors += [dense.again.images, *dense.again.parts.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _check_size(question: Question, classes: int, segmenter: PhotoSegmenter) -> None:
    """Refuse what would take minutes or gigabytes.

    Raises:
        MaskCLIPError: the windows, or the maps that are refined, are too many or too large.
    """
    options = question.options
    height, width = network_size(question.size, options, segmenter.network)
    seen = height * width
    if options.window is not None:
        sides = [min(side, options.window) for side in (height, width)]
        stride = options.stride or max(1, options.window // 2)
        rows, columns = (
            len(window_starts(length, side, stride))
            for length, side in zip((height, width), sides, strict=True)
        )
        seen = rows * columns * sides[0] * sides[1]
    if seen > MOST_SEEN:
        raise MaskCLIPError(
            f"the model would see {seen:,} pixels of this photo, and at most {MOST_SEEN:,} are "
            "allowed: take a smaller `short_side`, or fewer windows"
        )
    if set(options.refine) & {"tlp", "pamr"} and classes * height * width > MOST_MAPS:
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


_NOTHING = Image.new("RGB", (1, 1))
