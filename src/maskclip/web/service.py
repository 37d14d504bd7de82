"""What programs call: label a photo, list what can be chosen."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Form, Request, Response, UploadFile
from pydantic import Field

from maskclip.web import answers
from maskclip.web.asking import Asker
from maskclip.web.options import describe_models, describe_vocabularies
from maskclip.web.reading import Answer
from maskclip.web.settings import Settings, read_settings


class ImageForm(Settings):
    """A photo, words and options."""

    image: UploadFile = Field(description="The photo: JPEG, PNG, WebP, TIFF and others.")


class SegmentForm(ImageForm):
    """A photo, words and options, and how labels are sent."""

    format: Literal["png", "rle", "none"] = Field(
        "png", description="Of the labels: `png` in base64, `rle` as COCO has it, or `none`."
    )


def add_service(app: FastAPI, asker: Asker) -> None:
    """Add the routes for programs."""

    @app.get("/healthz", tags=["service"])
    async def health() -> dict[str, Any]:
        """Say that the service runs, and how many requests wait."""
        return {"status": "ok", "waiting": asker.engine.waiting}

    @app.get("/v1/models", tags=["service"])
    async def models() -> list[dict[str, Any]]:
        """List the models, the default first."""
        return describe_models(asker.engine.models)

    @app.get("/v1/vocabularies", tags=["service"])
    async def vocabularies() -> list[dict[str, Any]]:
        """List the built-in sets of classes."""
        return await asyncio.to_thread(describe_vocabularies)

    @app.get("/v1/vocabularies/{name}", tags=["service"])
    async def vocabulary(name: str) -> dict[str, Any]:
        """List the classes of a built-in set."""
        return (await asyncio.to_thread(describe_vocabularies, name))[0]

    @app.post("/v1/segment", tags=["service"])
    async def segment(
        request: Request, form: Annotated[SegmentForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        """Label every pixel of a photo: JSON with the classes and their coverage, and labels."""
        choice = read_settings(form, asker.engine.models)
        answer = await asker.ask_once(request, form.image, choice)
        content = await asyncio.to_thread(_described, answer, choice.model, form.format)
        return Response(content, media_type="application/json")

    @app.post("/v1/segment.png", tags=["service"], response_class=answers.Png)
    async def segment_png(
        request: Request, form: Annotated[ImageForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        """Label every pixel of a photo: a palette image of class ids, as `maskclip segment` has."""
        choice = read_settings(form, asker.engine.models)
        answer = await asker.ask_once(request, form.image, choice)
        return answers.Png(await asyncio.to_thread(answers.png, answer.found.label_image()))


def _described(answer: Answer, model: str, form: str) -> bytes:
    found = answer.found
    content = answers.summary(answer, model)
    if form == "png":
        content["labels"] = answers.text_of(answers.png(found.label_image()))
    elif form == "rle":
        content["labels"] = answers.run_lengths(found.labels, found.vocabulary)
    return answers.json_bytes(content)
