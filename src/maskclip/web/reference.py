"""The description of the interface for people: a page made of the OpenAPI document, no scripts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from jinja2 import Environment, Template


def add_reference(app: FastAPI) -> None:
    """Add `/docs`."""

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
