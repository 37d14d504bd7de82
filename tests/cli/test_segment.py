"""`maskclip segment` as a user runs it, on real files and the embedded model."""

import errno
import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import maskclip
from maskclip.cli import main
from maskclip.cli import segment as segment_verb
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import write_json
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.per_photo import LabelImage
from maskclip.emoji.scenes import draw_scene
from maskclip.tasks.label import worker

EMOJI = ("--model", "emoji", "--templates", "plain", "--short-side", "64")
WORDS = ("-c", "dog", "-c", "grass")


@pytest.fixture
def photo(tmp_path):
    """Write a drawn scene and return its path."""
    path = tmp_path / "photo.png"
    Image.fromarray(draw_scene(7, size=(48, 64)).image).save(path)
    return path


def segment(*arguments):
    return main(["segment", *map(str, arguments)])


def assert_one_line(captured, *parts):
    """A user mistake is one line on standard error, without a traceback."""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def test_writes_what_is_wanted_and_prints_coverage(photo, tmp_path, capsys):
    out = tmp_path / "out"
    save = "overlay,labels,scores,json"
    assert segment(photo, *WORDS, *EMOJI, "--out", out, "--save", save) == 0
    names = {"photo_overlay.png", "photo_labels.png", "photo_scores.png", "photo.json"}
    assert {path.name for path in out.iterdir()} == names
    labels = Image.open(out / "photo_labels.png")
    assert (labels.mode, labels.size) == ("P", (64, 48))
    assert set(np.unique(labels)) <= {0, 1}
    summary = json.loads((out / "photo.json").read_text())
    shares = {entry["name"]: entry["coverage"] for entry in summary["classes"]}
    assert sum(shares.values()) == pytest.approx(1)
    for label, name in enumerate(("dog", "grass")):
        assert shares.get(name, 0) == pytest.approx((np.asarray(labels) == label).mean())
    printed = capsys.readouterr().out
    for name, share in shares.items():
        assert f"{name}" in printed
        assert f"{share:.1%}" in printed


def test_overlays_among_the_photos_are_not_labelled_the_next_time(photo, tmp_path):
    out = tmp_path / "labels"
    for _ in range(2):
        assert segment(tmp_path, *WORDS, *EMOJI, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"photo_overlay.png", "photo_labels.png"}


def test_the_table_is_of_the_labels_that_a_class_file_leaves(photo, tmp_path, capsys):
    file, out = tmp_path / "words.toml", tmp_path / "out"
    file.write_text('classes = ["dog", "grass"]\n\n[confidence]\ndog = 1\ngrass = 0.9\n')
    assert segment(photo, "--classes", file, *EMOJI, "--out", out, "--save", "json") == 0
    entries = json.loads((out / "photo.json").read_text())["classes"]
    assert 0 < sum(entry["coverage"] for entry in entries) < 0.99
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    printed = [row for row in rows if row and row[0] in ("dog", "grass")]
    assert sorted(printed) == sorted(
        [entry["name"], f"{entry['coverage']:.1%}", f"{entry['score']:.2f}"] for entry in entries
    )


def test_the_labels_are_mostly_right_on_a_scene(tmp_path):
    scene = draw_scene(3, size=256, objects=["car"], grounds=["grass"])
    Image.fromarray(scene.image).save(tmp_path / "car.png")
    words = ("-c", "car", "-c", "grass", "-c", "sky", "-c", "dog")
    out = ("--out", tmp_path)
    assert segment(tmp_path / "car.png", *words, "--model", "emoji", *out) == 0
    labels = np.asarray(Image.open(tmp_path / "car_labels.png"))
    names = Vocabulary.builtin("emoji").names
    assert (labels[scene.labels == names.index("car")] == 0).mean() > 0.5
    assert (labels[scene.labels == names.index("grass")] == 1).mean() > 0.9


ODD = {
    "cmyk.jpg": lambda rgb: rgb.convert("CMYK"),
    "grey.png": lambda rgb: rgb.convert("L"),
    "deep.png": lambda rgb: Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257),
    "palette.png": lambda rgb: rgb.convert("P"),
    "rgba.png": lambda rgb: rgb.convert("RGBA"),
    "ünï côde 照片.png": lambda rgb: rgb,
    "one.png": lambda rgb: rgb.resize((1, 1)),
    "strip.png": lambda rgb: rgb.resize((4096, 64)),
}


@pytest.mark.parametrize("name", ODD)
def test_unusual_images_work(name, photo, tmp_path):
    image = ODD[name](Image.open(photo).convert("RGB"))
    path = tmp_path / "odd" / name
    path.parent.mkdir()
    image.save(path)
    assert segment(path, *WORDS, *EMOJI, "--out", tmp_path / "out") == 0
    labels = Image.open(tmp_path / "out" / f"{path.stem}_labels.png")
    assert labels.size == image.size


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_of_an_animation_comes_the_first_frame(suffix, photo, tmp_path):
    first = Image.open(photo).convert("RGB")
    frames = [first, first.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    moving = tmp_path / f"moving{suffix}"
    first.save(moving, save_all=True, append_images=frames[1:], lossless=True)
    assert segment(moving, *WORDS, *EMOJI, "--out", tmp_path / "out") == 0


def test_a_rotated_photo_comes_out_upright(photo, tmp_path):
    image = Image.open(photo).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "rotated.jpg", exif=exif)
    assert segment(tmp_path / "rotated.jpg", *WORDS, *EMOJI, "--out", tmp_path) == 0
    assert Image.open(tmp_path / "rotated_labels.png").size == (image.height, image.width)


def _bad_image(kind, folder, photo):
    path = folder / f"{kind}.jpg"
    if kind == "text":
        path.write_text("no image at all")
    elif kind == "empty":
        path.touch()
    elif kind == "cut":
        Image.open(photo).convert("RGB").resize((400, 400)).save(path)
        path.write_bytes(path.read_bytes()[:-2000])
    return path


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "cut"])
def test_a_bad_image_costs_one_line_and_the_others_are_done(kind, photo, tmp_path, capsys):
    bad = _bad_image(kind, tmp_path, photo)
    assert segment(bad, photo, *WORDS, *EMOJI, "--out", tmp_path / "out") == 1
    error, summary = capsys.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {bad}")
    assert summary == "warning: 1 of 2 images failed; the others are done"
    assert (tmp_path / "out" / "photo_labels.png").exists()


def test_an_image_over_the_pixel_limit_is_refused_and_the_limit_can_be_raised(
    photo, tmp_path, capsys
):
    common = (photo, *WORDS, *EMOJI, "--out", tmp_path / "out", "--max-pixels")
    assert segment(*common, 3071) == 1
    assert "--max-pixels" in capsys.readouterr().err
    assert segment(*common, 3072) == 0


LONG = " ".join(["word"] * 100)
MISTAKES = {
    "no classes": ((), "no classes"),
    "an empty name": (("-c", ""), "name"),
    "a duplicate": (("-c", "dog", "-c", "dog"), "'dog' is named twice"),
    "too long for CLIP": ((*EMOJI, "-c", LONG), "tokens"),
    "two sources": (("-c", "dog", "--vocabulary", "voc20"), "several sources"),
    "unknown vocabulary": (("--vocabulary", "voc22"), "voc21"),
    "missing class file": (("--classes", "none.txt"), "none.txt"),
    "unknown model": ((*WORDS, "--model", "ViT-B-17"), "ViT-B-16"),
    "unknown tag": ((*WORDS, "--model", "RN50:opanai"), "openai"),
    "unknown method": ((*WORDS, "--model", "emoji", "--method", "cleen"), "clean"),
    "unknown kind": ((*WORDS, "--save", "masks"), "labels"),
    "missing weights": ((*WORDS, "--model", "RN50", "--weights", "no.pt"), "no.pt"),
    "unknown device": ((*WORDS, "--model", "emoji", "--device", "tpu9"), "doctor"),
    "bad threshold": ((*WORDS, "--model", "emoji", "--key-smoothing", "2"), "[0, 1]"),
    "stride alone": ((*WORDS, "--model", "emoji", "--stride", "8"), "window"),
    "bad background": ((*WORDS, "--background", "7"), "threshold"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake, photo, tmp_path, capsys):
    arguments, part = MISTAKES[mistake]
    assert segment(photo, *arguments, "--out", tmp_path / "out") == 2
    assert_one_line(capsys.readouterr(), part)


def test_more_classes_than_labels_can_hold(photo, tmp_path, capsys):
    file = tmp_path / "many.txt"
    file.write_text("\n".join(f"class {index}" for index in range(65_536)))
    assert segment(photo, "--classes", file, *EMOJI) == 2
    assert_one_line(capsys.readouterr(), "65,535")


def test_a_missing_image_alone_is_found_out_before_a_model_is_fetched(tmp_path, capsys):
    assert segment(tmp_path / "none.jpg", *WORDS, "--out", tmp_path / "out") == 2
    assert_one_line(capsys.readouterr(), "none.jpg")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_and_a_pattern_without_matches(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "*.jpg"):
        assert segment(source, *WORDS, *EMOJI) == 2
        assert_one_line(capsys.readouterr(), str(source))


def test_an_output_folder_that_cannot_be_made(photo, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert segment(photo, *WORDS, *EMOJI, "--out", tmp_path / "file") == 2
    assert_one_line(capsys.readouterr(), "file", "output folder")


def test_an_interruption_leaves_no_half_written_file(photo, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(9):
        (photos / f"{index}.png").write_bytes(photo.read_bytes())
    plain, calls = worker.read_maps, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(worker, "read_maps", interrupted)
    out = tmp_path / "out"
    assert segment(photos, *WORDS, *EMOJI, "--out", out) == 130
    assert not list(out.glob(".writing-*"))
    for path in out.iterdir():
        with Image.open(path) as image:
            image.load()


def test_words_that_an_embedded_model_never_saw_are_named(photo, tmp_path, capsys):
    assert segment(photo, "-c", "dog", "-c", "zeppelin", *EMOJI, "--out", tmp_path) == 0
    warning = capsys.readouterr().err
    assert "zeppelin" in warning
    assert "dog" not in warning


def test_a_comma_outside_synonyms_is_pointed_out(photo, tmp_path, capsys):
    assert segment(photo, "-c", "dog,grass", *EMOJI, "--out", tmp_path) == 0
    assert "repeat -c" in capsys.readouterr().err


def test_background_by_threshold_and_by_words(photo, tmp_path):
    for rule in ("0.999999", "sand,water"):
        out = tmp_path / rule
        save = ("--out", out, "--save", "json")
        assert segment(photo, *WORDS, *EMOJI, "--background", rule, *save) == 0
        assert json.loads((out / "photo.json").read_text())["vocabulary"][0] == "background"


def test_images_of_one_name_do_not_overwrite_each_other(photo, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.png").write_bytes(photo.read_bytes())
    out = tmp_path / "out"
    assert segment(tmp_path / "a", tmp_path / "b", *WORDS, *EMOJI, "--out", out) == 0
    assert len(list(out.iterdir())) == 4


def test_a_folder_is_labelled_in_batches_and_printed_in_order(tmp_path, capsys, monkeypatch):
    plain, sizes = worker.read_maps, []

    def counted(seen, *arguments):
        sizes.append(len(seen))
        return plain(seen, *arguments)

    monkeypatch.setattr(worker, "read_maps", counted)
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for seed in range(11):
        size = (48, 64) if seed % 3 else 64
        Image.fromarray(draw_scene(seed, size=size).image).save(photos / f"{seed:02}.png")
    (photos / "05.png").write_text("no image")
    monkeypatch.setattr(worker, "_CPU_CHUNK", 8)
    save = "overlay,labels,scores,json"
    assert segment(photos, *WORDS, *EMOJI, "--out", out, "--save", save) == 1
    assert sorted(sizes, reverse=True)[:2] == [4, 3]
    printed = capsys.readouterr().out.splitlines()
    titles = [line.split()[0] for line in printed if line.endswith(("(64x48)", "(64x64)"))]
    assert titles == [str(photos / f"{seed:02}.png") for seed in range(11) if seed != 5]
    monkeypatch.setattr(worker, "_CPU_CHUNK", 1)  # and one by one the labels are the same
    assert segment(photos, *WORDS, *EMOJI, "--out", tmp_path / "alone", "--save", save) == 1
    for seed in set(range(11)) - {5}:
        together, alone = (
            np.asarray(Image.open(folder / f"{seed:02}_labels.png"))
            for folder in (out, tmp_path / "alone")
        )
        assert (together == alone).mean() > 0.999


def test_results_are_printed_as_they_come(photo, tmp_path, monkeypatch):
    for number in range(11):
        shutil.copy(photo, tmp_path / f"{number}.png")
    plain, plain_show, read, shown = worker.read_maps, segment_verb._show, [], []

    def noted(seen, *arguments):
        read.append(len(seen))
        return plain(seen, *arguments)

    def show(*arguments):
        shown.append(len(read))
        plain_show(*arguments)

    monkeypatch.setattr(worker, "read_maps", noted)
    monkeypatch.setattr(segment_verb, "_show", show)
    assert segment(tmp_path, *WORDS, *EMOJI, "--device", "cpu", "--out", tmp_path / "out") == 0
    assert read == [2] * 6
    assert len(shown) == 12
    assert shown[0] <= 3
    assert shown == sorted(shown)


def test_one_image_gives_the_files_of_a_segmentation(photo, tmp_path):
    save = ("--out", tmp_path / "out", "--save", "overlay,labels,scores,json")
    assert segment(photo, *WORDS, *EMOJI, "--precision", "float32", "--device", "cpu", *save) == 0
    segmenter = maskclip.load("emoji", templates="plain", precision="float32", device="cpu")
    found = segmenter.segment(photo, ["dog", "grass"], short_side=64)
    (tmp_path / "wanted").mkdir()
    stem = tmp_path / "wanted" / "photo"
    found.overlay().save(f"{stem}_overlay.png")
    found.save_png(f"{stem}_labels.png")
    found.save_scores(f"{stem}_scores.png")
    write_json(found.to_dict(), f"{stem}.json")
    for path in (tmp_path / "wanted").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("model", ["emoji", "emoji-vit"])
def test_embedded_models_refine_by_default(model, tmp_path, capsys):
    scene = draw_scene(3, size=256, objects=["car"], grounds=["grass"])
    path = tmp_path / "car.png"
    Image.fromarray(scene.image).save(path)
    segmenter = maskclip.load(model, templates="plain", precision="float32", device="cpu")
    options = (
        "--model",
        model,
        "--templates",
        "plain",
        "--precision",
        "float32",
        "--out",
        tmp_path,
    )
    iou = {}
    for text, refine in (("", {}), ("none", {"refine": ()}), ("pamr", {"refine": "pamr"})):
        given = ("--refine", text) if text else ()
        assert segment(path, "-c", "car", "-c", "grass", *options, *given) == 0
        labels = np.asarray(Image.open(tmp_path / "car_labels.png"))
        found = segmenter.segment(path, ["car", "grass"], **refine)
        assert np.array_equal(found.labels, labels)
        again = segmenter.score(segmenter.encode(path), ["car", "grass"], **refine)
        assert np.array_equal(again.labels, labels)
        car, truth = labels == 0, scene.labels != scene.labels[0, 0]
        iou[text] = (car & truth).sum() / (car | truth).sum()
    assert segmenter.refine
    assert min(iou[""], iou["pamr"]) > iou["none"] + 0.05
    none = segmenter.segment(path, ["car", "grass"], refine="none")
    assert np.array_equal(none.labels, segmenter.segment(path, ["car", "grass"], refine=[]).labels)
    assert segment(path, *WORDS, *options, "--refine", "none,pamr") == 2
    assert "none stands alone, got 'none,pamr'" in capsys.readouterr().err
    with pytest.raises(MaskCLIPError, match="none stands alone, got 'none,pamr'"):
        segmenter.segment(path, ["car"], refine=["none", "pamr"])


def test_values_that_are_not_finite_are_one_images_failure(photo, tmp_path, monkeypatch, capsys):
    plain = worker.read_maps

    def overflown(*arguments):
        first, *others = plain(*arguments)
        first.maps[:] = float("nan")
        return [first, *others]

    monkeypatch.setattr(worker, "read_maps", overflown)
    (tmp_path / "other.png").write_bytes(photo.read_bytes())
    out = ("--out", tmp_path / "out")
    assert segment(photo, tmp_path / "other.png", *WORDS, *EMOJI, *out) == 1
    assert f"error: {photo}: the network's values are not finite" in capsys.readouterr().err
    assert (tmp_path / "out" / "other_labels.png").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_utf8_stays_as_it_is(photo, tmp_path):
    name = os.fsdecode(b"\xff")
    photo.rename(tmp_path / f"{name}.png")
    out = ("--out", tmp_path / "out", "--save", "labels,json")
    assert segment(tmp_path, *WORDS, *EMOJI, *out) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{name}_labels.png",
        f"{name}.json",
    }


def test_a_full_disk_is_reported_for_each_image(photo, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/photo_labels.png")

    monkeypatch.setattr(LabelImage, "write", full)
    out = ("--out", tmp_path / "out", "--save", "labels")
    assert segment(photo, *WORDS, *EMOJI, *out) == 1
    error, warning = capsys.readouterr().err.splitlines()
    assert error == "error: out/photo_labels.png: cannot be written (No space left on device)"
    assert warning == "warning: 1 of 1 images failed; nothing was done"
