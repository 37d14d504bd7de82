"""What a labelling comes to, in figures: classes, photos, and what is worth a look."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from maskclip.core.vocabulary import Vocabulary
from maskclip.tasks.label.manifest import Found, Outcome

Outcomes = Callable[[], Iterator[Outcome]]
"""Begins again, every time it is called."""

LEAST_PHOTOS = 20
"""Photos with a class from which it is known what is usual for it."""

_LEAST_SHARE = 0.01  # of a photo: smaller regions are unsure as a rule
_LARGE = 0.5  # of a photo


@dataclass(frozen=True)
class Usual:
    """What is usual for a class: Tukey's fences, 1.5 interquartile ranges beyond the quartiles.

    Attributes:
        score: the median of its mean scores.
        least_score: photos below it are unusual.
        share: the median of its shares of the photos that it is in.
        most_share: photos above it are unusual.
    """

    score: float
    least_score: float
    share: float
    most_share: float


@dataclass
class ClassFigures:
    """A class in all photos.

    Attributes:
        name: of the class.
        photos: in how many it is.
        pixels, kept: how many it won, and how many of these are labelled so.
        score: the mean score of the pixels that it won.
        coverage: labelled pixels as a part of all pixels of all photos.
        usual: known from `LEAST_PHOTOS` on.
    """

    name: str
    photos: int = 0
    pixels: int = 0
    kept: int = 0
    score: float = 0.0
    coverage: float = 0.0
    usual: Usual | None = None


@dataclass(frozen=True)
class Doubt:
    """A class in a photo that someone should look at, and why."""

    outcome: Outcome
    label: int
    reason: str


@dataclass
class Summary:
    """What all photos come to.

    Attributes:
        done, failed: how many photos.
        pixels, kept: of all photos, and those that have a label.
        score: the mean score of all pixels.
        classes: in the order of the vocabulary.
        doubts: how many there are.
    """

    done: int = 0
    failed: int = 0
    pixels: int = 0
    kept: int = 0
    score: float = 0.0
    classes: list[ClassFigures] = field(default_factory=list)
    doubts: int = 0

    @property
    def coverage(self) -> float:
        """The part of all pixels that has a label."""
        return self.kept / max(1, self.pixels)


def summarize(outcomes: Outcomes, vocabulary: Vocabulary) -> Summary:
    """Return the figures of all photos and classes."""
    summary = Summary(classes=[ClassFigures(name) for name in vocabulary.names])
    scores = [array("f") for _ in vocabulary.names]
    shares = [array("f") for _ in vocabulary.names]
    for outcome in outcomes():
        if outcome.error is not None:
            summary.failed += 1
            continue
        size = outcome.width * outcome.height
        summary.done += 1
        summary.pixels += size
        for found in outcome.classes:
            figures = summary.classes[found.label]
            figures.photos += 1
            figures.pixels += found.pixels
            figures.kept += found.kept
            figures.score += found.score * found.pixels
            scores[found.label].append(found.score)
            shares[found.label].append(found.pixels / size)
    for label, figures in enumerate(summary.classes):
        summary.kept += figures.kept
        summary.score += figures.score / max(1, summary.pixels)
        figures.score /= max(1, figures.pixels)
        figures.coverage = figures.kept / max(1, summary.pixels)
        if figures.photos >= LEAST_PHOTOS:
            figures.usual = _usual(scores[label], shares[label])
    return summary


def _usual(scores: array[float], shares: array[float]) -> Usual:
    low, score, high = np.quantile(scores, (0.25, 0.5, 0.75)).tolist()
    few, share, many = np.quantile(shares, (0.25, 0.5, 0.75)).tolist()
    return Usual(score, low - 1.5 * (high - low), share, many + 1.5 * (many - few))


def find_doubts(outcome: Outcome, classes: list[ClassFigures]) -> list[Doubt]:
    """Return what is doubtful in a photo, at most once a class.

    A class is doubtful where its score is unusually low, where it covers an unusually large part
    of the photo, or where cleaning dropped most of it.
    """
    size = outcome.width * outcome.height
    reasons = [
        (found.label, _reason(found, found.pixels / size, classes[found.label].usual))
        for found in outcome.classes
    ]
    return [Doubt(outcome, label, reason) for label, reason in reasons if reason is not None]


def _reason(found: Found, share: float, usual: Usual | None) -> str | None:
    if share < _LEAST_SHARE:
        return None
    if usual is not None and found.score < usual.least_score:
        return f"score {found.score:.2f}, usually {usual.score:.2f}"
    if usual is not None and share > max(_LARGE, usual.most_share):
        return f"{share:.0%} of the photo, usually {usual.share:.0%}"
    if found.kept < found.pixels / 2:
        return f"{1 - found.kept / found.pixels:.0%} of it was dropped"
    return None
