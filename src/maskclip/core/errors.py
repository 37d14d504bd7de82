"""Errors and warnings that a user can act on, and the parts that their messages share."""

from __future__ import annotations

import difflib
import json
import logging
import re
import shlex
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

_NAME = "maskclip"  # of the package
_LONGEST = 160  # characters of a value in a message


class MaskCLIPError(ValueError):
    """Something a user gave cannot be used; the one-line message says what to do.

    Every such error of the package is of this class, which is a `ValueError`. The command line
    prints it without a traceback.

    Examples:
        >>> try:
        ...     maskclip.Vocabulary.parse(["dog", "cat", "dog"])
        ... except maskclip.MaskCLIPError as error:
        ...     print(error)
        class 'dog' is named twice (classes 0 and 2): names must differ
    """


class MaskCLIPWarning(UserWarning):
    """Something that works, and probably not as the user thinks.

    Examples:
        A program that shall stop at every one turns them into errors:

        >>> import warnings
        >>> segmenter = maskclip.load("emoji")
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", maskclip.MaskCLIPWarning)
        ...     try:
        ...         segmenter.segment("photo.jpg", ["dog"])
        ...     except maskclip.MaskCLIPWarning as warning:
        ...         print(str(warning).partition(":")[0])
        one class and no background
    """


@contextmanager
def quiet_loggers(*names: str, level: int = logging.ERROR) -> Iterator[None]:
    """Let libraries log nothing below a level while the block runs: their notes are no results.

    Args:
        names: of their loggers.
        level: the least that is still logged.
    """
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, own in zip(loggers, before, strict=True):
            logger.setLevel(own)


def did_you_mean(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """Return " (did you mean a or b or c?)" with up to three close names, or nothing.

    `likeness` is the least that counts: twice the letters in common by those of both, in [0, 1].
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=likeness)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def read_choices(text: str, known: Collection[str], *, to: str) -> tuple[str, ...]:
    """Read a list such as `overlay,labels`: names between commas, each once, in the order given.

    Args:
        text: what was typed.
        known: the names that can be chosen.
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


def differences(saved: Any, wanted: Any, name: str = "") -> list[str]:
    """Return the values in which two trees of settings differ: `name: SAVED there, WANTED wanted`.

    Args:
        saved: dictionaries of plain values, as a file keeps them.
        wanted: the same of what is wanted.
        name: where in the tree the two are.
    """
    if isinstance(saved, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys([*saved, *wanted])
        found = [
            differences(saved.get(key), wanted.get(key), f"{name}.{key}" if name else str(key))
            for key in keys
        ]
        return [change for changes in found for change in changes]
    return [] if saved == wanted else [f"{name}: {_cut(saved)} there, {_cut(wanted)} wanted"]


def _cut(value: Any) -> str:
    """Return a value as Python writes it, a list as people type it; of long ones, the beginning."""
    text = _typed(value) if isinstance(value, list) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _typed(values: list[Any]) -> str:
    """Return `a,b` of a list of words or numbers, `none` of an empty one."""
    words = [value if isinstance(value, str) else repr(value) for value in values]
    if not all(isinstance(value, str | int | float) for value in values) or any(
        not word or "," in word for word in words
    ):
        return repr(values)
    return ",".join(words) or "none"


def list_differences(changes: list[str], *, most: int = 5) -> str:
    """Return the first of `differences` as one line."""
    return "; ".join(changes[:most]) + ("; ..." if len(changes) > most else "")


def require_extra(extra: str, *modules: str) -> None:
    """Check that the modules of an optional extra are installed, without importing them.

    Args:
        extra: a name of `[project.optional-dependencies]`.
        *modules: what is about to be imported, by top-level names.

    Raises:
        MaskCLIPError: some are missing; the message has the command that installs them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MaskCLIPError(
            f"this needs {', '.join(missing)}, not installed yet: {install_command(extra)}"
        )


def install_command(extra: str) -> str:
    """Return the command that adds an extra to this installation, from where it came.

    A folder, an archive and a repository are named as pip recorded them (`direct_url.json`).
    """
    source = Path(__file__).resolve().parents[2]
    if source.name == "src" and (source.parent / "pyproject.toml").is_file():
        return _install(f"{source.parent}[{extra}]")
    record = _record()
    url = str(record.get("url", ""))
    if "dir_info" in record:
        folder = Path(url2pathname(urlsplit(url).path))
        if not folder.is_dir():  # removed since, as that of a container's build
            return f'pip install ".[{extra}]" in a clone of {_NAME}'
        return _install(f"{folder}[{extra}]")
    if "vcs_info" in record:
        url = f"{record['vcs_info']['vcs']}+{url}@{record['vcs_info']['commit_id']}"
    return _install(f"{_NAME}[{extra}] @ {url}" if url else f"{_NAME}[{extra}]")


def without_commands(text: str) -> str:
    """Return a message for people elsewhere: no command that names a folder of this machine."""
    if "pip install" not in text:
        return text
    any_extra = re.escape(install_command("\0")).replace(re.escape("\0"), r"([\w-]+)")
    return re.sub(any_extra, r"the extra `\1` is missing there", text)


def _record() -> dict[str, Any]:
    """Return from where the package was installed, unless it was from an index."""
    try:
        record = json.loads(distribution(_NAME).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _install(what: str) -> str:
    """Return the command, quoted for shells, of which some read `"` alone."""
    quoted = shlex.quote(what) if re.search(r'["$`!]', what) else f'"{what}"'
    return f"pip install {quoted}"
