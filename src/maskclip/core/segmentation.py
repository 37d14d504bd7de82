"""The one result type: a class and a score for every pixel, and the words they stand for."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core import draw
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import atomic_path
from maskclip.core.regions import Regions, vote
from maskclip.core.text import check_kind, check_path
from maskclip.core.vocabulary import Vocabulary

_SHOWN = 1024  # px of the longer side of a picture in a notebook


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The labels of one image. H and W are the image's own height and width.

    Attributes:
        labels: (H, W), uint8 up to 255 classes, else uint16: indices into the vocabulary; its
            `ignore` where a pixel scores less than its class needs (`Vocabulary.confidence`).
        scores: (H, W) float32, the value with which each pixel's class won. Probabilities in
            [0, 1], except from the published method, and others made of it: the cosines of methods
            whose `upsample` is `"maps"` (or `"prompts"`, with prompt denoising), and the sums of
            probabilities that key smoothing leaves where a method's `smoothed_probabilities` is
            off, which have no bound. After a vote of segments: see `voted`.
        vocabulary: the classes.
        image: the RGB photo, when it should be kept for `overlay`.

    Raises:
        MaskCLIPError: shapes, types or values that do not fit together.

    Examples:
        >>> segmenter = maskclip.load("emoji")
        >>> found = segmenter.segment("photo.jpg", ["dog", "balloon", "grass"])
        >>> found.labels.shape, found.labels.dtype, found.scores.dtype
        ((256, 256), dtype('uint8'), dtype('float32'))
        >>> found.vocabulary.names[found.labels[20, 20]]  # of a row and a column
        'grass'

        One of arrays that you have, such as masks that somebody drew:

        >>> import numpy as np
        >>> maskclip.Segmentation(
        ...     labels=np.array([[0, 1], [1, 1]], np.uint8),
        ...     scores=np.ones((2, 2), np.float32),
        ...     vocabulary=maskclip.Vocabulary.parse(["dog", "grass"]),
        ... )
        Segmentation(2x2: grass 75.0%, dog 25.0%)
    """

    labels: draw.Labels
    scores: npt.NDArray[np.float32]
    vocabulary: Vocabulary
    image: Image.Image | None = None

    def __post_init__(self) -> None:
        check_kind(self.vocabulary, Vocabulary, "`vocabulary`: expected a Vocabulary")
        for name in ("labels", "scores"):
            check_kind(getattr(self, name), np.ndarray, f"`{name}`: expected an array (H, W)")
        labels, scores, count = self.labels, self.scores, len(self.vocabulary)
        if labels.ndim != 2 or labels.size == 0:
            raise MaskCLIPError(
                f"labels must be (H, W) with at least one pixel, got {labels.shape}"
            )
        if labels.dtype not in (self.vocabulary.label_dtype, np.uint16):
            wanted = np.dtype(self.vocabulary.label_dtype).name
            raise MaskCLIPError(f"labels of {count} classes must be {wanted}, got {labels.dtype}")
        most = int(labels.max(where=labels != self.vocabulary.ignore, initial=0))
        if most >= count:
            raise MaskCLIPError(f"labels must be below {count}, the number of classes, got {most}")
        if scores.shape != labels.shape or scores.dtype != np.float32:
            raise MaskCLIPError(
                f"scores must be float32 of the labels' shape {labels.shape}, "
                f"got {scores.dtype} {scores.shape}"
            )
        if not np.isfinite(scores).all():
            raise MaskCLIPError("scores must be finite, got NaN or infinity")
        if self.image is not None:
            self._check_size(self.image)

    def _check_size(self, image: Image.Image) -> None:
        check_kind(image, Image.Image, "`image`: expected a Pillow image")
        height, width = self.labels.shape
        if image.size != (width, height):
            raise MaskCLIPError(
                f"expected the segmented image of {width}x{height} pixels, "
                f"got one of {image.width}x{image.height}"
            )

    def __repr__(self) -> str:
        height, width = self.labels.shape
        found = ", ".join(f"{name} {share:.1%}" for name, share in self.coverage().items())
        return f"Segmentation({width}x{height}: {found})"

    def _repr_jpeg_(self) -> bytes | None:
        """Return the overlay, which notebooks show; None, and they show text, without a photo."""
        if self.image is None:
            return None
        picture, file = self.overlay(), io.BytesIO()
        picture.thumbnail((_SHOWN, _SHOWN))
        picture.save(file, format="JPEG", quality=90)
        return file.getvalue()

    def coverage(self) -> dict[str, float]:
        """Return the fraction of pixels of each class that appears, largest first.

        Their sum is 1, or less where pixels were dropped.

        Examples:
            >>> list(found.coverage())
            ['grass', 'dog', 'balloon']
        """
        names = self.vocabulary.names
        found = draw.class_pixels(self.labels, len(names))
        return {names[label]: pixels / self.labels.size for label, pixels in found}

    def voted(self, regions: Regions) -> Segmentation:
        """Return the segmentation in which the pixels of each segment have voted on their class.

        The class of most pixels becomes that of the segment, whose score is the sum of the scores
        of those pixels, divided by the number of all.

        Args:
            regions: (H, W) whole numbers, of any tool; pixels of 0 and below belong to no segment
                and stay as they are, as do pixels that were dropped.

        Raises:
            MaskCLIPError: regions of another shape or type.

        Examples:
            Squares of 64 px, each of which becomes one class:

            >>> squares = np.arange(256) // 64
            >>> regions = 1 + 4 * squares[:, None] + squares
            >>> voted = found.voted(regions)
            >>> np.unique(voted.labels[regions == 6]).size
            1
        """
        ignore = self.vocabulary.ignore
        labels, scores = vote(self.labels, self.scores, regions, ignore=ignore)
        return replace(self, labels=labels, scores=scores)

    def overlay(
        self, image: Image.Image | None = None, *, opacity: float = 0.62, legend: bool = True
    ) -> Image.Image:
        """Return the photo with class colours blended over it, RGB.

        With a legend the picture grows by a panel of names and percentages, and a tiny photo is
        enlarged by a whole factor; without one it keeps its size.

        Args:
            image: the photo; needed unless the segmentation keeps it.
            opacity: of the colours, 0 to 1.
            legend: whether to add names and percentages.

        Raises:
            MaskCLIPError: no photo, one of another size, or an opacity out of range.

        Examples:
            >>> found.overlay().save("overlay.png")
            >>> found.overlay(opacity=0.4, legend=False).size
            (256, 256)
        """
        image = self.image if image is None else image
        if image is None:
            raise MaskCLIPError("the segmentation keeps no image: pass it, overlay(image)")
        self._check_size(image)
        labels, words = self.labels, self.vocabulary
        if not legend:
            return draw.overlay(image, labels, words.colors, opacity=opacity)
        return draw.overlay_with_legend(image, labels, words.names, words.colors, opacity=opacity)

    def label_image(self) -> Image.Image:
        """Return the labels as an image whose pixel values are class indices.

        A palette image (mode P) in the vocabulary's colours for uint8 labels, 16-bit greyscale
        (mode I;16) for uint16.

        Examples:
            >>> found.label_image().mode, found.label_image().getpixel((20, 20))
            ('P', 2)
        """
        if self.labels.dtype == np.uint8:
            return draw.palette_image(self.labels, self.vocabulary.colors)
        return Image.fromarray(self.labels)

    def score_image(self) -> Image.Image:
        """Return the scores as 8-bit greyscale: round(255 x score), clipped to 0..255.

        Examples:
            >>> found.score_image().mode
            'L'
        """
        return score_image(self.scores)

    def save_png(self, path: str | os.PathLike[str]) -> None:
        """Write `label_image` as PNG to `path`; the file appears whole or not at all.

        Raises:
            MaskCLIPError: it is no path.
            OSError: the file cannot be written.

        Examples:
            >>> from PIL import Image
            >>> found.save_png("labels.png")
            >>> bool((np.array(Image.open("labels.png")) == found.labels).all())
            True
        """
        _save_png(self.label_image(), path)

    def save_scores(self, path: str | os.PathLike[str]) -> None:
        """Write `score_image` as PNG to `path`; the file appears whole or not at all.

        Raises:
            MaskCLIPError: it is no path.
            OSError: the file cannot be written.

        Examples:
            >>> found.save_scores("scores.png")
        """
        _save_png(self.score_image(), path)

    def to_dict(self) -> dict[str, Any]:
        """Summarise for JSON: size, the vocabulary's names, and the classes found, largest first.

        Each class found has its name, label, coverage (fraction of pixels) and mean score.

        Examples:
            >>> summary = found.to_dict()
            >>> summary["width"], summary["height"], summary["vocabulary"]
            (256, 256, ['dog', 'balloon', 'grass'])
            >>> [(one["label"], one["name"]) for one in summary["classes"]]
            [(2, 'grass'), (0, 'dog'), (1, 'balloon')]
        """
        return summary_dict(self.labels, self.scores, self.vocabulary)


def score_image(scores: npt.NDArray[np.float32]) -> Image.Image:
    """Return scores (H, W) as 8-bit greyscale: round(255 x score), clipped to 0..255."""
    return Image.fromarray((255 * scores.clip(0, 1)).round().astype(np.uint8))


def summary_dict(
    labels: draw.Labels, scores: npt.NDArray[np.float32], vocabulary: Vocabulary
) -> dict[str, Any]:
    """Summarise for JSON, as `Segmentation.to_dict`.

    Args:
        labels: (H, W) class ids; others, such as the ignored label, are of no class.
        scores: (H, W), how sure each is.
        vocabulary: the classes.
    """
    height, width = labels.shape
    _, sums = class_totals(labels, scores)
    return {
        "width": width,
        "height": height,
        "classes": [
            {
                "name": vocabulary.names[label],
                "label": label,
                "coverage": pixels / labels.size,
                "score": float(sums[label] / pixels),
            }
            for label, pixels in draw.class_pixels(labels, len(vocabulary))
        ],
        "vocabulary": list(vocabulary.names),
    }


_BAND = 4_000_000  # pixels that are counted at once


def class_totals(
    labels: draw.Labels, scores: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return how many pixels (n,) each id has, and the sum (n,) of their scores.

    They are counted in bands, for counting takes 16 bytes a pixel.

    Args:
        labels: (H, W) ids; n is one more than the largest.
        scores: (H, W).
    """
    count = int(labels.max()) + 1
    pixels, sums = np.zeros(count, np.int64), np.zeros(count)
    flat, weights = labels.ravel(), scores.ravel()
    for start in range(0, flat.size, _BAND):
        part = flat[start : start + _BAND]
        pixels += np.bincount(part, minlength=count)
        sums += np.bincount(part, weights=weights[start : start + _BAND], minlength=count)
    return pixels, sums


def _save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    check_path(path)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
