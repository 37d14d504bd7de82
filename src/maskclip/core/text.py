"""Text that strangers wrote: files of it, read within bounds, and words of it, shown harmlessly."""

from __future__ import annotations

import codecs
import json
import os
import re
import reprlib
import stat
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from maskclip.core.errors import MaskCLIPError

MAX_BYTES = 16 << 20
"""The most bytes that a text file may have, if nothing else is said."""

_MOST_NESTED = 100  # lists and tables within each other; Python's own limits lie above
_MOST_DOTS = 32  # of a TOML key such as a.b.c: the time to read one grows with their square
_LARGEST = 2**64  # whole numbers of TOML have 64 bits; very long ones cannot even be printed

_LONGEST_YAML = 512 << 10  # characters, which take seconds

_MARKS = (  # UTF-32's first: one of them begins with one of UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_HIDDEN = re.compile(
    "["
    r"\x00-\x1f\x7f-\x9f"  # control characters, ends of lines among them
    r"\xad\u180e\u200b\u2060-\u2065\ufeff"  # invisible; U+200C and U+200D join letters and emoji
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # these turn the direction of writing
    r"\u2028\u2029"  # separators of lines and paragraphs
    r"\ud800-\udfff"  # halves of a pair, which undecodable bytes of file names become
    r"\ufdd0-\ufdef\ufff0-\ufffb\ufffe\uffff"  # annotations, and what is no character
    r"\U000e0000-\U000e00ff"  # tags, which are invisible
    + "".join(rf"\U{plane:04x}fffe\U{plane:04x}ffff" for plane in range(1, 17))
    + "]"
)

_JSON_STRINGS = re.compile(r'"(?:\\.|[^"\\])*+"?', re.DOTALL)
_TOML_STRINGS = re.compile(  # an open string ends with its line or the text: no search is repeated
    r'"""(?:\\.|.)*?(?:"""|\Z)'
    r"|'''.*?(?:'''|\Z)"
    r'|"(?:\\.|[^"\\\n])*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+",
    re.DOTALL,
)


class MissingFileError(MaskCLIPError, FileNotFoundError):
    """A file of text that is not there."""


def printable(text: str) -> str:
    r"""Return `text` with escapes for what a terminal or browser would obey instead of show.

    Control characters, ends of lines, characters that are invisible or turn the direction of
    writing, halves of surrogate pairs and noncharacters become `\x1b`, `\n`, `\u202e`; all else
    stays, so that the result is for eyes and not to be read back.
    """
    return _HIDDEN.sub(lambda found: _escape(found[0]), text)


def counted(count: int, one: str, many: str) -> str:
    """Return a count with the words that belong to it: "1 photo is", "2 photos are"."""
    return f"{count:,} {one if count == 1 else many}"


def check_key(key: str, name: str = "`key`, or MASKCLIP_KEY of the environment") -> None:
    """Refuse the key of a service that cannot be sent, or that arrives as another one.

    Headers lose blanks at their ends and hold no ends of lines, and programs differ in how they
    write characters outside ASCII. The message does not tell the key.

    Args:
        key: what requests bring.
        name: what messages call it.

    Raises:
        MaskCLIPError: it is not printable ASCII without blanks at its ends.
    """
    if not key.strip():
        got = "nothing but blanks" if key else "an empty one"
    elif not key.isascii():
        got = "characters outside ASCII"
    elif key != key.strip():
        got = "blanks at its ends"
    elif not key.isprintable():
        got = "control characters in it"
    else:
        return
    raise MaskCLIPError(
        f"{name}: expected printable ASCII characters without blanks at the ends, got {got}"
    )


def hidden_character(text: str) -> str | None:
    """Return the first character of `text` that `printable` escapes, as its escape, or None."""
    found = _HIDDEN.search(text)
    return _escape(found[0]) if found else None


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def json_escaped(text: str) -> str:
    r"""Return a JSON text whose strings show nothing hidden: the same values, with `\u202e`.

    For JSON that was written with `ensure_ascii=False`, so that it stays readable.
    """
    return _HIDDEN.sub(lambda found: _in_json(found[0]), text)


def _in_json(character: str) -> str:
    # Below a space there is only layout: strings have their control characters escaped already.
    return character if character < " " else json.dumps(character)[1:-1]


def yaml_quoted(text: str) -> str:
    r"""Return `text` as a double-quoted scalar of YAML, hidden characters as `\x1b` or `\u202e`."""
    quoted = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{printable(quoted)}"'


def xml_quoted(text: str) -> str:
    r"""Return `text` as an attribute of XML, hidden characters as `&#x202e;`.

    Those that XML cannot hold in any way become what `printable` makes of them.
    """
    return _HIDDEN.sub(lambda found: _in_xml(found[0]), quoteattr(text))


def _in_xml(character: str) -> str:
    code = ord(character)
    is_held = code in (9, 10, 13) or (code >= 32 and not 0xD800 <= code <= 0xDFFF)
    if is_held and code not in (0xFFFE, 0xFFFF):
        return f"&#x{code:x};"
    return _escape(character)


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 100
        self.maxlist = self.maxtuple = self.maxdict = 4
        self.maxlevel = 3

    def repr_int(self, value: int, level: int) -> str:
        long = value.bit_length() > 128  # Python refuses to print more than 4,300 digits
        return f"a whole number of {value.bit_length()} bits" if long else repr(value)


def brief(value: object) -> str:
    """Return `value` as Python writes it, for a message: shortened if it is long or nested."""
    return printable(_Brief().repr(value))


def check_kind(value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Refuse a value of another type than a function takes.

    Args:
        value: what it was given.
        kinds: the types that it takes; True and False are no numbers.
        expected: the beginning of the message: "`scores`: expected an array (H, W)".

    Raises:
        MaskCLIPError: in one line, with what came.
    """
    if isinstance(value, bool) or not isinstance(value, kinds):
        plain = value is None or isinstance(value, str | int | float | list | tuple | dict)
        raise MaskCLIPError(f"{expected}, got {brief(value) if plain else type(value).__name__}")


def check_path(value: object, name: str = "path") -> None:
    """Refuse what names no file.

    Raises:
        MaskCLIPError: it is no path, or an empty one.
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise MaskCLIPError(f"`{name}`: expected the path of a file, got {brief(value)}")


def read_text(path: str | os.PathLike[str], what: str, *, limit: int = MAX_BYTES) -> str:
    """Read a text file: UTF-8, or UTF-16 or UTF-32 with its byte order mark; the mark is left out.

    Args:
        path: the file.
        what: what it should be, for messages: "a file of classes".
        limit: the most bytes it may have; no more are read.

    Raises:
        MissingFileError: there is no such file.
        MaskCLIPError: it is a folder, a pipe or a device, too large, or no such text.
        OSError: it cannot be read.
    """
    return _decoded(read_bytes(path, what, limit=limit), Path(path), what)


def read_bytes(path: str | os.PathLike[str], what: str, *, limit: int = MAX_BYTES) -> bytes:
    """Read the bytes of a text file, as `read_text`, where they have to be counted.

    Raises:
        MissingFileError: there is no such file.
        MaskCLIPError: it is a folder, a pipe or a device, or too large.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        kind = path.stat()
    except FileNotFoundError:
        raise MissingFileError(f"no such file: {path} (expected {what})") from None
    except ValueError as error:  # a zero byte in the name
        raise MaskCLIPError(f"{brief(str(path))}: cannot be read ({error})") from None
    if not stat.S_ISREG(kind.st_mode) and not _is_open_already(path):
        got = "a folder" if stat.S_ISDIR(kind.st_mode) else "a pipe, socket or device"
        raise MaskCLIPError(f"{path}: expected {what}, got {got}")
    try:
        with path.open("rb") as file:  # a size may be wrong, as that of a pipe is
            data = b"" if kind.st_size > limit else file.read(limit + 1)
    except OSError as error:
        error.filename = error.filename or str(path)  # errors of reading have none
        raise
    size = max(kind.st_size, len(data))
    if size > limit:
        raise MaskCLIPError(
            f"{path}: expected {what}, got more than {_megabytes(limit)} ({_megabytes(size)})"
        )
    return data


def _is_open_already(path: Path) -> bool:
    """Return whether a path is what the shell opened, as in `--list <(find .)`."""
    return str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/"))


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size:,} bytes"


def _decoded(data: bytes, path: Path, what: str) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (byte {error.start})"
    else:
        if "\0" not in text:
            return text
        problem = "is not UTF-8 text (it has zero bytes)"
    raise MaskCLIPError(f"{path} {problem}: expected {what}, saved as UTF-8")


def read_json(path: str | os.PathLike[str], what: str, *, limit: int = MAX_BYTES) -> Any:
    """Read a file of JSON.

    Raises:
        MissingFileError: there is no such file.
        MaskCLIPError: as `read_text` and `parse_json`.
        OSError: it cannot be read.
    """
    return parse_json(read_text(path, what, limit=limit), str(path), what)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; of two values under one key all but the last would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twin, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{brief(twin)} is there twice")
    return found


def parse_json(text: str, source: str, what: str) -> Any:
    """Return the values of a JSON text.

    Args:
        text: the JSON.
        source: where it is from, for messages.
        what: what it should be, for messages.

    Raises:
        MaskCLIPError: it is not JSON, nested too deeply, or has a number of thousands of digits.
    """
    try:
        _check_nesting(_JSON_STRINGS.sub("", text))
        return json.loads(text, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise MaskCLIPError(
            f"{source} is not valid JSON ({_reason(error)}): expected {what}"
        ) from None


def read_toml(path: str | os.PathLike[str], what: str, *, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file of TOML.

    Raises:
        MissingFileError: there is no such file.
        MaskCLIPError: as `read_text` and `parse_toml`.
        OSError: it cannot be read.
    """
    return parse_toml(read_text(path, what, limit=limit), str(path), what)


def parse_toml(text: str, source: str, what: str) -> dict[str, Any]:
    """Return the table of a TOML text; `source` and `what` are as in `parse_json`.

    Raises:
        MaskCLIPError: it is not TOML, nested too deeply, or has a number of more than 64 bits.
    """
    try:
        bare = _TOML_STRINGS.sub("", text)
        _check_nesting(bare)
        if any(part.count(".") > _MOST_DOTS for part in re.split(r"[\n=,\[\]{}]", bare)):
            raise ValueError(f"a key of more than {_MOST_DOTS} dots")
        table = tomllib.loads(text)
        _check_numbers(table)
    except (ValueError, RecursionError) as error:
        raise MaskCLIPError(
            f"{source} is not valid TOML ({_reason(error)}): expected {what}"
        ) from None
    return table


def parse_yaml(text: str, source: str, what: str) -> Any:
    """Return the values of a YAML text, all scalars as strings; `source` and `what` as above.

    Raises:
        MaskCLIPError: it is not YAML, nested too deeply, or of more than 512 KiB, which take long.
    """
    import yaml

    try:
        if len(text) > _LONGEST_YAML:
            raise ValueError(f"more than {_LONGEST_YAML:,} characters")
        return yaml.load(text, Loader=yaml.BaseLoader)  # makes strings alone
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise MaskCLIPError(
            f"{source} is not valid YAML ({_reason(error)}): expected {what}"
        ) from None


def _check_nesting(bare: str) -> None:
    """Refuse brackets nested too deeply in a text whose strings were taken out."""
    codes = np.frombuffer(bare.encode("ascii", "replace"), dtype=np.uint8)
    opened = np.isin(codes, list(b"[{")).astype(np.int8) - np.isin(codes, list(b"]}"))
    if codes.size and np.cumsum(opened, dtype=np.int32).max() > _MOST_NESTED:
        raise ValueError(f"it is nested more than {_MOST_NESTED} deep")


def _check_numbers(table: dict[str, Any]) -> None:
    waiting: list[Any] = [table]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, int) and abs(value) >= _LARGEST:
            raise ValueError("a whole number of more than 64 bits")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "integer string conversion" in str(error):
        return "a whole number of thousands of digits"
    return " ".join(str(error).split())
