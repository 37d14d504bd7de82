"""Counts by scores, by hand; thresholds are those of the best figure."""

import numpy as np
import pytest

from maskclip.core.cleaning import Cleaning, clean
from maskclip.core.vocabulary import Vocabulary
from maskclip.tasks.tune.propose import bins
from maskclip.tasks.tune.tallies import BINS, Tally, best_thresholds, folds

WORDS = Vocabulary.parse(["dog", "grass"])
TRUE = np.array([[0, 0, 0, 1, 1, 255]], np.uint8)
LABELS = np.array([[0, 0, 1, 0, 1, 1]], np.uint8)
SCORES = np.array([[0.9, 0.8, 0.6, 0.3, 0.7, 0.9]], np.float32)


def tally(classes=(0, 1)):
    return Tally.of(LABELS, SCORES, TRUE, classes, count=2)


def test_a_hand_computed_photo():
    found = tally().at(bins([0, 0]))
    assert found.hits.tolist() == [2, 1]
    assert found.labeled.tolist() == [3, 2]  # the ignored pixel counts for nothing
    assert found.true.tolist() == [3, 2]
    assert found.ious.tolist() == [2 / 4, 1 / 3]
    assert found.miou == pytest.approx((0.5 + 1 / 3) / 2)


def test_the_best_thresholds_drop_what_is_wrong_and_unsure():
    needed = best_thresholds(tally(), bins([0, 0]))
    assert needed.tolist() == [31, 61]
    assert tally().at(needed).ious.tolist() == [2 / 3, 1 / 2]


def test_counts_at_thresholds_are_those_of_cleaned_labels():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (40, 50), np.uint8)
    truth = generator.integers(0, 2, (40, 50), np.uint8)
    scores = (generator.integers(0, BINS, (40, 50)) / BINS + 0.005).astype(np.float32)
    needed = [0.35, 0.7]
    found = Tally.of(labels, scores, truth, (0, 1), count=2).at(bins(needed))
    cleaning = Cleaning(by_class=dict(zip(WORDS.names, needed, strict=True)))
    kept = clean(labels, scores, cleaning, WORDS)
    assert found.labeled.tolist() == [(kept == label).sum() for label in (0, 1)]
    assert found.hits.tolist() == [((kept == i) & (truth == i)).sum() for i in (0, 1)]


def test_labels_of_no_true_class_are_missed_alone():
    found = tally((0, -1)).at(bins([0, 0]))
    assert found.labeled.tolist() == [3, 0]
    assert found.ious.tolist() == [0.5, 0]


def test_classes_that_are_nowhere_do_not_count_and_keep_their_thresholds():
    nowhere = Tally.of(LABELS, SCORES, np.zeros_like(TRUE), (0, 1), count=2)
    assert np.isnan(nowhere.at(bins([0, 0])).ious).tolist() == [False, True]
    assert best_thresholds(nowhere, bins([0, 0.4]))[1] == 40


def test_photos_are_shared_out_by_their_names():
    names = [f"photo {index}" for index in range(13)]
    parts = folds(names, 5)
    assert sorted(index for part in parts for index in part) == list(range(13))
    assert {len(part) for part in parts} == {2, 3}
    turned = folds(names[::-1], 5)
    assert {frozenset(names[i] for i in p) for p in parts} == {
        frozenset(names[::-1][i] for i in p) for p in turned
    }
