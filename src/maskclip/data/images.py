"""Images from disk or memory, safely: whatever comes in, an upright 8-bit RGB image goes out.

Pillow's global settings are neither changed nor needed; several threads may load at once.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core.errors import MaskCLIPError

MAX_PIXELS = 178_956_970  # twice Pillow's own warning level: half a gigabyte as RGB

# Photos and drawings people have. Left out: formats that start other programs (EPS), that have no
# signature (TGA), or that only name a type without a decoder.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "MPO", "ICO")

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".png", ".apng", ".webp", ".avif",
    ".gif", ".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".ico",
))
# fmt: on

_UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))
_ORIENTATION_TAG = 0x0112
_TURNING_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # PNG: may turn the picture


class ImageError(MaskCLIPError):
    """An image that cannot be used; the message says which and why, in one line."""


def load_image(
    source: str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8],
    *,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Return an image as RGB, 8 bits a channel, upright (EXIF orientation applied).

    Transparency is laid on white; of an animation comes the first frame. 16-bit greys are divided
    by 257. Greys of 32 bits or floats are taken as 0..255 if they fit and as 0..65535 if they fit
    that (floats also as 0..1); anything else is stretched between its least and greatest value.

    Args:
        source: a path, a Pillow image (left as it is), or a uint8 array (H, W), (H, W, 3) RGB or
            (H, W, 4) RGBA.
        max_pixels: refuse larger images, before decoding them.

    Raises:
        ImageError: missing, empty, damaged, cut short, too large, or no image.
    """
    if isinstance(source, Image.Image):
        return _finished(source, "the given image", max_pixels)
    if isinstance(source, np.ndarray):
        return _finished(_from_array(source), "the given array", max_pixels)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            f"expected a path, a Pillow image or a uint8 array, got {type(source).__name__}"
        )
    path = Path(source)
    with _reading(path) as file:
        return _finished(_identified(file, path), str(path), max_pixels)


def image_size(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the (width, height) of what `load_image` makes of a file, from its header.

    No pixels are decoded, so damage among them goes unnoticed. The exception is a PNG with EXIF or
    XMP behind its pixels, whose orientation is known only then.

    Raises:
        ImageError: missing, empty, damaged at its start, too large, or no image.
    """
    with _reading(path) as file:
        image = _identified(file, path)
        _check_pixels(image, str(path), max_pixels)
        if image.format == "PNG" and _turns_late(file):
            return _finished(image, str(path), max_pixels).size
        # The size of a TIFF comes turned already.
        sideways = image.format != "TIFF" and _turn(image) in _SIDEWAYS
        return (image.height, image.width) if sideways else image.size


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, or raise an `ImageError` that says why it cannot be read."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: a folder, not an image") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from None


def _identified(file: IO[bytes], path: Path) -> Image.Image:
    """Read the header of an image file.

    What `Image.open` does less its pixel limit, which is a global that holds for all threads and
    would have to be changed to let a larger image in. The limit here is checked by the caller.
    """
    Image.init()  # loads the decoders; does nothing the second time
    start = file.read(16)
    if not start:
        raise ImageError(f"{path}: an empty file")
    for name in _FORMATS:
        if name not in Image.OPEN:
            continue
        opener, accepts = Image.OPEN[name]
        verdict = accepts is None or accepts(start)
        if not verdict or isinstance(verdict, str):  # a text says which library is not installed
            continue
        file.seek(0)
        try:
            return opener(file, "")
        except Image.DecompressionBombError as error:
            raise ImageError(f"{path}: {_one_line(error)}") from None
        except Exception:  # a decoder that meets something else than it hoped for raises anything
            continue
    raise ImageError(f"{path}: not an image that can be read, or damaged at its start")


def _turns_late(file: IO[bytes]) -> bool:
    """Tell whether a PNG may hold an orientation behind its pixels; leave the file where it is."""
    place, pixels_seen = file.tell(), False
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        start = file.read(min(length, 22))
        if pixels_seen and (kind == b"eXIf" or start.startswith(_TURNING_TEXTS)):
            break
        pixels_seen |= kind == b"IDAT"
        file.seek(length - len(start) + 4, os.SEEK_CUR)
    file.seek(place)
    return len(head) == 8


def _check_pixels(image: Image.Image, where: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageError(
            f"{where}: {image.width}x{image.height} = {pixels:,} pixels, over the limit of "
            f"{max_pixels:,} (--max-pixels raises it, in Python max_pixels=)"
        )
    if pixels == 0:
        raise ImageError(f"{where}: has no pixels ({image.width}x{image.height})")


def _finished(image: Image.Image, where: str, max_pixels: int) -> Image.Image:
    _check_pixels(image, where, max_pixels)
    try:
        image.load()
        turn = _turn(image)  # after the pixels, behind which a PNG may hold it
        rgb = _to_rgb(image)
        upright = rgb if turn is None else rgb.transpose(turn)
    except Exception as error:  # decoders raise anything on damaged data
        raise ImageError(f"{where}: damaged or cut short ({_one_line(error)})") from None
    upright.info = {}  # an orientation that stayed would be applied again by the next reader
    return upright


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what sets an image upright by the EXIF data read so far; None where nothing must."""
    try:
        # Called on the base class: the method of PNGs would decode their pixels.
        return _UPRIGHT.get(Image.Image.getexif(image).get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF beside sound pixels is common; the pixels count
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return a new RGB image, whatever the mode."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        paper = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, picture).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _eight_bits(values: npt.NDArray[np.generic], mode: str) -> npt.NDArray[np.uint8]:
    """Scale greys of more than 8 bits to 0..255 by the rule `load_image` documents."""
    gray: npt.NDArray[np.floating[Any]] = values.astype(np.float32)
    gray = np.nan_to_num(gray, posinf=0.0, neginf=0.0)
    low, high = float(gray.min()), float(gray.max())
    if mode.startswith("I;16"):
        gray = gray / 257
    elif low < 0 or high > 65_535:
        gray = (gray - low) * (255 / max(high - low, 1e-6))
    elif high > 255:
        gray = gray / 257
    elif mode == "F" and high <= 1:
        gray = gray * 255
    return gray.round().astype(np.uint8)


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
    return " ".join(str(error).split()) or type(error).__name__
