from __future__ import annotations

import json
import tomllib
from importlib import resources
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from maskclip.emoji import scenes
from maskclip.emoji.captions import (
    class_names,
    every_word,
    names_in,
    pairs_in,
    templates,
    trained_pairs,
    write_caption,
)
from maskclip.emoji.layers import paint, place_object, place_textures, texture, texture_names
from maskclip.emoji.scenes import draw_scene, paint_labels, write_scenes
from maskclip.emoji.sprites import (
    COLORS,
    HELD_OUT_PAIRS,
    colored_pairs,
    object_names,
    sprite,
)
from tools.emoji_clip import examples
from tools.emoji_clip.examples import draw_example
from tools.emoji_clip.render_sprites import render_sheet


def test_the_vocabulary_lists_the_objects_and_then_the_textures():
    text = resources.files("maskclip.core").joinpath("vocabularies/emoji.toml").read_text("utf-8")
    assert tuple(tomllib.loads(text)["classes"]) == class_names()
    assert len(object_names()) >= 48
    assert len(texture_names()) >= 8


def test_the_sheet_comes_with_its_licence():
    folder = resources.files("maskclip.emoji").joinpath("sprites")
    assert "SIL OPEN FONT LICENSE Version 1.1" in folder.joinpath("LICENSE").read_text("utf-8")
    assert len(folder.joinpath("sheet.png").read_bytes()) < 1_000_000


def test_every_object_has_a_sprite_that_fills_its_box():
    for name in object_names():
        cutout = sprite(name)
        assert max(cutout.size) > 100
        assert cutout.getchannel("A").getbbox() == (0, 0, *cutout.size)


def test_the_sheet_can_be_rendered_again(tmp_path):
    font = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    try:
        sheet = render_sheet(font)
    except OSError:
        pytest.skip("the font (Debian: fonts-noto-color-emoji) is not installed")
    assert sheet.size == (1024, 896)


def test_a_coloured_object_is_mostly_of_that_hue():
    for color, name in colored_pairs():
        pixels = np.asarray(sprite(name, color).convert("RGB").convert("HSV")).reshape(-1, 3)
        degrees = pixels[pixels[:, 1] > 120, 0] * (360 / 256)
        distance = np.abs((degrees - COLORS[color] + 180) % 360 - 180)
        assert np.median(distance) < 15, (color, name)


@pytest.mark.parametrize(("name", "color"), [("dragon", None), ("dog", "blue"), ("car", "mauve")])
def test_an_unknown_sprite_is_refused(name, color):
    with pytest.raises(ValueError, match=r"expected one of|there is no"):
        sprite(name, color)


@pytest.mark.parametrize("name", texture_names())
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (64, 3), (50, 70)])
def test_a_texture_has_any_size_and_depends_on_its_seed_alone(name, height, width):
    first, again, other = (
        texture(name, np.random.default_rng(seed), height=height, width=width) for seed in (4, 4, 5)
    )
    assert first.shape == (height, width, 3)
    assert first.min() >= 0
    assert first.max() <= 255
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_equal_seeds_give_equal_scenes_and_others_give_others():
    one, again, other = draw_scene(7), draw_scene(7), draw_scene(8)
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.labels, again.labels)
    assert one.caption == again.caption
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize(
    ("size", "shape"),
    [(1, (1, 1)), ((1, 90), (1, 90)), ((90, 2), (90, 2)), (33, (33, 33)), ((40, 300), (40, 300))],
)
def test_scenes_have_any_size(size, shape):
    for seed in range(4):
        scene = draw_scene(seed, size=size)
        assert scene.image.shape == (*shape, 3)
        assert scene.labels.shape == shape
        assert scene.image.dtype == scene.labels.dtype == np.uint8
        assert names_in(scene.caption) == {class_names()[i] for i in np.unique(scene.labels)}


def test_a_size_without_pixels_is_refused():
    with pytest.raises(ValueError, match="at least 1 x 1"):
        draw_scene(0, size=(0, 5))


def test_a_scene_shows_what_is_wanted():
    scene = draw_scene(3, objects=["purple car", "dog"], grounds=["brick wall"])
    assert names_in(scene.caption) == {"car", "dog", "brick wall"}
    assert pairs_in(scene.caption) == {("purple", "car")}
    with pytest.raises(ValueError, match="unknown object 'dragon'"):
        draw_scene(3, objects=["dragon"])


def test_captions_name_exactly_the_labelled_classes():
    seen = set()
    for seed in range(60):
        scene = draw_scene(seed, size=96)
        labeled = {class_names()[label] for label in np.unique(scene.labels)}
        assert names_in(scene.caption) == labeled
        assert 1 <= len(labeled & set(object_names())) <= 3
        assert 1 <= len(labeled & set(texture_names())) <= 2
        seen |= labeled
    assert len(seen) > 45


def test_an_object_changes_only_the_pixels_it_covers():
    generator = np.random.default_rng(0)
    frame = {"height": 120, "width": 160}
    ground = place_textures(["sand"], generator, **frame, scale=1.0)
    thing = place_object("dog", None, generator, frame=(120, 160), side=60.0, inside=True)
    bare, _ = paint(ground, **frame)
    image, visible = paint([*ground, thing], **frame)
    alpha = np.zeros((120, 160))
    alpha[thing.window] = thing.alpha
    changed = (bare != image).any(axis=2)
    assert not changed[alpha == 0].any()
    assert changed[alpha > 0.5].mean() > 0.95
    labels = paint_labels([*ground, thing], **frame)
    assert np.array_equal(labels == class_names().index("dog"), alpha > 0.5)
    assert visible[1] == pytest.approx(alpha.sum(), rel=1e-4)
    assert visible.sum() == pytest.approx(120 * 160, rel=1e-4)


def test_what_covers_an_object_hides_it():
    generator = np.random.default_rng(0)
    frame = {"height": 50, "width": 50}
    thing = place_object("dog", None, generator, frame=(50, 50), side=30.0, inside=True)
    cover = place_textures(["snow"], generator, **frame, scale=1.0)
    _, visible = paint([thing, *cover], **frame)
    assert visible.tolist() == [0, 2500]


def test_objects_may_lie_outside_the_frame():
    generator = np.random.default_rng(1)
    placed = [
        place_object("car", None, generator, frame=(20, 20), side=2.0, inside=False)
        for _ in range(300)
    ]
    assert None in placed
    for layer in placed:
        if layer is not None:
            rows, columns = layer.window
            assert 0 <= rows.start < rows.stop <= 20
            assert 0 <= columns.start < columns.stop <= 20


def test_equal_seeds_give_equal_examples():
    image, caption = draw_example(11)
    again, same = draw_example(11)
    assert image.shape == (128, 128, 3)
    assert np.array_equal(image, again)
    assert caption == same
    assert draw_example(11, size=1)[0].shape == (1, 1, 3)


def test_training_shows_every_pair_but_those_held_out():
    shown: set[tuple[str, str]] = set()
    for seed in range(1500):
        shown |= pairs_in(draw_example(seed, size=32)[1])
    assert shown == set(trained_pairs())
    assert set(HELD_OUT_PAIRS) == set(colored_pairs()) - set(trained_pairs())
    assert len({name for _, name in HELD_OUT_PAIRS}) >= 6


def test_held_out_pairs_are_never_drawn_in_training(monkeypatch):
    drawn = []
    place = examples.place_object
    monkeypatch.setattr(
        examples, "place_object", lambda *a, **k: drawn.append((a[1], a[0])) or place(*a, **k)
    )
    for seed in range(500):
        draw_example(seed, size=16)
    assert len(drawn) > 500
    assert not set(drawn) & set(HELD_OUT_PAIRS)


def test_examples_and_scenes_draw_from_different_numbers():
    assert examples.NAMESPACE != scenes.NAMESPACE
    one = np.random.default_rng([examples.NAMESPACE, 5]).random(100)
    other = np.random.default_rng([scenes.NAMESPACE, 5]).random(100)
    assert not np.isin(one, other).any()


def test_an_example_names_only_what_it_shows():
    for seed in range(200):
        caption = draw_example(seed, size=48)[1]
        assert 1 <= len(names_in(caption)) <= 5, caption


def test_templates_name_nothing_themselves():
    for template in templates():
        assert template.count("{}") == 1
        assert not names_in(template)
        assert not any(color in template.split() for color in COLORS)


def test_captions_say_colours_and_use_known_words():
    known = {word.strip(".,") for text in every_word() for word in text.lower().split()}
    generator = np.random.default_rng(0)
    for _ in range(200):
        caption = write_caption(["blue car", "apple"], ["brick wall", "sky"], generator)
        assert pairs_in(caption) == {("blue", "car")}
        assert names_in(caption) == {"car", "apple", "brick wall", "sky"}
        assert {word.strip(".,") for word in caption.lower().split()} <= known


def test_writing_scenes_makes_a_small_voc_dataset(tmp_path):
    written = list(write_scenes(tmp_path, count=3, seed=5, size=(40, 60)))
    names = (tmp_path / "ImageSets/Segmentation/val.txt").read_text().split()
    assert [path.stem for path in written] == names
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert (tmp_path / "classes.txt").read_text().splitlines() == list(class_names())
    for seed, name in enumerate(names, start=5):
        scene = draw_scene(seed, size=(40, 60))
        mask = Image.open(tmp_path / "SegmentationClass" / f"{name}.png")
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), scene.labels)
        assert captions[name] == scene.caption
        photo = np.asarray(Image.open(tmp_path / "JPEGImages" / f"{name}.jpg")).astype(int)
        assert np.abs(photo - scene.image).mean() < 6


def test_writing_scenes_leaves_whole_files_only(tmp_path):
    list(islice(write_scenes(tmp_path, count=9), 2))
    assert len(list(tmp_path.rglob("*.png"))) == 2
    assert not list(tmp_path.rglob(".writing-*"))
