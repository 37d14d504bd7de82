import re

import numpy as np
import pytest

from maskclip.core.cleaning import Cleaning, clean
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary

WORDS = Vocabulary.parse(["dog", "grass", "sky"])
X = WORDS.ignore


def cleaned(labels, scores=1.0, vocabulary=WORDS, dtype=np.uint8, **fields):
    array = np.array(labels, dtype)
    before = array.copy()
    sure = np.broadcast_to(np.float32(scores), array.shape)
    result = clean(array, sure, Cleaning(**fields), vocabulary)
    assert np.array_equal(array, before)
    assert result.dtype == dtype
    return result.tolist()


def test_nothing_is_dropped_unless_wanted():
    assert cleaned([[0, 1, 2]], scores=0.0) == [[0, 1, 2]]
    assert cleaned([[0, 1, 2]], min_region=1) == [[0, 1, 2]]


def test_pixels_under_the_confidence_are_dropped():
    scores = [[0.2, 0.5, 0.49, 0.9]]
    assert cleaned([[0, 0, 1, 2]], scores, confidence=0.5) == [[X, 0, X, 2]]


def test_a_class_may_have_a_confidence_of_its_own():
    fields = {"confidence": 0.5, "by_class": {"grass": 0.9, "sky": 0.0}}
    assert cleaned([[0, 1, 2]], [[0.6, 0.6, 0.1]], **fields) == [[0, X, 2]]


def test_a_background_by_threshold_needs_no_confidence():
    words = Vocabulary.parse(["dog", "grass"]).with_background(0.3)
    assert cleaned([[0, 1, 2]], 0.3, words, confidence=0.8) == [[0, X, X]]
    fields = {"by_class": {"background": 0.9, "dog": 0.9}}
    assert cleaned([[0, 1, 2]], 0.3, words, **fields) == [[0, X, 2]]


def test_a_background_of_words_is_a_class_like_others():
    words = Vocabulary.parse(["dog", "grass"]).with_background(["wall"])
    assert cleaned([[0, 1, 2]], 0.3, words, confidence=0.8) == [[X, X, X]]


@pytest.mark.parametrize(
    ("fields", "words", "message"),
    [
        ({"confidence": 0.4}, "dog cat", "of 0.4 does nothing: the best of 2 .* below 0.5;"),
        ({"confidence": 0.5}, "dog cat", "of 0.5 does nothing"),
        ({"by_class": {"dog": 0.4}}, "dog cat", "of 0.4 for 'dog' does nothing"),
        ({"confidence": 0.3, "by_class": {"dog": 0.9}}, "dog cat", "of 0.3 does nothing"),
        ({"confidence": 0.9}, "dog", "does nothing with one class"),
    ],
)
def test_a_confidence_that_does_nothing_is_reported(fields, words, message):
    told = Cleaning(**fields).useless(Vocabulary.parse(words.split()))
    assert re.search(message, told)


def test_a_confidence_below_the_background_is_reported():
    words = Vocabulary.parse(["dog", "grass"]).with_background(0.6)
    assert "what scores below 0.6 is background" in Cleaning(confidence=0.55).useless(words)
    assert Cleaning(confidence=0.7).useless(words) is None


def test_a_confidence_that_does_something_is_not_warned_of():
    for fields in (
        {},
        {"confidence": 0.4},
        {"confidence": 0.9, "by_class": {"dog": 0.1}},  # keeps dogs
        {"by_class": {"dog": 0.4}},
    ):
        assert Cleaning(**fields).useless(WORDS) is None


def test_small_regions_are_dropped_and_corners_do_not_join():
    labels = [[0, 1, 1, 1], [1, 0, 1, 1], [2, 2, 2, 0]]
    assert cleaned(labels, min_region=2) == [[X, 1, 1, 1], [X, X, 1, 1], [2, 2, 2, X]]
    assert cleaned(labels, min_region=4) == [[X, 1, 1, 1], [X, X, 1, 1], [X, X, X, X]]
    assert cleaned(labels, min_region=13) == [[X] * 4] * 3


def test_a_region_counts_without_its_unsure_pixels():
    labels, scores = [[0, 0, 0, 1, 1]], [[0.9, 0.1, 0.9, 0.9, 0.9]]
    assert cleaned(labels, scores, confidence=0.5, min_region=2) == [[X, X, X, 1, 1]]
    assert cleaned(labels, scores, min_region=2) == labels


@pytest.mark.parametrize("least", [2, 5, 30])
def test_small_regions_are_those_that_filling_from_pixel_to_pixel_finds(least):
    labels = np.random.default_rng(least).integers(0, 3, (23, 31))
    labels[5:15, 4:20] = 1
    wanted, seen = labels.copy(), set()
    for start in np.ndindex(labels.shape):
        if start in seen:
            continue
        region, waiting = {start}, [start]
        while waiting:
            y, x = waiting.pop()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= near[0] < labels.shape[0] and 0 <= near[1] < labels.shape[1]
                if inside and near not in region and labels[near] == labels[start]:
                    region.add(near)
                    waiting.append(near)
        seen |= region
        if len(region) < least:
            wanted[tuple(zip(*region, strict=True))] = X
    assert cleaned(labels, min_region=least) == wanted.tolist()


def test_many_classes_have_a_wider_ignored_label():
    words = Vocabulary.parse([f"class {index}" for index in range(300)])
    fields = {"by_class": {"class 255": 0.5}, "min_region": 2}
    labels = [[255, 299, 299, 7]]
    found = cleaned(labels, 0.4, words, np.uint16, **fields)
    assert found == [[65_535, 299, 299, 65_535]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"confidence": 1.1}, r"the confidence is a score in \[0, 1\], got 1.1"),
        ({"confidence": float("nan")}, "got nan"),
        ({"by_class": {"dog": -1}}, "the confidence of 'dog' is a score"),
        ({"min_region": -1}, "a number of pixels or 0, got -1"),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(MaskCLIPError, match=message):
        Cleaning(**fields)


def test_a_confidence_for_an_unknown_class_is_refused():
    with pytest.raises(MaskCLIPError, match="'cat', which is not one of the 3 classes"):
        cleaned([[0]], by_class={"cat": 0.5})


def test_a_class_file_says_what_its_classes_need_unless_a_class_is_named():
    words = Vocabulary.parse(["dog", "grass", "sky"]).with_confidence({"dog": 0.6, "sky": 0.5})
    cleaning = Cleaning(confidence=0.3, by_class={"sky": 0.2})
    assert cleaning.thresholds(words).tolist() == pytest.approx([0.6, 0.3, 0.2])
