"""Colours that mean what their names say, and can be told apart."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from maskclip.core.draw import overlay
from maskclip.core.palettes import class_colors
from maskclip.core.vocabulary import Vocabulary, builtin_names

HUES = {
    "grass": 90, "trees": 130, "bushes": 130, "leaves": 130, "sky": 205, "water": 215, "sea": 215,
    "sand": 47, "beaches": 47, "red car": 0, "a green apple": 140, "yellow": 50, "palm tree": 130,
    "strawberries": 355, "grass field": 90, "Sky-other": 205, "person": 340, "women": 340,
    "brick wall": 12,
}  # fmt: skip
STREET = (
    "road", "sidewalk", "building", "wall", "fence", "sky", "person", "red car", "white car",
    "grass", "trees", "sand", "water", "snow", "dog", "cat", "bicycle", "bench",
)  # fmt: skip


def hsv(color):
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in color))
    return 360 * hue, saturation, value


def oklab(color):
    """Björn Ottosson's own matrices, from sRGB."""
    encoded = np.array(color) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return lab @ np.cbrt(lms @ linear)


def nearest(colors):
    places = np.array([oklab(color) for color in colors])
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    return apart[~np.eye(len(places), dtype=bool)].min()


@pytest.mark.parametrize("name", HUES)
def test_a_word_with_an_everyday_colour_has_it(name):
    (color,) = class_colors([name])
    hue, saturation, _ = hsv(color)
    assert saturation > 0.3
    assert abs((hue - HUES[name] + 180) % 360 - 180) < 14


def test_roads_are_grey_and_snow_is_white():
    road, snow, black = map(hsv, class_colors(["streets", "snow", "black dog"]))
    assert road[1] < 0.25
    assert 0.4 < road[2] < 0.65
    assert snow[1] < 0.2
    assert snow[2] > 0.9
    assert 0.2 < black[2] < 0.4, "not black, which is the background's"


@pytest.mark.parametrize(
    "name", ["grasshopper", "skyscraper", "bored", "treetop", "seal", "roads2"]
)
def test_a_word_within_another_says_nothing(name):
    plain = class_colors(["zzz", "grass", "sky", "tree", "sea", "red", "road"])
    if name == "roads2":
        assert class_colors([name])[0] == plain[6], "a number does not hide a word"
    else:
        assert class_colors([name])[0] == plain[0]


def test_a_background_by_name_is_black_as_any_other():
    assert class_colors(["background", "dog"]) == ((0, 0, 0), *class_colors(["dog"]))
    assert class_colors(["dark background"]) != ((0, 0, 0),)


def test_two_classes_of_one_colour_have_two_shades_of_it():
    colors = class_colors(["tree", "bush", "plants", "palm tree"])
    assert all(60 < hsv(color)[0] < 180 for color in colors)
    assert nearest(colors) >= 0.07


def test_a_class_at_the_end_changes_no_other():
    for count in range(1, len(STREET)):
        assert class_colors(STREET[:count]) == class_colors(STREET)[:count]


@pytest.mark.parametrize(("names", "apart"), [(STREET, 0.07), (("dog", "cat", "car"), 0.2)])
def test_classes_are_far_apart(names, apart):
    assert nearest(class_colors(names)) >= apart


@pytest.mark.parametrize("name", builtin_names())
def test_built_in_classes_can_be_told_apart(name):
    vocabulary = Vocabulary.builtin(name)
    if vocabulary.colors == class_colors(vocabulary.names) and len(vocabulary) <= 171:
        assert nearest(vocabulary.colors) >= 0.025


@pytest.mark.parametrize("count", [0, 1, 257, 3000])
def test_any_number_of_classes_has_as_many_colours_and_none_is_black(count):
    colors = class_colors([f"tree {number}" for number in range(count)])
    assert len(set(colors)) == len(colors) == count
    assert all(max(color) > 60 for color in colors)


@pytest.mark.parametrize("photo", [(30, 160, 40), (200, 30, 20), (20, 20, 25), (250, 250, 245)])
def test_the_overlay_has_the_hue_of_the_legend_on_any_photo(photo):
    colors = class_colors(["grass", "sky", "person", "dog", "sand"])
    for label, color in enumerate(colors):
        labels = np.full((8, 8), label, np.uint8)
        shown = overlay(Image.new("RGB", (8, 8), photo), labels, colors).getpixel((4, 4))
        assert abs((hsv(shown)[0] - hsv(color)[0] + 180) % 360 - 180) < 3
        assert np.linalg.norm(oklab(shown) - oklab(photo)) > 0.04, "the class can be seen"
