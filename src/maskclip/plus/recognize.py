"""Telling a student's file from a CLIP's, before anything slow is imported or read."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

LIGHTNING_SUFFIX = ".ckpt"
METADATA_KEY = "maskclip"
"""The key of `student_metadata`, in a safetensors header and in a Lightning checkpoint."""

_OURS = "student.rows"
_RELEASED = "decode_head.text_embeddings"
_SCANNED = 4 * 2**20  # bytes: names of weights come first in files that are not archives
_MOST_NAMES = 64 * 2**20  # bytes: more is not the list of names of any student


def is_student_file(path: Path) -> bool:
    """Return whether a file is a student's, of any form that `read_student` reads.

    Nothing is unpickled and no weights are read. A missing or damaged file is none, but a missing
    `.ckpt` is, as nothing else that can be given for a model ends so.
    """
    try:
        if not path.is_file():
            return path.suffix == LIGHTNING_SUFFIX
        if path.suffix == ".safetensors":
            return _is_safetensors_student(path)
        names = _names_of_weights(path)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False
    return _OURS.encode() in names or _RELEASED.encode() in names


def _is_safetensors_student(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_NAMES:
            return False
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        return False
    metadata = header.get("__metadata__")
    return _RELEASED in header or (isinstance(metadata, dict) and METADATA_KEY in metadata)


def _names_of_weights(path: Path) -> bytes:
    """Return the bytes among which `torch.save` writes the names of weights."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return file.read(_SCANNED)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith("/data.pkl") and entry.file_size <= _MOST_NAMES:
                return archive.read(entry)
    return b""
