"""Values as the types of a dataclass's fields want them: of files, and of calls in Python."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief

UNFIT = object()
"""What `fitting` returns of a value that is of another type."""

_hints = cache(get_type_hints)


def kinds_of(part: Any) -> dict[str, Any]:
    """Return the types of a class's fields, by name."""
    return _hints(part)


def check_fields(part: Any, prefix: str = "") -> None:
    """Refuse a dataclass of which a value is of another type than its field; lists become tuples.

    Args:
        part: the dataclass.
        prefix: of its fields' names in the message.

    Raises:
        MaskCLIPError: names the field.
    """
    kinds = kinds_of(type(part))
    for field in fields(part):
        value, kind = getattr(part, field.name), kinds[field.name]
        found = fitting(value, kind)
        if found is UNFIT:
            raise MaskCLIPError(
                f"{prefix}{field.name}: expected {in_words(kind)}, got {brief(value)}"
            )
        if isinstance(value, list | tuple):
            object.__setattr__(part, field.name, found)


def fitting(value: object, kind: Any) -> object:
    """Return a value as a field's type wants it, or `UNFIT`; a list becomes a tuple."""
    arguments = get_args(kind)
    origin = get_origin(kind)
    if origin is Literal:
        return value if value in arguments and type(value) in map(type, arguments) else UNFIT
    if origin is UnionType:
        found = (fitting(value, one) for one in arguments)
        return next((one for one in found if one is not UNFIT), UNFIT)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return UNFIT
        if arguments[-1] is ...:
            arguments = (arguments[0],) * len(value)
        if len(value) != len(arguments):
            return UNFIT
        parts = tuple(map(fitting, value, arguments))
        return UNFIT if UNFIT in parts else parts
    if isinstance(value, bool):
        return value if kind is bool else UNFIT
    if kind is float and isinstance(value, Real):
        return float(value) if math.isfinite(value) else UNFIT
    if kind is int and isinstance(value, Integral):
        return int(value)
    return value if type(value) is kind else UNFIT


def in_words(kind: Any) -> str:
    """Return a field's type in words."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, arguments))
    if get_origin(kind) is UnionType:
        return " or ".join(in_words(one) for one in arguments if one is not type(None))
    if get_origin(kind) is tuple:
        return "a list of " + " and ".join(dict.fromkeys(map(in_words, _parts(arguments))))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    return words.get(kind, "a table")


def _parts(arguments: tuple[Any, ...]) -> list[Any]:
    return [one for one in arguments if one is not ...]
