import numpy as np
import pytest
from PIL import Image

from maskclip.core.palettes import voc_colors
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.masks import LabelRule, MaskError, load_labels, read_ids

VALUES = np.array([[0, 1, 20], [255, 3, 0]], np.uint8)
VOC21 = LabelRule(21, 255, colors=voc_colors(256))


def palette():
    image = Image.fromarray(VALUES)
    image.putpalette(np.array(voc_colors(256), np.uint8).tobytes())
    return image


@pytest.mark.parametrize(
    "image",
    [
        palette(),
        Image.fromarray(VALUES),
        Image.fromarray(VALUES.astype(np.uint16)),
        Image.fromarray(VALUES).convert("RGB"),
        palette().convert("RGB"),
        palette().convert("RGBA"),
    ],
    ids=["palette", "grey", "16-bit", "grey as RGB", "colors", "colours with alpha"],
)
def test_every_coding_gives_the_same_ids(tmp_path, image):
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(load_labels(tmp_path / "mask.png", VOC21), VALUES)


def test_reduce_zero_ignores_zero_and_keeps_ignored(tmp_path):
    palette().save(tmp_path / "mask.png")
    labels = load_labels(tmp_path / "mask.png", LabelRule(20, 255, reduce_zero=True))
    np.testing.assert_array_equal(labels, [[255, 0, 19], [255, 2, 255]])


def test_255_is_a_class_where_there_are_more(tmp_path):
    rule = LabelRule.of(Vocabulary.parse([f"thing {i}" for i in range(300)]))
    values = np.array([[255, 299, 65_535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(load_labels(tmp_path / "mask.png", rule), values)
    assert rule.ignore == 65_535


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.full((2, 2), 21, np.uint8), "label 21 is out of range: expected classes 0..20"),
        (np.full((2, 2, 3), (1, 2, 3), np.uint8), "colour #010203 is no class"),
        (np.full((2, 2), 300, np.uint16), "label 300 is out of range"),
    ],
)
def test_what_means_nothing_is_named(tmp_path, pixels, said):
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    with pytest.raises(MaskError, match=said):
        load_labels(tmp_path / "mask.png", VOC21)


def test_a_lossy_or_missing_mask_is_refused(tmp_path):
    Image.fromarray(VALUES).save(tmp_path / "mask.jpg")
    with pytest.raises(MaskError, match="expected a PNG"):
        read_ids(tmp_path / "mask.jpg", VOC21)
    with pytest.raises(MaskError, match="no such mask"):
        read_ids(tmp_path / "none.png", VOC21)


def test_invalid_ids_are_counted():
    ids = LabelRule(3, 255).ids(np.array([[0, 7, 7], [255, 2, 9]]))
    assert LabelRule(3, 255).invalid(ids) == {7: 2, 9: 1}


def test_reduce_zero_does_not_ignore_a_value_beyond_the_ignored_one(tmp_path):
    Image.fromarray(np.array([[1, 256]], np.uint16)).save(tmp_path / "mask.png")
    with pytest.raises(MaskError, match="label 256 is out of range"):
        load_labels(tmp_path / "mask.png", LabelRule(20, 255, reduce_zero=True))
