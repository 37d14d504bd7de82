import zlib

import numpy as np
import pytest
from PIL import Image

from maskclip.core.palettes import voc_colors
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.masks import LabelRule, MaskError, doubt, load_labels, read_ids

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


WORDS = Vocabulary.parse(["dog", "cat", "car"])
RULE = LabelRule.of(WORDS)


def save(path, values, mode=None, **options):
    image = Image.fromarray(np.asarray(values))
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_greys_of_a_few_bits_are_not_stretched(tmp_path, bits):
    values = np.arange(2**bits, dtype=np.uint8)[None]
    indices = Image.fromarray(values)
    indices.putpalette([0] * 768)
    path = tmp_path / "mask.png"
    indices.save(path, bits=bits)
    data = bytearray(path.read_bytes())
    assert data[24:26] == bytes([bits, 3])
    data[25] = 0  # grey in place of a palette, whose chunk goes
    start = data.index(b"PLTE") - 4
    del data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)
    np.testing.assert_array_equal(read_ids(path, LabelRule(16, 255)), values)


def test_a_boolean_mask_holds_classes_0_and_1(tmp_path):
    path = save(tmp_path / "mask.png", np.array([[True, False]]))
    with Image.open(path) as image:
        assert image.mode == "1"
    np.testing.assert_array_equal(load_labels(path, RULE), [[1, 0]])


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_every_lossless_suffix(tmp_path, suffix):
    values = np.array([[0, 1, 2, 255]], np.uint8)
    path = save(tmp_path / f"mask.{suffix}", values)
    np.testing.assert_array_equal(load_labels(path, RULE), values)


def test_transparent_pixels_have_no_label(tmp_path):
    colors = np.array([[(*WORDS.colors[1], 255), (9, 9, 9, 0), (0, 0, 0, 0)]], np.uint8)
    np.testing.assert_array_equal(
        load_labels(save(tmp_path / "colors.png", colors), RULE), [[1, 255, 255]]
    )
    grey = np.array([[(2, 255), (1, 0)]], np.uint8)
    np.testing.assert_array_equal(load_labels(save(tmp_path / "grey.png", grey), RULE), [[2, 255]])
    colors[..., 3] = 128
    with pytest.raises(MaskError, match="half-transparent pixels have no certain class"):
        load_labels(save(tmp_path / "soft.png", colors), RULE)


def test_our_colour_of_ignored_pixels_is_known(tmp_path):
    colors = np.array([[WORDS.colors[2], (224, 224, 192)]], np.uint8)
    np.testing.assert_array_equal(load_labels(save(tmp_path / "a.png", colors), RULE), [[2, 255]])


def test_a_colour_of_two_classes_says_none(tmp_path):
    words = Vocabulary.parse(["a", "b", "c"], colors=[(1, 2, 3), (4, 5, 6), (4, 5, 6)])
    colors = np.array([[(1, 2, 3), (4, 5, 6)]], np.uint8)
    with pytest.raises(MaskError, match=r"#040506 is that of 2 classes \(1 and 2\)"):
        read_ids(save(tmp_path / "a.png", colors), LabelRule.of(words))


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        ([0, 1, 2], [[0, 1, 2]]),
        ([2, 0, 1], [[2, 0, 1]]),  # an editor that renumbers keeps the colours
        ([0, 2, 1], [[0, 2, 1]]),
        ([None, 0, 1], [[0, 1, 2]]),  # a colour of no class: any palette at all
    ],
)
def test_a_palette_of_the_classes_in_another_order_is_read_by_its_colours(tmp_path, order, wanted):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    colors = [(77, 77, 78) if place is None else WORDS.colors[place] for place in order]
    image.putpalette(np.array(colors, np.uint8).tobytes())
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_ids(tmp_path / "mask.png", RULE), wanted)


def test_several_images_in_a_file_are_no_mask(tmp_path):
    pages = [Image.fromarray(VALUES), Image.fromarray(VALUES)]
    pages[0].save(tmp_path / "mask.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(MaskError, match="several images in one file"):
        read_ids(tmp_path / "mask.tif", VOC21)


def test_a_huge_mask_is_refused_by_its_header(tmp_path):
    path = save(tmp_path / "mask.png", VALUES)
    data = bytearray(path.read_bytes())
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(MaskError, match="50000x50000 pixels, over the limit"):
        read_ids(path, VOC21)
    with pytest.raises(MaskError, match="the mask is 50000x50000 but its image 3x2"):
        read_ids(path, VOC21, size=(3, 2))


def test_16_bits_hold_255_and_more_classes(tmp_path):
    many = LabelRule.of(Vocabulary.parse([f"thing {i}" for i in range(300)]))
    values = np.array([[0, 255, 256, 299, 65_535]], np.uint16)
    for suffix in ("png", "tif"):
        path = save(tmp_path / f"mask.{suffix}", values)
        np.testing.assert_array_equal(load_labels(path, many), values)
    with pytest.raises(MaskError, match="label 256 is out of range"):
        load_labels(path, RULE)


@pytest.mark.parametrize(
    ("pixels", "ignored", "said"),
    [
        ([9, 0, 0], 4, "no mask has a pixel of cat or car, and all have ignored ones: 255 means"),
        ([0, 0, 0], 4, "no mask has a labelled pixel: 255 means ignored, and classes are 0..2"),
        ([9, 0, 0], 3, None),
        ([9, 5, 1], 4, None),
        ([0, 5, 1], 4, None),  # which is no mask of 0 and 255: ids may count from 1
    ],
)
def test_masks_as_a_whole_are_doubted(pixels, ignored, said):
    found = doubt(WORDS.names, np.array(pixels), RULE, masks=4, ignored=ignored)
    assert found is None if said is None else found.startswith(said)


@pytest.mark.parametrize(
    ("names", "pixels", "said"),
    [(["no", "yes"], [9, 0], True), (["dog"], [9], True), (["no", "yes"], [0, 0], False)],
)
def test_black_and_white_masks_are_told_to_become_0_and_1(names, pixels, said):
    found = doubt(names, np.array(pixels), LabelRule(len(names), 255), masks=2, ignored=2)
    assert (
        found.endswith("masks of 0 and 255, as black-and-white images are: make them 0 and 1")
        is said
    )


def test_one_class_and_ignored_pixels_everywhere_are_doubted():
    found = doubt(["dog"], np.array([9]), LabelRule(1, 255), masks=1, ignored=1)
    assert found.startswith("every mask has ignored pixels, and all others are dog: 255 means")


@pytest.mark.parametrize(
    ("values", "hint"),
    [([1, 2, 3], True), ([3, 255], True), ([0, 3], False), ([1, 4], False), ([7], False)],
)
def test_ids_that_count_from_1_are_reported(tmp_path, values, hint):
    path = save(tmp_path / "mask.png", np.array([values], np.uint8))
    with pytest.raises(MaskError, match="is out of range: expected classes") as error:
        load_labels(path, RULE)
    assert ("ids seem to count from 1 (there is 3 and no 0)" in str(error.value)) == hint


def test_invalid_ids_are_counted():
    ids = LabelRule(3, 255).ids(np.array([[0, 7, 7], [255, 2, 9]]))
    assert LabelRule(3, 255).invalid(ids) == {7: 2, 9: 1}


def test_reduce_zero_does_not_ignore_a_value_beyond_the_ignored_one(tmp_path):
    Image.fromarray(np.array([[1, 256]], np.uint16)).save(tmp_path / "mask.png")
    with pytest.raises(MaskError, match="label 256 is out of range"):
        load_labels(tmp_path / "mask.png", LabelRule(20, 255, reduce_zero=True))
