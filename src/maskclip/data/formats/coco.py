"""`coco`: COCO's panoptic segmentation, and each connected region as an instance."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import atomic_path, write_text
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.base import (
    DEFAULT_FORMAT_OPTIONS,
    Format,
    FormatOptions,
    Labeled,
    PhotoFile,
    compact_json,
    foreground,
    ordered,
    present,
    read_lines,
    renamed,
    write_items,
)
from maskclip.data.formats.regions import Region, find_regions


class Coco(Format):
    """`panoptic.json` with `panoptic/NAME.png`, and `instances.json`.

    The category of class i is i + 1. The panoptic segmentation has one segment for each class that
    appears, and its id is that of its category: R + 256 G + 65,536 B of its pixels; 0 is ignored.
    All categories are stuff (`isthing` 0), because CLIP does not tell instances apart, but those
    that `FormatOptions.things` names; they have one segment in a photo, too.
    `instances.json` has each connected region of a class other than the background: compressed RLE,
    box, area, and the mean score where scores are known.

    Images are numbered from 1 in the order of their names. `.parts/` keeps what each photo adds to
    the JSON files, so that they can be written again.
    """

    wants_scores = True

    def __init__(
        self, vocabulary: Vocabulary, out: Path, options: FormatOptions = DEFAULT_FORMAT_OPTIONS
    ) -> None:
        super().__init__(vocabulary, out, options)
        for name in options.things:
            if name not in vocabulary.names:
                near = difflib.get_close_matches(name, vocabulary.names, n=1)
                hint = f": did you mean {near[0]!r}?" if near else ""
                raise MaskCLIPError(f"the thing {name!r} is not one of the classes{hint}")

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the panoptic image and the photo's part of the JSON files."""
        return self.out / "panoptic" / f"{name}.png", self._part(name)

    def write(self, item: Labeled) -> None:
        """Write the panoptic image and the part: a line each for image, segments, instances."""
        item.check_paths()
        labels = self.class_ids(item)
        height, width = labels.shape
        regions = find_regions(labels, present(labels, foreground(self.vocabulary)), item.scores)
        ids = labels + labels.dtype.type(1)  # the ignored label is the type's largest: it becomes 0
        image, part = self.files(item.name)
        with atomic_path(image) as temporary:
            Image.fromarray(_as_colors(ids)).save(temporary)
        lines = [
            {"file_name": item.image, "width": width, "height": height},
            {"file_name": f"{item.name}.png", "segments_info": _segments(ids)},
            *map(_instance, regions),
        ]
        write_text("".join(f"{compact_json(line)}\n" for line in lines), part)

    def finish(self, photos: Iterable[PhotoFile]) -> list[str]:
        """Write the two JSON files."""
        found = ordered(photos)
        parts = [self._part(photo.name) for photo in found]
        self._write_set("panoptic", parts, _panoptic_annotations(parts))
        self._write_set("instances", parts, _instance_annotations(parts))
        return renamed(
            found,
            "coco: some tools find masks by the names of photos without suffix",
            "rename one of the two for these",
        )

    def _part(self, name: str) -> Path:
        return self.out / ".parts" / f"{name}.jsonl"

    def _write_set(self, kind: str, parts: list[Path], annotations: Iterator[str]) -> None:
        images = (_joined({"id": i}, next(read_lines(part))) for i, part in enumerate(parts, 1))
        info = {"description": f"{kind} labels by maskclip"}
        with (
            atomic_path(self.out / f"{kind}.json") as temporary,
            temporary.open("w", encoding="utf-8", newline="\n") as file,
        ):
            file.write(f'{{"info":{compact_json(info)},\n"categories":')
            file.write(f'{compact_json(self._categories())},\n"images":')
            write_items(images, file)
            file.write(',\n"annotations":')
            write_items(annotations, file)
            file.write("}\n")

    def _categories(self) -> list[dict[str, Any]]:
        things = set(self.options.things)
        named = zip(self.vocabulary.names, self.vocabulary.colors, strict=True)
        return [
            {
                "id": i,
                "name": name,
                "supercategory": name,
                "isthing": int(name in things),
                "color": color,
            }
            for i, (name, color) in enumerate(named, 1)
        ]


def _as_colors(ids: Labels) -> npt.NDArray[np.uint8]:
    """Return ids (H, W) as red, green and blue (H, W, 3), the lowest byte first."""
    wide = ids.astype("<u4")
    return wide[..., None].view(np.uint8)[..., :3]


def _segments(ids: Labels) -> list[dict[str, Any]]:
    """Return COCO's description of every id but 0."""
    areas = np.bincount(ids.ravel())
    return [
        {
            "id": i,
            "category_id": i,
            "area": int(areas[i]),
            "bbox": list(cv2.boundingRect((ids == i).view(np.uint8))),
            "iscrowd": 0,
        }
        for i in np.flatnonzero(areas).tolist()
        if i
    ]


def _instance(region: Region) -> dict[str, Any]:
    score = {} if region.score is None else {"score": round(region.score, 4)}
    return {
        "category_id": region.label + 1,
        "segmentation": region.rle,
        "area": region.area,
        "bbox": region.box,
        "iscrowd": 0,
        **score,
    }


def _panoptic_annotations(parts: Iterable[Path]) -> Iterator[str]:
    for image_id, part in enumerate(parts, 1):
        (segments,) = islice(read_lines(part), 1, 2)
        yield _joined({"image_id": image_id}, segments)


def _instance_annotations(parts: Iterable[Path]) -> Iterator[str]:
    numbers = count(1)
    for image_id, part in enumerate(parts, 1):
        for instance in islice(read_lines(part), 2, None):
            yield _joined({"id": next(numbers), "image_id": image_id}, instance)


def _joined(first: dict[str, int], second: str) -> str:
    """Put fields before those of a JSON object, without parsing it."""
    return f"{compact_json(first)[:-1]},{second[1:]}"
