"""The routes of the service and of the page."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import printable
from maskclip.data.images import TooLargeError
from maskclip.web import answers
from maskclip.web.engine import Answer, BusyError, Engine, Question, SlowError
from maskclip.web.examples import example_file, examples
from maskclip.web.guard import Guard, RefusedError, local_hosts
from maskclip.web.options import describe_models, describe_options, describe_vocabularies
from maskclip.web.photos import Photo, Photos, read_photo
from maskclip.web.repeat import command_of, python_of
from maskclip.web.settings import Choice, Settings, read_settings

VISITOR = "maskclip_visitor"
"""The cookie that tells visitors apart: a random number, and nothing about them."""
_LONGEST_NAME = 120  # characters of the name of a photo's file


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a service takes, and keeps.

    Attributes:
        max_upload: bytes of the body of a request.
        max_pixels: of a photo.
        timeout: seconds for a request.
        photo_bytes, photo_seconds: what all photos of the page may take, and how long one is kept
            after its last use.
    """

    max_upload: int = 32 * 2**20
    max_pixels: int = 50_000_000
    timeout: float = 60.0
    photo_bytes: int = 512 * 2**20
    photo_seconds: float = 1800.0


class SegmentForm(Settings):
    """A photo, words and options."""

    image: UploadFile = Field(description="The photo: JPEG, PNG, WebP, TIFF and others.")
    format: Literal["png", "rle", "none"] = Field(
        "png", description="Of the labels: `png` in base64, `rle` as COCO has it, or `none`."
    )


class ImageForm(Settings):
    """A photo, words and options."""

    image: UploadFile = Field(description="The photo: JPEG, PNG, WebP, TIFF and others.")


class HeatRequest(Settings):
    """Words and options, and the class whose map is wanted."""

    id: int = Field(ge=0, description="The class, by its id in the legend.")


class DownloadRequest(Settings):
    """Words and options, and the file that is wanted."""

    what: Literal["labels", "overlay", "scores", "coco"]


def create_app(
    engine: Engine,
    *,
    limits: Limits = Limits(),
    key: str | None = None,
    host: str = "127.0.0.1",
) -> FastAPI:
    """Return the service.

    Args:
        engine: answers questions; it is stopped with the service.
        limits: what is taken, and kept.
        key: which requests must bring; None for none.
        host: the address that the service is bound to: on this machine alone, it is known by the
            names of this machine alone.
    """
    MultiPartParser.spool_max_size = limits.max_upload  # nothing of a visitor reaches the disk
    photos = Photos(limits.photo_bytes, limits.photo_seconds)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(
        title="maskclip",
        description="Words and images in, a label for every pixel out.",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(
        Guard,
        key=key,
        hosts=local_hosts(host),
        max_body=limits.max_upload,
        max_bodies=8 * limits.max_upload,
        timeout=limits.timeout,
    )
    _add_errors(app)
    _Service(app, engine, photos, limits).add_routes()
    return app


def _add_errors(app: FastAPI) -> None:
    """Let every error be one line of JSON that tells nothing of this machine."""

    def line(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
        body = answers.json_bytes({"error": printable(text)})
        return Response(body, status, headers, media_type="application/json")

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return line(422, f"`{place}`: {first['msg']}"[:300])

    async def refused(_: Request, error: Exception) -> Response:
        return line(413 if isinstance(error, TooLargeError) else 422, _public_line(error))

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return line(error.status_code, str(error.detail), dict(error.headers or {}))

    async def busy(_: Request, error: Exception) -> Response:
        return line(503, f"busy: {error}; try again in a moment", {"Retry-After": "2"})

    async def slow(_: Request, __: Exception) -> Response:
        return line(504, "this took too long: take a smaller photo, or fewer words")

    async def failed(_: Request, error: Exception) -> Response:
        return line(500, "an error of the service; its log has more")

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(MaskCLIPError, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(BusyError, busy)
    app.add_exception_handler(SlowError, slow)
    app.add_exception_handler(Exception, failed)


def _public_line(error: Exception) -> str:
    return str(error).replace(" (`max_pixels` raises it)", "")


class _Service:
    """The routes, and what they share."""

    def __init__(self, app: FastAPI, engine: Engine, photos: Photos, limits: Limits) -> None:
        self.app, self.engine, self.photos, self.limits = app, engine, photos, limits

    def add_routes(self) -> None:
        app = self.app
        app.get("/healthz", tags=["service"])(self.health)
        app.get("/v1/models", tags=["service"])(self.models)
        app.get("/v1/vocabularies", tags=["service"])(self.vocabularies)
        app.get("/v1/vocabularies/{name}", tags=["service"])(self.vocabulary)
        app.post("/v1/segment", tags=["service"])(self.segment)
        app.post("/v1/segment.png", tags=["service"], response_class=_Png)(self.segment_png)
        app.get("/v1/options", tags=["page"])(self.options)
        app.get("/v1/examples", tags=["page"])(self.examples)
        app.get("/v1/examples/{name}", tags=["page"], response_class=_Png)(self.example)
        app.post("/v1/photos", tags=["page"])(self.add_photo)
        app.delete("/v1/photos/{id}", tags=["page"])(self.remove_photo)
        app.get("/v1/photos/{id}/image", tags=["page"], response_class=_Jpeg)(self.image)
        app.post("/v1/photos/{id}/labels", tags=["page"])(self.labels)
        app.post("/v1/photos/{id}/heat", tags=["page"], response_class=_Png)(self.heat)
        app.post("/v1/photos/{id}/download", tags=["page"])(self.download)
        static = resources.files("maskclip.web") / "static"
        app.mount("/", StaticFiles(directory=str(static), html=True), name="page")

    async def health(self) -> dict[str, Any]:
        """Say that the service runs, and how many requests wait."""
        return {"status": "ok", "waiting": self.engine.waiting}

    async def models(self) -> list[dict[str, Any]]:
        """List the models, the default first."""
        return describe_models(self.engine.models)

    async def vocabularies(self) -> list[dict[str, Any]]:
        """List the built-in sets of classes."""
        return describe_vocabularies()

    async def vocabulary(self, name: str) -> dict[str, Any]:
        """List the classes of a built-in set."""
        return describe_vocabularies(name)[0]

    async def segment(
        self, request: Request, form: Annotated[SegmentForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        """Label every pixel of a photo: JSON with the classes and their coverage, and labels."""
        choice = read_settings(form, self.engine.models)
        answer = await self._once(request, form.image, choice)
        return Response(
            await asyncio.to_thread(self._described, answer, choice, form.format),
            media_type="application/json",
        )

    async def segment_png(
        self, request: Request, form: Annotated[ImageForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        """Label every pixel of a photo: a palette image of class ids, as `maskclip segment` has."""
        choice = read_settings(form, self.engine.models)
        answer = await self._once(request, form.image, choice)
        return _Png(await asyncio.to_thread(answers.png, answer.found.label_image()))

    async def options(self) -> dict[str, Any]:
        """List everything that can be chosen, with one line about each."""
        return describe_options(self.engine.models)

    async def examples(self) -> list[dict[str, Any]]:
        """List the pictures to try the page with."""
        return [
            {
                "name": one.name,
                "title": one.title,
                "words": one.words,
                "model": one.model,
                "image": f"/v1/examples/{one.name}",
            }
            for one in examples()
        ]

    async def example(self, name: str) -> Response:
        """Return a picture to try the page with."""
        data = await asyncio.to_thread(example_file, name)
        if data is None:
            raise HTTPException(404, "no such example")
        return _Png(data, headers={"Cache-Control": "private, max-age=3600"})

    async def add_photo(
        self, request: Request, response: Response, image: Annotated[UploadFile, File()]
    ) -> dict[str, Any]:
        """Keep a photo for a while, for its visitor alone, to be labelled with changing words."""
        visitor = request.cookies.get(VISITOR, "")
        if len(visitor) < 32:
            visitor = secrets.token_urlsafe(32)
            response.set_cookie(
                VISITOR,
                visitor,
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        photo = await self._read(image)
        name = self.photos.add(visitor, photo)
        return {
            "id": name,
            "name": photo.name,
            "width": photo.size[1],
            "height": photo.size[0],
            "shown": {"width": photo.shown.width, "height": photo.shown.height},
        }

    async def remove_photo(self, request: Request, id: str) -> dict[str, Any]:
        """Let a photo go."""
        if not self.photos.remove(request.cookies.get(VISITOR, ""), id):
            raise _no_photo()
        return {"removed": True}

    async def image(self, request: Request, id: str) -> Response:
        """Return a photo as the page shows it."""
        return _Jpeg(await asyncio.to_thread(answers.jpeg, self._photo(request, id).shown))

    async def labels(self, request: Request, id: str, given: Settings) -> Response:
        """Label a photo: the legend, and class ids and scores as 8-bit images at its shown size."""
        photo, choice = self._photo(request, id), read_settings(given, self.engine.models)
        answer = await self._asked(request, photo, choice, shown=True)
        return Response(
            await asyncio.to_thread(self._labels, answer, given, choice, photo),
            media_type="application/json",
        )

    async def heat(self, request: Request, id: str, given: HeatRequest) -> Response:
        """Return the map of one class, 8-bit grey; headers say which values 0 and 255 are."""
        photo, choice = self._photo(request, id), read_settings(given, self.engine.models)
        answer = await self._asked(request, photo, choice, shown=True, heat=given.id)
        assert answer.heat is not None
        image, low, high = await asyncio.to_thread(answers.heat_image, answer.heat)
        data = await asyncio.to_thread(answers.png, image)
        return _Png(data, headers={"X-Low": f"{low:.6g}", "X-High": f"{high:.6g}"})

    async def download(self, request: Request, id: str, given: DownloadRequest) -> Response:
        """Return a file of the labels at the photo's own size."""
        photo, choice = self._photo(request, id), read_settings(given, self.engine.models)
        answer = await self._asked(request, photo, choice, shown=False)
        found = answer.found
        stem = PurePosixPath(photo.name).stem or "photo"
        if given.what == "coco":
            data = await asyncio.to_thread(answers.coco_json, found, photo.name)
            return _attached(data, f"{stem}_coco.json", "application/json")
        draw = {"labels": found.label_image, "scores": found.score_image, "overlay": found.overlay}
        image = await asyncio.to_thread(draw[given.what])
        data = await asyncio.to_thread(answers.png, image)
        return _attached(data, f"{stem}_{given.what}.png", "image/png")

    def _photo(self, request: Request, name: str) -> Photo:
        photo = self.photos.get(request.cookies.get(VISITOR, ""), name)
        if photo is None:
            raise _no_photo()
        return photo

    async def _read(self, image: UploadFile) -> Photo:
        data = await image.read()
        if not data:
            raise HTTPException(422, "`image`: an empty file")
        name = _file_name(image.filename)
        return await asyncio.to_thread(read_photo, data, name, max_pixels=self.limits.max_pixels)

    async def _once(self, request: Request, image: UploadFile, choice: Choice) -> Answer:
        """Return the answer for a photo that is not kept."""
        photo = await self._read(image)
        return await self._asked(request, photo, choice, shown=False, keep=False)

    async def _asked(
        self,
        request: Request,
        photo: Photo,
        choice: Choice,
        *,
        shown: bool,
        heat: int | None = None,
        keep: bool = True,
    ) -> Answer:
        question = Question(
            photo=photo.open,
            size=photo.size,
            digest=photo.digest,
            model=choice.model,
            method=choice.method,
            vocabulary=choice.vocabulary,
            options=choice.options,
            shown=photo.shown if shown else None,
            heat=heat,
            keep=keep,
        )
        return await _answered(self.engine.ask(question), request, self.limits.timeout)

    def _described(self, answer: Answer, choice: Choice, form: str) -> bytes:
        found = answer.found
        content = {**_summary(answer, choice), "classes": answers.legend(found)}
        if form == "png":
            content["labels"] = answers.text_of(answers.png(found.label_image()))
        elif form == "rle":
            content["labels"] = answers.run_lengths(found.labels, found.vocabulary)
        return answers.json_bytes(content)

    def _labels(self, answer: Answer, given: Settings, choice: Choice, photo: Photo) -> bytes:
        found, offered = answer.found, self.engine.models.find(choice.model)
        return answers.json_bytes(
            {
                **_summary(answer, choice),
                "classes": answers.legend(found),
                "labels": answers.text_of(answers.png(answers.index_image(found.labels))),
                "bits": 8 * found.labels.dtype.itemsize,
                "scores": answers.text_of(answers.png(found.score_image())),
                "command": command_of(given, offered, photo.name),
                "python": python_of(given, offered, photo.name),
            }
        )


class _Png(Response):
    media_type = "image/png"


class _Jpeg(Response):
    media_type = "image/jpeg"


def _summary(answer: Answer, choice: Choice) -> dict[str, Any]:
    height, width = answer.found.labels.shape
    return {
        "width": width,
        "height": height,
        "model": choice.model,
        "method": answer.method,
        "why": answer.why,
        "network_ran": not answer.kept,
        "notes": list(answer.notes),
    }


async def _answered(future: Future[Answer], request: Request, timeout: float) -> Answer:
    """Wait for an answer; who has gone or waits too long is not answered."""
    gone = asyncio.ensure_future(_gone(request))
    answer = asyncio.wrap_future(future)
    both: set[asyncio.Future[Any]] = {gone, answer}
    try:
        await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if gone.done():
            raise RefusedError(499, "gone")
        raise SlowError
    finally:
        future.cancel()
        for one in both:
            one.cancel()


async def _gone(request: Request) -> None:
    """Return when who asked has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _no_photo() -> HTTPException:
    return HTTPException(404, "no such photo: it may have been kept too long; upload it again")


def _file_name(name: str | None) -> str:
    """Return the name of an uploaded file, without folders and without what cannot be shown."""
    plain = printable((name or "").replace("\\", "/").rpartition("/")[2].strip())
    return plain[-_LONGEST_NAME:] or "photo"


def _attached(data: bytes, name: str, kind: str) -> Response:
    ascii_name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    headers = {"Content-Disposition": f'attachment; filename="{ascii_name}"'}
    return Response(data, headers=headers, media_type=kind)
