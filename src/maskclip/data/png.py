"""PNG files without what is beside their picture: large metadata is no reason not to read it."""

from __future__ import annotations

import io
import os
import struct
from typing import IO, NamedTuple

_START = 8  # bytes of the signature
# What the picture is made of; the three of animations say which frame is the first.
_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"acTL", b"fcTL", b"fdAT", b"IEND", b"CgBI"}
_TURNING_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # may turn the picture
_MOST_TEXT = 65_536  # bytes of one of them


class Chunks(NamedTuple):
    """What a scan of a PNG has found.

    Attributes:
        picture: the same file, without its metadata.
        turns_late: whether an orientation may stand behind the pixels.
    """

    picture: IO[bytes]
    turns_late: bool


def without_metadata(file: IO[bytes]) -> Chunks:
    """Return a PNG without colour profile, texts and other chunks that change no pixel.

    Pillow refuses to unpack large ones, and reads all. Orientations stay.

    Args:
        file: open for reading, anywhere; it must stay open, and nobody else may read it.
    """
    parts = list[tuple[int, int]]()
    hidden = pixels_seen = turns_late = False
    place = _START
    file.seek(place)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        text = file.read(min(length, 22)).startswith(_TURNING_TEXTS)
        keep = kind in _KEPT or (text and length <= _MOST_TEXT)
        turns_late |= pixels_seen and (kind == b"eXIf" or text)
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
    return Chunks(io.BufferedReader(_Parts(file, [(0, _START), *parts])), turns_late)


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
