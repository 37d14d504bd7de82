"""A file of lines of JSON that is only added to: no line that was answered is lost."""

from __future__ import annotations

import codecs
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.files import atomic_path, make_durable
from maskclip.core.text import parse_json, read_bytes


class JournalError(MaskCLIPError):
    """A journal that is damaged, or was changed by others; the message says it in one line."""


class Journal:
    """Lines of JSON in plain UTF-8, read once and then added to; by one process at a time.

    The file is made by a rename, with its first lines in it: one without lines was damaged. All
    lengths are those of the bytes on the disk, never of the text that they were decoded to.

    Args:
        path: the file; its folder is all that has to be moved away to begin anew.
        what: what it is, for messages.
        limit: the most bytes that it may have to be read.
    """

    def __init__(self, path: Path, what: str, *, limit: int) -> None:
        self.path = path
        self._what, self._limit = what, limit
        self._length = 0  # bytes of whole lines
        self._ended = True  # whether the last of them has its end of line
        self._file: tuple[int, ...] | None = None  # device, inode, size, as last read or written

    @property
    def exists(self) -> bool:
        """Whether there was a file when it was last read or added to."""
        return self._file is not None

    def read(self, take: Callable[[Any], None]) -> None:
        """Read the file, if there is one, and give the values of each whole line to `take`.

        What stands after the last end of a line was never answered, and is left out, unless it is
        a whole object: then an editor has dropped the end of the file, and it counts. A line that
        was answered and lost its end later looks the same, so a warning says that one is left out.

        Raises:
            JournalError: it is not plain UTF-8, or a line is damaged: no JSON, or `take` raises
                MaskCLIPError, ValueError, KeyError, TypeError or IndexError for it.
            MaskCLIPError: it is no file, or too large.
            OSError: it cannot be read.
        """
        try:
            found = self.path.stat()
            data = read_bytes(self.path, self._what, limit=self._limit)
        except FileNotFoundError:
            return
        self._file = (found.st_dev, found.st_ino, len(data))
        self._length = data.rfind(b"\n") + 1
        self._ended = not _is_object(data[self._length :])
        if not self._ended:
            self._length = len(data)
        lines = self._decoded(data[: self._length]).removesuffix("\n").split("\n")
        for number, line in enumerate(lines if self._length else [], start=1):
            try:
                take(parse_json(line, str(self.path), self._what))
            except (MaskCLIPError, ValueError, KeyError, TypeError, IndexError) as error:
                known = isinstance(error, MaskCLIPError | ValueError)
                why = str(error) if known else "an unknown entry"
                raise self.refusal(f"line {number} is damaged ({why})") from None
        if self._length < len(data):
            warnings.warn(
                f"{self.path}: the last line is incomplete and left out, and the next action "
                "removes it: if it was whole once, restore the file first",
                MaskCLIPWarning,
                stacklevel=2,
            )

    def append(self, values: Sequence[Any]) -> None:
        """Write a line for each value; they are on the disk when it returns, or none of them is.

        Raises:
            JournalError: as `check`.
            OSError: they cannot be written.
        """
        self.check()
        data = "".join(f"{json.dumps(value)}\n" for value in values).encode()
        if self._file is None:
            self._begin(data)
        else:
            data = data if self._ended else b"\n" + data
            self._extend(data)
        self._length, self._ended = self._length + len(data), True

    def check(self) -> None:
        """Refuse a file that is not the one, or has not the size, that was read or written here.

        Raises:
            JournalError: it is gone, was replaced or was changed.
        """
        try:
            found: tuple[int, ...] | None = _identity(self.path.stat())
        except FileNotFoundError:
            found = None
        if found == self._file:
            return
        wanted = "none yet" if self._file is None else f"{self._file[-1]:,} bytes"
        got = "none" if found is None else f"another, of {found[-1]:,} bytes"
        raise self.refusal(
            f"expected {self._what} as it was read ({wanted}), got {got}; nothing was written"
        )

    def refusal(self, problem: str) -> JournalError:
        """Return an error that says a problem and what to do, in a line."""
        return JournalError(
            f"{self.path}: {problem}: restore it, or move {self.path.parent} away, and start again"
        )

    def _decoded(self, lines: bytes) -> str:
        problem = "zero bytes" if b"\0" in lines else ""
        if lines.startswith(codecs.BOM_UTF8):
            problem = "a byte order mark"
        try:
            text = lines.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"another encoding (byte {error.start})"
        if problem:
            raise self.refusal(f"expected {self._what} in plain UTF-8, got {problem}")
        return text

    def _begin(self, data: bytes) -> None:
        try:
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(data)
                make_durable([temporary])
            make_durable([self.path])
            self._file = _identity(self.path.stat())
        except BaseException:
            self.path.unlink(missing_ok=True)  # `check` saw none
            raise

    def _extend(self, data: bytes) -> None:
        with self.path.open("r+b", buffering=0) as file:  # a buffer would be written when closed
            try:
                file.truncate(self._length)  # what a process that was killed had begun to write
                file.seek(self._length)
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(self._length)
                raise
            finally:
                self._file = _identity(os.fstat(file.fileno()))


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size


def _is_object(tail: bytes) -> bool:
    """Return whether bytes are a whole object of JSON, which no beginning of one is."""
    try:
        return isinstance(json.loads(tail.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False
