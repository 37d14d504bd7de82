import numpy as np
import pytest
import torch

from maskclip.core.errors import MaskCLIPError
from maskclip.core.metrics import ConfusionMatrix, influences

# Rows: truth, columns: prediction; 255 and 9 are no classes.
TRUTH = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 9]])
FOUND = torch.tensor([[0, 1, 1, 1], [2, 9, 0, 1]])


def measured(pairs, classes):
    metric = ConfusionMatrix(classes)
    for found, truth in pairs:
        metric.update(found, truth)
    return metric.compute()


def test_hand_computed_metrics():
    scores = measured([(FOUND, TRUTH)], 4)
    # 255 drops its pixel; truth 9 leaves its prediction of 1 in the union; prediction 9 leaves
    # its truth 2; class 3 is nowhere.
    np.testing.assert_allclose(scores.iou, [1 / 2, 2 / 4, 1 / 2, np.nan])
    np.testing.assert_allclose(scores.accuracy, [1 / 2, 1, 1 / 2, np.nan])
    np.testing.assert_allclose(scores.precision, [1, 2 / 4, 1, np.nan])
    assert scores.pixel_accuracy == pytest.approx(4 / 6)
    assert scores.miou == pytest.approx(1 / 2)


def test_counts_add_up_over_images():
    whole = ConfusionMatrix(3)
    whole.update(FOUND, TRUTH)
    parts = ConfusionMatrix(3)
    for row in (0, 1):
        parts.update(FOUND[row], TRUTH[row])
    assert torch.equal(parts.confusion, whole.confusion)
    parts.reset()
    assert parts.confusion.sum() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_type_counts_alike(dtype):
    metric, reference = ConfusionMatrix(3), ConfusionMatrix(3)
    metric.update(FOUND.to(dtype), TRUTH.to(dtype))
    reference.update(FOUND, TRUTH)
    assert torch.equal(metric.confusion, reference.confusion)


def test_counts_survive_more_pixels_than_float32_can_count():
    metric = ConfusionMatrix(1)
    metric.confusion += torch.tensor([[2**24, 0], [0, 0]])
    metric.update(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert metric.confusion[0, 0] == 2**24 + 1


@pytest.mark.parametrize("truth", [torch.full((2, 2), 255), torch.empty((0, 0), dtype=torch.int64)])
def test_nothing_labelled_gives_nan_not_an_error(truth):
    scores = measured([(torch.zeros_like(truth), truth)], 2)
    assert np.isnan(scores.iou).all()
    assert np.isnan(scores.miou)
    assert np.isnan(scores.pixel_accuracy)


def test_another_value_may_be_the_ignored_one():
    metric = ConfusionMatrix(300, ignore=-1)
    metric.update(torch.tensor([255, 7]), torch.tensor([255, -1]))
    assert metric.confusion[255, 255] == 1
    assert metric.confusion.sum() == 1


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(4, 2\)"):
        ConfusionMatrix(3).update(FOUND.T, TRUTH)


def test_frequency_weighted_iou_by_hand():
    scores = measured([(FOUND, TRUTH)], 4)
    # Truth: two pixels of class 0, two of 1, two of 2; a label of 9 has no class to weigh.
    assert scores.frequency_weighted_iou == pytest.approx((2 * 0.5 + 2 * 0.5 + 2 * 0.5) / 6)
    uneven = measured([(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))], 3)
    assert uneven.frequency_weighted_iou == pytest.approx(0.75 * 0.75 + 0.25 * 0)


def test_seen_unseen_and_harmonic_by_hand():
    truth = torch.tensor([0, 0, 1, 1, 2, 2])
    found = torch.tensor([0, 0, 1, 0, 2, 1])
    scores = measured([(found, truth)], 4)
    np.testing.assert_allclose(scores.iou, [2 / 3, 1 / 3, 1 / 2, np.nan])
    seen, unseen, harmonic = scores.zero_shot([2, 3])  # 3 is nowhere and does not count
    assert (seen, unseen) == (pytest.approx(1 / 2), pytest.approx(1 / 2))
    assert harmonic == pytest.approx(1 / 2)
    seen, unseen, harmonic = scores.zero_shot([1])
    assert harmonic == pytest.approx(2 * seen * unseen / (seen + unseen))
    assert np.isnan(scores.zero_shot([]).unseen)
    assert np.isnan(scores.zero_shot([]).harmonic)


def test_a_harmonic_mean_of_nothing_found_is_zero():
    scores = measured([(torch.tensor([1, 0]), torch.tensor([0, 1]))], 2)
    assert scores.zero_shot([1]) == (0, 0, 0)


def test_a_class_that_is_predicted_but_absent_counts_as_zero():
    scores = measured([(torch.tensor([0, 1]), torch.tensor([0, 0]))], 3)
    np.testing.assert_allclose(scores.iou, [1 / 2, 0, np.nan])
    assert scores.miou == pytest.approx(1 / 4)


def test_more_classes_than_there_is_memory_for_are_one_line():
    with pytest.raises(MaskCLIPError, match=r"65,535 classes cannot be scored: .* takes 32 GiB"):
        ConfusionMatrix(65_535, ignore=65_535)


def test_influences_are_the_derivatives_of_mean_iou_by_the_weights_of_images():
    generator = np.random.default_rng(0)
    hits = generator.integers(1, 50, (6, 3))
    overlaps = np.stack([hits, hits + generator.integers(1, 50, (6, 3))], axis=1)
    found = influences(overlaps)

    def miou(weights):
        hit, union = (weights[:, None, None] * overlaps).sum(axis=0)
        return (hit / union).mean()

    for image in range(6):
        step = np.zeros(6)
        step[image] = 1e-5
        slope = (miou(1 + step) - miou(1 - step)) / 2e-5
        assert found[image] == pytest.approx(slope * np.sqrt(6 / 5), rel=1e-5)
    assert found.sum() == pytest.approx(0, abs=1e-12)


def test_a_class_in_one_image_and_one_in_none_move_nothing():
    overlaps = np.array([[[3, 0], [4, 0]], [[0, 0], [0, 0]]])
    assert influences(overlaps).tolist() == [0, 0]
