"""What all formats promise: the same bytes however a run went, whole files, one-line errors."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from maskclip.core.errors import MaskCLIPError
from maskclip.core.palettes import distinct_colors
from maskclip.core.resize import Geometry
from maskclip.core.segmentation import Segmentation
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats import (
    FLAT_FORMATS,
    FORMATS,
    FormatOptions,
    Labeled,
    PhotoFile,
    find_format,
    open_formats,
)
from maskclip.data.formats import label_studio as label_studio_module
from maskclip.data.formats.per_photo import Thumbnails

ALL = {name: find_format(name) for name in FORMATS | FLAT_FORMATS} | {"thumbnails": Thumbnails}
ONE = np.zeros((3, 4), np.uint8)


@pytest.fixture
def items(label_maps, words):
    grid = np.random.default_rng(1).dirichlet(np.ones(len(words)), (2, 3)).transpose(2, 0, 1)
    grids = np.stack([grid, grid[::-1]]).astype(np.float32)
    windows = [(range(8), range(9)), (range(8), range(3, 12))]
    return [
        replace(
            item,
            probabilities=grids,
            geometry=Geometry(windows, (10, 12), (8, 12), item.labels.shape, 1),
        )
        for item in label_maps(words)
    ]


def files_of(items, folder="/photos"):
    return [PhotoFile(item.name, item.image, f"{folder}/{item.image}") for item in items]


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def run(name, vocabulary, out, items, **options):
    made = ALL[name](vocabulary, out, FormatOptions(**options))
    for item in items:
        made.write(item)
    made.finish(files_of(items))
    return contents(out)


@pytest.mark.parametrize("name", ALL)
def test_a_run_has_the_same_files_however_it_went(tmp_path, items, words, name):
    whole = run(name, words, tmp_path / "whole", items)
    assert run(name, words, tmp_path / "whole", items) == whole, "written and finished again"
    run(name, words, tmp_path / "broken", items[:3])
    other = ALL[name](words, tmp_path / "broken")  # as another process would go on
    for item in reversed(items[2:]):
        other.write(item)
    other.finish(reversed(files_of(items)))
    assert contents(tmp_path / "broken") == whole


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_left_over_and_every_file_is_announced(tmp_path, items, words, name):
    made = ALL[name](words, tmp_path)
    for item in items:
        before = set(contents(tmp_path))
        made.write(item)
        new = {path.relative_to(tmp_path).as_posix() for path in made.files(item.name)}
        assert set(contents(tmp_path)) - before == new
    made.finish(files_of(items))
    assert not [path for path in contents(tmp_path) if ".writing-" in path]


@pytest.mark.parametrize("name", ALL)
def test_a_set_may_be_empty_and_written_names_alone_are_in_it(tmp_path, items, words, name):
    run(name, words, tmp_path / "none", [])
    subset = run(name, words, tmp_path / "subset", items[:2])
    made = ALL[name](words, tmp_path / "more")
    for item in items[:3]:
        made.write(item)
    made.finish(files_of(items[:2]))
    extra = {path.relative_to(tmp_path / "more").as_posix() for path in made.files(items[2].name)}
    assert {k: v for k, v in contents(tmp_path / "more").items() if k not in extra} == subset


@pytest.mark.parametrize("name", ["coco", "cvat", "label-studio"])
def test_a_missing_file_is_named_and_the_files_of_the_set_stay(tmp_path, items, words, name):
    before = run(name, words, tmp_path, items)
    made = ALL[name](words, tmp_path)
    lost = made.files("photo")[-1]
    lost.unlink()
    with pytest.raises(MaskCLIPError, match=f"{lost.name} is missing: run the same"):
        made.finish(files_of(items))
    del before[lost.relative_to(tmp_path).as_posix()]
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("scores", "probabilities")])
def test_labels_that_are_no_class_are_refused(tmp_path, words, name):
    photo, scores = Image.new("RGB", (4, 3)), np.ones(ONE.shape, np.float32)
    item = Labeled("x", "x.jpg", ONE + np.uint8(5), scores, photo=photo)
    with pytest.raises(ValueError, match=r"x: expected labels below 5.* or 255, got 5"):
        ALL[name](words, tmp_path).write(item)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "archive"), [("cvat", "annotations.zip"), ("probabilities", "photo.npz")]
)
def test_archives_do_not_tell_the_time(tmp_path, items, words, name, archive):
    run(name, words, tmp_path, items)
    with zipfile.ZipFile(tmp_path / archive) as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a//b", "./a", "a/"])
def test_names_stay_in_the_folder(name):
    with pytest.raises(ValueError, match="plain relative path"):
        Labeled(name, "x.jpg", ONE)


@pytest.mark.parametrize("name", ["coco", "cvat", "label-studio", "yolo"])
@pytest.mark.parametrize("paths", [("x", "x\udcff.jpg"), ("x\udcff", "x.jpg")])
def test_paths_that_no_text_file_can_hold_are_refused(tmp_path, words, name, paths):
    with pytest.raises(MaskCLIPError, match="not valid UTF-8: rename the photo"):
        ALL[name](words, tmp_path).write(Labeled(*paths, ONE))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": np.zeros((0, 3), np.uint8)}, "some pixels"),
        ({"labels": np.zeros((2, 3), np.int64)}, "uint8 or uint16, got int64"),
        ({"labels": ONE, "scores": np.zeros((4, 3), np.float32)}, r"shape \(3, 4\), got \(4, 3\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Labeled("x", "x.jpg", **fields)


def test_formats_have_a_folder_each_or_share_one(tmp_path, words):
    made = open_formats(("png", "probabilities"), words, tmp_path)
    assert [each.out for each in made] == [tmp_path / "png", tmp_path / "probabilities"]
    assert [each.wants_probabilities for each in made] == [False, True]
    flat = open_formats(tuple(FLAT_FORMATS), words, tmp_path, flat=True)
    assert [path for each in flat for path in each.files("x")] == [
        tmp_path / name for name in ("x_overlay.png", "x_labels.png", "x_scores.png", "x.json")
    ]


def test_formats_without_ignored_pixels_are_those_of_a_segmentation(tmp_path, items, words):
    labels = items[0].labels.copy()
    labels[labels == words.ignore] = 0
    item = replace(items[0], labels=labels)
    for name in FLAT_FORMATS:
        ALL[name](words, tmp_path / "found").write(item)
    segmentation = Segmentation(labels, item.scores, words, item.photo)
    stem = tmp_path / "wanted" / item.name
    segmentation.save_png(f"{stem}_labels.png")
    segmentation.save_scores(f"{stem}_scores.png")
    segmentation.overlay().save(f"{stem}_overlay.png")
    text = json.dumps(segmentation.to_dict(), indent=2, ensure_ascii=False)
    stem.with_suffix(".json").write_text(f"{text}\n", encoding="utf-8")
    assert contents(tmp_path / "found") == contents(tmp_path / "wanted")


def test_ignored_pixels_are_of_no_class(tmp_path, words):
    labels = np.array([[0, 0, 0, 255], [3, 255, 255, 255]], np.uint8)
    scores = np.full(labels.shape, 0.5, np.float32)
    photo = Image.new("RGB", (4, 2), (9, 99, 199))
    item = Labeled("x", "x.jpg", labels, scores, photo=photo)
    for name in ("overlay", "labels", "json", "thumbnails"):
        ALL[name](words, tmp_path).write(item)
    with Image.open(tmp_path / "x_labels.png") as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
    with Image.open(tmp_path / "x_overlay.png") as image:
        factor = image.width // 4
        cells = np.asarray(image)[factor // 2 : 2 * factor : factor, factor // 2 :: factor]
    assert ((cells == (9, 99, 199)).all(axis=2) == (labels == 255)).all()
    found = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["classes"]
    assert [(each["label"], each["coverage"], each["score"]) for each in found] == [
        (0, 3 / 8, 0.5),
        (3, 1 / 8, 0.5),
    ]
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.size == (8, 2)


@pytest.mark.parametrize(
    ("name", "what"),
    [("overlay", "the photo"), ("thumbnails", "the photo"), ("scores", "scores"), ("json", "sco")],
)
def test_what_a_format_needs_is_wanted(tmp_path, words, name, what):
    with pytest.raises(ValueError, match=f"x: expected {what}.*, got none"):
        ALL[name](words, tmp_path).write(Labeled("x", "x.jpg", ONE))


@pytest.mark.parametrize("name", ["cvat", "label-studio", "yolo"])
def test_a_background_alone_is_not_enough(tmp_path, name):
    with pytest.raises(MaskCLIPError, match=f"{name} has no background"):
        ALL[name](Vocabulary.parse(["background"]), tmp_path)


@pytest.mark.parametrize("word", ["ratio 1:2", "#1"])
def test_cvat_refuses_names_that_its_list_cannot_hold(tmp_path, word):
    with pytest.raises(MaskCLIPError, match="cvat cannot hold a class called"):
        ALL["cvat"](Vocabulary.parse(["dog", word]), tmp_path)


def test_cvat_refuses_photos_that_its_list_cannot_hold(tmp_path, words):
    for name in ("#1", "a\nb", " a", "a "):
        with pytest.raises(MaskCLIPError, match="cvat cannot hold a photo called"):
            ALL["cvat"](words, tmp_path).write(Labeled(name, "x.jpg", ONE))


def test_cvat_refuses_more_classes_than_bytes(tmp_path, many):
    with pytest.raises(MaskCLIPError, match="cvat holds at most 255 classes besides the b"):
        ALL["cvat"](many, tmp_path)


def test_cvat_keeps_every_colour_that_it_can(tmp_path):
    first, second = distinct_colors(2)
    colors = [(0, 0, 0), first, second, first]
    ALL["cvat"](Vocabulary.parse(list("abcd"), colors=colors), tmp_path).finish([])
    lines = (tmp_path / "labelmap.txt").read_text(encoding="utf-8").splitlines()[2:]
    found = [tuple(map(int, line.split(":")[1].split(","))) for line in lines]
    assert found[1:3] == [first, second]
    assert len({(0, 0, 0), *found}) == 5


def test_tasks_are_spread_over_files_and_old_files_go(tmp_path, items, words, monkeypatch):
    monkeypatch.setattr(label_studio_module, "MAX_BYTES", 3000)
    spread = run("label-studio", words, tmp_path, items)
    tasks = [name for name in spread if name.startswith("tasks-")]
    assert len(tasks) > 1
    monkeypatch.undo()
    whole = run("label-studio", words, tmp_path, items)
    assert [name for name in whole if name.startswith("tasks-")] == ["tasks-00001.json"]


def test_png_shows_classes_in_their_colours(tmp_path, words):
    labels = np.array([[0, 3, 255]], np.uint8)
    ALL["png"](words, tmp_path).write(Labeled("a/x", "a/x.jpg", labels))
    with Image.open(tmp_path / "a/x.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        colors = np.asarray(image.convert("RGB"))[0].tolist()
    assert colors == [[10, 20, 30], [255, 0, 0], [224, 224, 192]]


def test_png_is_wide_beyond_255_classes(tmp_path, many):
    labels = np.array([[0, 299, 65_535]], np.uint16)
    made = ALL["png"](many, tmp_path)
    made.write(Labeled("x", "x.jpg", labels))
    made.finish([PhotoFile("x", "x.jpg", "/photos/x.jpg")])
    with Image.open(tmp_path / "x.png") as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
    assert (tmp_path / "classes.txt").read_text(encoding="utf-8").splitlines() == list(many.names)


def test_probabilities_are_read_by_numpy_alone(tmp_path, items, words):
    run("probabilities", words, tmp_path, items)
    with np.load(tmp_path / "a/b/photo.npz") as found:
        assert found["probabilities"].dtype == np.float32
        np.testing.assert_array_equal(found["probabilities"], items[1].probabilities)
        assert found["classes"].tolist() == list(words.names)
        assert {name: found[name].tolist() for name in ("size", "seen", "covered", "windows")} == {
            "size": [64, 41],
            "seen": [8, 12],
            "covered": [10, 12],
            "windows": [[[0, 8], [0, 9]], [[0, 8], [3, 12]]],
        }


@pytest.mark.parametrize(
    "maps", [None, np.ones((1, 4, 2, 2)), np.ones((1, 5, 0, 2)), np.ones((5, 2, 2))]
)
def test_probabilities_of_another_shape_are_refused(tmp_path, words, maps):
    with pytest.raises(ValueError, match=r"expected probabilities \(n, 5, h, w\), got"):
        ALL["probabilities"](words, tmp_path).write(Labeled("x", "x.jpg", ONE, probabilities=maps))


def test_probabilities_without_a_place_are_refused(tmp_path, items, words):
    for geometry in (None, replace(items[0].geometry, output=(1, 2))):
        with pytest.raises(ValueError, match="expected the place of 2 grids in the photo"):
            ALL["probabilities"](words, tmp_path).write(replace(items[0], geometry=geometry))
