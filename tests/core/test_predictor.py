import numpy as np
import pytest
from PIL import Image

from maskclip.core.predictor import score
from maskclip.core.segmentation import Segmentation
from maskclip.core.vocabulary import Vocabulary

WORDS = Vocabulary.parse(["dog", "cat"])


def answer(labels):
    scores = np.ones(labels.shape, np.float32)
    return Segmentation(labels=labels, scores=scores, vocabulary=WORDS)


def dark_is_dog(image):
    return answer((np.asarray(image.convert("L")) > 128).astype(np.uint8))


def sample(grey, truth):
    image = Image.fromarray(np.array(grey, np.uint8)).convert("RGB")
    return image, np.array(truth)


def test_scores_are_those_of_all_pixels_together():
    samples = [
        sample([[0, 200], [0, 200]], [[0, 1], [1, 255]]),
        sample([[200]], [[1]]),
    ]
    scores = score(dark_is_dog, samples, classes=2)
    np.testing.assert_allclose(scores.iou, [1 / 2, 2 / 3])
    assert scores.pixel_accuracy == pytest.approx(3 / 4)


def test_samples_are_taken_one_at_a_time():
    alive = []

    def samples():
        for _ in range(3):
            alive.append("taken")
            yield sample([[0]], [[0]])

    def predict(image):
        alive.append("scored")
        return dark_is_dog(image)

    score(predict, samples(), classes=2)
    assert alive == ["taken", "scored"] * 3


def test_a_prediction_of_another_size_is_an_error():
    with pytest.raises(ValueError, match="shape"):
        score(lambda _: answer(np.zeros((2, 2), np.uint8)), [sample([[0]], [[0]])], classes=2)
