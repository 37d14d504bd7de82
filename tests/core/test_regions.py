"""The pixels of a segment vote: by hand, against a plain loop, and on segments of any kind."""

import numpy as np
import pytest

from maskclip.core import regions as module
from maskclip.core.errors import MaskCLIPError
from maskclip.core.regions import enlarge, superpixels, vote
from maskclip.core.segmentation import Segmentation
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import draw_scene

LABELS = np.array([[0, 0, 1, 2], [0, 1, 1, 2], [2, 2, 0, 1]], np.uint8)
SCORES = np.array([[0.5, 0.5, 0.9, 0.6], [0.5, 0.8, 0.7, 0.4], [0.9, 0.3, 0.2, 0.6]], np.float32)
REGIONS = np.array([[7, 7, 900, 0], [7, 7, 900, 0], [30, 30, 900, 900]], np.int32)


def test_most_pixels_win_and_the_score_is_their_sum_over_all():
    # 7: three of class 0 (0.5 each) and one of 1; 900: three of 1 (0.9, 0.7, 0.6) and one of 0
    labels, scores = vote(LABELS, SCORES, REGIONS)
    expected = [[0, 0, 1, 2], [0, 0, 1, 2], [2, 2, 1, 1]]
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(
        scores,
        [[0.375, 0.375, 0.55, 0.6], [0.375, 0.375, 0.55, 0.4], [0.6, 0.6, 0.55, 0.55]],
        rtol=1e-6,
    )
    assert (labels.dtype, scores.dtype) == (np.uint8, np.float32)
    assert LABELS[1, 1] == 1  # the argument is as it was


def test_of_as_many_pixels_the_surer_win_and_else_the_first_class():
    labels = np.array([[3, 3, 1, 1], [3, 1, 3, 1]], np.uint8)
    scores = np.array([[0.2, 0.2, 0.3, 0.3], [0.5, 0.5, 0.5, 0.5]], np.float32)
    regions = np.array([[1, 1, 1, 1], [2, 2, 2, 2]], np.uint8)
    voted, sums = vote(labels, scores, regions)
    np.testing.assert_array_equal(voted, [[1] * 4, [1] * 4])
    np.testing.assert_allclose(sums, [[0.15] * 4, [0.25] * 4], rtol=1e-6)


def test_ignored_pixels_neither_vote_nor_change():
    labels = np.array([[255, 255, 255, 4]], np.uint8)
    voted, scores = vote(labels, np.ones((1, 4), np.float32), np.ones((1, 4), np.uint8), ignore=255)
    np.testing.assert_array_equal(voted, labels)
    np.testing.assert_array_equal(scores, np.ones((1, 4)))
    none, _ = vote(labels[:, :3], np.ones((1, 3), np.float32), np.ones((1, 3), int), ignore=255)
    np.testing.assert_array_equal(none, labels[:, :3])


def plainly(labels, scores, regions):
    labels, scores = labels.copy(), scores.copy()
    for region in np.unique(regions[regions > 0]):
        inside = regions == region
        of = {c: (labels[inside] == c).sum() for c in np.unique(labels[inside])}
        most = [c for c in of if of[c] == max(of.values())]
        best = max(most, key=lambda c: scores[inside & (labels == c)].sum(dtype=np.float64))
        scores[inside] = scores[inside & (labels == best)].sum(dtype=np.float64) / inside.sum()
        labels[inside] = best
    return labels, scores


@pytest.mark.parametrize(
    "numbers",
    [np.uint8, np.uint16, np.int16, np.int64, np.uint64, np.bool_, ">u2"],
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_any_numbers_of_segments_and_bands_of_any_height(numbers, kind, monkeypatch):
    monkeypatch.setattr(module, "_BAND", 40)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 300 if kind is np.uint16 else 9, (21, 17)).astype(kind)
    scores = rng.random((21, 17), np.float32)
    regions = rng.integers(0, 12, (21, 17)).astype(numbers)
    for found, expected in zip(
        vote(labels, scores, regions), plainly(labels, scores, regions), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_numbers_beyond_any_table_are_those_of_small_ones():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 5, (8, 9)).astype(np.uint8), rng.random((8, 9), np.float32)
    small = rng.integers(-2, 6, (8, 9))
    for large in (small * 10**15, np.where(small > 0, small.astype(np.uint64) + 2**63, 0)):
        for a, b in zip(vote(labels, scores, small), vote(labels, scores, large), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "numbers",
    [
        np.array([[-(2**32) + 1, 1, -(2**63), 2], [-(2**31) - 5, 0, 1, 2], [1, 1, 2, 2]]),
        np.array([[0, 2**63 + 1, 0, 2], [0, 0, 2**63 + 1, 2], [2**63 + 1] * 2 + [2] * 2], "u8"),
    ],
)
def test_pixels_far_below_0_belong_to_no_segment_and_huge_numbers_are_segments(numbers):
    small = np.where(numbers > 0, numbers % 2 + 1, 0)
    for a, b in zip(vote(LABELS, SCORES, numbers), vote(LABELS, SCORES, small), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("regions", "part"),
    [
        (np.ones((3, 5), int), "expected 4x3 pixels, as the labels have, got 5x3"),
        (np.ones((3, 4), np.float32), "expected a whole number for each pixel"),
        ([[1] * 4] * 3, r"expected an array \(H, W\) of whole numbers, .* got list"),
        (None, "got NoneType"),
        (np.ones((2, 3, 4), bool), r"got bool of shape \(2, 3, 4\)"),
    ],
)
def test_what_are_no_regions_is_reported(regions, part):
    with pytest.raises(MaskCLIPError, match=part):
        vote(LABELS, SCORES, regions)


def test_a_segmentation_is_voted_by_regions():
    words = Vocabulary.parse(["dog", "cat", "sky"])
    found = Segmentation(LABELS, SCORES, words).voted(REGIONS)
    assert (found.labels[1, 1], found.vocabulary) == (0, words)
    assert found.scores[1, 1] == pytest.approx(0.375)


def test_superpixels_keep_to_edges_and_are_numbered_from_one():
    scene = draw_scene(3, size=96, objects=["car"], grounds=["grass"])
    found = superpixels(scene.image, side=12)
    assert (found.shape, found.dtype, found.min()) == ((96, 96), np.int32, 1)
    assert 30 < found.max() < 90
    labels = scene.labels.astype(np.uint8)
    voted, _ = vote(labels, np.ones(labels.shape, np.float32), found)
    assert (voted == labels).mean() > 0.95
    np.testing.assert_array_equal(superpixels(scene.image[:5, :7]), np.ones((5, 7)))


def test_regions_are_enlarged_to_the_nearest():
    small = np.array([[1, 2], [3, 4]])
    np.testing.assert_array_equal(enlarge(small, (2, 5)), [[1, 1, 2, 2, 2], [3, 3, 4, 4, 4]])
    np.testing.assert_array_equal(enlarge(enlarge(small, (6, 4)), (2, 2)), small)


def test_superpixels_without_their_library_name_the_extra(monkeypatch):
    monkeypatch.setattr("maskclip.core.errors.find_spec", lambda name: None)
    with pytest.raises(MaskCLIPError, match=r"needs skimage, not installed yet.*\[regions\]"):
        superpixels(np.zeros((64, 64, 3), np.uint8))
