"""What is wrong with a request, in one line: what was expected, and what came.

FastAPI and pydantic say so in their own ways; here is the one place that words it as we do.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.text import brief, parse_json, printable

_JSON = "a JSON object, sent with Content-Type: application/json"
_FORM = "a form, sent as multipart/form-data"
_MOST_FILES, _MOST_FIELDS = 8, 64
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
}
"""How pydantic's names of errors of types begin -> what was expected."""
_UNKNOWN = "unknown_name"
_WAYS = ("type", "parsing", "from", "number", "attributes")
"""How these names go on."""


class ReadingRoute(APIRoute):
    """A route whose bodies are read as those of every stranger: UTF-8, in bounds, nothing twice."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handler = super().get_route_handler()

        async def read(request: Request) -> Response:
            if request.method == "POST" and request.query_params:
                name = next(iter(request.query_params))
                raise MaskCLIPError(f"{brief(name)} in the address: expected values in the body")
            return await handler(_Request(request.scope, request.receive))

        return read


class _Request(Request):
    async def json(self) -> Any:
        """Return the values of the body.

        Raises:
            MaskCLIPError: it is not JSON.
        """
        return await asyncio.to_thread(_values, await self.body())

    async def form(self, **_: Any) -> FormData:  # type: ignore[override]
        """Return the fields of the body.

        Raises:
            MaskCLIPError: they are not UTF-8, or one is there twice.
        """
        _kind, options = parse_options_header(self.headers.get("content-type"))
        charset = options.get(b"charset", b"utf-8").decode("latin-1")
        if charset.lower() not in ("utf-8", "utf8"):  # some of Python's take minutes
            raise MaskCLIPError(f"the body: expected a form in UTF-8, got {brief(charset)}")
        found = await super().form(max_files=_MOST_FILES, max_fields=_MOST_FIELDS)
        counts = Counter(name for name, _ in found.multi_items())
        twice = next((name for name, count in counts.items() if count > 1), None)
        if twice is not None:
            await found.close()
            raise MaskCLIPError(f"`{printable(twice)[:80]}` is there twice: expected it once")
        return found


def _values(body: bytes) -> Any:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MaskCLIPError(
            f"the body is not UTF-8 text (byte {error.start}): expected {_JSON}"
        ) from None
    return parse_json(text, "the body", _JSON)


class Values(BaseModel):
    """Values that a request brings by their names; others are refused."""

    model_config = ConfigDict(protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                known = list(cls.model_fields)
                raise PydanticCustomError(_UNKNOWN, "unknown", {"name": name, "known": known})
        return values


def no_boolean(expected: Literal["int_type", "float_type"]) -> Callable[[Any], Any]:
    """Return what refuses true and false as numbers: pydantic counts them as 1 and 0.

    Args:
        expected: pydantic's name of the error where no number of that kind is given.
    """

    def check(value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticCustomError(expected, "Input should be a number")
        return value

    return check


def unread_line(error: BaseException) -> str | None:
    """Return what to say of a body that FastAPI could not read; None if it is not about one.

    Args:
        error: the HTTPException of FastAPI or Starlette; what it comes from says why.
    """
    reason = error.__cause__ or error.__context__
    if isinstance(reason, MultiPartException):
        if " maximum " in reason.message.lower():
            return f"too much in one form: {reason.message.rstrip('.')}"
        return f"the body is no such form ({reason.message.rstrip('.')}): expected {_FORM}"
    return None if reason is None else f"the body cannot be read: expected {_FORM}, or {_JSON}"


def request_line(request: Request, error: RequestValidationError) -> str:
    """Return what to say of a request whose values do not fit."""
    found = [{**one, "loc": one["loc"][1:]} for one in error.errors()]  # not "body", "query"
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    came = f"Content-Type {brief(kind)}" if kind else "no Content-Type"
    if isinstance(error.body, bytes):
        return f"the body: expected {_JSON}, got {came}"
    if isinstance(error.body, FormData) and not kind.startswith("multipart/"):
        return f"the body: expected {_FORM}, got {came}"
    return invalid_line(found)


def invalid_line(errors: Sequence[Any], *, prefix: str = "") -> str:
    """Return what to say of values that do not fit: the first of them.

    Args:
        errors: as pydantic lists them, each with its place.
        prefix: what the names of values begin with for whoever sent them.
    """
    first = errors[0]
    if first["type"] == _UNKNOWN:
        known = [f"{prefix}{name}" for name in first["ctx"]["known"]]
        name = f"{prefix}{first['ctx']['name']}"
        near = did_you_mean(name, known)
        return f"no value is called {brief(name)}{near}: expected some of {', '.join(known)}"
    got, place = _shown(first.get("input")), ".".join(map(str, first["loc"]))
    if not place:
        came = "nothing" if first["type"] == "missing" else got
        return f"the body: expected {_JSON}, got {came}"
    name = f"`{prefix}{place}`"
    if first["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: expected {_expected(first)}, got {got}"


def _shown(value: object) -> str:
    """Return a value for a message: true, false and null as in JSON."""
    if isinstance(value, UploadFile):
        return "a file"
    return json.dumps(value) if value is None or isinstance(value, bool) else brief(value)


def _expected(error: Mapping[str, Any]) -> str:
    kind, _, rest = error["type"].partition("_")
    if kind in _KINDS and rest.partition("_")[0] in _WAYS:
        return _KINDS[kind]
    said = str(error["msg"])
    if "UploadFile" in said:
        return "a file"
    said = said.removeprefix("Input should be ").removeprefix("Value error, ")
    return f"a number {said}" if said.startswith(("less", "greater")) else said
