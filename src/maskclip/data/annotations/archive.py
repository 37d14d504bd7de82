"""Labels in a ZIP archive, as tools export them: the files that labels may be in, unpacked."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from maskclip.data.annotations.base import MAX_BYTES, AnnotationError
from maskclip.data.masks import MASK_SUFFIXES

_SUFFIXES = (*MASK_SUFFIXES, ".txt", ".xml", ".json")  # photos in the archive are left in it
_MOST_FILES = 1_000_000
_MOST_BYTES = 4 << 30  # of all files
_MOST_RATIO = 1040  # of unpacked to packed bytes: deflate can do no better
_CHUNK = 1 << 20
_FLAG_ENCRYPTED = 1


def unpacked(path: Path) -> Path:
    """Unpack the labels of an archive into a temporary folder, which this process removes.

    Names and sizes are checked before anything is written.

    Raises:
        AnnotationError: it is damaged or encrypted, too large, or a name leads out of the folder.
    """
    parent = Path(tempfile.mkdtemp(prefix="maskclip-labels-"))
    atexit.register(_remove, parent, os.getpid())
    folder = parent / "labels"
    folder.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            for entry, name in _checked(path, archive):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise AnnotationError(f"{path}: not a ZIP archive that can be read ({error})") from None
    except (OSError, ValueError) as error:  # AnnotationError is a ValueError, too
        if isinstance(error, AnnotationError):
            raise
        raise AnnotationError(f"{path}: cannot be unpacked ({error})") from None
    inside = list(folder.iterdir())
    while len(inside) == 1 and inside[0].is_dir():  # the archive of a folder
        folder = inside[0]
        inside = list(folder.iterdir())
    return folder


def _checked(path: Path, archive: zipfile.ZipFile) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the files of labels in an archive, with their names below the folder."""
    entries = archive.infolist()
    if len(entries) > _MOST_FILES:
        raise AnnotationError(f"{path}: {len(entries):,} files, over the limit of {_MOST_FILES:,}")
    found: dict[str, tuple[zipfile.ZipInfo, PurePosixPath]] = {}
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if entry.is_dir() or name.suffix.lower() not in _SUFFIXES:
            continue
        if name.is_absolute() or ".." in name.parts or ":" in entry.filename:
            raise AnnotationError(f"{path}: the name {entry.filename!r} leads out of the archive")
        if entry.flag_bits & _FLAG_ENCRYPTED:
            raise AnnotationError(f"{path}: encrypted: unpack it, and name its folder")
        size = entry.file_size
        if size > min(MAX_BYTES, _MOST_RATIO * max(entry.compress_size, 1)):
            raise AnnotationError(f"{path}: {entry.filename} has {size:,} bytes: too large")
        if name.as_posix().casefold() in found:
            raise AnnotationError(f"{path}: {entry.filename} is there twice")
        found[name.as_posix().casefold()] = (entry, name)
    total = sum(entry.file_size for entry, _ in found.values())
    if total > _MOST_BYTES:
        raise AnnotationError(f"{path}: {total:,} bytes of labels, over {_MOST_BYTES:,}")
    return list(found.values())


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not where a fork of it ends
        shutil.rmtree(folder, ignore_errors=True)
