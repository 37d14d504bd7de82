"""Images from disk or memory, safely: whatever comes in, an upright 8-bit RGB image goes out.

Pillow's global settings are neither changed nor needed; several threads may load at once.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import BoundedReader
from maskclip.data.jxl import JxlImage
from maskclip.data.kinds import RAW_SUFFIXES, is_heif, is_jxl, kind_of
from maskclip.data.png import without_metadata
from maskclip.data.tiff import TURNS, NotReadError, eight_bits, open_tiff

MAX_PIXELS = 178_956_970  # twice Pillow's own warning level: half a gigabyte as RGB

# Photos and drawings people have, as Pillow knows them. Left out: formats that start other programs
# (EPS), that have no signature (TGA), or that only name a type without a decoder.
_FORMATS = ("JPEG", "WEBP", "GIF", "BMP", "PPM", "AVIF", "JPEG2000", "MPO", "ICO")

_ORIENTATION_TAG = 0x0112
_SIDEWAYS = frozenset(TURNS[orientation] for orientation in (5, 6, 7, 8))
_BAND = 4_000_000  # pixels that are converted at once

Sizes = Callable[[tuple[int, int]], tuple[int, int]]
"""A size (width, height) for another."""


class ImageError(MaskCLIPError):
    """An image that cannot be used; the message says which and why, in one line."""


class TooLargeError(ImageError):
    """An image of more pixels than the limit."""


def load_image(
    source: str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8],
    *,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Return an image as RGB, 8 bits a channel, upright (EXIF orientation applied).

    Transparency is laid on white; of an animation comes the first frame, of many bands the first
    three. 16-bit values are divided by 257. Values of 32 bits or floats are taken as 0..255 if they
    fit and as 0..65535 if they fit that (floats also as 0..1); anything else is stretched between
    its least and greatest value.

    Args:
        source: a path, a Pillow image (left as it is), or a uint8 array (H, W), (H, W, 3) RGB or
            (H, W, 4) RGBA.
        max_pixels: refuse larger images, before decoding them.

    Raises:
        ImageError: missing, empty, damaged, cut short, too large, or of a kind that is not read.
    """
    if isinstance(source, Image.Image):
        return _finished(source, "the given image", max_pixels).copy()
    if isinstance(source, np.ndarray):
        return _finished(_from_array(source), "the given array", max_pixels)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            f"expected a path, a Pillow image or a uint8 array, got {type(source).__name__}"
        )
    path = Path(source)
    with _reading(path) as file:
        return _finished(_identified(file, path)[0], str(path), max_pixels)


def read_image(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return what `load_image` does, of a file in memory that messages call `name`.

    Raises:
        TooLargeError: more pixels than the limit; nothing was decoded.
        ImageError: empty, damaged, cut short, or of a kind that is not read.
    """
    return _finished(_identified(io.BytesIO(data), Path(name))[0], name, max_pixels)


def load_reduced(
    path: Path, at_least: Sizes, *, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, tuple[int, int]]:
    """Return what `load_image` does, smaller where its decoder can do that, and its full size.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which takes as much less memory.

    Args:
        path: of the image.
        at_least: the full size (width, height) -> the least that is of use.
        max_pixels: refuse larger images, before decoding them.

    Raises:
        ImageError: as `load_image`.
    """
    with _reading(path) as file:
        image = _identified(file, path)[0]
        _check_pixels(image, str(path), max_pixels)
        size = _upright_size(image)
        width, height = at_least(size)
        if image.format in ("JPEG", "MPO"):
            image.draft(None, (width, height) if size == image.size else (height, width))
        return _finished(image, str(path), max_pixels), size


def image_size(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the (width, height) of what `load_image` makes of a file, from its header.

    No pixels are decoded, so damage among them goes unnoticed. The exception is a PNG with EXIF or
    XMP behind its pixels, whose orientation is known only then.

    Raises:
        ImageError: missing, empty, damaged at its start, too large, or of a kind that is not read.
    """
    with _reading(path) as file:
        return _size_of(*_identified(file, path), str(path), max_pixels)


def read_size(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return what `image_size` does, of a file in memory that messages call `name`.

    Raises:
        ImageError: as `read_image`, where its start alone tells.
    """
    return _size_of(*_identified(io.BytesIO(data), Path(name)), name, max_pixels)


def _size_of(image: Image.Image, turns_late: bool, where: str, max_pixels: int) -> tuple[int, int]:
    _check_pixels(image, where, max_pixels)
    return _finished(image, where, max_pixels).size if turns_late else _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    # The size of a TIFF comes turned already.
    sideways = image.format != "TIFF" and _turn(image) in _SIDEWAYS
    return (image.height, image.width) if sideways else image.size


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, or raise an `ImageError` that says why it cannot be read."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise ImageError(f"{path}: a folder, not an image")
        if not stat.S_ISREG(kind):  # opening a pipe would wait for what comes through it
            raise ImageError(f"{path}: a pipe, socket or device, not an image")
        with BoundedReader(io.FileIO(path), path.stat().st_size) as file:
            yield file
    except FileNotFoundError:
        address = re.match(r"[a-z][a-z0-9+.-]*:/", str(path))  # of which a path keeps one slash
        hint = ": photos are files here, download it first" if address else ""
        raise ImageError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: cannot be read ({error})") from None  # a zero byte in the name


def _identified(file: IO[bytes], path: Path) -> tuple[Image.Image, bool]:
    """Read the header of an image file, and tell whether an orientation may stand behind it.

    What `Image.open` does less its pixel limit, which is a global that holds for all threads and
    would have to be changed to let a larger image in. The limit here is checked by the caller.
    """
    start = file.read(64)
    if not start:
        raise ImageError(f"{path}: an empty file")
    reason = ""
    for name, opener in _openers(start, path):
        file.seek(0)
        try:
            return opener(file)
        except NotReadError as error:
            raise ImageError(f"{path}: {_one_line(error)}") from None
        except MemoryError:
            raise ImageError(f"{path}: {_NO_MEMORY}") from None
        except Exception as error:  # a decoder that meets something else than it hoped for
            said = "" if "not identified" in str(error) else f": {_one_line(error)}"
            reason = reason or f"{name}{said}"
    if reason:
        raise ImageError(f"{path}: damaged at its start, or of a kind that is not read ({reason})")
    kind = kind_of(start) or "expected JPEG, PNG, TIFF, WebP, GIF, BMP or the like"
    raise ImageError(f"{path}: not an image that can be read ({kind})")


Opener = Callable[[IO[bytes]], tuple[Image.Image, bool]]


def _openers(start: bytes, path: Path) -> Iterator[tuple[str, Opener]]:
    """Yield what may open a file that begins so."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        yield "PNG", _open_png
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        raw = path.suffix.lower() in RAW_SUFFIXES
        yield "TIFF", lambda file: (open_tiff(file, raw=raw), False)
    Image.init()  # loads the decoders; does nothing the second time
    for name in _FORMATS:
        if name not in Image.OPEN:
            continue
        opener, accepts = Image.OPEN[name]
        verdict = accepts is None or accepts(start)
        if verdict and not isinstance(verdict, str):  # a text says which library is not installed
            yield name, partial(_open_with, opener)
    if is_heif(start) and find_spec("pillow_heif"):
        yield "HEIC", _open_heif
    if is_jxl(start) and find_spec("pillow_jxl"):
        yield "JPEG XL", partial(_open_with, JxlImage)


def _open_with(
    opener: Callable[[IO[bytes], str], Image.Image], file: IO[bytes]
) -> tuple[Image.Image, bool]:
    return opener(file, ""), False


def _open_png(file: IO[bytes]) -> tuple[Image.Image, bool]:
    picture, turns_late = without_metadata(file)
    return PngImagePlugin.PngImageFile(picture, ""), turns_late


def _open_heif(file: IO[bytes]) -> tuple[Image.Image, bool]:
    from pillow_heif import HeifImageFile

    return _open_with(HeifImageFile, file)


def _check_pixels(image: Image.Image, where: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise TooLargeError(
            f"{where}: {image.width}x{image.height} = {pixels:,} pixels, over the limit of "
            f"{max_pixels:,} (`max_pixels` raises it)"
        )
    if pixels == 0:
        raise ImageError(f"{where}: has no pixels ({image.width}x{image.height})")


def _check_scans(image: Image.Image) -> None:
    """Refuse a progressive JPEG that goes over its pixels more often than any encoder writes.

    Each of its scans takes as long as a whole picture, and may have a few bytes alone.

    Raises:
        NotReadError: it has more than `_MOST_SCANS`.
    """
    file = getattr(image, "fp", None)
    if file is None or image.format not in ("JPEG", "MPO") or "progressive" not in image.info:
        return
    place, scans, last = file.tell(), 0, b""
    file.seek(0)
    while scans <= _MOST_SCANS and (part := file.read(_PART)):
        scans += (last + part).count(_SCAN)
        last = part[-1:]
    file.seek(place)
    if scans > _MOST_SCANS:
        raise NotReadError(f"a progressive JPEG of more than {_MOST_SCANS} scans")


def _finished(image: Image.Image, where: str, max_pixels: int) -> Image.Image:
    """Decode an image and return it as RGB, upright; nothing of a file stays open for it."""
    _check_pixels(image, where, max_pixels)
    try:
        _check_scans(image)
        image.load()
        turn = _turn(image)  # after the pixels, behind which a PNG may hold it
        rgb = _to_rgb(image)
        upright = rgb if turn is None else rgb.transpose(turn)
    except NotReadError as error:
        raise ImageError(f"{where}: {_one_line(error)}") from None
    except MemoryError:
        raise ImageError(f"{where}: {_NO_MEMORY}") from None
    except Exception as error:  # decoders raise anything on damaged data
        what = "cannot be decoded" if _is_sound(error) else "damaged or cut short"
        raise ImageError(f"{where}: {what} ({_one_line(error)})") from None
    upright.info = {}  # an orientation that stayed would be applied again by the next reader
    return upright


_SCAN, _PART = b"\xff\xda", 1 << 20
_MOST_SCANS = 500  # encoders write about ten; libjpeg's own tools warn from 500 on
_NO_MEMORY = "too large for the memory that is free"
_OF_NO_DAMAGE = ("not available", "not supported", "unsupported", "not implemented", "raw mode")


def _is_sound(error: Exception) -> bool:
    """Tell whether a decoder's error speaks of what it cannot do, and not of damage."""
    text = str(error).lower()
    sound = isinstance(error, NotImplementedError | Image.DecompressionBombError)
    return sound or any(part in text for part in _OF_NO_DAMAGE)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what sets an image upright by the EXIF data read so far; None where nothing must."""
    try:
        # Called on the base class: the method of PNGs would decode their pixels.
        return TURNS.get(Image.Image.getexif(image).get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF beside sound pixels is common; the pixels count
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an RGB image, whatever the mode; of one that is RGB, its pixels are not copied.

    Others are converted band by band: a large image is never there more than twice.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "RGB" and not image.has_transparency_data:
        return image._new(image.im)
    rows = max(1, _BAND // max(1, image.width))
    if rows >= image.height:
        return _opaque(image)
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(_opaque(image.crop(box)), box)
    return rgb


def _opaque(image: Image.Image) -> Image.Image:
    """Return an RGB image, with what is transparent laid on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    paper = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(paper, picture).convert("RGB")


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    gray, color = array.ndim == 2, array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype != np.uint8 or not (gray or color):
        raise ImageError(
            "expected a uint8 array (H, W), (H, W, 3) or (H, W, 4), "
            f"got {array.dtype} {array.shape}"
        )
    if array.size == 0:
        raise ImageError(f"the given array has no pixels: {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__} {text}".strip() if len(text) < 4 else text
