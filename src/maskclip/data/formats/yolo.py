"""`yolo`: a polygon for every region, as YOLO's segmentation networks are trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from maskclip.core.files import write_text
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.base import Format, Labeled, present, some_foreground
from maskclip.data.formats.polygons import Points, polygons

_WITHIN = 0.25  # of a pixel; readers that round and readers that cut off then find the same pixel


class Yolo(Format):
    """`labels/NAME.txt`, whose lines are a class id and the points of a polygon, and `data.yaml`.

    A point is x / W and y / H. Points lie in the outermost pixels of a region, and filling a
    polygon with its outline gives its pixels; holes are cut by bridges (see `polygons`). A
    polygon of fewer than three corners repeats them. Background and ignored pixels have no polygon;
    a photo without any has an empty file.

    To train on it, put or link the photos as `images/` beside `labels/`, under the same names.
    """

    def __init__(self, vocabulary: Vocabulary, out: Path) -> None:
        super().__init__(vocabulary, out)
        self._classes = some_foreground(vocabulary, "yolo")

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the text of polygons."""
        return (self.out / "labels" / f"{name}.txt",)

    def write(self, item: Labeled) -> None:
        """Write the text of polygons."""
        labels = self.class_ids(item)
        height, width = labels.shape
        lines = [
            f"{label} {_normalized(polygon, width, height)}\n"
            for label in present(labels, self._classes)
            for polygon in polygons(labels == label)
        ]
        write_text("".join(lines), *self.files(item.name))

    def finish(self, names: Iterable[str]) -> None:
        """Write where photos are expected and how the classes are called."""
        called = (json.dumps(name, ensure_ascii=False) for name in self.vocabulary.names)
        lines = ["train: images", "val: images", "names:"]
        lines += [f"  {label}: {name}" for label, name in enumerate(called)]
        write_text("\n".join(lines) + "\n", self.out / "data.yaml")


def _normalized(points: Points, width: int, height: int) -> str:
    if len(points) < 3:
        points = np.resize(points, (3, 2))
    within = (points + _WITHIN) / (width, height)
    return " ".join(f"{value:.6f}" for value in within.ravel().tolist())
