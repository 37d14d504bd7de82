"""What is better for a labelling: words, background and thresholds, by photos that were corrected.

The choice is one function of some photos: `Bench` keeps what the network saw in each, and labels it
with any words. It is made on all photos but a fold and measured on that, so the figure is of photos
that the choice did not see; what is proposed is then chosen on all photos.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from maskclip.core.cleaning import Cleaning, clean
from maskclip.core.draw import Labels
from maskclip.core.errors import MaskCLIPWarning
from maskclip.core.regions import Regions
from maskclip.core.vocabulary import Vocabulary
from maskclip.tasks.photo_segmenter import EncodedPhoto, Segmenter
from maskclip.tasks.tune.changes import Change
from maskclip.tasks.tune.tallies import BINS, Bins, Overlaps, Tally, best_thresholds, folds

FOLDS = 5
STAGES = ("words", "background", "thresholds")

_LEAST_GAIN = 0.002  # in mIoU, for which words are changed
_LEAST_CROSS_VALIDATED = 0.0005  # for which a stage is taken


@dataclass(frozen=True, eq=False)
class Reviewed:
    """A photo whose labels people accepted or corrected.

    Attributes:
        name: of its results.
        encoded: what the network sees in it.
        labels: (H, W) of the encoded photo, the true classes.
        regions: (H, W), the segments that vote, where they are of a folder.
        min_region: regions of fewer pixels of the encoded photo are dropped.
    """

    name: str
    encoded: EncodedPhoto
    labels: Labels
    regions: Regions | None = None
    min_region: int = 0


class Bench:
    """Labels photos with any words, and counts what is right; each photo and vocabulary once.

    Args:
        segmenter: has encoded the photos.
        photos: with their true classes.
        vocabulary: the classes that the truth is of.
        refinement: of maps, as `Segmenter.score` takes it.
        on_count: is called after each labelling.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        photos: Sequence[Reviewed],
        vocabulary: Vocabulary,
        refinement: dict[str, Any],
        on_count: Callable[[], None] = lambda: None,
    ) -> None:
        self._segmenter, self.photos, self.vocabulary = segmenter, photos, vocabulary
        self._refinement, self._on_count = refinement, on_count
        self._known: dict[tuple[Vocabulary, bytes, int], Tally] = {}

    def tally(self, vocabulary: Vocabulary, photos: Sequence[int]) -> Tally:
        """Return the counts of some photos, labelled with a vocabulary of the same classes.

        Regions that are too small are dropped from what has any score.
        """
        return reduce(add, (self._one(vocabulary, index) for index in photos))

    def overlaps(self, choice: Choice, photos: Sequence[int]) -> Overlaps:
        """Return the counts of some photos, labelled as `label` does it."""
        return reduce(
            add,
            (
                self._one(choice.vocabulary, index, choice.needed).at(choice.needed)
                for index in photos
            ),
        )

    def _one(self, vocabulary: Vocabulary, index: int, needed: Bins | None = None) -> Tally:
        """Count a photo; regions are as large as what scores as `needed` leaves them."""
        photo, own = self.photos[index], self.vocabulary.names
        decides = needed is not None and photo.min_region > 1
        key = vocabulary, needed.tobytes() if needed is not None and decides else b"", index
        known = self._known.get(key)
        if known is not None:
            return known
        words = vocabulary.with_confidence({})
        with warnings.catch_warnings():  # of words that are only tried
            warnings.simplefilter("ignore", MaskCLIPWarning)
            found = self._segmenter.score(photo.encoded, words, **self._refinement)
        if photo.regions is not None:
            found = found.voted(photo.regions)
        if needed is not None and decides:
            words = words.with_confidence(_least(needed, own, words))
        labels = clean(found.labels, found.scores, Cleaning(min_region=photo.min_region), words)
        classes = [own.index(name) if name in own else -1 for name in vocabulary.names]
        tally = Tally.of(labels, found.scores, photo.labels, classes, count=len(own))
        self._known[key] = tally
        self._on_count()
        return tally


@dataclass(frozen=True, eq=False)
class Choice:
    """Words, and the bin of the score (K,) that each class needs."""

    vocabulary: Vocabulary
    needed: Bins


@dataclass(frozen=True, eq=False)
class Proposal:
    """What was chosen, and what it is worth on photos that were not seen.

    Attributes:
        vocabulary: with the background and the confidence of each class.
        before, after: the pixels of all photos, as they are labelled now and, cross-validated, with
            what was chosen.
        stages: the cross-validated mIoU with each stage on top of those taken before it; and
            whether it was taken.
        photos: how many there are.
    """

    vocabulary: Vocabulary
    before: Overlaps
    after: Overlaps
    stages: dict[str, tuple[float, bool]]
    photos: int


def propose(
    bench: Bench,
    needed: Bins,
    changes: dict[str, Sequence[Change]],
    *,
    thresholds: bool = True,
    on_stage: Callable[[str, int], None] = lambda *_: None,
) -> Proposal:
    """Choose words, then a background, then thresholds, each if it helps on photos it did not see.

    Args:
        bench: of the photos.
        needed: (K,) the bins of the scores that classes need now.
        changes: what may be tried, for the stages `words` and `background`.
        thresholds: whether scores are probabilities, of which thresholds can be chosen.
        on_stage: is called before each stage with its name, and how often photos are labelled at
            most until it is decided.
    """
    parts = folds([photo.name for photo in bench.photos], FOLDS)
    everything = list(range(len(bench.photos)))
    start = Choice(bench.vocabulary, needed)
    on_stage("start", len(everything))
    before = bench.overlaps(start, everything)
    taken: list[str] = []
    after, stages = before, {}
    for stage in STAGES:
        if not (thresholds if stage == "thresholds" else changes.get(stage)):
            continue
        on_stage(stage, len(everything) * _vocabularies(len(changes.get(stage, ())), taken))
        found = _cross_validated(bench, start, [*taken, stage], changes, parts)
        better = found.miou > after.miou + _LEAST_CROSS_VALIDATED
        stages[stage] = found.miou, better
        if better:
            taken, after = [*taken, stage], found
    on_stage("all photos", len(everything) * sum(len(changes.get(one, ())) + 2 for one in taken))
    chosen = _choose(bench, start, taken, changes, everything)
    return Proposal(_described(chosen, bench), before, after, stages, len(everything))


def _vocabularies(changes: int, taken: Sequence[str]) -> int:
    """Return how many vocabularies a stage tries at most.

    Each fold may have come to words of its own, changes one by one, and joins what helps.
    """
    begun = FOLDS if taken else 1
    return begun * (changes + 1) + FOLDS


def _described(choice: Choice, bench: Bench) -> Vocabulary:
    """Return the vocabulary of a choice, with the scores that its classes need."""
    words = choice.vocabulary
    return words.with_confidence(_least(choice.needed, bench.vocabulary.names, words))


def _least(needed: Bins, own: Sequence[str], words: Vocabulary) -> dict[str, float]:
    """Return the scores that classes of a vocabulary need, where they need any.

    Args:
        needed: (K,) their bins, of the classes `own`.
        own: the names of all K classes.
        words: the vocabulary; its background needs none where it is a threshold.
    """
    values = dict(zip(own, (needed / BINS).tolist(), strict=True))
    start = 0 if words.threshold is None else 1
    return {name: values[name] for name in words.names[start:] if values.get(name)}


def _cross_validated(
    bench: Bench,
    start: Choice,
    stages: Sequence[str],
    changes: dict[str, Sequence[Change]],
    parts: Sequence[Sequence[int]],
) -> Overlaps:
    """Return the counts of each fold's photos, labelled as the others chose."""
    found = []
    for part in parts:
        rest = [index for other in parts if other is not part for index in other]
        choice = _choose(bench, start, stages, changes, rest)
        found.append(bench.overlaps(choice, part))
    return reduce(add, found)


def _choose(
    bench: Bench,
    start: Choice,
    stages: Sequence[str],
    changes: dict[str, Sequence[Change]],
    photos: Sequence[int],
) -> Choice:
    """Return what is best for some photos, stage by stage."""
    choice = start
    for stage in stages:
        if stage == "thresholds":
            tally = bench.tally(choice.vocabulary, photos)
            choice = Choice(choice.vocabulary, best_thresholds(tally, choice.needed))
        else:
            words = _with_changes(bench, choice, changes[stage], photos)
            choice = Choice(words, choice.needed)
    return choice


def _with_changes(
    bench: Bench, choice: Choice, changes: Sequence[Change], photos: Sequence[int]
) -> Vocabulary:
    """Return the vocabulary with all changes that help alone, or the best where that is better."""

    def figure(vocabulary: Vocabulary) -> float:
        return bench.overlaps(Choice(vocabulary, choice.needed), photos).miou

    start = figure(choice.vocabulary)
    gains = {change: figure(change.apply(choice.vocabulary)) - start for change in changes}
    best: dict[str, Change] = {}
    for change in sorted(gains, key=lambda one: -gains[one]):
        if gains[change] > _LEAST_GAIN:
            best.setdefault(change.question, change)
    if not best:
        return choice.vocabulary
    words = choice.vocabulary
    for change in best.values():
        words = change.apply(words)
    alone = next(iter(best.values())).apply(choice.vocabulary)
    return words if figure(words) >= figure(alone) else alone


def bins(needed: Sequence[float]) -> Bins:
    """Return the bins of scores."""
    return np.round(np.array(needed) * BINS).astype(np.intp).clip(0, BINS - 1)
