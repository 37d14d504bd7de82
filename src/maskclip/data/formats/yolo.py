"""`yolo`: a polygon for each region, as YOLO's segmentation networks are trained on.

A polygon goes through the centres of a region's outermost pixels, and is filled with its outline
(as `cv2.fillPoly` does), so that it gives exactly the region's pixels. A polygon cannot have holes:
the outline of each hole is joined to the outline left of it by a bridge, which is crossed there and
back and lies on pixels of the region.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from maskclip.core.files import write_text
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.base import Format, Labeled, present, some_foreground

Points = npt.NDArray[np.int64]  # (N, 2): x and y of pixels, the last joined to the first
Bridge = tuple[int, Points]  # where an outline is left, and the way back to that point

_WITHIN = 0.25  # of a pixel; readers that round and readers that cut off then find the same pixel


class Yolo(Format):
    """`labels/NAME.txt`, whose lines are a class id and the points of a polygon, and `data.yaml`.

    A point is x / W and y / H. A polygon of fewer than three corners repeats them. Background and
    ignored pixels have no polygon; a photo without polygons has an empty file.

    To train on it, put or link the photos as `images/` beside `labels/`, under the same names.
    """

    def __init__(self, vocabulary: Vocabulary, out: Path) -> None:
        super().__init__(vocabulary, out)
        self._classes = some_foreground(vocabulary, "yolo")

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the file of polygons."""
        return (self.out / "labels" / f"{name}.txt",)

    def write(self, item: Labeled) -> None:
        """Write the polygons."""
        labels = self.class_ids(item)
        height, width = labels.shape
        lines = [
            f"{label} {_normalized(polygon, width, height)}\n"
            for label in present(labels, self._classes)
            for polygon in polygons(labels == label)
        ]
        write_text("".join(lines), *self.files(item.name))

    def finish(self, names: Iterable[str]) -> None:
        """Write where the photos are expected, and the names of the classes."""
        quoted = (json.dumps(name, ensure_ascii=False) for name in self.vocabulary.names)
        lines = ["train: images", "val: images", "names:"]
        lines += [f"  {label}: {name}" for label, name in enumerate(quoted)]
        write_text("\n".join(lines) + "\n", self.out / "data.yaml")


def _normalized(points: Points, width: int, height: int) -> str:
    if len(points) < 3:
        points = np.resize(points, (3, 2))
    within = (points + _WITHIN) / (width, height)
    return " ".join(f"{value:.6f}" for value in within.ravel().tolist())


def polygons(mask: npt.NDArray[np.bool_]) -> list[Points]:
    """Return a polygon for each region of `mask` (H, W), whose pixels touch at sides or corners.

    Only corners are kept: a pixel has one, a line two.
    """
    found, links = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not found:
        return []
    outlines = [outline[:, 0].astype(np.int64) for outline in found]
    parents = np.asarray(links).reshape(-1, 4)[:, 3].tolist()  # of a hole; an outer one has none
    holes: dict[int, list[Points]] = {i: [] for i, parent in enumerate(parents) if parent < 0}
    for outline, parent in zip(outlines, parents, strict=True):
        if parent >= 0:
            holes[parent].append(outline)
    return [_corners(_joined(outlines[i], within, mask)) for i, within in holes.items()]


def _joined(outer: Points, holes: Sequence[Points], mask: npt.NDArray[np.bool_]) -> Points:
    """Return one way around a region and all of its holes.

    From the leftmost point of a hole's outline a bridge leads left through the region, up to the
    last pixel of it. What lies beyond begins farther left than this hole, so that joining from
    right to left ends at the outer outline.
    """
    if not holes:
        return outer
    rings = [outer, *sorted(map(_from_left, holes), key=lambda ring: tuple(ring[0]))]
    left, top = outer.min(axis=0)
    right, bottom = outer.max(axis=0)
    owner = np.zeros((bottom - top + 1, right - left + 1), np.int32)
    place = np.zeros_like(owner)
    for number, ring in reversed(list(enumerate(rings))):  # the leftmost owns what several share
        x, y = (ring - (left, top)).T
        owner[y, x], place[y, x] = number, np.arange(len(ring))
    bridges: list[list[Bridge]] = [[] for _ in rings]
    for number in range(len(rings) - 1, 0, -1):
        x, y = rings[number][0]
        gaps = np.flatnonzero(~mask[y, left:x])
        end = y - top, gaps[-1] + 1 if gaps.size else 0
        around = _with_bridges(rings[number], bridges[number])
        bridges[owner[end]].append((int(place[end]), np.concatenate([around, around[:1]])))
    return _with_bridges(outer, bridges[0])


def _from_left(ring: Points) -> Points:
    """Begin at the leftmost point, the upper one of several."""
    return np.roll(ring, -np.lexsort((ring[:, 1], ring[:, 0]))[0], axis=0)


def _with_bridges(ring: Points, bridges: Sequence[Bridge]) -> Points:
    """Insert the ways that lead away from points of a ring and back."""
    pieces, start = [], 0
    for place, path in sorted(bridges, key=lambda bridge: bridge[0]):
        pieces += [ring[start : place + 1], path]
        start = place
    return np.concatenate([*pieces, ring[start:]])


def _corners(ring: Points) -> Points:
    """Leave out the points at which the direction does not change."""
    moved: Points = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    if not len(moved):
        return ring[:1]
    direction = np.sign(np.roll(moved, -1, axis=0) - moved)
    turns: npt.NDArray[np.bool_] = (direction != np.roll(direction, 1, axis=0)).any(axis=1)
    return moved[turns]
