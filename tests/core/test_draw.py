import cv2
import numpy as np
import pytest
from PIL import Image

from maskclip.core.draw import (
    display_factor,
    overlay,
    overlay_with_legend,
    palette_image,
    with_legend,
)
from maskclip.core.specks import SPECK, specks

RED, BLUE = (200, 0, 0), (0, 0, 200)


def halves(height=40, width=60, dtype=np.uint8):
    labels = np.zeros((height, width), dtype)
    labels[:, width // 2 :] = 1
    return labels


class TestOverlay:
    def test_mixes_photo_and_colour_by_opacity(self):
        photo = Image.new("RGB", (60, 40), (78, 78, 78))  # becomes 90
        picture = np.asarray(overlay(photo, halves(), [RED, BLUE], opacity=0.5))
        assert picture[20, 5].tolist() == [145, 45, 45]
        assert picture[20, 55].tolist() == [45, 45, 145]

    @pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (128, 128, 128)])
    def test_boundaries_show_on_any_photo(self, color):
        photo = Image.new("RGB", (60, 40), color)
        row = np.asarray(overlay(photo, halves(), [color, color]).convert("L"))[20].astype(int)
        border = row[25:35]
        assert border.max() - border.min() > 80
        assert len(set(row[:25])) == 1

    def test_one_region_has_no_boundary(self):
        photo = Image.new("RGB", (60, 40), (10, 20, 30))
        picture = overlay(photo, np.zeros((40, 60), np.uint8), [RED], opacity=0)
        assert picture.tobytes() == photo.tobytes()

    def test_lines_grow_with_the_picture(self):
        def width_of_line(side):
            photo = Image.new("L", (side, side)).convert("RGB")
            picture = overlay(photo, halves(side, side), [(0, 0, 0)] * 2)
            return int((np.asarray(picture.convert("L"))[side // 2] > 128).sum())

        assert width_of_line(400) == 1
        assert width_of_line(2400) == 5

    def test_16_bit_labels_look_the_same(self):
        photo = Image.new("RGB", (60, 40), (100, 100, 100))
        small = overlay(photo, halves(), [RED, BLUE])
        assert small.tobytes() == overlay(photo, halves(dtype=np.uint16), [RED, BLUE]).tobytes()

    def test_the_photo_is_left_alone(self):
        photo = Image.new("RGB", (60, 40), (100, 100, 100))
        overlay(photo, halves(), [RED, BLUE], opacity=0)
        assert photo.getcolors() == [(2400, (100, 100, 100))]

    def test_errors(self):
        with pytest.raises(ValueError, match="image is 60x41"):
            overlay(Image.new("RGB", (60, 41)), halves(), [RED, BLUE])
        with pytest.raises(ValueError, match="`opacity`: expected a number between 0 and 1, got 2"):
            overlay(Image.new("RGB", (60, 40)), halves(), [RED, BLUE], opacity=2)


class TestLegend:
    def test_goes_below_or_beside(self):
        entries = [("dog", RED, 0.75), ("cat", BLUE, 0.25)]
        wide = with_legend(Image.new("RGB", (400, 300)), entries)
        assert wide.width == 400
        assert 300 < wide.height < 400
        tall = with_legend(Image.new("RGB", (200, 700)), entries)
        assert tall.height == 700
        assert 200 < tall.width < 500

    def test_shows_the_swatches_and_keeps_the_picture(self):
        photo = Image.new("RGB", (400, 300), (9, 9, 9))
        picture = with_legend(photo, [("dog", RED, 0.75), ("cat", BLUE, 0.25)])
        assert picture.crop((0, 0, 400, 300)).tobytes() == photo.tobytes()
        colors = {color for _, color in picture.crop((0, 300, *picture.size)).getcolors(9999)}
        assert {RED, BLUE} <= colors

    def test_lists_24_classes_and_counts_the_rest(self):
        entries = [(f"class {i}", (i, 2 * i, 255 - i), 0.01) for i in range(100)]
        picture = with_legend(Image.new("RGB", (500, 375)), entries)
        panel = picture.crop((0, 375, *picture.size))
        colors = {color for _, color in panel.getcolors(99999)}
        listed = [i for i, (_, color, _) in enumerate(entries) if color in colors]
        assert set(range(24)) <= set(listed)
        assert panel.height < 400
        exactly = with_legend(Image.new("RGB", (500, 375)), entries[:24])
        assert (
            exactly.tobytes() != with_legend(Image.new("RGB", (500, 375)), entries[:25]).tobytes()
        )

    def test_long_names_do_not_widen_it_without_end(self):
        photo = Image.new("RGB", (400, 300))
        long = with_legend(photo, [("long name " * 1000, RED, 1.0)])
        assert long.size == with_legend(photo, [("long name " * 10, RED, 1.0)]).size
        assert long.width == 400

    @pytest.mark.parametrize(
        "name", ["собака", "狗狗", "كلب", "🐶👩‍🚀", "e\u0301", "\ud800", "a\u202eb", "…"]
    )
    def test_any_script_can_be_named(self, name):
        assert with_legend(Image.new("RGB", (300, 300)), [(name, RED, 1.0)]).height > 300

    def test_nothing_to_list(self):
        assert with_legend(Image.new("RGB", (30, 20)), []).size == (30, 20)

    def test_a_trace_of_a_class_is_not_shown_as_none(self):
        photo = Image.new("RGB", (300, 300))
        trace = with_legend(photo, [("dog", RED, 1e-6)])
        assert trace.tobytes() != with_legend(photo, [("dog", RED, 0.0)]).tobytes()


@pytest.mark.parametrize(
    ("size", "factor"),
    [((1, 1), 256), ((100, 80), 3), ((256, 200), 1), ((4096, 64), 1), ((300, 1), 3)],
)
def test_tiny_images_are_shown_enlarged(size, factor):
    assert display_factor(*size) == factor


class TestPaletteImage:
    def test_pixels_are_labels(self):
        image = palette_image(halves(), [RED, BLUE])
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), halves())
        assert image.convert("RGB").getpixel((59, 0)) == BLUE

    def test_views_that_are_not_contiguous(self):
        labels = halves().T
        assert np.array_equal(np.asarray(palette_image(labels, [RED, BLUE])), labels)

    def test_other_labels_are_refused(self):
        with pytest.raises(ValueError, match="got uint16"):
            palette_image(halves(dtype=np.uint16), [RED, BLUE])


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (2000, 1300)])
@pytest.mark.parametrize("opacity", [0.3, 1.0])
def test_an_overlay_does_not_depend_on_the_bands_it_is_drawn_in(size, opacity, monkeypatch):
    chance = np.random.default_rng(0)
    photo = Image.fromarray(chance.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    coarse = Image.fromarray(chance.integers(0, 5, (6, 9), dtype=np.uint8))
    labels = np.asarray(coarse.resize(size, Image.Resampling.NEAREST))
    colors = [RED, BLUE, (9, 200, 30), (1, 2, 3)]  # label 4 is beyond them
    whole = overlay(photo, labels, colors, opacity=opacity)
    monkeypatch.setattr("maskclip.core.draw._BAND", 7 * size[0])
    assert overlay(photo, labels, colors, opacity=opacity).tobytes() == whole.tobytes()


def test_a_line_of_many_pixels_gets_no_legend():
    labels = np.zeros((30_000, 1), np.uint8)
    photo = Image.new("RGB", (1, 30_000))
    assert overlay_with_legend(photo, labels, ["sky"], [(0, 0, 255)]).size == photo.size


class TestSpecks:
    @pytest.mark.parametrize("line", [1, 3])
    def test_they_are_connected_regions_that_are_small_and_low(self, line):
        chance = np.random.default_rng(line)
        noise = chance.integers(0, 3, (70, 90), dtype=np.uint8)
        wide = np.asarray(Image.fromarray(noise[:9, :9]).resize((90, 70), Image.Resampling.NEAREST))
        labels = np.where(chance.random((70, 90)) < 0.3, noise, wide)
        expected = np.zeros(labels.shape, bool)
        for label in range(3):
            mask = (labels == label).view(np.uint8)
            _, regions, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
            for region in range(1, len(stats)):
                height, area = stats[region, [cv2.CC_STAT_HEIGHT, cv2.CC_STAT_AREA]]
                if area < SPECK * line**2 and height < SPECK * line:
                    expected |= regions == region
        assert expected.any()
        assert np.array_equal(specks(labels, line), expected)

    def test_no_line_is_drawn_around_them(self):
        labels = halves()
        labels[5:8, 5:8], labels[20:24, 5:9] = 1, 1
        picture = overlay(Image.new("RGB", (60, 40)), labels, [RED, RED]).convert("L")
        light = np.asarray(picture) > 200
        assert not light[:12, :12].any()
        assert light[18:26, 3:11].any()
        assert light[:, 28:31].any(axis=1).all()
