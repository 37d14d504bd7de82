"""What is wrong with a request, in one line: what was expected, and what came.

FastAPI and pydantic say so in their own ways; here is the one place that words it as we do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import PydanticCustomError
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief, parse_json

_JSON = "a JSON object, sent with Content-Type: application/json"
_FORM = "a form, sent as multipart/form-data"
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
_WAYS = ("type", "parsing", "from", "number", "attributes")
"""How these names go on."""


class ReadingRoute(APIRoute):
    """A route whose JSON is read as that of every stranger: UTF-8, and within bounds."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handler = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await handler(_Request(request.scope, request.receive))

        return read


class _Request(Request):
    async def json(self) -> Any:
        """Return the values of the body.

        Raises:
            MaskCLIPError: it is not JSON.
        """
        return await asyncio.to_thread(_values, await self.body())


def _values(body: bytes) -> Any:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MaskCLIPError(
            f"the body is not UTF-8 text (byte {error.start}): expected {_JSON}"
        ) from None
    return parse_json(text, "the body", _JSON)


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
    got, place = _shown(first.get("input")), ".".join(map(str, first["loc"]))
    if not place:
        came = "nothing" if first["type"] == "missing" else got
        return f"the body: expected {_JSON}, got {came}"
    name = f"`{prefix}{place}`"
    if first["type"] == "missing":
        return f"{name} is missing"
    if first["type"] == "extra_forbidden":
        return f"{name}: expected a name that is taken here (see /docs), got this one with {got}"
    return f"{name}: expected {_expected(first)}, got {got}"


def _shown(value: object) -> str:
    """Return a value for a message: true, false and null as in JSON."""
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
