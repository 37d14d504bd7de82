"""From a request to an answer: photos are read within limits, questions put, waits bounded."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException, Request, UploadFile

from maskclip.core.text import printable
from maskclip.data.images import read_image, read_size
from maskclip.web.engine import BusyError, Engine
from maskclip.web.guard import RefusedError, visitor_of
from maskclip.web.photos import Photo, read_photo
from maskclip.web.reading import Answer, Question, SlowError
from maskclip.web.settings import Choice
from maskclip.web.turns import Share

_LONGEST_NAME = 120  # characters of the name of a photo's file


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a service takes, and keeps.

    Attributes:
        max_upload: bytes of the body of a request.
        max_uploads: how many bodies of that size may arrive at a time.
        max_pixels: of a photo.
        max_photos: how many photos of that size may be worked on, or wait, at a time.
        timeout: seconds for a request.
        photo_bytes, photo_seconds: what all photos of the page may take, and how long one is kept
            after its last use.
    """

    max_upload: int = 32 * 2**20
    max_uploads: int = 8
    max_pixels: int = 50_000_000
    max_photos: int = 4
    timeout: float = 60.0
    photo_bytes: int = 512 * 2**20
    photo_seconds: float = 1800.0


DEFAULT_LIMITS = Limits()


class Asker:
    """Puts the questions of requests to an engine, within limits.

    Args:
        engine: answers them.
        limits: of photos and of time.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self._pixels = Share(limits.max_photos * limits.max_pixels)

    async def read(self, request: Request, image: UploadFile) -> Photo:
        """Return an uploaded photo, to be kept.

        Raises:
            ImageError: it cannot be read, or is too large.
            BusyError: too many pixels are worked on.
        """
        data, most = await _bytes_of(image), self.limits.max_pixels
        async with self._room_for(data, visitor_of(request.scope)):
            return await asyncio.to_thread(
                read_photo, data, file_name(image.filename), max_pixels=most
            )

    async def ask_once(self, request: Request, image: UploadFile, choice: Choice) -> Answer:
        """Return the answer for an uploaded photo that is not kept.

        Raises:
            ImageError: it cannot be read, or is too large.
            MaskCLIPError, BusyError, SlowError: it cannot be answered.
        """
        visitor = visitor_of(request.scope)
        return await self.ask_file(await _bytes_of(image), choice, visitor, request)

    async def ask_file(
        self, data: bytes, choice: Choice, visitor: str, request: Request | None = None
    ) -> Answer:
        """Return the answer for a photo's file in memory.

        Args:
            data: the file.
            choice: words and options.
            visitor: who asks, by `visitor_of`.
            request: whose sender may lose patience; None where whoever waits is cancelled then.

        Raises:
            ImageError: it cannot be read, or is too large.
            MaskCLIPError, BusyError, SlowError: it cannot be answered.
        """
        async with self._room_for(data, visitor):
            photo = await asyncio.to_thread(
                read_image, data, name="the photo", max_pixels=self.limits.max_pixels
            )
            question = _question(
                choice,
                photo=lambda: photo,
                size=(photo.height, photo.width),
                digest=secrets.token_hex(),
                keep=False,
                visitor=visitor,
            )
            return await self._answered(question, request)

    async def ask(
        self,
        request: Request,
        photo: Photo,
        choice: Choice,
        *,
        shown: bool = True,
        heat: int | None = None,
    ) -> Answer:
        """Return the answer for a photo that is kept.

        Args:
            request: whose sender may lose patience.
            photo: of a visitor.
            choice: words and options.
            shown: whether labels are wanted at the size of the picture that is shown, or of the
                photo itself.
            heat: the class whose map is wanted too.

        Raises:
            MaskCLIPError, BusyError, SlowError: it cannot be answered.
        """
        visitor = visitor_of(request.scope)
        question = _question(
            choice,
            photo=photo.open,
            size=photo.size,
            digest=photo.digest,
            shown=photo.shown if shown else None,
            heat=heat,
            visitor=visitor,
        )
        with self._room(photo.size[0] * photo.size[1], visitor):
            return await self._answered(question, request)

    @asynccontextmanager
    async def _room_for(self, data: bytes, visitor: str) -> AsyncIterator[None]:
        most = self.limits.max_pixels  # a thread: a file may have millions of parts at its start
        width, height = await asyncio.to_thread(read_size, data, name="the photo", max_pixels=most)
        with self._room(width * height, visitor):
            yield

    @contextmanager
    def _room(self, pixels: int, visitor: str) -> Iterator[None]:
        """Count the pixels of a photo as in work.

        Raises:
            BusyError: there are too many.
        """
        if not self._pixels.take(visitor, pixels):
            raise BusyError("photos that are in work take all the memory")
        try:
            yield
        finally:
            self._pixels.give_back(visitor, pixels)

    async def _answered(self, question: Question, request: Request | None) -> Answer:
        return await _answered(self.engine.ask(question), request, self.limits.timeout)


def _question(choice: Choice, **photo: Any) -> Question:
    return Question(
        model=choice.model,
        method=choice.method,
        vocabulary=choice.vocabulary,
        options=choice.options,
        **photo,
    )


async def _bytes_of(image: UploadFile) -> bytes:
    data = await image.read()
    if not data:
        raise HTTPException(422, "`image`: an empty file")
    return data


async def _answered(future: Future[Answer], request: Request | None, timeout: float) -> Answer:
    """Wait for an answer; who has gone or waits too long is not answered."""
    answer = asyncio.wrap_future(future)
    both: set[asyncio.Future[Any]] = {answer}
    if request is not None:
        both.add(asyncio.ensure_future(_gone(request)))
    try:
        done, _ = await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if answer in done:
            return answer.result()
        if done:
            raise RefusedError(499, "gone")
        raise SlowError
    finally:
        future.cancel()
        for one in both:
            one.cancel()


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def file_name(name: str | None) -> str:
    """Return the name of an uploaded file, without folders and without what cannot be shown."""
    plain = printable((name or "").replace("\\", "/").rpartition("/")[2].strip())
    return plain[-_LONGEST_NAME:] or "photo"
