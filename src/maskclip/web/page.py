"""What the page calls: a visitor's photos, labelled with changing words; files to take home."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, File, HTTPException, Request, Response, UploadFile
from pydantic import Field

from maskclip.web import answers
from maskclip.web.asking import Asker
from maskclip.web.examples import example_file, examples
from maskclip.web.guard import VISITOR, visitor_of
from maskclip.web.options import describe_options
from maskclip.web.photos import Photo, Photos
from maskclip.web.reading import Answer
from maskclip.web.repeat import command_of, python_of
from maskclip.web.settings import Number, Settings, Whole, read_settings

_COOKIE_BYTES = 32


class LabelsRequest(Settings):
    """Words and options, and whether labels are wanted at once."""

    draft: bool = Field(
        False,
        description="Leave out what takes most of the time: refinements by the photo, superpixels.",
    )


class HeatRequest(LabelsRequest):
    """Words and options, and the class whose map is wanted."""

    id: Whole = Field(ge=0, description="The class, by its id in the legend.")


class DownloadRequest(Settings):
    """Words and options, and the file that is wanted."""

    what: Literal["labels", "overlay", "scores", "coco"]
    opacity: Number = Field(0.62, ge=0, le=1, description="Of the colours of an overlay.")
    hidden: list[Whole] = Field(
        default_factory=list, description="Classes, by id, whose pixels an overlay leaves as is."
    )


def add_page(app: FastAPI, asker: Asker) -> Photos:
    """Add the routes of the page, and return what keeps its photos."""
    _add_choices(app, asker)
    photos = Photos(asker.limits.photo_bytes, asker.limits.photo_seconds)
    _add_photos(app, asker, photos)
    _add_labels(app, asker, photos)
    return photos


def _add_choices(app: FastAPI, asker: Asker) -> None:
    @app.get("/v1/options", tags=["page"])
    async def options() -> dict[str, Any]:
        """List everything that can be chosen, with one line about each."""
        return await asyncio.to_thread(describe_options, asker.engine.models)

    @app.get("/v1/examples", tags=["page"])
    async def all_examples() -> list[dict[str, Any]]:
        """List the pictures to try the page with."""
        return [{**asdict(one), "image": f"/v1/examples/{one.name}"} for one in examples()]

    @app.get("/v1/examples/{name}", tags=["page"], response_class=answers.Png)
    async def example(name: str) -> Response:
        """Return a picture to try the page with."""
        data = await asyncio.to_thread(example_file, name)
        if data is None:
            raise HTTPException(404, "no such example")
        return answers.Png(data, headers={"Cache-Control": "private, max-age=3600"})


def _add_photos(app: FastAPI, asker: Asker, photos: Photos) -> None:
    @app.post("/v1/photos", tags=["page"])
    async def add_photo(
        request: Request, response: Response, image: Annotated[UploadFile, File()]
    ) -> dict[str, Any]:
        """Keep a photo for a while, for its visitor alone, to be labelled with changing words."""
        visitor = _visitor(request)
        if len(visitor) < _COOKIE_BYTES:
            visitor = secrets.token_urlsafe(_COOKIE_BYTES)
            secure = request.url.scheme == "https"
            response.set_cookie(VISITOR, visitor, httponly=True, samesite="strict", secure=secure)
        photo = await asker.read(request, image)
        return {
            "id": photos.add(visitor, photo, sender=visitor_of(request.scope)),
            "name": photo.name,
            "width": photo.size[1],
            "height": photo.size[0],
            "shown": {"width": photo.shown.width, "height": photo.shown.height},
        }

    @app.delete("/v1/photos/{id}", tags=["page"])
    async def remove_photo(request: Request, id: str) -> dict[str, Any]:
        """Let a photo go, and what the network saw in it."""
        photo = _photo(photos, request, id)
        photos.remove(_visitor(request), id)
        asker.engine.forget(photo.digest)
        return {"removed": True}

    @app.get("/v1/photos/{id}/image", tags=["page"], response_class=answers.Jpeg)
    async def image(request: Request, id: str) -> Response:
        """Return a photo as the page shows it."""
        shown = _photo(photos, request, id).shown
        return answers.Jpeg(await asyncio.to_thread(answers.jpeg, shown))


def _add_labels(app: FastAPI, asker: Asker, photos: Photos) -> None:
    models = asker.engine.models

    @app.post("/v1/photos/{id}/labels", tags=["page"])
    async def labels(request: Request, id: str, given: LabelsRequest) -> Response:
        """Label a photo: the legend, and class ids and scores as 8-bit images at its shown size."""
        photo, whole = _photo(photos, request, id), read_settings(given, models)
        choice = whole.draft() if given.draft else whole
        answer = await asker.ask(request, photo, choice)
        offered = models.find(choice.model)
        content = {
            **await asyncio.to_thread(_layers, answer, offered.name),
            "draft": choice != whole,
            "command": command_of(given, offered, photo.name),
            "python": python_of(given, offered, photo.name),
        }
        return Response(answers.json_bytes(content), media_type="application/json")

    @app.post("/v1/photos/{id}/heat", tags=["page"], response_class=answers.Png)
    async def heat(request: Request, id: str, given: HeatRequest) -> Response:
        """Return the map of one class, 8-bit grey; headers say which values 0 and 255 are."""
        photo, choice = _photo(photos, request, id), read_settings(given, models)
        choice = choice.draft() if given.draft else choice
        answer = await asker.ask(request, photo, choice, heat=given.id)
        assert answer.heat is not None
        drawn, low, high = await asyncio.to_thread(answers.heat_image, answer.heat)
        data = await asyncio.to_thread(answers.png, drawn)
        return answers.Png(data, headers={"X-Low": f"{low:.6g}", "X-High": f"{high:.6g}"})

    @app.post("/v1/photos/{id}/download", tags=["page"])
    async def download(request: Request, id: str, given: DownloadRequest) -> Response:
        """Return a file of the labels at the photo's own size."""
        photo, choice = _photo(photos, request, id), read_settings(given, models)
        answer = await asker.ask(request, photo, choice, shown=False)
        data = await asyncio.to_thread(_file, answer, given, photo.name)
        stem = PurePosixPath(photo.name).stem or "photo"
        if given.what == "coco":
            return _attached(data, f"{stem}_coco.json", "application/json")
        return _attached(data, f"{stem}_{given.what}.png", "image/png")


def _visitor(request: Request) -> str:
    return request.cookies.get(VISITOR, "")


def _photo(photos: Photos, request: Request, name: str) -> Photo:
    photo = photos.get(_visitor(request), name)
    if photo is None:
        raise HTTPException(404, "no such photo: it may have been let go; upload it again")
    return photo


def _layers(answer: Answer, model: str) -> dict[str, Any]:
    found = answer.found
    return {
        **answers.summary(answer, model),
        "labels": answers.text_of(answers.png(answers.index_image(found.labels))),
        "bits": 8 * found.labels.dtype.itemsize,
        "scores": answers.text_of(answers.png(found.score_image())),
    }


def _file(answer: Answer, given: DownloadRequest, name: str) -> bytes:
    found = answer.found
    if given.what == "coco":
        return answers.coco_json(found, name)
    if given.what == "overlay":
        drawn = answers.overlay_image(found, opacity=given.opacity, hidden=given.hidden)
        return answers.png(drawn)
    draw = {"labels": found.label_image, "scores": found.score_image}
    return answers.png(draw[given.what]())


def _attached(data: bytes, name: str, kind: str) -> Response:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    exact = quote(name, safe="")
    headers = {"Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"}
    return Response(data, headers=headers, media_type=kind)
