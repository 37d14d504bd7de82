import numpy as np
import pytest
from PIL import Image

from maskclip.core.samples import Sample
from maskclip.tasks.evaluation.evaluate import score


def dark_is_zero(_, image):
    return (np.asarray(image.convert("L")) > 128).astype(np.uint8)


def sample(gray, truth):
    image = Image.fromarray(np.array(gray, np.uint8)).convert("RGB")
    return Sample("one", image, np.array(truth))


def test_scores_are_those_of_all_pixels_together():
    samples = [
        sample([[0, 200], [0, 200]], [[0, 1], [1, 255]]),
        sample([[200]], [[1]]),
    ]
    scores = score(dark_is_zero, samples, classes=2, ignore=255)
    np.testing.assert_allclose(scores.iou, [1 / 2, 2 / 3])
    assert scores.pixel_accuracy == pytest.approx(3 / 4)


def test_samples_are_taken_one_at_a_time():
    seen = []

    def samples():
        for _ in range(3):
            seen.append("taken")
            yield sample([[0]], [[0]])

    def predict(name, image):
        seen.append("scored")
        return dark_is_zero(name, image)

    score(predict, samples(), classes=2, ignore=255)
    assert seen == ["taken", "scored"] * 3


def test_a_prediction_of_another_size_is_an_error():
    with pytest.raises(ValueError, match="shape"):
        score(lambda *_: np.zeros((2, 2), np.uint8), [sample([[0]], [[0]])], classes=2, ignore=255)
