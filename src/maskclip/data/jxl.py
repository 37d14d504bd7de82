"""JPEG XL: the size of an image before its plugin decodes all of it."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import IO, Any

from PIL import Image, ImageFile

_BARE = b"\xff\x0a"
_RATIOS = tuple(map(Fraction, ("1", "12/10", "4/3", "3/2", "16/9", "5/4", "2")))  # width / height
_LENGTHS = (9, 13, 18, 30)  # bits of a side
_HEAD = 32  # bytes, more than the size and the orientation take


class JxlImage(ImageFile.ImageFile):
    """An image whose header is read when it is opened, and the rest when it is loaded.

    It is upright: the decoder applies the orientation, which is part of the format.

    Args:
        fp: the file.

    Raises:
        SyntaxError: it is no JPEG XL.
    """

    format = "JXL"

    def _open(self) -> None:
        assert self.fp is not None
        self._size, self._mode, self._waiting = _read_size(self.fp), "RGB", True

    def load(self) -> Any:
        """Decode the pixels."""
        if self._waiting:
            from pillow_jxl.JpegXLImagePlugin import JXLImageFile

            assert self.fp is not None
            self.fp.seek(0)
            try:
                decoded: Image.Image = JXLImageFile(self.fp, "")
                decoded.load()
            except Exception as error:  # of which but the first sentence is for users
                raise OSError(str(error).partition(". ")[0]) from error
            self._mode, self._size, self._waiting = decoded.mode, decoded.size, False
            self.im = decoded.im
        return super().load()


def _read_size(file: IO[bytes]) -> tuple[int, int]:
    """Return the width and height, upright (ISO/IEC 18181-1, size header and image metadata)."""
    start = file.read(2)
    if start != _BARE:
        _enter_codestream(file)
        start = file.read(2)
    if start != _BARE:
        raise SyntaxError("no JPEG XL codestream")
    bits = _Bits(file.read(_HEAD))
    small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if small else bits.take(_LENGTHS[bits.take(2)]) + 1

    height = side()
    ratio = bits.take(3)
    width = int(height * _RATIOS[ratio - 1]) if ratio else side()
    plain = bits.take(1) or not bits.take(1)
    sideways = not plain and bits.take(3) >= 4
    return (height, width) if sideways else (width, height)


def _enter_codestream(file: IO[bytes]) -> None:
    """Move to where the codestream begins in a container of boxes."""
    file.seek(0)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        inside = length - 8
        if length == 1:
            inside = struct.unpack(">Q", file.read(8))[0] - 16
        if kind == b"jxlp":  # part of one, behind its number
            file.seek(4, 1)
        if kind in (b"jxlp", b"jxlc") or length == 0:
            return
        if inside < 0:
            break
        file.seek(inside, 1)
    raise SyntaxError("no JPEG XL codestream")


class _Bits:
    """Bits of bytes, the lowest first."""

    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content, "little"), 8 * len(content)

    def take(self, count: int) -> int:
        if count > self._left:
            raise SyntaxError("cut short")
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return taken
