"""COCO's JSON: instances (polygons, run lengths), and panoptic segmentations with their PNGs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from maskclip.core.files import name_problem
from maskclip.core.text import brief
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.annotations.base import (
    AnnotationError,
    Annotations,
    PhotoNames,
    class_ids,
    mapping,
    sequence,
    text,
    whole,
)
from maskclip.data.annotations.shapes import Mask, ShapeError, coco_rle, polygons
from maskclip.data.masks import Ids, MaskError, open_mask

Content = Mapping[str, Any]


def is_coco(value: object) -> bool:
    """Return whether the content of a JSON file looks like COCO's, as instances or panoptic."""
    return isinstance(value, dict) and {"images", "annotations", "categories"} <= value.keys()


def is_panoptic(content: Content) -> bool:
    """Return whether the annotations are panoptic."""
    annotations = content["annotations"]
    return (
        isinstance(annotations, list)
        and bool(annotations)
        and isinstance(annotations[0], dict)
        and "segments_info" in annotations[0]
    )


@dataclass(frozen=True)
class _Photo:
    """The annotations of a photo of (width, height), in the order of their file."""

    file: Path
    name: str
    size: tuple[int, int]
    annotations: tuple[Content, ...]


class _Coco(Annotations[_Photo]):
    """What all kinds share: images, categories, and which annotation belongs to which photo."""

    takes_unannotated: ClassVar[bool] = False
    """Whether photos that are listed without an annotation are labelled, too."""

    def __init__(
        self,
        place: Path,
        contents: Mapping[Path, Content],
        photos: Sequence[str],
        vocabulary: Vocabulary,
    ) -> None:
        super().__init__(place, vocabulary)
        self._files = list(contents)
        self._ids: dict[Path, dict[int, int]] = {}
        self._left_out: Counter[str] = Counter()
        names, missing = PhotoNames(photos), []
        found: dict[str, _Photo] = {}
        for file, content in contents.items():
            for photo in self._photos_of(file, content):
                name = names.find(photo.name)
                if name is None:
                    missing.append(photo.name)
                elif name in found:
                    raise AnnotationError(f"{file}: {photo.name} is labelled twice")
                else:
                    found[name] = photo
        self.photos = {photo: found[photo] for photo in photos if photo in found}
        self.note_unknown(missing)
        self.note_left_out(self._left_out)

    def _photos_of(self, file: Path, content: Content) -> Iterable[_Photo]:
        """Return the photos of a file that are labelled."""
        by_image: dict[int, list[Content]] = {}
        used: set[int] = set()
        for value in sequence(content["annotations"], "a list of annotations", file):
            annotation = mapping(value, "an annotation", file)
            if self._says_pixels(annotation):
                image = whole(annotation.get("image_id"), "the image_id of an annotation", file)
                by_image.setdefault(image, []).append(annotation)
                used.update(self._categories_of(annotation, file))
        self._ids[file] = self._read_categories(file, content, used)
        for value in sequence(content["images"], "a list of images", file):
            listed = mapping(value, "an image", file)
            annotations = by_image.pop(whole(listed.get("id"), "the id of an image", file), None)
            if annotations is not None or self.takes_unannotated:
                name = text(listed.get("file_name"), "the file_name of an image", file)
                width, height = (
                    whole(listed.get(side), f"the {side} of {name}", file)
                    for side in ("width", "height")
                )
                yield _Photo(file, name, (width, height), tuple(annotations or ()))
        if by_image:
            raise AnnotationError(
                f"{file}: annotations of the image {next(iter(by_image))}, which is not in its list"
            )

    def _read_categories(self, file: Path, content: Content, used: set[int]) -> dict[int, int]:
        """Return the class of each category that an annotation has."""
        names = {}
        for value in sequence(content["categories"], "a list of categories", file):
            category = mapping(value, "a category", file)
            number = whole(category.get("id"), "the id of a category", file)
            if number in names:
                raise AnnotationError(f"{file}: the category {number} is there twice")
            names[number] = text(category.get("name"), "the name of a category", file)
        unknown = sorted(used - names.keys())
        if unknown:
            raise AnnotationError(f"{file}: the category {unknown[0]} is not in its list")
        ids = class_ids([names[number] for number in sorted(used)], self.vocabulary, file)
        return {number: ids[names[number]] for number in used}

    def _says_pixels(self, annotation: Content) -> bool:
        raise NotImplementedError

    def _categories_of(self, annotation: Content, file: Path) -> Iterable[int]:
        raise NotImplementedError

    def where(self, photo: str) -> str:
        """Return the file and the photo's name in it."""
        return f"{self.photos[photo].file}, {self.photos[photo].name}"

    def files(self) -> Iterable[Path]:
        """Return the JSON files."""
        return self._files


class CocoInstances(_Coco):
    """Instances with a segmentation; where they overlap, the later one lies over the earlier."""

    title = "COCO's instances"

    def _says_pixels(self, annotation: Content) -> bool:
        if annotation.get("segmentation"):
            return True
        self._left_out["annotations without a segmentation"] += 1
        return False

    def _categories_of(self, annotation: Content, file: Path) -> Iterable[int]:
        return [_category(annotation, file)]

    def read(self, photo: str, size: tuple[int, int] | None = None) -> Ids:
        """Paint the instances."""
        self.check_size(photo, self.photos[photo].size, size)
        ids = self.empty(self.photos[photo].size)
        for annotation in self.photos[photo].annotations:
            self._paint(ids, photo, annotation)
        return ids

    def _paint(self, ids: Ids, photo: str, annotation: Content) -> None:
        file = self.photos[photo].file
        ids[self._mask(photo, annotation)] = self._ids[file][_category(annotation, file)]

    def _mask(self, photo: str, annotation: Content) -> Mask:
        """Return the pixels of an instance of a photo."""
        try:
            return _mask(annotation["segmentation"], self.photos[photo].size)
        except ShapeError as error:
            number = annotation.get("id")
            raise AnnotationError(f"{self.where(photo)}: annotation {number}: {error}") from None


class CocoObjects(CocoInstances):
    """Instances before a background, class 0: the smaller lie over the larger."""

    title = "COCO's objects"
    takes_unannotated = True

    def read(self, photo: str, size: tuple[int, int] | None = None) -> Ids:
        """Paint the instances, the largest first; of photos without any, all is background."""
        self.check_size(photo, self.photos[photo].size, size)
        ids = self.empty(self.photos[photo].size)
        ids[...] = 0
        # Made twice, for to keep them would take a byte a pixel for each.
        annotations = self.photos[photo].annotations
        areas = [np.count_nonzero(self._mask(photo, each)) for each in annotations]
        for index in sorted(range(len(areas)), key=lambda index: -areas[index]):
            self._paint(ids, photo, annotations[index])
        return ids


class CocoPanoptic(_Coco):
    """Segments in PNGs, whose colours are their numbers; 0 is unlabelled."""

    title = "COCO's panoptic segmentations"

    def _says_pixels(self, annotation: Content) -> bool:
        return True

    def _categories_of(self, annotation: Content, file: Path) -> Iterable[int]:
        return [_category(segment, file) for segment in _segments(annotation, file)]

    def read(self, photo: str, size: tuple[int, int] | None = None) -> Ids:
        """Read the PNG, and look its segments up."""
        self.check_size(photo, self.photos[photo].size, size)
        found = self.photos[photo]
        path = self._png(photo)
        image, _ = open_mask(path, found.size)
        pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
        if pixels.ndim != 3 or pixels.shape[2] < 3:
            raise MaskError(f"{path}: expected colours, which are numbers of segments")
        numbers = pixels[..., :3].astype(np.int32) @ np.array((1, 1 << 8, 1 << 16), np.int32)
        table = {0: self.vocabulary.ignore}
        for segment in _segments(found.annotations[0], found.file):
            number = whole(segment.get("id"), "the id of a segment", found.file)
            table[number] = self._ids[found.file][_category(segment, found.file)]
        present, place = np.unique(numbers, return_inverse=True)
        unknown = [number for number in present.tolist() if number not in table]
        if unknown:
            raise MaskError(f"{path}: the segment {unknown[0]} is not in {found.file}")
        values = np.array([table[number] for number in present.tolist()], np.int32)
        return values[place.reshape(numbers.shape)]

    def files(self) -> Iterable[Path]:
        """Return the JSON files and the PNGs."""
        return [*super().files(), *map(self._png, self.photos)]

    def _png(self, photo: str) -> Path:
        """Return the PNG of a photo: in the folder named as its JSON file is."""
        found = self.photos[photo]
        if len(found.annotations) > 1:
            raise AnnotationError(f"{self.where(photo)}: two panoptic segmentations of one photo")
        name = text(found.annotations[0].get("file_name"), f"the PNG of {photo}", found.file)
        plain = PurePosixPath(name)
        problem = name_problem(plain)
        if plain.is_absolute() or ".." in plain.parts:
            problem = "it lies outside its folder"
        if problem is not None:
            raise AnnotationError(f"{found.file}: the PNG {brief(name)} cannot be read: {problem}")
        return found.file.with_suffix("") / name


def _category(fields: Content, file: Path) -> int:
    return whole(fields.get("category_id"), "the category_id of an annotation", file)


def _segments(annotation: Content, file: Path) -> list[Content]:
    listed = sequence(annotation.get("segments_info"), "segments_info of an annotation", file)
    return [mapping(segment, "a segment", file) for segment in listed]


def _mask(segmentation: object, size: tuple[int, int]) -> Mask:
    if isinstance(segmentation, list):
        return polygons(segmentation, size)
    if not isinstance(segmentation, dict):
        raise ShapeError("expected polygons or run lengths")
    declared = segmentation.get("size")
    if declared != [size[1], size[0]]:
        raise ShapeError(f"run lengths for another size than {size[0]}x{size[1]}")
    return coco_rle(segmentation.get("counts"), size)
