"""Drop labels that are not sure enough, or whose region is too small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.vocabulary import Vocabulary

_BAND = 4_000_000  # pixels that are compared at once


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """Which labels are dropped.

    Attributes:
        confidence: pixels with a lower score, in [0, 1], are dropped, unless the vocabulary says
            what their class needs.
        by_class: class name -> its own confidence instead of both.
        min_region: connected regions of fewer pixels are dropped (4-connectivity).

    Raises:
        MaskCLIPError: a value is out of its range.
    """

    confidence: float = 0.0
    by_class: Mapping[str, float] = field(default_factory=dict)
    min_region: int = 0

    def __post_init__(self) -> None:
        given = {"the confidence": self.confidence} | {
            f"the confidence of {name!r}": value for name, value in self.by_class.items()
        }
        for what, value in given.items():
            if not 0 <= value <= 1:
                raise MaskCLIPError(f"{what} is a score in [0, 1], got {value}")
        if self.min_region < 0:
            raise MaskCLIPError(f"`min_region` is a number of pixels or 0, got {self.min_region}")

    def thresholds(self, vocabulary: Vocabulary) -> npt.NDArray[np.float32]:
        """Return the confidence that each class needs, (K,).

        A background by threshold needs none: its score is the threshold, whatever the pixel.

        Raises:
            MaskCLIPError: `by_class` names an unknown class.
        """
        unknown = [name for name in self.by_class if name not in vocabulary.names]
        if unknown:
            raise MaskCLIPError(
                f"a confidence for {unknown[0]!r}, which is not one of the {len(vocabulary)} "
                f"classes{did_you_mean(unknown[0], vocabulary.names)}"
            )
        of_file = vocabulary.confidence or (0.0,) * len(vocabulary)
        needed = [
            self.by_class.get(name, own or self.confidence)
            for name, own in zip(vocabulary.names, of_file, strict=True)
        ]
        if vocabulary.threshold is not None:
            needed[0] = 0.0
        return np.array(needed, np.float32)

    def useless(self, vocabulary: Vocabulary) -> str | None:
        """Return a warning of a confidence that drops no pixel, or None.

        The scores are the best of probabilities that sum to one; a background by threshold takes
        the pixels below it.
        """
        start = 0 if vocabulary.threshold is None else 1
        names = vocabulary.names[start:]
        floor = max(1 / len(names), vocabulary.threshold or 0)
        given = {} if set(names) <= self.by_class.keys() else {"": self.confidence}
        if self.confidence <= floor:  # else a lower one of a class keeps what would be dropped
            given |= {
                f" for {name!r}": self.by_class[name] for name in names if name in self.by_class
            }
        idle = [f"{value:g}{whose}" for whose, value in given.items() if 0 < value <= floor]
        if not idle:
            return None
        if len(names) == 1:
            return "a confidence does nothing with one class, whose score is always 1"
        return (
            f"a confidence of {', '.join(idle)} does nothing: the best of {len(names)} "
            f"probabilities is never below {floor:.3g}; take one above it"
            if floor == 1 / len(names)
            else f"a confidence of {', '.join(idle)} does nothing: what scores below {floor:g} is "
            "background; take one above it"
        )


def clean(
    labels: Labels, scores: npt.NDArray[np.float32], cleaning: Cleaning, vocabulary: Vocabulary
) -> Labels:
    """Return labels in which dropped pixels have the ignored label.

    Pixels of low confidence are dropped first, and regions are measured without them.

    Args:
        labels: (H, W) class ids, or the ignored label; not changed.
        scores: (H, W), the score of each label.
        cleaning: what is dropped.
        vocabulary: the classes.

    Raises:
        MaskCLIPError: a confidence is given for an unknown class.
    """
    needed = cleaning.thresholds(vocabulary)
    ignored = labels.dtype.type(vocabulary.ignore)
    cleaned = labels
    if needed.any():
        cleaned = labels.copy()
        needed = np.pad(needed, (0, vocabulary.ignore + 1 - len(needed)))
        rows = max(1, _BAND // labels.shape[1])
        for part in (slice(top, top + rows) for top in range(0, len(labels), rows)):
            cleaned[part][scores[part] < needed[labels[part]]] = ignored
    if cleaning.min_region > 1:
        cleaned = np.where(_small_regions(cleaned, cleaning.min_region), ignored, cleaned)
    return cleaned


def drop_unsure(labels: Labels, scores: npt.NDArray[np.float32], vocabulary: Vocabulary) -> Labels:
    """Return labels (H, W) without pixels that score less than the vocabulary says they need.

    As `clean` without more to be dropped: what all do who label with a class file.
    """
    return clean(labels, scores, _NOTHING_MORE, vocabulary) if vocabulary.confidence else labels


_NOTHING_MORE = Cleaning()


def _small_regions(labels: Labels, least: int) -> npt.NDArray[np.bool_]:
    """Return which pixels (H, W) are in a connected region of fewer than `least` pixels."""
    import cv2  # rarely needed, and not quick to import

    small = np.zeros(labels.shape, np.bool_)
    for label in np.unique(labels):
        mask = (labels == label).view(np.uint8)
        _, regions, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        few = stats[:, cv2.CC_STAT_AREA] < least
        few[0] = False  # all pixels of other labels
        if few.any():
            small |= few[regions]
    return small
