"""Segments of an image, whose pixels vote on their class, and connected regions of one class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPError, require_extra

Regions = npt.NDArray[np.integer]
"""(H, W): a number for each segment, whichever; 0 and below belong to none."""

SLIC = "slic"
"""The name of superpixels, where a folder of label maps could be named."""

SIDE, COMPACTNESS = 24, 20.0
"""Of superpixels: about their side in px, and the weight of being near beside that of colour.

Of 8 to 32 px and 3 to 30 on drawn scenes, the best for the embedded ResNet and near the best for
the embedded ViT.
"""

_BAND = 4_000_000  # pixels that are counted at once
_MOST_NUMBERS = 1 << 20  # beyond which segments are numbered anew, to be counted in short tables


def vote(
    labels: Labels,
    scores: npt.NDArray[np.float32],
    regions: Regions,
    *,
    ignore: int | None = None,
) -> tuple[Labels, npt.NDArray[np.float32]]:
    """Give the pixels of each segment the class that most of them have.

    Of classes with as many pixels, the one with the higher sum of scores wins, then the first. The
    score of a segment is that sum over all its pixels: of pixels that were outvoted it is not known
    how probable the class is, so they count as 0, and a segment that is not of one mind scores low.

    Args:
        labels: (H, W) class ids; not changed.
        scores: (H, W), with which each pixel's class won; not changed.
        regions: (H, W) numbers of segments, whichever. Pixels of 0 and below belong to none, and
            keep what they have.
        ignore: the label of pixels that neither vote nor change.

    Returns:
        Labels and scores (H, W), in the types they had.

    Raises:
        MaskCLIPError: the shapes differ, or regions are not whole numbers.
    """
    _check(regions, labels.shape)
    numbers = _numbered(regions)
    rows = max(1, _BAND // labels.shape[1])
    parts = [slice(top, top + rows) for top in range(0, len(labels), rows)]
    count = max(int(numbers.max()), 0) + 1
    most, sums = np.zeros(count, np.int64), np.zeros(count)
    voters, winners = np.zeros(count, np.int64), np.zeros(count, labels.dtype)
    for label in _present(labels, parts):
        if label == ignore:
            continue
        votes, total = np.zeros(count, np.int64), np.zeros(count)
        for part in parts:
            having = (labels[part] == label) & (numbers[part] > 0)
            chosen = numbers[part][having]
            if chosen.size:
                votes += np.bincount(chosen, minlength=count)
                total += np.bincount(chosen, weights=scores[part][having], minlength=count)
        voters += votes
        better = (votes > most) | ((votes == most) & (votes > 0) & (total > sums))
        most[better], sums[better], winners[better] = votes[better], total[better], label
    means = (sums / np.maximum(voters, 1)).astype(np.float32)
    voted, sure = labels.copy(), scores.copy()
    for part in parts:
        inside = numbers[part] > 0
        if ignore is not None:
            inside &= labels[part] != ignore
        chosen = numbers[part][inside]
        voted[part][inside], sure[part][inside] = winners[chosen], means[chosen]
    return voted, sure


def superpixels(
    image: npt.NDArray[np.uint8], *, side: int = SIDE, compactness: float = COMPACTNESS
) -> Regions:
    """Return superpixels by SLIC (Achanta et al., TPAMI 2012): (H, W) int32, numbered from 1.

    Args:
        image: (H, W, 3) RGB.
        side: about that of a superpixel in px.
        compactness: of higher ones the superpixels are squarer, of lower ones they keep to edges.

    Raises:
        MaskCLIPError: scikit-image is not installed.
    """
    require_extra("regions", "skimage")
    from skimage.segmentation import slic

    height, width = image.shape[:2]
    count = max(1, round(height * width / side**2))
    if count == 1:
        return np.ones((height, width), np.int32)
    found: Regions = slic(image, n_segments=count, compactness=compactness, start_label=1)
    return found.astype(np.int32)


def enlarge(regions: Regions, size: tuple[int, int]) -> Regions:
    """Return regions at another (height, width), each pixel with the number that is nearest."""
    if regions.shape == size:
        return regions
    rows, columns = (
        (2 * np.arange(length) + 1) * old // (2 * length)
        for length, old in zip(size, regions.shape, strict=True)
    )
    enlarged: Regions = regions[rows[:, None], columns]
    return enlarged


def region_at(labels: Labels, row: int, column: int) -> npt.NDArray[np.bool_]:
    """Return which pixels (H, W) are connected to one of the same label, by their sides.

    Raises:
        MaskCLIPError: there is no such pixel.
    """
    import cv2  # rarely needed, and not quick to import

    height, width = labels.shape
    if not (0 <= row < height and 0 <= column < width):
        raise MaskCLIPError(
            f"row {row}, column {column}: expected a pixel of a photo of {width}x{height}"
        )
    same = (labels == labels[row, column]).view(np.uint8)
    numbers = cv2.connectedComponents(same, connectivity=4)[1]
    region: npt.NDArray[np.bool_] = numbers == numbers[row, column]
    return region


def label_around(labels: Labels, region: npt.NDArray[np.bool_]) -> int | None:
    """Return the label that most of the pixels beside a region have; None if there are none.

    Args:
        labels: (H, W).
        region: (H, W), which pixels are in it.
    """
    beside = np.zeros_like(region)
    beside[1:] |= region[:-1]
    beside[:-1] |= region[1:]
    beside[:, 1:] |= region[:, :-1]
    beside[:, :-1] |= region[:, 1:]
    around = labels[beside & ~region]
    return int(np.bincount(around).argmax()) if around.size else None


def _check(regions: Regions, shape: tuple[int, ...]) -> None:
    if not isinstance(regions, np.ndarray):
        raise MaskCLIPError(
            "`regions`: expected an array (H, W) of whole numbers, a number for each pixel, got "
            f"{type(regions).__name__}"
        )
    if regions.ndim != 2 or regions.dtype.kind not in "iub":
        raise MaskCLIPError(
            f"`regions`: expected a whole number for each pixel, (H, W), got {regions.dtype} of "
            f"shape {regions.shape}"
        )
    if regions.shape != shape:
        raise MaskCLIPError(
            f"`regions`: expected {shape[1]}x{shape[0]} pixels, as the labels have, got "
            f"{regions.shape[1]}x{regions.shape[0]}"
        )


def _numbered(regions: Regions) -> Regions:
    """Return numbers of segments that are short enough for tables; none is 0, or below."""
    if int(regions.max()) < _MOST_NUMBERS:  # NumPy counts no numbers of 64 bits without a sign
        if regions.dtype.kind == "b":
            return regions.astype(np.int32)
        # far below 0 they would come out above it
        return regions.clip(min=0).astype(np.int32) if regions.itemsize > 4 else regions
    known, places = np.unique(regions, return_inverse=True)
    none = int(np.count_nonzero(known <= 0))
    return (places.reshape(regions.shape) - (none - 1)).astype(np.int32)


def _present(labels: Labels, parts: list[slice]) -> list[int]:
    """Return the labels that some pixel has, ascending."""
    counts = np.zeros(int(labels.max()) + 1, np.int64)
    for part in parts:
        counts += np.bincount(labels[part].ravel(), minlength=len(counts))
    return [int(label) for label in np.flatnonzero(counts)]
