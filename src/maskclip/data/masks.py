"""Read label masks, whatever their encoding, as class ids.

A mask file holds one value per pixel: a palette index, a grey level (up to 16 bits), or the colour
of that value in a known list of colours. A `LabelRule` turns values into class ids.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from maskclip.core.errors import MaskCLIPError
from maskclip.core.palettes import IGNORED_COLOR, Color
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.images import MAX_PIXELS
from maskclip.data.png import without_metadata

Ids = npt.NDArray[np.int32]

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")  # in which ids survive
_FORMATS = ("BMP", "TIFF")
_CHANGING = {  # why others do not hold ids
    "JPEG": "whose compression changes class ids",
    "GIF": "whose writers renumber class ids",
}
_STRETCHED = {"L;2": 85, "L;4": 17}  # Pillow stretches greys of so few bits over 0..255


class MaskError(MaskCLIPError):
    """A mask that cannot be used; the message says which and why, in one line."""


class SizeError(MaskError):
    """A mask of another size than its photo."""


@dataclass(frozen=True)
class LabelRule:
    """What the values of a data set's masks mean.

    Attributes:
        classes: number of classes K; ids are 0..K-1.
        ignore: the id of pixels that are not scored.
        reduce_zero: whether value 0 is ignored and 1..K are the ids 0..K-1; so the published
            evaluation reads data sets whose background is labelled but not scored.
        colors: the colour of each value, for masks encoded as colours; empty for data sets that
            have none.
        ignored_color: the colour of the ignored value, beyond those of `colors`.
    """

    classes: int
    ignore: int
    reduce_zero: bool = False
    colors: tuple[Color, ...] = ()
    ignored_color: Color | None = None

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> LabelRule:
        """Return the rule for masks whose values are the ids of a vocabulary."""
        return cls(
            len(vocabulary),
            vocabulary.ignore,
            colors=vocabulary.colors,
            ignored_color=None if IGNORED_COLOR in vocabulary.colors else IGNORED_COLOR,
        )

    @cached_property
    def values_of_colors(self) -> dict[int, list[int]]:
        """The values of each colour, which is red << 16 | green << 8 | blue."""
        table: dict[int, list[int]] = {}
        for value, color in enumerate(self.colors):
            table.setdefault(_packed(color), []).append(value)
        if self.ignored_color is not None:
            table.setdefault(_packed(self.ignored_color), []).append(self.ignore)
        return table

    def ids(self, values: npt.NDArray[np.integer]) -> Ids:
        """Turn file values (H, W) into class ids; invalid values stay out of range."""
        ids = values.astype(np.int32)
        if self.reduce_zero:
            # Values above the ignored one stay: reduced, the first of them would be ignored, too.
            reduced = np.where(ids > self.ignore, ids, ids - 1)
            ids = np.where((ids == 0) | (ids == self.ignore), self.ignore, reduced)
        return ids

    def value(self, label: int) -> int:
        """Return the file value that was read as this id."""
        return label + 1 if self.reduce_zero and label < self.ignore else label

    def invalid(self, ids: Ids) -> dict[int, int]:
        """Return the ids that are neither a class nor ignored, with their pixel counts."""
        wrong = ids[((ids < 0) | (ids >= self.classes)) & (ids != self.ignore)]
        found, counts = np.unique(wrong, return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))

    def counted_from_one(self, invalid: Collection[int], *, zero: bool) -> str:
        """Return the hint that ids count from 1, to end a message with; empty if they do not.

        Args:
            invalid: the ids that are out of range.
            zero: whether the class 0 has a pixel.
        """
        if zero or self.reduce_zero or set(invalid) != {self.classes}:
            return ""
        return (
            f"; ids seem to count from 1 (there is {self.classes} and no 0), and must count from 0"
        )

    @property
    def expected(self) -> str:
        """The values that masks may have, in words."""
        first, zero = self.value(0), "0 and " if self.reduce_zero else ""
        return f"{first}..{self.value(self.classes - 1)}, or {zero}{self.ignore} for ignored pixels"


def doubt(
    names: Sequence[str],
    pixels: npt.NDArray[np.int64],
    rule: LabelRule,
    *,
    masks: int,
    ignored: int,
) -> str | None:
    """Return what looks wrong with masks as a whole, in one line; None if nothing does.

    Masks of 0 and 255, which drawing programs write for two classes, have no wrong value. Where no
    pixel is 0, ids may count from 1, which is another matter.

    Args:
        names: of the K classes.
        pixels: (K,) of each class in all masks.
        rule: what mask values mean.
        masks: how many there are.
        ignored: how many have ignored pixels.
    """
    absent = [name for name, count in zip(names, pixels.tolist(), strict=True) if not count]
    if not masks or ignored < masks or (not absent and len(names) > 1):
        return None
    if pixels.any() and not pixels[0]:
        return None
    expected = f"{rule.ignore} means ignored, and classes are {rule.expected.partition(',')[0]}"
    if not rule.colors and not rule.reduce_zero and pixels[0] and not pixels[1:].any():
        expected += (
            f"; masks of 0 and {rule.ignore}, as black-and-white images are: make them 0 and 1"
        )
    if len(absent) == len(names):
        return f"no mask has a labelled pixel: {expected}"
    if not absent:
        return f"every mask has ignored pixels, and all others are {names[0]}: {expected}"
    some = " or ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
    return f"no mask has a pixel of {some}, and all have ignored ones: {expected}"


def load_labels(path: Path, rule: LabelRule, *, size: tuple[int, int] | None = None) -> Ids:
    """Read a mask as class ids (H, W).

    Args:
        path: the file.
        rule: what its values mean.
        size: (width, height) that it must have, compared before it is decoded.

    Raises:
        MaskError: missing, damaged, of another size or encoding, or with ids out of range.
    """
    ids = read_ids(path, rule, size=size)
    check_ids(ids, rule, str(path))
    return ids


def check_ids(ids: Ids, rule: LabelRule, where: str) -> None:
    """Refuse ids that are neither a class nor ignored.

    Raises:
        MaskError: there are some; names the first value.
    """
    invalid = rule.invalid(ids)
    if invalid:
        raise MaskError(
            f"{where}: label {rule.value(next(iter(invalid)))} is out of range: expected classes "
            f"{rule.expected}{rule.counted_from_one(invalid, zero=bool((ids == 0).any()))}"
        )


def read_ids(path: Path, rule: LabelRule, *, size: tuple[int, int] | None = None) -> Ids:
    """Read a mask as ids (H, W), some of which may be out of range; arguments as `load_labels`.

    Raises:
        SizeError: of another size.
        MaskError: missing, damaged, or of an unknown encoding.
    """
    image, stretched = open_mask(path, size)
    pixels = np.asarray(image)
    match image.mode:
        case "1" | "L" | "I" | "I;16" | "I;16B" | "I;16L" | "I;16N":
            return rule.ids(pixels.astype(np.int32) // stretched)
        case "P":
            return rule.ids(_values_of_palette(image, pixels, rule, path))
        case "PA":
            return rule.ids(pixels[..., 0])
        case "RGB":
            return rule.ids(_values_of_colors(pixels, rule, path))
        case "LA" | "RGBA":
            return _opaque_ids(pixels, rule, path)
    raise MaskError(
        f"{path}: pixels of mode {image.mode} are not class ids: expected palette, greyscale or RGB"
    )


def open_mask(path: Path, size: tuple[int, int] | None = None) -> tuple[Image.Image, int]:
    """Return a mask's pixels, and the factor by which its grey levels are stretched.

    Raises:
        SizeError: not of the (width, height) `size`.
        MaskError: missing, damaged, lossy, or of 16 bits a channel.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for what comes
            raise MaskError(f"{path}: a folder, pipe or device: expected a PNG of class ids")
        with path.open("rb") as file:
            image = _identified(file)
            if image.format in _CHANGING:
                why = _CHANGING[image.format]
                raise MaskError(f"{path}: a {image.format}, {why}: expected a PNG")
            _check_size(path, image, size)
            coding = _coding(image)
            if coding.startswith(("RGB;16", "RGBA;16", "RGBX;16", "LA;16")):
                raise MaskError(
                    f"{path}: {coding.partition(';')[0]} of 16 bits is not read: expected one "
                    "channel of class ids, or colours of 8 bits"
                )
            if getattr(image, "n_frames", 1) > 1:
                raise MaskError(f"{path}: several images in one file: expected one")
            image.load()
    except FileNotFoundError:
        raise MaskError(f"{path}: no such mask") from None
    except MaskError:
        raise
    except Exception as error:  # decoders raise anything on damaged data
        raise MaskError(
            f"{path}: cannot be read as a mask ({_one_line(error)}): expected a PNG of class ids"
        ) from None
    return image, _STRETCHED.get(coding[:3], 1)


def _identified(file: IO[bytes]) -> Image.Image:
    """Read the header of an image; what `Image.open` does less its global limit of pixels."""
    Image.init()
    start = file.read(16)
    file.seek(0)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile(without_metadata(file).picture, "")
    for name in (*_FORMATS, *_CHANGING):
        opener, accepts = Image.OPEN[name]
        if accepts is None or accepts(start) is True:
            return opener(file, "")
    raise ValueError("not an image of a lossless format")


def _coding(image: Image.Image) -> str:
    """Return how pixels lie in the file, such as "L;4" for four bits each."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    coding = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return coding if isinstance(coding, str) else ""


def _check_size(path: Path, image: Image.Image, size: tuple[int, int] | None) -> None:
    if size is not None and image.size != size:
        raise size_error(f"{path}: the mask is", image.size, size)
    if image.width * image.height > MAX_PIXELS:
        raise MaskError(
            f"{path}: {image.width}x{image.height} pixels, over the limit of {MAX_PIXELS:,}"
        )


def size_error(start: str, found: tuple[int, int], size: tuple[int, int]) -> SizeError:
    """Return the error about labels of another (width, height) than their photo's."""
    turned = found == size[::-1] and size[0] != size[1]
    if turned:
        why = ": one of them is rotated; images follow their EXIF orientation"
    else:
        why = ": save it again at the image's size, without smooth resizing"
    return SizeError(f"{start} {found[0]}x{found[1]} but its image {size[0]}x{size[1]}{why}")


def _opaque_ids(pixels: npt.NDArray[np.uint8], rule: LabelRule, path: Path) -> Ids:
    """Return the ids of greys or colours with alpha (H, W, 2 or 4): ignored where transparent."""
    alpha = pixels[..., -1]
    if ((alpha > 0) & (alpha < 255)).any():
        raise MaskError(
            f"{path}: half-transparent pixels have no certain class: save it without soft edges"
        )
    opaque = alpha > 0
    ids = np.full(alpha.shape, rule.ignore, np.int32)
    seen = pixels[opaque][:, :-1]
    ids[opaque] = rule.ids(
        seen[:, 0] if seen.shape[1] == 1 else _values_of_colors(seen, rule, path)
    )
    return ids


def _values_of_palette(
    image: Image.Image, indices: npt.NDArray[np.uint8], rule: LabelRule, path: Path
) -> npt.NDArray[np.integer]:
    """Return the values of palette indices (H, W): the indices, unless the palette says otherwise.

    Editors and optimisers of PNGs renumber the entries of a palette. So where every colour that is
    used is one of the rule's, and not in its place, the colours are what counts.
    """
    palette = np.array(image.getpalette() or (), np.uint8).reshape(-1, 3)
    known = np.array(rule.colors[: len(palette)], np.uint8).reshape(-1, 3)
    if not len(known) or np.array_equal(palette[: len(known)], known):
        return indices
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    table = rule.values_of_colors
    meant = [table.get(_packed(palette[index])) if index < len(palette) else None for index in used]
    if None in meant or all(i in (values or ()) for i, values in zip(used, meant, strict=True)):
        return indices
    return _values_of_colors(palette[indices], rule, path)


def _values_of_colors(
    pixels: npt.NDArray[np.uint8], rule: LabelRule, path: Path
) -> npt.NDArray[np.integer]:
    """Return the values of colours (..., 3); a mask of greys only holds the values themselves.

    A mask of palette colours only is read by the palette, even if some of them are grey.
    """
    packed = pixels.astype(np.int32) @ np.array((1 << 16, 1 << 8, 1), np.int32)
    codes, place = np.unique(packed, return_inverse=True)
    table = rule.values_of_colors
    unknown = [code for code in codes.tolist() if code not in table]
    if not unknown:
        values = [_only_value(table[code], code, path) for code in codes.tolist()]
        return np.array(values, np.int32)[place.reshape(packed.shape)]
    if not any(code % 0x10101 for code in codes.tolist()):  # red, green and blue are equal
        return packed & 0xFF
    colored = next((code for code in unknown if code % 0x10101), unknown[0])
    raise MaskError(
        f"{path}: the colour #{colored:06x} is no class: expected class ids, or the colours of "
        "the classes"
    )


def _only_value(values: list[int], code: int, path: Path) -> int:
    if len(values) > 1:
        raise MaskError(
            f"{path}: the colour #{code:06x} is that of {len(values)} classes ({values[0]} and "
            f"{values[1]}): expected class ids, or classes of different colours"
        )
    return values[0]


def _packed(color: Sequence[int] | npt.NDArray[np.uint8]) -> int:
    red, green, blue = map(int, color)
    return red << 16 | green << 8 | blue


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
