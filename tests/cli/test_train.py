"""`maskclip train`, from the command line to a student that segments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from maskclip.cli import main
from maskclip.emoji.scenes import draw_scene

SMALL = ["--model", "emoji", "--student", "unet:mobilenetv3_small_050", "--scratch"]
SHORT = ["--steps", "2", "--batch-size", "2", "--crop", "64", "--workers", "0", "--device", "cpu"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in (1, 2, 3):
        Image.fromarray(draw_scene(seed, size=64).image).save(folder / f"{seed}.png")
    (tmp_path / "classes.txt").write_text("dog\ngrass\nsky\n")
    return folder


def test_own_photos_and_words_become_a_student_that_labels(photos, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--images", str(photos), "--classes", str(tmp_path / "classes.txt")]
    assert main(["train", *words, "--out", str(run), *SMALL, *SHORT]) == 0
    assert "student.safetensors" in capsys.readouterr().out
    pictures = sorted(path.name for path in (run / "overlays").iterdir())
    assert pictures == [f"000002_{seed}_png.jpg" for seed in (1, 2, 3)]
    for model in ("student.safetensors", "last.ckpt"):
        out = tmp_path / model
        asked = ["segment", str(photos / "1.png"), "--model", str(run / model), "--save", "json"]
        assert main([*asked, "--out", str(out)]) == 0
        found = json.loads((out / "1.json").read_text())["classes"]
        assert {one["name"] for one in found} <= {"dog", "grass", "sky"}


def test_a_finished_training_can_be_asked_to_go_on(photos, tmp_path):
    run = tmp_path / "run"
    words = ["--images", str(photos), "--classes", str(tmp_path / "classes.txt")]
    command = ["train", *words, "--out", str(run), *SMALL, *SHORT]
    assert main(command) == 0
    before = (run / "student.safetensors").read_bytes()
    assert main([*command, "--resume"]) == 0
    assert (run / "student.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to train on"),
        (["voc20-annofree-rn50", "--images", "x"], "a recipe has its own images"),
        (["voc20-annofree-rn50"], "--data ROOT"),
        (["voc20"], "unknown recipe 'voc20'"),
        (["emoji-annofree-rn", "--classes", "x.txt"], "belong to --images"),
        (["--images", "nowhere", "--vocabulary", "voc20"], "no folder of images"),
        (["emoji-annofree-rn", "--student", "unet:nothing", "--scratch"], "nothing"),
        (["emoji-annofree-rn", "--lr", "-1"], "min_lr"),
        (["emoji-annofree-rn", "--precision", "int8"], "precision"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, tmp_path, capsys):
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_photos_that_cannot_be_read_are_named_before_the_first_step(photos, tmp_path, capsys):
    for name in ("4.png", "5.png"):
        (photos / name).write_bytes(b"no image")
    words = ["--images", str(photos), "--classes", str(tmp_path / "classes.txt")]
    assert main(["train", *words, "--out", str(tmp_path / "run"), *SMALL, *SHORT]) == 2
    error = capsys.readouterr().err
    assert "4.png: not an image that can be read" in error
    assert "(and 1 more): fix it, or remove it from the folder" in error
    assert not (tmp_path / "run").exists()
