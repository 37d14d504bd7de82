import io
import json

import numpy as np
import pytest
from PIL import Image

from maskclip.core.errors import MaskCLIPError
from maskclip.core.segmentation import Segmentation
from maskclip.core.vocabulary import Vocabulary

ANIMALS = Vocabulary.parse(["dog", "cat", "cow"])


def segmentation(labels, *, vocabulary=ANIMALS, dtype=np.uint8, score=0.5, image=None):
    labels = np.array(labels, dtype=dtype)
    scores = np.full(labels.shape, score, dtype=np.float32)
    return Segmentation(labels, scores, vocabulary, image)


def many_classes(count=300):
    return Vocabulary.parse(f"class {i}" for i in range(count))


class TestValidation:
    @pytest.mark.parametrize(
        ("labels", "scores", "message"),
        [
            (np.zeros((2, 3, 1), np.uint8), np.zeros((2, 3), np.float32), r"got \(2, 3, 1\)"),
            (np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.float32), "at least one pixel"),
            (np.zeros((2, 3), np.int64), np.zeros((2, 3), np.float32), "must be uint8, got int64"),
            (np.full((2, 3), 3, np.uint8), np.zeros((2, 3), np.float32), "below 3, .* got 3"),
            (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.float32), r"got float32 \(3, 2\)"),
            (np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.float64), "got float64"),
            (np.zeros((2, 3), np.uint8), np.full((2, 3), np.nan, np.float32), "finite"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, labels, scores, message):
        with pytest.raises(ValueError, match=message):
            Segmentation(labels, scores, ANIMALS)

    def test_uint8_is_too_small_for_many_classes(self):
        with pytest.raises(ValueError, match="labels of 300 classes must be uint16"):
            segmentation([[0]], vocabulary=many_classes())

    def test_an_image_of_another_size_is_refused(self):
        with pytest.raises(ValueError, match="of 2x1 pixels, got one of 1x2"):
            segmentation([[0, 1]], image=Image.new("RGB", (1, 2)))

    def test_cosines_and_sums_of_the_published_method_are_scores(self):
        assert segmentation([[0]], score=-0.1).scores[0, 0] < 0
        assert segmentation([[0]], score=13.0).scores[0, 0] > 1


class TestCoverage:
    def test_largest_first_and_sums_to_one(self):
        coverage = segmentation([[2, 2, 0], [2, 0, 2]]).coverage()
        assert list(coverage) == ["cow", "dog"]
        assert coverage["cow"] == pytest.approx(4 / 6)
        assert sum(coverage.values()) == pytest.approx(1)

    def test_ties_keep_the_order_of_classes(self):
        assert list(segmentation([[2, 1, 0]]).coverage()) == ["dog", "cat", "cow"]


class TestOverlay:
    def test_uses_the_image_it_keeps_or_the_one_given(self):
        photo = Image.new("RGB", (300, 280), (10, 200, 30))
        labels = np.zeros((280, 300), np.uint8)
        kept = segmentation(labels, image=photo).overlay()
        given = segmentation(labels).overlay(photo)
        assert kept.tobytes() == given.tobytes()

    def test_without_a_legend_the_size_stays(self):
        photo = Image.new("RGB", (5, 3))
        assert segmentation(np.zeros((3, 5)), image=photo).overlay(legend=False).size == (5, 3)

    def test_with_a_legend_the_picture_grows(self):
        photo = Image.new("RGB", (300, 280))
        picture = segmentation(np.zeros((280, 300)), image=photo).overlay()
        assert picture.width == 300
        assert picture.height > 290

    @pytest.mark.parametrize("size", [(1, 1), (4096, 64), (64, 4096), (3, 2)])
    def test_odd_sizes_are_legible(self, size):
        labels = np.arange(size[0] * size[1]).reshape(size[1], size[0]) % 3
        picture = segmentation(labels, image=Image.new("RGB", size)).overlay()
        assert min(picture.size) >= 90
        assert picture.mode == "RGB"

    def test_no_image_or_a_wrong_one_is_an_error(self):
        with pytest.raises(ValueError, match=r"pass it, overlay\(image\)"):
            segmentation([[0]]).overlay()
        with pytest.raises(ValueError, match="of 1x1 pixels, got one of 2x2"):
            segmentation([[0]]).overlay(Image.new("RGB", (2, 2)))


class TestNotebooks:
    def test_the_overlay_is_shown_and_small(self):
        labels = np.zeros((1000, 3000), np.uint8)
        found = segmentation(labels, image=Image.new("RGB", (3000, 1000), "gray"))
        shown = Image.open(io.BytesIO(found._repr_jpeg_()))
        assert shown.format == "JPEG"
        assert max(shown.size) == 1024
        assert np.asarray(shown)[..., :3].std() > 0

    def test_text_is_shown_without_a_photo(self):
        assert segmentation([[0, 1]])._repr_jpeg_() is None


class TestFiles:
    def test_small_vocabularies_give_palette_images(self, tmp_path):
        labels = np.array([[0, 1], [2, 1], [0, 0]], np.uint8)
        segmentation(labels).save_png(tmp_path / "labels.png")
        with Image.open(tmp_path / "labels.png") as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), labels)
            colors = np.asarray(image.convert("RGB"))
        assert tuple(colors[1, 0]) == ANIMALS.colors[2]

    @pytest.mark.parametrize("count", [1, 2, 17, 255])
    def test_any_number_of_8_bit_classes_survives(self, tmp_path, count):
        vocabulary = many_classes(count)
        labels = np.arange(count, dtype=np.uint8)[None]
        segmentation(labels, vocabulary=vocabulary).save_png(tmp_path / "labels.png")
        with Image.open(tmp_path / "labels.png") as image:
            assert np.array_equal(np.asarray(image), labels)

    def test_many_classes_give_16_bit_greys(self, tmp_path):
        labels = [[0, 299], [256, 1]]
        result = segmentation(labels, vocabulary=many_classes(), dtype=np.uint16)
        result.save_png(tmp_path / "labels.png")
        with Image.open(tmp_path / "labels.png") as image:
            assert image.mode == "I;16"
            assert np.asarray(image).tolist() == labels

    def test_scores_are_8_bit_greys(self, tmp_path):
        labels = np.zeros((1, 4), np.uint8)
        scores = np.array([[0.0, 0.5, 1.0, -0.2]], np.float32)
        Segmentation(labels, scores, ANIMALS).save_scores(tmp_path / "scores.png")
        with Image.open(tmp_path / "scores.png") as image:
            assert image.mode == "L"
            assert np.asarray(image).tolist() == [[0, 128, 255, 0]]

    def test_a_failed_write_leaves_nothing(self, tmp_path):
        folder = tmp_path / "labels.png"
        folder.mkdir()
        with pytest.raises(OSError, match=r"labels\.png"):
            segmentation([[0]]).save_png(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["labels.png"]


def test_to_dict_is_a_summary_for_json():
    labels = np.array([[2, 2, 0]], np.uint8)
    scores = np.array([[0.5, 1.0, 0.25]], np.float32)
    summary = json.loads(json.dumps(Segmentation(labels, scores, ANIMALS).to_dict()))
    assert summary == {
        "width": 3,
        "height": 1,
        "classes": [
            {"name": "cow", "label": 2, "coverage": pytest.approx(2 / 3), "score": 0.75},
            {"name": "dog", "label": 0, "coverage": pytest.approx(1 / 3), "score": 0.25},
        ],
        "vocabulary": ["dog", "cat", "cow"],
    }


def test_what_is_no_picture_is_reported():
    with pytest.raises(MaskCLIPError, match="`image`: expected a Pillow image, got ndarray"):
        segmentation([[0]]).overlay(np.zeros((1, 1, 3), np.uint8))
