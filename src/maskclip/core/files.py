"""Files written so that a reader never meets half of one, and their fingerprints."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import secrets
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePath
from typing import Any

from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.text import json_escaped

_MODELS = (".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".onnx")
_UNFINISHED = ".writing-"
_LIKE = 0.75  # of names: twice the letters in common by those of both
_LONGEST_NAME = 255  # bytes, of all file systems in use


class InUseError(MaskCLIPError):
    """Another process holds a lock."""


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock, a file that is made where it is missing, while the block runs.

    The lock is SQLite's, as that of a labelling: it ends with the process, however that ends, and
    processes that this one starts do not inherit it.

    Raises:
        InUseError: another process, or another block of this one, holds it.
        OSError: it cannot be locked here.
    """
    try:
        held = sqlite3.connect(path, timeout=0, check_same_thread=False)
    except sqlite3.Error as error:
        raise OSError(str(error)) from error
    with closing(held):
        try:
            held.execute("begin exclusive")
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise InUseError(f"{path.parent} is in use by another process") from None
            raise OSError(str(error)) from error
        yield


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` when the block succeeds.

    The suffix is kept, so libraries that choose a format by suffix work. When the block raises
    (Ctrl-C included) the temporary file is removed and `target` is left as it was. Missing parent
    directories are made.

    Raises:
        OSError: the folder cannot be made or written.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _new_file(target.parent, target.suffix)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def make_durable(paths: Iterable[Path]) -> None:
    """Wait until files that `atomic_path` wrote are on the disk, and would survive a power cut.

    Raises:
        OSError: one of them is missing, or the disk fails.
    """
    paths = list(paths)
    for path in paths:
        with path.open("r+b") as file:  # Windows wants it writable
            os.fsync(file.fileno())
    if os.name == "posix":  # elsewhere folders cannot be opened, and need not be
        for folder in {path.parent for path in paths}:
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def write_json(values: Any, path: str | os.PathLike[str]) -> None:
    """Write JSON whole or not at all.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not know.
        OSError: the file cannot be written.
    """
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(f"{json_escaped(text)}\n", path)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write text as UTF-8, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


class BoundedReader(io.BufferedReader):
    """A file that is never read beyond its end.

    Readers of strangers' files request as much as a length in them says, and a buffer takes that
    much memory before it reads.

    Args:
        raw: the file.
        size: of it, in bytes.
    """

    def __init__(self, raw: io.RawIOBase, size: int) -> None:
        super().__init__(raw)
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes, or all that are left."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, self._size - self.tell()))
        return super().read(size)


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, *, most: int) -> bytes:
    """Return up to `most` bytes of an entry of a stranger's archive, in about as much memory.

    Raises:
        ValueError: it is neither stored nor deflated: other methods unpack more than is read.
        zipfile.BadZipFile, zlib.error, RuntimeError: it is damaged or encrypted.
    """
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{entry.filename} is compressed by a method that is not read")
    with archive.open(entry) as file:
        return file.read(most)


def name_problem(path: PurePath) -> str | None:
    """Return why no file can have this path, in a few words; None if one can.

    Of what strangers wrote, before it is looked for or made: systems answer with errors that have
    nothing to do with the disk.
    """
    try:
        parts = [os.fsencode(part) for part in path.parts]
    except UnicodeEncodeError:
        return "it has half of a character"
    if any(b"\0" in part for part in parts):
        return "it has a zero byte"
    if any(len(part) > _LONGEST_NAME for part in parts):
        return f"it is longer than {_LONGEST_NAME} bytes"
    return None


def check_writable(folder: Path) -> None:
    """Make a folder and try to write into it, before any work is done for it.

    Raises:
        MaskCLIPError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MaskCLIPError(
            f"the output folder {folder} cannot be written ({error.strerror}): choose another"
        ) from error


def file_fingerprint(path: Path) -> str:
    """Return a hash of a file's content, 16 hex digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def remove_unfinished(folder: str | os.PathLike[str], *, outside: Path | None = None) -> None:
    """Remove what killed processes left half-written under `folder`; nobody may be writing there.

    A folder below it that others write to is named by `outside`.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in Path(folder).rglob(f"{_UNFINISHED}*"):
        if outside is None or not path.is_relative_to(outside):
            path.unlink(missing_ok=True)


def _new_file(folder: Path, suffix: str) -> Path:
    """Make an empty file of a name that no other has.

    The system itself takes the umask's bits from its mode. `tempfile` makes private files, whose
    mode would have to be mended by the umask; and that is read only by setting it, for all threads.
    """
    path = folder / f"{_UNFINISHED}{secrets.token_hex(8)}{suffix}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return path


def refuse_missing_model(name: str) -> None:
    """Refuse the name of a model that is written like a path, where nothing lies.

    Names of CLIPs may have one slash (`ViT-B/16`) and dots, but no suffix of a file.

    Raises:
        MaskCLIPError: names the files of which one was probably meant.
    """
    path = Path(name)
    if os.path.exists(name):  # noqa: PTH110 (Path.exists raises for names that are too long)
        return
    near = _near(path)
    if (
        path.is_absolute()
        or name.startswith((".", "~"))
        or len(path.parts) > 2
        or (len(path.parts) == 2 and (bool(near) or path.parent.is_dir()))
        or difflib.get_close_matches(path.suffix.lower(), _MODELS, cutoff=_LIKE)
    ):
        raise MaskCLIPError(
            f"{name}: no such model file or folder{did_you_mean(name, near, likeness=0)}"
        )


def _near(path: Path) -> list[str]:
    """Return the paths that differ from one that is missing in its first part that is missing."""
    missing = [path, *path.parents]
    first = next(one for one in missing if one.parent.is_dir() or one == one.parent)
    try:
        there = sorted(one.name for one in first.parent.iterdir())
    except OSError:
        return []
    begun = [name for name in there if first.name and name.startswith(f"{first.name}.")]
    like = difflib.get_close_matches(first.name, there, cutoff=_LIKE)
    rest = path.relative_to(first)
    found = [first.parent / name / rest for name in dict.fromkeys([*begun, *like])]
    return [str(one) for one in found if one.exists()]
