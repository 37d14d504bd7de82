"""Lists that users type, such as `overlay,labels`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from maskclip.core.errors import MaskCLIPError


def read_choices(text: str, known: Collection[str], *, to: str) -> tuple[str, ...]:
    """Read names between commas, each once, in the order given.

    Args:
        text: what was typed.
        known: the names that there are.
        to: what is done with them, for the message: "save".

    Raises:
        MaskCLIPError: a name is unknown, or there is none.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = repr(unknown[0]) if unknown else "nothing"
        raise MaskCLIPError(f"cannot {to} {what}: expected some of {','.join(known)}")
    return names


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean a or b or c?)" with up to three close names, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
