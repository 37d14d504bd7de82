"""Polygons of masks: through the centres of pixels, or along their edges.

A polygon cannot have holes: the outline of each hole is joined to the outline left of it by a
bridge, which is crossed there and back and lies on pixels of the region.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.int64]  # (N, 2): x and y, the last joined to the first
Bridge = tuple[int, Points]  # where an outline is left, and the way back to that point


def polygons(mask: npt.NDArray[np.bool_]) -> list[Points]:
    """Return a polygon for each region of `mask` (H, W), whose pixels touch at sides or corners.

    It goes through the centres of pixels. Only corners are kept: a pixel has one, a line two.
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


def edge_polygons(mask: npt.NDArray[np.bool_], *, tolerance: float = 0.0) -> list[Points]:
    """Return a polygon for each region of `mask` (H, W), along the edges of its pixels.

    The pixel (x, y) spans x to x + 1 and y to y + 1.

    Args:
        mask: regions whose pixels touch at sides or corners.
        tolerance: how far, in px, corners may be from the polygon that leaves them out; 0 leaves
            out none, and the polygon has exactly the region's pixels.
    """
    doubled = mask.repeat(2, axis=0).repeat(2, axis=1)
    found = []
    for ring in polygons(doubled):
        # A pixel is two by two now: its outermost centres, 2 x and 2 x + 1, are its edges x and
        # x + 1; around a hole, those of the pixels beside it are the hole's edges.
        exact = _corners((ring + 1) // 2)
        close = cv2.approxPolyDP(exact[:, None].astype(np.int32), tolerance, True)[:, 0]
        found.append(close.astype(np.int64) if tolerance and len(close) > 2 else exact)
    return found


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
