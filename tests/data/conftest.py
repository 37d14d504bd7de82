import cv2
import numpy as np
import pytest
from PIL import Image

from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats import Labeled

SHAPES = {"photo": (37, 53), "a/b/photo": (64, 41), "ü ñ/日本.v2": (1, 40), "a/one pixel": (1, 1)}


@pytest.fixture
def words():
    """Classes with two colours that are equal and one that is black."""
    colors = [(10, 20, 30), (0, 0, 0), (10, 20, 30), (255, 0, 0), (0, 255, 0)]
    return Vocabulary.parse(["dog", "red car", "it's <b>", "naïve 日本", "sky"], colors=colors)


@pytest.fixture
def many():
    return Vocabulary.parse([f"class {index}" for index in range(300)])


@pytest.fixture
def label_maps():
    """`label_maps(vocabulary)`: random photos by name, of many regions and of few, some ignored."""

    def make(vocabulary, seed=0):
        rng = np.random.default_rng(seed)
        items = [item(name, _random(rng, shape, vocabulary), rng) for name, shape in SHAPES.items()]
        rings = np.abs(np.indices((21, 33)) - [[[10]], [[16]]]).max(axis=0) // 2
        nothing = np.full((9, 7), vocabulary.ignore)
        values = {"rings": rings % 2, "nothing": nothing, "all one": np.zeros((5, 8))}
        items += [item(name, labels, rng) for name, labels in values.items()]
        return items

    def item(name, labels, rng):
        dtype = np.uint16 if labels.max() > 255 else np.uint8
        scores = rng.random(labels.shape, np.float32)
        photo = Image.fromarray(rng.integers(0, 256, (*labels.shape, 3), np.uint8))
        return Labeled(name, f"{name}.jpg", labels.astype(dtype), scores, photo=photo)

    return make


def _random(rng, shape, vocabulary):
    """Smooth regions with noise on them; the second class is absent."""
    height, width = shape
    coarse = rng.random((len(vocabulary), 4, 5)).astype(np.float32)
    maps = [cv2.resize(each, (width, height), interpolation=cv2.INTER_CUBIC) for each in coarse]
    labels = np.stack(maps).argmax(axis=0)
    noisy = rng.random(shape) < 0.25
    labels[noisy] = rng.integers(0, len(vocabulary), noisy.sum())
    labels[labels == 1] = 0
    labels[rng.random(shape) < 0.1] = vocabulary.ignore
    return labels
