"""TIFF files: what Pillow reads rightly is left to it, the rest to tifffile; no raw photos.

Pillow takes some layouts for others without an error (planes of 16 bits, inverted deep greys), and
does not know many that scientists' and satellites' files have.
"""

from __future__ import annotations

import logging
import math
import os
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin

from maskclip.core.errors import install_command
from maskclip.data.kinds import RAW

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANAR, _SUBDIRECTORIES, _EXTRA, _FORMAT = 274, 277, 284, 330, 338, 339
_DNG_VERSION = 50706

_RAW_PHOTOMETRICS = (32803, 34892)  # colour filter array, linear raw
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _COLOR = 0, 1, 2
_PLANES = 2
_DEFLATE = (8, 32946)
_COMPRESSIONS = (1, 5, 32773, *_DEFLATE)  # none, LZW, PackBits: what is known to unpack in bounds
# What Pillow says of a layout that it does not know, and of planes that it has no letter for.
_UNKNOWN_LAYOUT = ("unknown pixel mode", "string index out of range")
_MOST_DIRECTORIES = 64  # that are looked through for one that is no preview
_MOST_BYTES = 4 * 2**30  # of all bands, unpacked
_MOST_RATIO = 1040  # of unpacked to packed bytes: deflate can do no better

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its remarks are no results


class NotReadError(Exception):
    """A file that is not damaged and cannot be read; the message says what it is."""


@dataclass(frozen=True)
class _Page:
    """One directory of a TIFF: its number, and the tags that say what its picture is."""

    number: int
    big_endian: bool
    tags: dict[int, Any]

    def first(self, tag: int, default: int) -> int:
        value = self.tags.get(tag, default)
        return int(value[0]) if isinstance(value, tuple) else int(value)

    @property
    def bits(self) -> int:
        value = self.tags.get(_BITS, 1)
        return int(max(value)) if isinstance(value, tuple) else int(value)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as stored."""
        return self.first(_WIDTH, 0), self.first(_HEIGHT, 0)

    @property
    def planes(self) -> bool:
        return self.first(_PLANAR, 1) == _PLANES and self.first(_SAMPLES, 1) > 1

    @property
    def description(self) -> str:
        bands, kind = self.first(_SAMPLES, 1), self.first(_FORMAT, 1)
        of = {2: "signed bits", 3: "bits, floats"}.get(kind, "bits")
        what = "1 band" if bands == 1 else f"{bands} bands"
        return f"a TIFF of {what} of {self.bits} {of}{', in planes' if self.planes else ''}"


def open_tiff(file: IO[bytes], *, raw: bool = False) -> Image.Image:
    """Return the picture of a TIFF, upright; its pixels are decoded when it is loaded.

    It is the first that is no preview of another. Of many bands the first three are red, green and
    blue; of two the first is grey.

    Args:
        file: open for reading, anywhere.
        raw: whether its name says that it is a camera's raw file.

    Raises:
        NotReadError: camera raw, or a layout that is not read; the message says which.
        Exception: what Pillow raises of a damaged file.
    """
    if raw:
        raise NotReadError(RAW)
    page = _first_page(file)
    if page is None or not _pillow_garbles(page):
        file.seek(0)
        try:
            image = TiffImagePlugin.TiffImageFile(file, "")
            image.seek(0 if page is None else page.number)
            return image
        except SyntaxError as error:
            if page is None or not str(error).startswith(_UNKNOWN_LAYOUT):
                raise
    assert page is not None
    return _DeepTiff(file, page)


def _first_page(file: IO[bytes]) -> _Page | None:
    """Return the first directory whose picture is whole; None if the directories are damaged.

    Raises:
        NotReadError: it is a camera's raw file, or holds nothing but previews.
    """
    try:
        pages = _pages(file)
    except NotReadError:
        raise
    except Exception:  # whatever is wrong is Pillow's to say
        return None
    if not pages:
        return None
    for page in pages:
        if page.first(_PHOTOMETRIC, -1) in _RAW_PHOTOMETRICS or _DNG_VERSION in page.tags:
            raise NotReadError(RAW)
    whole = [page for page in pages if not page.first(_SUBFILE, 0) & 0b101]  # reduced, or a mask
    if not whole:
        more = _SUBDIRECTORIES in pages[0].tags
        raise NotReadError(RAW if more else "a TIFF that holds nothing but a preview")
    return whole[0]


def _pages(file: IO[bytes]) -> list[_Page]:
    file.seek(0)
    head = file.read(8)
    if head[2:3] == b"\x2b" or head[3:4] == b"\x2b":
        head += file.read(8)
    elif file.read(2) == b"CR":  # Canon's CR2, behind the header
        raise NotReadError(RAW)
    big = head.startswith(b"MM")
    directory = TiffImagePlugin.ImageFileDirectory_v2(head)
    pages, seen, place = list[_Page](), set[int](), directory.next
    while place and place not in seen and len(pages) < _MOST_DIRECTORIES:
        seen.add(place)
        file.seek(place)
        directory.load(file)
        tags = (_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION,
                _SAMPLES, _PLANAR, _SUBDIRECTORIES, _EXTRA, _FORMAT, _DNG_VERSION)  # fmt: skip
        pages.append(
            _Page(len(pages), big, {tag: directory[tag] for tag in tags if tag in directory})
        )
        place = directory.next
    return pages


def _pillow_garbles(page: _Page) -> bool:
    """Tell whether Pillow takes the layout for another, without an error or with one too late."""
    deep, photometric = page.bits > 8, page.first(_PHOTOMETRIC, _BLACK_IS_ZERO)
    packed, unsigned = page.first(_COMPRESSION, 1) != 1, page.first(_FORMAT, 1) == 1
    return (
        (page.planes and photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO))
        or (page.planes and deep and not packed)
        or (deep and photometric == _WHITE_IS_ZERO)
        or (deep and packed and page.big_endian and not unsigned)
    )


class _DeepTiff(ImageFile.ImageFile):
    """A picture that tifffile decodes when it is loaded; RGB, or RGBA where it is transparent."""

    format = "TIFF"

    def __init__(self, file: IO[bytes], page: _Page) -> None:
        if page.first(_PHOTOMETRIC, _BLACK_IS_ZERO) not in (
            _WHITE_IS_ZERO,
            _BLACK_IS_ZERO,
            _COLOR,
        ) or not {page.first(_COMPRESSION, 1)} <= set(_COMPRESSIONS):
            raise NotReadError(f"{page.description}, which is not read: save it as RGB of 8 bits")
        if not find_spec("tifffile"):
            raise NotReadError(f"{page.description}: {install_command('images')}")
        self._page: _Page = page
        super().__init__(file, "")

    def _open(self) -> None:
        width, height = self._page.size
        turned = self._page.first(_ORIENTATION, 1) in (5, 6, 7, 8)
        self._size = (height, width) if turned else (width, height)
        self._mode = "RGBA" if self._alpha in (1, 2) else "RGB"
        self._waiting = True

    @property
    def _alpha(self) -> int:
        """1: the colours are multiplied with it, 2: they are not, else there is none."""
        own = 3 if self._page.first(_PHOTOMETRIC, 1) == _COLOR else 1
        return self._page.first(_EXTRA, 0) if self._page.first(_SAMPLES, 1) == own + 1 else 0

    def load(self) -> Any:
        if self._waiting:
            assert self.fp is not None
            picture = _upright(self._decoded(), self._page.first(_ORIENTATION, 1))
            self.im, self._waiting = picture.im, False
        return super().load()

    def _decoded(self) -> Image.Image:
        bands = _read_bands(self.fp, self._page)  # (H, W, bands)
        color = self._page.first(_PHOTOMETRIC, 1) == _COLOR or bands.shape[2] >= 3
        pixels = eight_bits(bands[:, :, :3] if color else bands[:, :, :1])
        if self._page.first(_PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
            pixels = 255 - pixels
        if not color:
            pixels = np.repeat(pixels, 3, axis=2)
        if self._alpha not in (1, 2):
            return Image.fromarray(pixels)
        alpha = eight_bits(bands[:, :, -1:])
        both = np.concatenate([pixels, alpha], axis=2)
        if self._alpha == 2:
            return Image.fromarray(both)
        size = (both.shape[1], both.shape[0])
        return Image.frombytes("RGBa", size, both.tobytes()).convert("RGBA")


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    turn = TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


TURNS = {  # orientation, as EXIF has it -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _read_bands(file: IO[bytes] | None, page: _Page) -> npt.NDArray[Any]:
    """Return all bands (H, W, bands).

    Raises:
        NotReadError: they need a decoder that is not installed, or too much memory.
        Exception: whatever tifffile raises of a damaged file.
    """
    import tifffile

    assert file is not None
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        found = tiff.pages[page.number]
        assert isinstance(found, tifffile.TiffPage)
        _check_bytes(found, file, page)
        if found.axes not in ("YX", "YXS", "SYX"):
            raise NotReadError(f"{page.description}, with more than two axes, which is not read")
        try:
            values = found.asarray(maxworkers=1)
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise NotReadError(f"{page.description}: pip install imagecodecs") from None
            raise
    if found.axes == "YX":
        return values[:, :, None]
    return values if found.axes == "YXS" else np.moveaxis(values, 0, 2)


def _check_bytes(found: Any, file: IO[bytes], page: _Page) -> None:
    """Refuse what would unpack to more than its size says, or to more than a file can hold.

    Raises:
        NotReadError: it does.
    """
    whole = file.seek(0, os.SEEK_END)
    ratio = 1 if found.compression == 1 else _MOST_RATIO
    if found.nbytes > min(_MOST_BYTES, ratio * whole):
        raise NotReadError(f"{page.description}, {found.nbytes / 2**30:.1f} GiB unpacked: too much")
    if found.compression not in _DEFLATE:
        return
    most = math.prod(found.chunks) * found.dtype.itemsize
    for offset, count in zip(found.dataoffsets, found.databytecounts, strict=True):
        file.seek(offset)
        if len(zlib.decompressobj().decompress(file.read(count), most + 1)) > most:
            raise NotReadError(f"{page.description}: its parts unpack to more than their size")


_ROWS_AT_ONCE = 4_000_000  # values


def eight_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale values of more than 8 bits to 0..255, all by one rule.

    16 unsigned bits are divided by 257. Others are taken as 0..255 if they fit and as 0..65535 if
    they fit that (floats also as 0..1); anything else is stretched between its least and greatest
    value. What is not finite is 0.
    """
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    unsigned = values.dtype.kind == "u" and values.dtype.itemsize == 2
    step = max(1, _ROWS_AT_ONCE // max(1, math.prod(values.shape[1:])))
    parts = [slice(start, start + step) for start in range(0, len(values), step)]
    low, high = 0.0, 0.0
    if not unsigned:
        ranges = [(part.min(), part.max()) for part in (_finite(values[part]) for part in parts)]
        low, high = float(min(r[0] for r in ranges)), float(max(r[1] for r in ranges))
    scaled = np.empty(values.shape, np.uint8)
    for part in parts:
        gray: npt.NDArray[np.floating[Any]] = _finite(values[part])
        if unsigned:
            gray = gray / 257
        elif low < 0 or high > 65_535:
            gray = (gray.astype(np.float64) - low) * (255 / max(high - low, 1e-6))
        elif high > 255:
            gray = gray / 257
        elif values.dtype.kind == "f" and high <= 1:
            gray = gray * 255
        scaled[part] = gray.round().astype(np.uint8)
    return scaled


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
