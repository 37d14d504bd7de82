"""An auto-annotation function for CVAT: its tasks are labelled on this machine.

    cvat-cli task auto-annotate 137 --function-module maskclip.cvat \\
        -p words="str:dog, car, person=man,woman" -p model=str:photo --conv-mask-to-poly

CVAT's tools import this module and call `create` with the parameters. What it returns has `spec`,
the labels, and `detect`, which finds their regions in an image. Needs cvat-sdk (extra `cvat`).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core.class_lists import read_background, split_words
from maskclip.core.cleaning import Cleaning, clean
from maskclip.core.config import (
    DEFAULT_MODEL,
    OptionValues,
    check_keywords,
    read_refinements,
)
from maskclip.core.errors import MaskCLIPError, require_extra
from maskclip.core.vocabulary import BACKGROUND, Vocabulary
from maskclip.data.formats.base import present
from maskclip.data.formats.regions import Region, find_regions
from maskclip.data.polygons import edge_polygons
from maskclip.tasks.segmenter import load

if TYPE_CHECKING:
    from cvat_sdk.auto_annotation import DetectionFunctionContext, DetectionFunctionSpec
    from cvat_sdk.models import LabeledShapeRequest


def create(
    words: str = "",
    *,
    vocabulary: str = "",
    background: str = "none",
    model: str = DEFAULT_MODEL,
    method: str = "clean",
    min_region: int = 0,
    tolerance: float = 1.0,
    **options: Unpack[OptionValues],
) -> DetectionFunction:
    """Return the function for CVAT, its model loaded.

    Labels of the task are expected to be called like the classes; CVAT's option
    `--allow-unmatched-labels` leaves out those that are not.

    Args:
        words: classes between commas, or ending at a semicolon where they have synonyms:
            `dog, person=man,woman; car`.
        vocabulary: a built-in set instead of words. A trained student needs neither.
        background: `none`, a threshold, or words: what has no label.
        model, method: as `maskclip.load` takes them.
        min_region: regions of fewer pixels are left out.
        tolerance: how far, in px, a polygon may be from the corners of its region; 0 is exact, with
            a corner at every step of the border.
        options: how images are cut and maps refined, as `segment` takes it: `short_side=512`,
            `refine="pamr"`.

    Raises:
        MaskCLIPError: cvat-sdk is not installed, or a value cannot be used.
    """
    require_extra("cvat", "cvat_sdk")
    check_keywords(
        options,
        OptionValues,
        others=["words", "vocabulary", "background", "model", "method", "min_region", "tolerance"],
    )
    if words and vocabulary:
        raise MaskCLIPError("give `words` or a `vocabulary`, not both")
    if tolerance < 0:
        raise MaskCLIPError(f"`tolerance` is a number of pixels or 0, got {tolerance:g}")
    if isinstance(options.get("refine"), str):
        options["refine"] = read_refinements(options["refine"])
    classes = Vocabulary.builtin(vocabulary) if vocabulary else None
    if words:
        classes = Vocabulary.parse(split_words(words))
    segmenter = load(model, method=method)
    rule = read_background(background)
    return DetectionFunction(
        segmenter,
        segmenter.prepare(classes, background=rule),
        Cleaning(min_region=min_region),
        tolerance,
        options,
    )


class DetectionFunction:
    """What CVAT calls; made by `create`."""

    def __init__(
        self,
        segmenter: Any,
        vocabulary: Vocabulary,
        cleaning: Cleaning,
        tolerance: float,
        options: OptionValues,
    ) -> None:
        self._segmenter, self._vocabulary = segmenter, vocabulary
        self._cleaning, self._tolerance, self._options = cleaning, tolerance, options
        self._labels = [
            label for label, name in enumerate(vocabulary.names) if label or name != BACKGROUND
        ]

    @cached_property
    def spec(self) -> DetectionFunctionSpec:
        """The labels: every class but the background."""
        from cvat_sdk import auto_annotation

        names = self._vocabulary.names
        return auto_annotation.DetectionFunctionSpec(
            labels=[
                auto_annotation.label_spec(names[label], label, type="mask")
                for label in self._labels
            ]
        )

    def detect(
        self, context: DetectionFunctionContext, image: Image.Image
    ) -> list[LabeledShapeRequest]:
        """Return the connected regions of each class in an image.

        A region's confidence is the mean score of its pixels. Regions are masks, or polygons where
        the context wants these.
        """
        found = self._segmenter.segment(image, self._vocabulary, **self._options)
        labels = clean(found.labels, found.scores, self._cleaning, self._vocabulary)
        regions = find_regions(labels, present(labels, self._labels), found.scores)
        least = context.conf_threshold or 0.0
        return [
            shape
            for region in regions
            if region.score is None or region.score >= least
            for shape in self._shapes(region, as_polygons=context.conv_mask_to_poly)
        ]

    def _shapes(self, region: Region, *, as_polygons: bool) -> list[LabeledShapeRequest]:
        from cvat_sdk import auto_annotation

        mask, (left, top) = _cropped(region)
        if as_polygons:
            return [
                auto_annotation.polygon(
                    region.label, (ring + np.array([left, top])).ravel().tolist()
                )
                for ring in edge_polygons(mask, tolerance=self._tolerance)
            ]
        return [auto_annotation.mask(region.label, _encoded(mask, left, top))]


def _cropped(region: Region) -> tuple[npt.NDArray[np.bool_], tuple[int, int]]:
    """Return a region's mask in its box, and where the box is."""
    from pycocotools import mask as coco_mask

    left, top, width, height = region.box
    whole = coco_mask.decode(region.rle)
    return whole[top : top + height, left : left + width].astype(np.bool_), (left, top)


def _encoded(mask: npt.NDArray[np.bool_], left: int, top: int) -> list[int]:
    """Return a mask as CVAT has it: lengths of runs by rows, outside first, then its box."""
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths: list[int] = np.diff(changes, prepend=0, append=flat.size).tolist()
    height, width = mask.shape
    first = [0] if flat[0] else []
    return [*first, *lengths, left, top, left + width - 1, top + height - 1]
