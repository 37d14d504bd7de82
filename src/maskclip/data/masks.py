"""Read label masks, whatever their encoding, as class ids.

A mask file holds one value per pixel: a palette index, a grey level (8 or 16 bits), or the colour
of that value in the data set's palette. A `LabelRule` turns values into class ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core.errors import MaskCLIPError
from maskclip.core.palettes import Color
from maskclip.core.vocabulary import Vocabulary

Ids = npt.NDArray[np.int32]

_FORMATS = ("PNG", "BMP", "TIFF", "GIF")  # lossless


class MaskError(MaskCLIPError):
    """A mask that cannot be used; the message says which and why, in one line."""


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
    """

    classes: int
    ignore: int
    reduce_zero: bool = False
    colors: tuple[Color, ...] = ()

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> LabelRule:
        """Return the rule for masks whose values are the ids of a vocabulary."""
        return cls(len(vocabulary), vocabulary.ignore, colors=vocabulary.colors)

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


def load_labels(path: Path, rule: LabelRule) -> Ids:
    """Read a mask as class ids (H, W).

    Raises:
        MaskError: missing, damaged, of an unknown encoding, or with ids out of range.
    """
    ids = read_ids(path, rule)
    invalid = rule.invalid(ids)
    if invalid:
        raise MaskError(
            f"{path}: label {rule.value(next(iter(invalid)))} is out of range: expected classes "
            f"{rule.value(0)}..{rule.value(rule.classes - 1)}, or {rule.ignore} for ignored pixels"
        )
    return ids


def read_ids(path: Path, rule: LabelRule) -> Ids:
    """Read a mask as ids (H, W), some of which may be out of range.

    Raises:
        MaskError: missing, damaged, or of an unknown encoding.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            image.load()
    except FileNotFoundError:
        raise MaskError(f"{path}: no such mask") from None
    except Exception as error:  # decoders raise anything on damaged data
        raise MaskError(
            f"{path}: cannot be read as a mask ({error}): expected a PNG of class ids"
        ) from None
    if image.mode in ("P", "1", "L", "I", "I;16", "I;16B", "I;16L"):
        return rule.ids(np.asarray(image))
    if image.mode in ("LA", "PA"):
        return rule.ids(np.asarray(image)[..., 0])
    if image.mode in ("RGB", "RGBA"):
        return rule.ids(_values_of_colors(np.asarray(image)[..., :3], rule, path))
    raise MaskError(
        f"{path}: pixels of mode {image.mode} are not class ids: expected palette, greyscale or RGB"
    )


def _values_of_colors(
    pixels: npt.NDArray[np.uint8], rule: LabelRule, path: Path
) -> npt.NDArray[np.integer]:
    """Return the values of colours (H, W, 3); a mask of greys only holds the values themselves.

    A mask of palette colours only is read by the palette, even if some of them are grey.
    """
    packed = pixels.astype(np.int32) @ np.array((1 << 16, 1 << 8, 1), np.int32)
    codes, place = np.unique(packed, return_inverse=True)
    table: dict[int, int] = {}
    for value, (red, green, blue) in enumerate(rule.colors):
        table.setdefault(red << 16 | green << 8 | blue, value)
    unknown = [code for code in codes.tolist() if code not in table]
    if not unknown:
        values = np.array([table[code] for code in codes.tolist()], np.int32)
        return values[place.reshape(packed.shape)]
    if not any(code % 0x10101 for code in codes.tolist()):  # red, green and blue are equal
        return packed & 0xFF
    colored = next((code for code in unknown if code % 0x10101), unknown[0])
    raise MaskError(
        f"{path}: the colour #{colored:06x} is no class: expected class ids, or the colours of "
        "the classes"
    )
