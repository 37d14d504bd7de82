"""PNG files without what is beside their picture: large metadata is no reason not to read it."""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import IO, NamedTuple

from maskclip.core.files import BoundedReader

_START = 8  # bytes of the signature
# What the picture is made of: of an animation too, whose first frame it is.
_PICTURE = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"CgBI"}
_TURNING_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # may turn the picture
_MOST_METADATA = 65_536  # bytes of a chunk that may


class Chunks(NamedTuple):
    """What a scan of a PNG has found.

    Attributes:
        picture: the same file, without its metadata.
        turns_late: whether an orientation may stand behind the pixels.
    """

    picture: IO[bytes]
    turns_late: bool


def without_metadata(file: IO[bytes]) -> Chunks:
    """Return a PNG without colour profile, texts and other chunks that are not of the picture.

    Pillow refuses to unpack large ones, and takes damage in them for damage of the picture.
    Orientations stay where they are sound.

    Args:
        file: open for reading, anywhere; it must stay open, and nobody else may read it.
    """
    parts = list[tuple[int, int]]()
    hidden = pixels_seen = turns_late = False
    end, place = file.seek(0, os.SEEK_END), _START
    file.seek(place)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        length = min(length, max(0, end - place - 8))
        turns = kind not in _PICTURE and _turns(kind, length, file)
        keep = kind in _PICTURE or turns
        turns_late |= pixels_seen and turns
        pixels_seen |= kind == b"IDAT"
        if keep and parts and parts[-1][1] == place:
            parts[-1] = (parts[-1][0], place + length + 12)
        elif keep:
            parts.append((place, place + length + 12))
        hidden |= not keep
        place += length + 12
        file.seek(place)
    file.seek(0)
    if not hidden:
        return Chunks(file, turns_late)
    parts.insert(0, (0, _START))
    size = sum(stop - start for start, stop in parts)
    return Chunks(BoundedReader(_Parts(file, parts), size), turns_late)


def _turns(kind: bytes, length: int, file: IO[bytes]) -> bool:
    """Tell whether a chunk, at whose content a file is, may hold an orientation, and is sound."""
    if length > _MOST_METADATA or kind not in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
        return False
    content, checksum = file.read(length), file.read(4)
    sound = struct.pack(">I", zlib.crc32(kind + content)) == checksum
    return sound and (kind == b"eXIf" or content.startswith(_TURNING_TEXTS))


class _Parts(io.RawIOBase):
    """Some parts of a file, as if they were all of it."""

    def __init__(self, file: IO[bytes], parts: list[tuple[int, int]]) -> None:
        self._file, self._parts = file, parts
        self._place, self._part, self._before = 0, 0, 0  # `_before`: bytes of the parts before

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        size = sum(stop - start for start, stop in self._parts)
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: size}[whence]
        self._place, self._part, self._before = max(0, base + offset), 0, 0
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while self._part < len(self._parts):
            start, stop = self._parts[self._part]
            inside = self._place - self._before
            if inside < stop - start:
                self._file.seek(start + inside)
                content = self._file.read(min(len(buffer), stop - start - inside))
                buffer[: len(content)] = content
                self._place += len(content)
                return len(content)
            self._part, self._before = self._part + 1, self._before + stop - start
        return 0
