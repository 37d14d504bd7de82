"""What programs call: label a photo, list what can be chosen; the description of all calls."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Form, Request, Response, UploadFile
from fastapi.responses import HTMLResponse
from jinja2 import Environment, Template
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


def add_reference(app: FastAPI) -> None:
    """Add `/docs`: a page made of the OpenAPI document, without scripts."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference(app.openapi()))


def reference(openapi: Mapping[str, Any]) -> str:
    """Return a page of HTML that lists the calls of an OpenAPI document, and their fields."""
    schemas = openapi.get("components", {}).get("schemas", {})
    calls = [
        {
            "verb": verb.upper(),
            "path": path,
            "text": call.get("description", ""),
            "tag": call["tags"][0],
            "fields": _fields(call, schemas),
        }
        for path, verbs in openapi["paths"].items()
        for verb, call in verbs.items()
    ]
    return str(_template().render(title=openapi["info"]["title"], calls=calls))


def _fields(call: Mapping[str, Any], schemas: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the fields of a call's body: name, kind, whether it is needed, what it is."""
    content = call.get("requestBody", {}).get("content", {})
    found = []
    for kind in content.values():
        schema = kind["schema"]
        schema = schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)
        needed = schema.get("required", [])
        for name, field in schema.get("properties", {}).items():
            found.append(
                {
                    "name": name,
                    "kind": _kind(field),
                    "needed": name in needed,
                    "text": field.get("description", ""),
                }
            )
    return sorted(found, key=lambda field: not field["needed"])


def _kind(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return " or ".join(field["enum"])
    if field.get("contentMediaType") or field.get("format") == "binary":
        return "file"
    kinds = [one.get("type") for one in field.get("anyOf", [field]) if one.get("type") != "null"]
    names = {"string": "text", "integer": "whole number", "number": "number"}
    return " or ".join(names.get(kind, str(kind)) for kind in kinds)


@cache
def _template() -> Template:
    text = resources.files(__package__).joinpath("reference.html.jinja").read_text("utf-8")
    return Environment(autoescape=True).from_string(text)
