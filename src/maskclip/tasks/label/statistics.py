"""Statistics of a labelling: photos, classes, and what should be reviewed."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from maskclip.core.draw import percent
from maskclip.core.vocabulary import Vocabulary
from maskclip.tasks.label import ClassStats, Outcome

Outcomes = Callable[[], Iterator[Outcome]]
"""Iterates over all outcomes, from the beginning each time it is called."""

LEAST_PHOTOS = 20
"""Photos with a class that are needed to say what is typical of it."""

_LEAST_SHARE = 0.01  # of a photo; smaller regions usually have low scores
_LARGE = 0.5  # of a photo


@dataclass(frozen=True)
class TypicalRange:
    """What is typical of a class: Tukey's fences, 1.5 interquartile ranges beyond the quartiles.

    Attributes:
        score: the median of its mean scores.
        least_score: lower mean scores are unusual.
        share: the median of the parts that it labels of the photos that it is in.
        most_share: larger shares are unusual.
    """

    score: float
    least_score: float
    share: float
    most_share: float


@dataclass
class ClassSummary:
    """A class in all photos.

    Attributes:
        name: of the class.
        photos: in how many it is.
        pixels, kept: how many it won, and how many of them keep it after cleaning.
        score: the mean score of the pixels that it won.
        coverage: its labelled pixels as a fraction of all pixels of all photos.
        typical: known from `LEAST_PHOTOS` photos on.
    """

    name: str
    photos: int = 0
    pixels: int = 0
    kept: int = 0
    score: float = 0.0
    coverage: float = 0.0
    typical: TypicalRange | None = None


@dataclass(frozen=True)
class ReviewFlag:
    """A class in a photo that someone should review, and why."""

    outcome: Outcome
    label: int
    reason: str


@dataclass
class Summary:
    """All photos together.

    Attributes:
        done, failed: how many photos.
        pixels, kept: of all photos, and those of them that are labelled.
        score: the mean score of all pixels.
        classes: in the order of the vocabulary.
        review: how many photos have review flags.
    """

    done: int = 0
    failed: int = 0
    pixels: int = 0
    kept: int = 0
    score: float = 0.0
    classes: list[ClassSummary] = field(default_factory=list)
    review: int = 0

    @property
    def coverage(self) -> float:
        """The fraction of all pixels that is labelled."""
        return self.kept / max(1, self.pixels)


def summarize(outcomes: Outcomes, vocabulary: Vocabulary) -> Summary:
    """Return the statistics of all photos and classes."""
    summary = Summary(classes=[ClassSummary(name) for name in vocabulary.names])
    scores = [array("f") for _ in vocabulary.names]
    shares = [array("f") for _ in vocabulary.names]
    for outcome in outcomes():
        if outcome.error is not None:
            summary.failed += 1
            continue
        size = outcome.width * outcome.height
        summary.done += 1
        summary.pixels += size
        for stats in outcome.classes:
            total = summary.classes[stats.label]
            total.photos += 1
            total.pixels += stats.pixels
            total.kept += stats.kept
            total.score += stats.score * stats.pixels
            scores[stats.label].append(stats.score)
            shares[stats.label].append(stats.kept / size)
    for label, total in enumerate(summary.classes):
        summary.kept += total.kept
        summary.score += total.score / max(1, summary.pixels)
        total.score /= max(1, total.pixels)
        total.coverage = total.kept / max(1, summary.pixels)
        if total.photos >= LEAST_PHOTOS:
            total.typical = _typical_range(scores[label], shares[label])
    return summary


def _typical_range(scores: array[float], shares: array[float]) -> TypicalRange:
    low, score, high = np.quantile(scores, (0.25, 0.5, 0.75)).tolist()
    few, share, many = np.quantile(shares, (0.25, 0.5, 0.75)).tolist()
    return TypicalRange(score, low - 1.5 * (high - low), share, many + 1.5 * (many - few))


def find_review_flags(outcome: Outcome, classes: list[ClassSummary]) -> list[ReviewFlag]:
    """Return what should be reviewed in a photo, at most one flag for each class.

    A class is flagged if its score is unusually low, if it covers an unusually large part of the
    photo, or if cleaning dropped most of it.
    """
    size = outcome.width * outcome.height
    reasons = [
        (stats.label, _reason(stats, size, classes[stats.label].typical))
        for stats in outcome.classes
    ]
    return [ReviewFlag(outcome, label, reason) for label, reason in reasons if reason is not None]


def _reason(stats: ClassStats, size: int, typical: TypicalRange | None) -> str | None:
    if stats.pixels / size < _LEAST_SHARE:
        return None
    share = stats.kept / size
    if typical is not None and stats.score < typical.least_score:
        return f"score {stats.score:.2f}, usually {typical.score:.2f}"
    if typical is not None and share > max(_LARGE, typical.most_share):
        return f"{percent(share)} of the photo, usually {percent(typical.share)}"
    if stats.kept < stats.pixels / 2:
        return f"{percent(1 - stats.kept / stats.pixels)} of its pixels were dropped"
    return None


def doubt(outcome: Outcome) -> float:
    """Return how unsure a photo's labels are: the mean of 1 - score, where dropped pixels count 1.

    It is of use to compare photos of one labelling: scores of other methods have other ranges.
    """
    size = outcome.width * outcome.height
    kept = sum(stats.kept * (1 - stats.score) for stats in outcome.classes)
    return (kept + size - sum(stats.kept for stats in outcome.classes)) / max(1, size)


def by_worth(
    outcomes: Outcomes, vocabulary: Vocabulary
) -> list[tuple[Outcome, list[ReviewFlag], float]]:
    """Return the photos that are done with their flags and doubts, those most worth a look first.

    These are those with most flags, and of as many the one of most doubt.
    """
    classes = summarize(outcomes, vocabulary).classes
    found = [
        (outcome, find_review_flags(outcome, classes), doubt(outcome))
        for outcome in outcomes()
        if outcome.error is None
    ]
    return sorted(found, key=lambda one: (-len(one[1]), -one[2], one[0].task.name))
