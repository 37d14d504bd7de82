"""One thread that owns the models; questions wait before it, each visitor's in turn. No HTTP.

Those that wait together are encoded together, where photos are of one size; what a network saw in a
photo is kept, and scored again with other words.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from PIL import Image

from maskclip.core.device import is_out_of_memory
from maskclip.core.errors import MaskCLIPError
from maskclip.tasks.photo_segmenter import EncodedPhoto
from maskclip.tasks.photos import BATCH
from maskclip.web.kept import Kept
from maskclip.web.models import Models
from maskclip.web.reading import Answer, Question, Reading, SlowError, bytes_of
from maskclip.web.turns import Turns


class BusyError(Exception):
    """So many questions wait that another one would not be answered soon."""


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
        self._turns: Turns[_Waiting] = Turns(queue_size)
        self._kept: Kept[Any, EncodedPhoto] = Kept(kept_bytes, kept_seconds)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="maskclip-engine", daemon=True)
        self._thread.start()

    def ask(self, question: Question) -> Future[Answer]:
        """Put a question; the future has its answer, or its error, and can be cancelled.

        Raises:
            BusyError: too many wait, or the engine stops.
        """
        future: Future[Answer] = Future()
        waiting = _Waiting(question, future, time.monotonic() + self.timeout)
        if not self._turns.put(question.visitor, waiting):
            raise BusyError("the service is stopping" if self._closed else "too many requests wait")
        return future

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return len(self._turns)

    @property
    def held(self) -> int:
        """The bytes of what is kept of photos."""
        return self._kept.held

    def forget(self, digest: str) -> None:
        """Let go of what the network saw in a photo."""
        for key in self._kept.keys():  # noqa: SIM118
            if key[0] == digest:
                self._kept.remove(key)

    def stop(self, *, seconds: float = 5.0) -> bool:
        """Answer what waits, then end; later questions are refused. Return whether it has ended."""
        self._closed = True
        self._turns.close()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._turns.ended:
            batch = self._next()
            try:
                with torch.inference_mode():
                    self._answer_all(batch)
            except Exception as error:  # a bug: the thread outlives it, and nobody waits
                for one in batch:
                    if not one.future.done():
                        one.future.set_exception(error)

    def _next(self) -> list[_Waiting]:
        """Wait for questions, and return the next; none where the engine ends."""
        batch: list[_Waiting] = []
        until = 0.0
        while len(batch) < BATCH:
            one = self._turns.get(max(0.0, until - time.monotonic()) if batch else None)
            if one is None:
                break
            if not one.future.set_running_or_notify_cancel():
                continue
            if time.monotonic() > one.deadline:
                one.future.set_exception(SlowError())
                continue
            batch.append(one)
            until = until or time.monotonic() + self._patience
        return batch

    def _answer_all(self, batch: Sequence[_Waiting]) -> None:
        """Answer questions; those of one model and view are encoded together."""
        groups: dict[Any, list[_Open]] = {}
        for one in batch:
            try:
                reading = self._prepare(one)
            except Exception as error:
                self._fail(one, error)
            else:
                groups.setdefault(reading.network, []).append((one, reading))
        for those in groups.values():
            self._encode(those)
            for one, reading in those:
                self._score(one, reading)

    def _prepare(self, one: _Waiting) -> Reading:
        question = one.question
        segmenter = self.models.get(question.model, question.method, question.options)
        reading = Reading(question, segmenter, until=one.deadline)
        reading.encoded = self._kept.get((question.digest, reading.network))
        reading.kept = reading.encoded is not None
        return reading

    def _encode(self, those: Sequence[_Open]) -> None:
        """Run the network on the photos that it has not seen; on each alone, if that fails."""
        missing: dict[str, list[_Open]] = {}
        for one, reading in those:
            if reading.encoded is None:
                missing.setdefault(one.question.digest, []).append((one, reading))
        if not missing:
            return
        firsts = [same[0][1] for same in missing.values()]
        try:
            found = firsts[0].encode([reading.question.photo() for reading in firsts])
        except Exception as error:
            if len(missing) > 1:
                for same in missing.values():
                    self._encode(same)
                return
            for one, _ in next(iter(missing.values())):
                self._fail(one, error)
            return
        for (digest, same), encoded in zip(missing.items(), found, strict=True):
            for _, reading in same:
                reading.encoded = encoded
            if any(reading.question.keep for _, reading in same):
                slim = replace(encoded, photo=_NOTHING)  # who asks again brings the photo along
                first, reading = same[0]
                key, size = (digest, reading.network), bytes_of(encoded)
                self._kept.put(key, slim, size, first.question.visitor)

    def _score(self, one: _Waiting, reading: Reading) -> None:
        if reading.encoded is None:
            return
        try:
            one.future.set_result(reading.answer())
        except Exception as error:
            self._fail(one, error)

    def _fail(self, one: _Waiting, error: Exception) -> None:
        one.future.set_exception(self._public(error, one.question))

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


_Open = tuple[_Waiting, Reading]

_NOTHING = Image.new("RGB", (1, 1))
