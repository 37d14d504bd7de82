"""`maskclip label` as a user runs it, on drawn scenes and the embedded model."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskclip.cli import main
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import draw_scene
from maskclip.plus.config import StudentConfig
from maskclip.plus.files import TrainedStudent, save_student
from maskclip.plus.student import build_student

EMOJI = ("--model", "emoji", "--templates", "plain", "--short-side", "64", "--device", "cpu")
WORDS = ("-c", "dog", "-c", "grass")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a.png", "sub/b.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene(seed, size=(48, 64)).image).save(path)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def label(*arguments):
    return main(["label", *map(str, arguments)])


def pngs(out):
    return pngs_of(out / "png")


def pngs_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def test_a_folder_is_labelled_into_a_tree_of_its_own(photos, out, capsys):
    assert label(photos, *WORDS, *EMOJI, "--out", out) == 0
    assert pngs(out) == {"a.png", "sub/b.png"}
    with Image.open(out / "png" / "sub" / "b.png") as image:
        assert (image.mode, image.size) == ("P", (64, 48))
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "photos labelled: 2; failed: 0",
        f"-> {out / 'png'}",
        f"-> {out / 'report.html'}",
    ]
    assert captured.err == ""


def test_run_again_it_does_what_is_new(photos, out, capsys):
    assert label(photos, *WORDS, *EMOJI, "--out", out) == 0
    Image.fromarray(draw_scene(5, size=64).image).save(photos / "new.png")
    assert label(photos, *WORDS, *EMOJI, "--out", out) == 0
    captured = capsys.readouterr()
    assert "resuming: 2 of 3 photos are done" in captured.err
    assert "photos labelled: 3 (2 of them earlier); failed: 0" in captured.out
    assert pngs(out) == {"a.png", "sub/b.png", "new.png"}


def test_a_broken_photo_is_named_and_the_exit_code_is_1(photos, out, capsys):
    (photos / "broken.jpg").touch()
    assert label(photos, *WORDS, *EMOJI, "--out", out) == 1
    captured = capsys.readouterr()
    error, warning = captured.err.splitlines()
    assert error == f"error: {photos / 'broken.jpg'}: an empty file"
    assert warning.startswith("warning: 1 failed: see ")
    assert "photos labelled: 2; failed: 1" in captured.out
    assert pngs(out) == {"a.png", "sub/b.png"}


def test_cleaning_is_set_by_class_and_size(photos, out):
    care = ("--confidence", 0.5, "--class-confidence", " red  car =1", "--min-region", 9)
    words = ("-c", "dog", "-c", "red car")
    assert label(photos, *words, *EMOJI, *care, "--out", out) == 0
    settings = json.loads((out / "report.json").read_text())["settings"]
    assert settings["cleaning"] == {
        "confidence": 0.5,
        "by_class": {"red car": 1.0},
        "min_region": 9,
    }
    with Image.open(out / "png" / "a.png") as image:
        assert 1 not in np.asarray(image)


@pytest.mark.parametrize("option", [("--confidence", "0.4"), ("--class-confidence", "dog=0.4")])
def test_a_confidence_that_does_nothing_is_reported(option, photos, out, capsys):
    assert label(photos, *WORDS, *EMOJI, *option, "--out", out, "--dry-run") == 0
    assert "does nothing: the best of 2 probabilities is never" in capsys.readouterr().err
    assert label(photos, *WORDS, *EMOJI, *option, "--out", out) == 0
    assert capsys.readouterr().err.count("does nothing") == 1
    assert label(photos, *WORDS, *EMOJI, *option, "--method", "published", "--out", f"{out}2") == 0
    assert "does nothing" not in capsys.readouterr().err


def test_a_dry_run_does_nothing(photos, out, capsys):
    assert label(photos, *WORDS, *EMOJI, "--out", out, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [
        "to be labelled: 2; already done: 0",
        f"-> {out / 'png' / 'a.png'}",
        f"-> {out / 'png' / 'sub' / 'b.png'}",
    ]
    assert not out.exists()


@pytest.mark.parametrize("end", ["\n", "\0"])
def test_lists_come_from_a_file_or_from_standard_input(end, photos, out, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    listed = f"a.png{end}sub/b.png{end}".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    assert label("-", *WORDS, *EMOJI, "--out", out) == 0
    assert pngs(out) == {"a.png", "sub/b.png"}
    (tmp_path / "list.txt").write_bytes(listed)
    again = ("--list", tmp_path / "list.txt", "--dry-run")
    assert label(*again, *WORDS, *EMOJI, "--out", out) == 0


def test_results_within_the_folder_of_the_photos_are_no_photos(photos, capsys):
    out = photos / "labels"
    for _ in range(2):
        assert label(photos, *WORDS, *EMOJI, "--out", out) == 0
        assert pngs(out) == {"a.png", "sub/b.png"}
    assert label(photos / "*" / "*.png", *WORDS, *EMOJI, "--out", out, "--dry-run") == 0
    assert "to be labelled: 0; already done: 2" in capsys.readouterr().out


def test_several_formats_have_a_folder_each(photos, out):
    assert label(photos, *WORDS, *EMOJI, "--format", "png,coco", "--out", out) == 0
    assert (out / "coco" / "instances.json").exists()
    assert (out / "png" / "classes.txt").read_text() == "dog\ngrass\n"


def test_how_files_are_imported_is_said_at_the_end(photos, out, capsys):
    formats = ("--format", "cvat,label-studio,yolo,coco", "--things", "dog")
    Image.fromarray(draw_scene(9, size=64).image).save(photos / "a.jpg")
    assert label(photos, *WORDS, *EMOJI, *formats, "--out", out) == 0
    said = capsys.readouterr().out
    assert f"paste {out / 'cvat' / 'labels.json'} into the label constructor" in said
    assert '"Convert masks to polygons" off' in said
    assert f"DOCUMENT_ROOT={photos.parent}, add a local storage for {photos} " in said
    assert f"put the photos, or links to them, into {out / 'yolo' / 'images'}" in said
    assert "(--link does it)" in said
    assert said.count("(a.png, whose labels are called a_png)") == 3
    assert pngs_of(out / "coco" / "panoptic") == {"a.png", "a_png.png", "sub/b.png"}
    tasks = (out / "label-studio" / "tasks-00001.json").read_text()
    assert "/data/local-files/?d=photos/sub/b.png" in tasks
    written = (out / "yolo" / "labels" / "a.txt").stat().st_mtime_ns
    other = ("--link", "--url-prefix", "https://host/p", "--things", "grass", "--validate", "0.5")
    assert label(photos, *WORDS, *EMOJI, *formats, *other, "--out", out) == 0
    assert f"yolo: train with {out / 'yolo' / 'data.yaml'}" in capsys.readouterr().out
    assert "yolo: train with " in (out / "report.html").read_text()
    assert "https://host/p/sub/b.png" in (out / "label-studio" / "tasks-00001.json").read_text()
    assert (out / "yolo" / "images" / "a_png.png").samefile(photos / "a.png")
    assert (out / "yolo" / "labels" / "a.txt").stat().st_mtime_ns == written, "no new labels"


def test_tools_find_photos_that_were_named_from_elsewhere(photos, tmp_path, monkeypatch, capsys):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    formats = ("--format", "label-studio,yolo", "--link")
    assert label("../photos", *WORDS, *EMOJI, *formats, "--out", "out") == 0
    assert f"DOCUMENT_ROOT={tmp_path}, add a local storage for {photos} " in capsys.readouterr().out
    assert "?d=photos/a.png" in Path("out/label-studio/tasks-00001.json").read_text()
    assert Path("out/yolo/images/sub/b.png").readlink() == photos / "sub" / "b.png"


def test_another_method_labels_with_its_own_maps(photos, out):
    for method in ("clean", "published"):
        more = ("--method", method, "--format", "png,scores", "--out", out / method)
        assert label(photos, *WORDS, *EMOJI, *more) == 0
        settings = json.loads((out / method / "report.json").read_text())["settings"]
        assert settings["method"] == method
    clean, published = (
        (out / method / "scores" / "a_scores.png").read_bytes() for method in ("clean", "published")
    )
    assert clean != published


MISTAKES = {
    "an unknown method": ((*WORDS, "--method", "cleen"), "'cleen' (did you mean clean?)"),
    "no probabilities": (
        (*WORDS, "--method", "published", "--format", "png,probabilities"),
        "needs probabilities",
    ),
    "no classes": ((), "no classes"),
    "an unknown format": ((*WORDS, "--format", "png,tiff"), "cannot write 'tiff'"),
    "a class without a confidence": ((*WORDS, "--class-confidence", "dog"), "NAME=T"),
    "a confidence without a class": ((*WORDS, "--class-confidence", "=1"), "NAME=T"),
    "no number": ((*WORDS, "--class-confidence", "dog=x"), "NAME=T, such as dog=0.6, got 'dog=x'"),
    "out of range": ((*WORDS, "--class-confidence", "dog=2"), "the confidence of 'dog' is a score"),
    "another class": ((*WORDS, "--class-confidence", "cat=1"), "'cat', which is not one of"),
    "too high": ((*WORDS, "--confidence", "1.5"), "[0, 1], got 1.5"),
    "a negative size": ((*WORDS, "--min-region", "-1"), "a number of pixels or 0"),
    "workers without Ray": ((*WORDS, "--workers", "2"), "--workers belongs to --ray"),
    "things without COCO": ((*WORDS, "--things", "dog"), "--things belongs to --format coco"),
    "links without YOLO": ((*WORDS, "--link"), "--link belongs to --format yolo"),
    "a URL without Label Studio": ((*WORDS, "--url-prefix", "https://h"), "belongs to --format l"),
    "a thing that is no class": (
        (*WORDS, "--format", "coco", "--things", "dogs"),
        "did you mean 'dog'",
    ),
    "an unknown device": ((*WORDS, "--device", "tpu9"), "doctor"),
    "a missing list": ((*WORDS, "--list", "none.txt"), "none.txt"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake, photos, out, capsys):
    arguments, part = MISTAKES[mistake]
    assert label(photos, *EMOJI, *arguments, "--out", out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert part in line


def test_an_unknown_class_is_noticed_by_a_dry_run(photos, out, capsys):
    care = ("--class-confidence", "cat=1", "--dry-run")
    assert label(photos, *WORDS, *EMOJI, *care, "--out", out) == 2
    assert "'cat', which is not one of" in capsys.readouterr().err


def test_without_photos_it_says_how_to_name_them(photos, out, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    for arguments in ((), ("-",)):
        assert label(*arguments, *WORDS, *EMOJI, "--out", out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "no photos: name folders" in line
    (tmp_path / "empty").mkdir()
    assert label(tmp_path / "empty", *WORDS, *EMOJI, "--out", out) == 2
    assert "no images in this folder" in capsys.readouterr().err
    assert not out.exists()


def test_other_settings_in_the_same_folder_are_refused(photos, out, capsys):
    assert label(photos, *WORDS, *EMOJI, "--out", out) == 0
    capsys.readouterr()
    for more in ((), ("--dry-run",)):
        assert label(photos, *WORDS, *EMOJI, "--confidence", 0.5, *more, "--out", out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--confidence: 0.0 there, 0.5 wanted. Choose another --out" in line


def test_a_student_needs_no_classes_but_for_a_background(photos, out, tmp_path, capsys):
    words = Vocabulary.parse(["dog", "grass", "sky"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = torch.nn.functional.normalize(torch.randn(len(words), 8), dim=1)
        student = build_student(StudentConfig(depth=50, width=8, embed_dim=8), rows).eval()
    path = tmp_path / "student.safetensors"
    save_student(TrainedStudent(student, words, 5), path)
    common = (photos, "--model", path, "--short-side", 64, "--device", "cpu", "--out", out)
    assert label(*common, "--background", "0.5") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--background goes with classes" in line
    assert label(*common) == 0
    assert (out / "png" / "classes.txt").read_text() == "dog\ngrass\nsky\n"
    assert label(*common, "--dry-run") == 0
    assert "to be labelled: 0; already done: 2" in capsys.readouterr().out


def test_results_below_the_photos_are_no_photos(photos, capsys):
    out = photos / "labels"
    for done in (0, 2):
        assert label(photos, *WORDS, *EMOJI, "--out", out, "--dry-run") == 0
        left = 2 - done
        wanted = f"to be labelled: {left}; already done: {done}"
        assert capsys.readouterr().out.splitlines()[0] == wanted
        assert label(photos, *WORDS, *EMOJI, "--out", out) == 0
        capsys.readouterr()


def test_photos_may_not_lie_where_the_results_go(photos, capsys):
    assert label(photos, *WORDS, *EMOJI, "--out", photos) == 2
    assert "lie in the output folder" in capsys.readouterr().err
    assert {path.name for path in photos.iterdir()} == {"a.png", "sub"}


def test_what_is_called_like_no_image_and_is_not_there_is_no_photo(tmp_path, out, capsys):
    assert label(tmp_path / "nophotos", *WORDS, *EMOJI, "--out", out) == 2
    assert "nophotos: no such file or folder" in capsys.readouterr().err
    assert not out.exists()


def test_a_model_file_that_is_not_there_is_named(photos, out, capsys):
    assert label(photos, "--model", "no.safetensors", "--out", out) == 2
    assert "no.safetensors: no such model file" in capsys.readouterr().err
