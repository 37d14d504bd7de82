"""CVAT's exports: "Segmentation mask" with its `labelmap.txt`, and "CVAT for images" (XML)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from maskclip.core.palettes import Color, voc_colors
from maskclip.core.text import brief, read_text
from maskclip.core.vocabulary import WIDE_IGNORE, Vocabulary
from maskclip.data.annotations.base import (
    MAX_BYTES,
    AnnotationError,
    PhotoNames,
    class_ids,
)
from maskclip.data.annotations.mask_folder import MaskFolder
from maskclip.data.annotations.shapes import (
    DrawnAnnotations,
    DrawnPhoto,
    ShapeError,
    polygons,
    row_rle,
)
from maskclip.data.masks import Ids, LabelRule

LABEL_MAP = "labelmap.txt"
MASKS = "SegmentationClass"

_UNLABELED = {"ignored"}  # names of lines that are no class; `background` is one if it is given


class CvatMasks(MaskFolder):
    """Masks whose colours, or indices, are the lines of `labelmap.txt`.

    The line `background`, black by custom, is the class of this name; where there is none, what has
    its colour is unlabelled.
    """

    title = "CVAT's masks"

    def __init__(self, place: Path, photos: Sequence[str], vocabulary: Vocabulary) -> None:
        self._list = place / LABEL_MAP
        names, colors = read_label_map(self._list)
        known = [name for name in names if name not in _UNLABELED or name in vocabulary.names]
        ids = class_ids(known, vocabulary, self._list)
        folder = place / MASKS if (place / MASKS).is_dir() else place
        super().__init__(folder, photos, vocabulary)
        self.place = place
        self._table = np.array([ids.get(name, vocabulary.ignore) for name in names], np.int32)
        self._values = LabelRule(len(names), WIDE_IGNORE, colors=colors)

    def files(self) -> Iterable[Path]:
        """Return the masks and the list of labels."""
        return [self._list, *super().files()]


def read_label_map(path: Path) -> tuple[list[str], tuple[Color, ...]]:
    """Return the names and colours of a `labelmap.txt`, in its order.

    Raises:
        AnnotationError: a line is something else, or two have the same name or colour.
    """
    names: list[str] = []
    colors: list[Color] = []
    for number, line in enumerate(read_text(path, "CVAT's list of labels").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *fields = line.split(":")
        color = _color(fields[0]) if fields and fields[0].strip() else voc_colors(256)[len(names)]
        if color is None or not fields:
            raise AnnotationError(
                f"{path}, line {number}: expected `name:red,green,blue::`, got {brief(line)}"
            )
        for value, values in ((name, names), (color, colors)):
            if value in values:
                raise AnnotationError(f"{path}, line {number}: {value} is there twice")
        names.append(name)
        colors.append(color)
        if len(names) > 256:
            raise AnnotationError(f"{path}: more than 256 labels")
    if not names:
        raise AnnotationError(f"{path}: no labels in it")
    return names, tuple(colors)


def _color(field: str) -> Color | None:
    parts = [part.strip() for part in field.split(",")]
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    red, green, blue = (int(part[:4]) for part in parts)
    return (red, green, blue) if max(red, green, blue) < 256 else None


class _Shape(NamedTuple):
    """A region of one class, as the file has it."""

    label: int
    kind: str
    fields: dict[str, str]


_Photo = DrawnPhoto[_Shape]


class CvatImages(DrawnAnnotations[_Shape]):
    """`annotations.xml` of "CVAT for images": its masks and polygons; the rest is left out.

    A photo of the file without a region is labelled if any is: nothing of it has a class.
    """

    title = "CVAT's annotations"

    def __init__(self, place: Path, photos: Sequence[str], vocabulary: Vocabulary) -> None:
        super().__init__(place, vocabulary)
        self._file = place
        names, left_out, missing = PhotoNames(photos), Counter[str](), []
        found: dict[str, _Photo] = {}
        for element in _images(place):
            photo = _read_photo(element, vocabulary, place, left_out)
            if photo is None:
                continue
            name = names.find(photo.name)
            if name is None:
                missing.append(photo.name)
            elif name in found:
                raise AnnotationError(f"{place}: {photo.name} is there twice")
            else:
                found[name] = photo
        self.photos = {photo: found[photo] for photo in photos if photo in found}
        self.note_unknown(missing)
        self.note_left_out(left_out)

    def paint(self, ids: Ids, region: _Shape, size: tuple[int, int]) -> None:
        """Give the pixels of a mask or polygon its class."""
        if region.kind == "polygon":
            ring = _numbers(region.fields.get("points", "").replace(";", ","), float)
            ids[polygons([ring], size)] = region.label
            return
        place = Path("the mask")
        left, top, width, height = (
            _number(region.fields, name, place) for name in ("left", "top", "width", "height")
        )
        if min(left, top, width, height) < 0 or left + width > size[0] or top + height > size[1]:
            raise ShapeError("a mask reaches over the edge of its photo")
        mask = row_rle(_numbers(region.fields.get("rle", ""), int), (width, height))
        ids[top : top + height, left : left + width][mask] = region.label

    def files(self) -> Iterable[Path]:
        """Return the file."""
        return [self._file]


def _images(path: Path) -> list[ElementTree.Element]:
    content = read_text(path, "CVAT's annotations.xml", limit=MAX_BYTES)
    if "<!DOCTYPE" in content or "<!ENTITY" in content:  # entities can grow without bounds
        raise AnnotationError(f"{path}: a document type is declared, which CVAT's files do not")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: not CVAT's annotations.xml ({error})") from None
    if root.tag != "annotations":
        raise AnnotationError(f"{path}: expected CVAT's <annotations>, got <{root.tag}>")
    if root.find("track") is not None:
        raise AnnotationError(
            f'{path}: annotations of a video: export them as "CVAT for images" or as masks'
        )
    return root.findall("image")


def _read_photo(
    element: ElementTree.Element, vocabulary: Vocabulary, place: Path, left_out: Counter[str]
) -> _Photo | None:
    name = element.get("name")
    if not name:
        raise AnnotationError(f"{place}: an image without a name")
    size = tuple(_number(element.attrib, side, place) for side in ("width", "height"))
    shapes = []
    for child in element:
        if child.tag in ("mask", "polygon"):
            label = child.get("label", "")
            shapes.append(
                (
                    _number({"z_order": "0", **child.attrib}, "z_order", place),
                    _Shape(class_ids([label], vocabulary, place)[label], child.tag, child.attrib),
                )
            )
        elif child.tag != "tag":
            left_out[child.tag] += 1
    if not shapes:  # nobody drew here: nothing is labelled
        return None
    shapes.sort(key=lambda pair: pair[0])
    return _Photo(name, (size[0], size[1]), tuple(shape for _, shape in shapes))


def _number(fields: dict[str, str], name: str, place: Path) -> int:
    value = fields.get(name, "").strip()
    if not value.removeprefix("-").isdecimal() or len(value) > 9:
        raise AnnotationError(f"{place}: expected a whole number as {name}, got {brief(value)}")
    return int(value)


def _numbers(listed: str, kind: type[int] | type[float]) -> list[Any]:
    try:
        return [kind(number) for number in listed.split(",")]
    except ValueError:
        raise ShapeError(f"expected numbers, got {brief(listed)}") from None
