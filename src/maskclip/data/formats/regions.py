"""Connected regions of one class in a label map, and their run lengths as COCO has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from maskclip.core.draw import Labels

Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Region:
    """Pixels of one class that touch at sides or corners.

    Attributes:
        label: their class.
        area: how many they are.
        box: x, y, width and height in pixels.
        rle: `{"size": [H, W], "counts": "..."}`, compressed as COCO does.
        score: mean over the pixels; None where no scores are known.
    """

    label: int
    area: int
    box: tuple[int, int, int, int]
    rle: dict[str, Any]
    score: float | None


def find_regions(
    labels: Labels, classes: Sequence[int], scores: npt.NDArray[np.float32] | None = None
) -> list[Region]:
    """Return the regions of some classes, in the order of classes, then from left to right.

    Args:
        labels: (H, W).
        classes: ids that appear, ascending.
        scores: (H, W), the score of each pixel's label.
    """
    numbers, owners = _numbered(labels, classes)
    order, counts = _run_lengths(numbers, owners)
    if not order:
        return []
    height, width = labels.shape
    rles = coco_mask.frPyObjects(
        [{"size": [height, width], "counts": each} for each in counts], height, width
    )
    areas = [int(each[1::2].sum()) for each in counts]  # coco_mask.area fails for more than 255
    boxes = coco_mask.toBbox(rles).astype(int).tolist()
    sums = None if scores is None else np.bincount(numbers.ravel(), weights=scores.ravel())
    return [
        Region(
            label=owners[number],
            area=area,
            box=tuple(box),
            rle={"size": [height, width], "counts": rle["counts"].decode("ascii")},
            score=None if sums is None else float(sums[number] / area),
        )
        for number, area, box, rle in zip(order, areas, boxes, rles, strict=True)
    ]


def _numbered(labels: Labels, classes: Sequence[int]) -> tuple[npt.NDArray[np.int32], list[int]]:
    """Return the number of each pixel's region (H, W), 0 outside of all, and the class of each."""
    numbers, owners = np.zeros(labels.shape, np.int32), [-1]
    for label in classes:
        mask = labels == label
        found, parts = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
        np.add(parts, len(owners) - 1, out=numbers, where=mask)
        owners += [label] * (found - 1)  # one of them is what is not in the mask
    return numbers, owners


def _run_lengths(numbers: npt.NDArray[np.int32], owners: list[int]) -> tuple[list[int], list[Ints]]:
    """Return the regions' numbers, class after class in the order of their first pixels by columns.

    The second list has, for each, the lengths by columns of what is outside, inside, outside ...
    """
    flat = numbers.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    by_region = np.argsort(flat[starts], kind="stable")
    found, firsts = np.unique(flat[starts][by_region], return_index=True)
    runs = {
        number: np.stack([starts[these], ends[these]], axis=1).ravel()
        for number, these in zip(found.tolist(), np.split(by_region, firsts[1:]), strict=True)
        if number
    }
    order = sorted(runs, key=lambda number: (owners[number], runs[number][0]))
    return order, [_lengths(runs[number], flat.size) for number in order]


def _lengths(bounds: Ints, size: int) -> Ints:
    """Beginnings and ends of runs in turn -> the lengths of gaps and runs in turn."""
    lengths = np.diff(bounds, prepend=0, append=size)
    return lengths if lengths[-1] else lengths[:-1]
