"""Shapes of annotations -> masks of pixels; bounds are checked before memory is taken.

And what annotations share that are drawn as regions of one class each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from maskclip.data.annotations.base import AnnotationError, Annotations
from maskclip.data.masks import Ids

Mask = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]
Region = TypeVar("Region")

_MOST_DIGITS = 7  # of a run length in COCO's compressed form: 5 bits each
_LONGEST_OUTLINE = 10_000_000  # px: pycocotools keeps every fifth of a pixel of an outline


class ShapeError(ValueError):
    """A shape that does not fit its photo or makes no sense; the message is one line."""


@dataclass(frozen=True)
class DrawnPhoto(Generic[Region]):
    """The regions of a photo of (width, height), as its file has them, the lowest first."""

    name: str
    size: tuple[int, int]
    regions: tuple[Region, ...]


class DrawnAnnotations(Annotations[DrawnPhoto[Region]], Generic[Region]):
    """Annotations that are regions of one class each."""

    @abstractmethod
    def paint(self, ids: Ids, region: Region, size: tuple[int, int]) -> None:
        """Give the pixels of a region its class, in the ids (H, W) of a photo.

        Raises:
            ShapeError: the region does not fit a photo of (width, height).
        """

    def read(self, photo: str, size: tuple[int, int] | None = None) -> Ids:
        """Paint the regions; a higher one lies over a lower one."""
        found = self.photos[photo]
        self.check_size(photo, found.size, size)
        ids = self.empty(found.size)
        for region in found.regions:
            try:
                self.paint(ids, region, found.size)
            except ShapeError as error:
                raise AnnotationError(f"{self.where(photo)}: {error}") from None
        return ids

    def where(self, photo: str) -> str:
        """Return the file or folder, and what the photo is called in it."""
        return f"{self.place}, {self.photos[photo].name}"


def coco_rle(counts: object, size: tuple[int, int]) -> Mask:
    """Return the mask (H, W) of COCO's run lengths by columns: a list, or its compressed form.

    Args:
        counts: numbers or text.
        size: (width, height).

    Raises:
        ShapeError: they are not run lengths of so many pixels.
    """
    lengths = _uncompressed(counts) if isinstance(counts, str) else _numbers(counts)
    return _runs(_bounded(lengths, size), size).reshape(size).T


def row_rle(counts: object, size: tuple[int, int]) -> Mask:
    """Return the mask (H, W) of run lengths by rows, the first outside the mask.

    Raises:
        ShapeError: they are not run lengths of so many pixels.
    """
    lengths = _bounded(_numbers(counts), size)
    missing = size[0] * size[1] - int(lengths.sum())
    if missing > 0:  # what is outside at the end may be left out
        lengths = np.append(lengths, [missing] if len(lengths) % 2 == 0 else [0, missing])
    return _runs(lengths, size).reshape(size[::-1])


def _numbers(counts: object) -> _Ints:
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise ShapeError("expected run lengths, whole numbers")
    if any(not 0 <= count < 2**40 for count in counts):
        raise ShapeError("a run length is out of range")
    return np.array(counts, np.int64)


def _uncompressed(counts: str) -> _Ints:
    """Return the numbers of COCO's compressed run lengths.

    A number has 5 bits a letter, the lowest first; bit 5 says that more follow, bit 4 of the last
    is the sign. From the fourth on, it is the difference from the number two before.
    """
    codes = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if not codes.size:
        return np.zeros(0, np.int64)
    last = np.flatnonzero((codes & 32) == 0)
    if codes.min() < 0 or codes.max() > 63 or not last.size or last[-1] != len(codes) - 1:
        raise ShapeError("the compressed run lengths are damaged")
    starts = np.concatenate([[0], last[:-1] + 1])
    if (last - starts).max() >= _MOST_DIGITS:
        raise ShapeError("a run length is out of range")
    place = np.arange(len(codes)) - np.repeat(starts, last - starts + 1)
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    negative = (codes[last] & 16) != 0
    numbers -= np.where(negative, np.int64(1) << (5 * (place[last] + 1)), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _bounded(lengths: _Ints, size: tuple[int, int]) -> _Ints:
    """Return run lengths of which none is more than all pixels: their sum is true in 64 bits."""
    pixels = size[0] * size[1]
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= pixels:
        raise ShapeError(f"a run length is out of range: expected {pixels:,} pixels in all")
    return lengths


def _runs(lengths: _Ints, size: tuple[int, int]) -> Mask:
    """Return runs of False and True in turn; the lengths are `_bounded`.

    NumPy repeats in memory that it takes for a sum of its own, which must be the true one.
    """
    pixels, total = size[0] * size[1], int(lengths.sum())
    if total != pixels:
        raise ShapeError(f"run lengths of {total:,} pixels, expected {pixels:,}")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def polygons(rings: Sequence[object], size: tuple[int, int]) -> Mask:
    """Return the union (H, W) of polygons, each x, y, x, y ... in px, as pycocotools fills them.

    Args:
        rings: the polygons; they may reach over the photo's edges, by its size at most.
        size: (width, height).

    Raises:
        ShapeError: too few, or no finite numbers, or far outside.
    """
    width, height = size
    outlines = [_outline(ring, size) for ring in rings]
    if not outlines:
        return np.zeros((height, width), bool)
    objects = coco_mask.frPyObjects([each.ravel().tolist() for each in outlines], height, width)
    return coco_rle(coco_mask.merge(objects)["counts"].decode("ascii"), size)


def _outline(ring: object, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    if not isinstance(ring, list) or not all(type(value) in (int, float) for value in ring):
        raise ShapeError("expected a polygon: x, y, x, y ...")
    if len(ring) < 6 or len(ring) % 2:
        raise ShapeError(f"a polygon of {len(ring)} numbers, expected three points or more")
    try:
        points = np.array(ring, np.float64).reshape(-1, 2)
    except OverflowError:
        raise ShapeError("a polygon reaches far outside its photo") from None
    if not np.isfinite(points).all():
        raise ShapeError("a polygon has numbers that are not finite")
    if (points < -np.array(size)).any() or (points > 2 * np.array(size)).any():
        raise ShapeError("a polygon reaches far outside its photo")
    steps = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1)
    if steps.sum() > _LONGEST_OUTLINE:
        raise ShapeError("the outline of a polygon is longer than any photo's")
    return points


def brush(data: bytes, size: tuple[int, int]) -> Mask:
    """Return the mask (H, W) of a brush layer as Label Studio stores it: where alpha is over half.

    The layout is that of `formats.label_studio.brush_rle`; a run may also begin with a zero bit,
    and then each of its values is given.

    Raises:
        ShapeError: not such a layer, or of another size.
    """
    pixels = size[0] * size[1]
    bits = _Bits(data)
    count, depth = bits.read(32), bits.read(5) + 1
    widths = [bits.read(4) + 1 for _ in range(4)]
    if count != 4 * pixels or depth != 8:
        raise ShapeError(
            f"a brush layer of {count:,} values of {depth} bits, expected {4 * pixels:,} of 8"
        )
    values = np.zeros(count, np.uint8)
    place = 0
    while place < count:
        repeated, which = bits.read(1), bits.read(2)
        length = bits.read(widths[which]) + 1
        if place + length > count:
            raise ShapeError("a brush layer has more values than its photo")
        if repeated:
            values[place : place + length] = bits.read(8)
        else:
            values[place : place + length] = [bits.read(8) for _ in range(length)]
        place += length
    alpha: npt.NDArray[np.uint8] = values.reshape(size[1], size[0], 4)[..., 3]
    return alpha > 127


class _Bits:
    """Reads numbers of up to 32 bits, the highest bit first."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def read(self, count: int) -> int:
        first, end = self.place >> 3, (self.place + count + 7) >> 3
        if end > len(self.data):
            raise ShapeError("a brush layer ends too early")
        self.place += count
        word = int.from_bytes(self.data[first:end], "big")
        return (word >> (-self.place & 7)) & ((1 << count) - 1)


def percent_points(points: object, size: tuple[int, int]) -> list[Any]:
    """Return points in percent of the photo, [[x, y], ...], as a polygon in px.

    Raises:
        ShapeError: they are not such points.
    """
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(type(v) in (int, float) for v in point)
        for point in points
    ):
        raise ShapeError("expected the points of a polygon")
    try:
        return [
            float(v) * side / 100 for point in points for v, side in zip(point, size, strict=True)
        ]
    except OverflowError:
        raise ShapeError("a polygon reaches far outside its photo") from None
