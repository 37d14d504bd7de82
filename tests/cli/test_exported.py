"""Exported files where models are named: measured, compared, and run without maskclip."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from maskclip.cli import main
from maskclip.emoji.scenes import draw_scene

SCENES = ("emoji", "--size", "64", "--limit", "1")
SMALL = ("--model", "emoji-vit", "--student", "teacher")
SHORT = ("--steps", "2", "--batch-size", "2", "--crop", "64", "--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file of `emoji-vit` with the classes of the scenes."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("exported") / "scenes.onnx"
    model = ("--model", "emoji-vit", "--vocabulary", "emoji", "--refine", "none")
    assert main(["export", str(path), *model, "--no-verify"]) == 0
    return path


def measured(out, *model):
    assert main(["eval", *SCENES, "--model", *model, "--out", str(out)]) == 0
    return json.loads((out / "result.json").read_text())


def test_a_file_is_measured_as_the_model_that_it_was_made_of(exported, tmp_path):
    of_file = measured(tmp_path / "file", str(exported))
    of_model = measured(tmp_path / "model", "emoji-vit")
    assert of_file["iou"] == pytest.approx(of_model["iou"], abs=0.5)
    assert of_file["exported"] == {"model": "emoji-vit", "weights": of_model["weights"]}
    assert of_file["prompts"] == of_model["prompts"]
    assert of_file["runtime"] == "onnx"


def test_a_file_is_compared_with_models(exported, tmp_path):
    grid = ("--models", f"emoji-vit,{exported}", "--methods", "clean", "--refine", "none,pamr")
    assert main(["compare", *SCENES, *grid, "--out", str(tmp_path / "out")]) == 0
    cells = json.loads((tmp_path / "out" / "compare.json").read_text())["cells"]
    of_model, of_file = (
        [cell["miou"] for cell in cells if cell["model"] == model]
        for model in ("emoji-vit", str(exported))
    )
    assert of_file == pytest.approx(of_model, abs=0.5)
    assert len(set(of_file)) == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--method", "naclip"), "was exported with its own, which is frozen: leave it out"),
        (("--key-smoothing", "1"), "as it was exported"),
        (("--runtime", "openvino"), "has a runtime of its own"),
    ],
)
def test_what_is_frozen_in_a_file_is_refused(options, line, exported, tmp_path, capsys):
    pytest.importorskip("openvino")
    assert main(["eval", *SCENES, "--model", str(exported), *options]) == 2
    assert line in capsys.readouterr().err


def test_classes_of_another_data_set_are_refused(exported, tmp_path, capsys):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / kind / "one.png")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    own = ("--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"))
    command = ("eval", "folder", *own, "--classes", str(tmp_path / "classes.txt"))
    assert main([*command, "--model", str(exported)]) == 2
    assert "its words are frozen, and its 60 classes are not the 2 of" in capsys.readouterr().err


def test_a_trained_student_becomes_a_program_that_runs_without_maskclip(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in (1, 2):
        Image.fromarray(draw_scene(seed, size=64).image).save(photos / f"{seed}.png")
    words = ("-c", "dog", "-c", "grass", "-c", "sky")
    learn = ("--images", str(photos), *words, *SMALL, *SHORT)
    run, program = tmp_path / "run", tmp_path / "student.pt2"
    assert main(["train", *learn, "--out", str(run)]) == 0
    assert main(["export", str(program), "--model", str(run), "--no-verify"]) == 0
    asked = ("segment", str(photos), "--model", str(run), "--short-side", "0", "--save", "labels")
    assert main([*asked, "--out", str(tmp_path / "labels")]) == 0
    run_program = torch.export.load(program).module()
    for path in sorted(photos.iterdir()):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]
        (labels, *_) = run_program(pixels)
        (file,) = (tmp_path / "labels").glob(f"{path.stem}*.png")
        assert (labels[0].numpy() == np.array(Image.open(file))).mean() >= 0.999
