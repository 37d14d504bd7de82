import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from maskclip.core.config import Augmentation
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import IMAGENET_MEAN, IMAGENET_STD
from maskclip.core.vocabulary import IGNORE
from maskclip.data.transforms import (
    PADDING,
    augment,
    brighten,
    change_contrast,
    distort,
    saturate,
    seeded,
    turn_hue,
)

BASE = 1000  # of the labels that say where a pixel was; far from IGNORE


def still(height, width, **changes):
    """Settings that change nothing of an image of that size."""
    asked = {
        "scale": (max(height, width), min(height, width)),
        "ratio": (1.0, 1.0),
        "crop": (height, width),
        "max_share": 1.0,
        "flip": 0.0,
        "distort": False,
    }
    return Augmentation(**{**asked, **changes})


def map_of(height, width):
    """An image whose red is 4 x column and green 4 x row, and labels that say both."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack((4 * columns, 4 * rows, np.full_like(rows, 7)), axis=-1).astype(np.uint8)
    return Image.fromarray(pixels), BASE + 100 * rows + columns


def grains(height, width, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def result(image, labels, config, seed=0):
    pixels, ids, _ = augment(image, labels, config, generator=seeded(seed, 0))
    assert (pixels.dtype, ids.dtype) == (torch.uint8, torch.int64)
    assert pixels.shape == (3, *config.crop)
    assert ids.shape == config.crop
    return pixels.int().numpy(), ids.numpy()


def places(ids):
    """Rows and columns that the labels of `map_of` say."""
    return (ids - BASE) // 100, (ids - BASE) % 100


def test_settings_that_change_nothing_keep_every_value():
    pixels = grains(40, 30)
    labels = np.random.default_rng(2).choice((-1, 0, 3, 255), (40, 30))
    before = labels.copy()
    found, ids = result(Image.fromarray(pixels), labels, still(40, 30))
    np.testing.assert_array_equal(found.transpose(1, 2, 0), pixels)
    np.testing.assert_array_equal(ids, before)
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_labels_of_any_integers(dtype):
    labels = np.full((8, 8), 200, dtype)
    _, ids = result(Image.new("RGB", (8, 8)), labels, still(8, 8, crop=(12, 8)))
    assert (ids[:8] == 200).all()
    assert (ids[8:] == IGNORE).all()


def test_a_flip_mirrors_both():
    image, labels = map_of(20, 30)
    found, ids = result(image, labels, still(20, 30, flip=1.0))
    np.testing.assert_array_equal(found[0], 4 * np.asarray(labels - BASE)[:, ::-1] % 400)
    np.testing.assert_array_equal(ids, labels[:, ::-1])


@pytest.mark.parametrize("seed", range(8))
def test_crops_and_flips_take_labels_from_where_pixels_come(seed):
    image, labels = map_of(50, 60)
    found, ids = result(image, labels, still(50, 60, crop=(20, 30), flip=0.5, max_share=0.5), seed)
    rows, columns = places(ids)
    np.testing.assert_array_equal(found[0], 4 * columns)
    np.testing.assert_array_equal(found[1], 4 * rows)


@pytest.mark.parametrize("seed", range(20))
def test_scaled_labels_lie_within_a_pixel_of_the_image(seed):
    image, labels = map_of(50, 60)
    config = still(50, 60, ratio=(0.5, 2.0), crop=(40, 40), flip=0.5)
    found, ids = result(image, labels, config, seed)
    inside = ids != IGNORE
    for channel, place in zip((1, 0), places(ids), strict=True):
        assert np.abs(found[channel] / 4 - place)[inside].max() <= 1.5  # halves: rounded levels


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (64, 64)])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.37, 2.0])
def test_scaling_is_bilinear_without_antialias_and_nearest_as_in_opencv(size, ratio):
    pixels = grains(*size)
    labels = np.random.default_rng(3).integers(-1, 20, size)
    factor = min(int(90 * ratio) / max(size), int(45 * ratio) / min(size))
    height, width = (int(side * factor + 0.5) for side in size)
    config = still(*size, scale=(90, 45), ratio=(ratio, ratio), crop=(height, width))
    found, ids = result(Image.fromarray(pixels), labels, config)
    expected = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(found.transpose(1, 2, 0), expected)
    nearest = cv2.resize(labels.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(ids, nearest)


def test_ratios_reach_from_the_lowest_to_the_highest():
    image, labels = map_of(40, 40)
    config = still(40, 40, ratio=(0.5, 2.0), crop=(80, 80))
    heights = [(result(image, labels, config, seed)[1][:, 0] != IGNORE).sum() for seed in range(60)]
    assert 20 <= min(heights) < 25
    assert 74 < max(heights) <= 80


def test_what_an_image_does_not_fill_is_padded_at_the_bottom_and_the_right():
    image, labels = map_of(20, 30)
    found, ids = result(image, labels, still(20, 30, crop=(25, 48), distort=True))
    np.testing.assert_array_equal(ids[:20, :30], labels)
    for rows, columns in ((slice(20, 25), slice(48)), (slice(25), slice(30, 48))):
        assert (ids[rows, columns] == IGNORE).all()
        assert (found[:, rows, columns] == np.array(PADDING)[:, None, None]).all()


def test_one_axis_is_cropped_where_the_other_is_padded():
    image, labels = map_of(20, 60)
    found, ids = result(image, labels, still(20, 60, crop=(30, 30)))
    rows, columns = places(ids[:20])
    assert (ids[20:] == IGNORE).all()
    np.testing.assert_array_equal(found[0, :20], 4 * columns)
    np.testing.assert_array_equal(rows[:, 0], np.arange(20))


def test_padding_is_zero_after_normalisation_but_for_whole_levels():
    off = (np.array(PADDING) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    assert np.abs(off).max() < 0.01


def published_crop(labels, config, generator):
    """The crop of the published code, with the same draws."""

    def draw():
        margins = [max(a - b, 0) for a, b in zip(labels.shape, config.crop, strict=True)]
        top, left = (generator.integers(0, margin + 1) for margin in margins)
        return labels[top : top + config.crop[0], left : left + config.crop[1]]

    crop = draw()
    for _ in range(10):
        values, counts = np.unique(crop, return_counts=True)
        counts = counts[values != 255]
        if len(counts) > 1 and np.max(counts) / np.sum(counts) < config.max_share:
            break
        crop = draw()
    return crop


@pytest.mark.parametrize("values", [(-1, 255), (-1, 0, 7), (3,), (255,), (0, 1, 2, 255)])
@pytest.mark.parametrize("seed", range(6))
def test_crops_are_drawn_as_published(values, seed):
    random = np.random.default_rng(seed)
    labels = np.kron(random.choice(values, (6, 8)), np.ones((10, 10), np.int64))
    config = still(60, 80, crop=(15, 20), max_share=0.75)
    _, ids = result(Image.new("RGB", (80, 60)), labels, config, seed)
    generator = seeded(seed, 0)
    generator.uniform()  # the ratio
    np.testing.assert_array_equal(ids, published_crop(labels, config, generator))


@pytest.mark.parametrize("other", [1, -1])
def test_no_class_fills_a_crop_where_that_can_be(other):
    labels = np.zeros((40, 80), np.int64)
    for left in (30, 50, 70):  # one class alone on the left, halves on the right
        labels[:, left : left + 10] = other
    image = Image.new("RGB", (80, 40))

    def shares(max_share):
        config = still(40, 80, crop=(20, 20), max_share=max_share)
        for seed in range(40):
            part = (result(image, labels, config, seed)[1] == 0).mean()
            yield max(part, 1 - part)

    assert max(shares(0.75)) < 0.75
    assert max(shares(1.0)) == 1


def test_ignored_pixels_do_not_count_for_the_share():
    labels = np.full((20, 40), IGNORE)
    labels[:, 20], labels[:, 21] = 1, 2  # a class each, half and half where both are in
    config = still(20, 40, crop=(20, 20), max_share=0.75)
    for seed in range(30):
        _, ids = result(Image.new("RGB", (40, 20)), labels, config, seed)
        assert {1, 2} <= set(np.unique(ids))


def test_minus_one_survives_everything():
    config = Augmentation(scale=(90, 45), crop=(64, 64))
    for seed in range(10):
        _, ids = result(Image.new("RGB", (70, 50)), np.full((50, 70), -1), config, seed)
        assert set(np.unique(ids)) <= {-1, IGNORE}
        assert (ids == -1).any()


class Draws:
    """A stand-in for a generator: coins in order, and what random amounts are."""

    def __init__(self, coins, uniform=None, hue=None):
        self.coins, self.amount, self.hue = list(coins), uniform, hue

    def integers(self, low, high=None):
        if high is None:
            return self.coins.pop(0)
        assert (low, high) == (-18, 18)
        return self.hue

    def uniform(self, low, high):
        assert (low, high) in ((-32, 32), (0.5, 1.5))
        return self.amount


# Coins: brightness, contrast first, then each of contrast, saturation and hue in its order.
@pytest.mark.parametrize(
    ("coins", "draws", "expected"),
    [
        ((0, 0, 0, 0, 0), {}, lambda pixels: pixels),
        ((0, 1, 0, 0, 0), {}, lambda pixels: pixels),
        ((1, 0, 0, 0, 0), {"uniform": -20.5}, lambda pixels: brighten(pixels, -20.5)),
        ((0, 0, 0, 0, 1), {"uniform": 1.3}, lambda pixels: change_contrast(pixels, 1.3)),
        ((0, 1, 1, 0, 0), {"uniform": 1.3}, lambda pixels: change_contrast(pixels, 1.3)),
        ((0, 0, 1, 0, 0), {"uniform": 0.6}, lambda pixels: saturate(pixels, 0.6)),
        ((0, 0, 0, 1, 0), {"hue": 11}, lambda pixels: turn_hue(pixels, 11)),
        (
            (0, 1, 1, 1, 0),
            {"uniform": 1.4},
            lambda pixels: saturate(change_contrast(pixels, 1.4), 1.4),
        ),
        (
            (0, 0, 1, 0, 1),
            {"uniform": 1.4},
            lambda pixels: change_contrast(saturate(pixels, 1.4), 1.4),
        ),
    ],
)
def test_coins_say_which_steps_are_taken_and_in_which_order(coins, draws, expected):
    pixels = grains(16, 16)
    before = pixels.copy()
    drawn = Draws(coins, **draws)
    np.testing.assert_array_equal(distort(pixels, drawn), expected(before))
    assert not drawn.coins
    np.testing.assert_array_equal(pixels, before)


def published_distortion(image, generator):
    """The distortion of the published code (BGR), with the same draws."""

    def convert(values, alpha=1.0, beta=0.0):
        values = values.astype(np.float32) * alpha + beta
        return np.clip(values, 0, 255).astype(np.uint8)

    def contrast(image):
        if generator.integers(2):
            return convert(image, alpha=generator.uniform(0.5, 1.5))
        return image

    if generator.integers(2):
        image = convert(image, beta=generator.uniform(-32, 32))
    mode = generator.integers(2)
    if mode == 1:
        image = contrast(image)
    if generator.integers(2):
        image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        image[:, :, 1] = convert(image[:, :, 1], alpha=generator.uniform(0.5, 1.5))
        image = cv2.cvtColor(image, cv2.COLOR_HSV2BGR)
    if generator.integers(2):
        image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        image[:, :, 0] = (image[:, :, 0].astype(int) + generator.integers(-18, 18)) % 180
        image = cv2.cvtColor(image, cv2.COLOR_HSV2BGR)
    return contrast(image) if mode == 0 else image


@pytest.mark.parametrize("seed", range(40))
def test_colours_are_distorted_as_published(seed):
    pixels = grains(24, 24, seed)
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    expected = published_distortion(bgr, seeded(seed, 0))[..., ::-1]
    np.testing.assert_array_equal(distort(pixels, seeded(seed, 0)), expected)


def test_steps_clip_and_cut_to_whole_levels():
    pixels = np.array([[[0, 101, 250]]], np.uint8)
    assert brighten(pixels, 9.9).tolist() == [[[9, 110, 255]]]
    assert brighten(pixels, -9.9).tolist() == [[[0, 91, 240]]]
    assert change_contrast(pixels, 1.5).tolist() == [[[0, 151, 255]]]
    assert change_contrast(pixels, 0.5).tolist() == [[[0, 50, 125]]]


def test_saturation_and_hue_leave_grey_alone():
    gray = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    np.testing.assert_array_equal(saturate(gray, 1.5), gray)
    np.testing.assert_array_equal(turn_hue(gray, 17), gray)


def test_hue_turns_around_the_circle():
    red = np.array([[[255, 0, 0]]], np.uint8)
    assert turn_hue(red, 60).tolist() == [[[0, 255, 0]]]
    assert turn_hue(red, -60).tolist() == [[[0, 0, 255]]]


def test_saturation_stays_within_an_image_of_one_hue():
    pink = np.array([[[200, 100, 100]]], np.uint8)
    assert saturate(pink, 0.5)[0, 0].tolist() == pytest.approx([200, 150, 150], abs=2)
    assert saturate(pink, 1.5)[0, 0].tolist() == pytest.approx([200, 50, 50], abs=2)


def test_distortion_changes_the_image_and_never_the_labels():
    pixels, labels = grains(30, 30), np.arange(900).reshape(30, 30)
    changed = 0
    for seed in range(20):
        found, ids = result(Image.fromarray(pixels), labels, still(30, 30, distort=True), seed)
        np.testing.assert_array_equal(ids, labels)
        changed += (found.transpose(1, 2, 0) != pixels).any()
    assert 10 < changed <= 20  # 1 of 16 keeps everything


def test_the_same_place_in_the_same_training_gives_the_same_sample():
    image = Image.fromarray(grains(50, 70))
    labels = np.random.default_rng(5).integers(-1, 9, (50, 70))
    config = Augmentation(scale=(90, 45), crop=(32, 32))

    def sample(seed, position):
        pixels, ids, _ = augment(image, labels, config, generator=seeded(seed, position))
        return pixels.numpy().tobytes() + ids.numpy().tobytes()

    assert sample(3, 8) == sample(3, 8)
    assert len({sample(*place) for place in ((3, 8), (8, 3), (3, 9), (4, 8), (0, 0))}) == 5


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_would_share_streams_are_refused(seed):
    with pytest.raises(MaskCLIPError, match="`seed`: expected"):
        seeded(seed, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": (512, 2048)},
        {"scale": (512, 0)},
        {"ratio": (2.0, 0.5)},
        {"ratio": (0.0, 1.0)},
        {"ratio": (1.0, float("inf"))},
        {"ratio": (float("nan"), 1.0)},
        {"crop": (0, 512)},
        {"max_share": 0.0},
        {"max_share": 1.01},
        {"flip": -0.1},
        {"flip": 1.5},
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes):
    with pytest.raises(MaskCLIPError, match=f"^`{next(iter(changes))}`: expected"):
        Augmentation(**changes)


@pytest.mark.parametrize(
    ("mode", "shape"), [("L", (20, 30)), ("RGB", (30, 20)), ("RGB", (1, 20, 30))]
)
def test_images_and_labels_that_do_not_belong_together_are_refused(mode, shape):
    with pytest.raises(ValueError, match="expected an RGB image and labels of its size"):
        augment(
            Image.new(mode, (30, 20)),
            np.zeros(shape, np.int64),
            Augmentation(),
            generator=seeded(0, 0),
        )
