"""`maskclip eval`: what it refuses, and what it leaves behind."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from maskclip.cli import main
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats.label_studio import brush_rle
from maskclip.recipes import RECIPES, REPRODUCIBLE

QUICK = ["--size", "64", "--limit", "1", "--templates", "plain"]


@pytest.fixture
def own(tmp_path):
    """Own photos, masks and predictions, of which one pixel in four is wrong."""
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    truth = np.array([[0, 0], [1, 1]], np.uint8)
    found = np.array([[0, 0], [1, 0]], np.uint8)
    for kind, ids in {"images": truth, "masks": truth, "found": found}.items():
        (tmp_path / kind).mkdir()
        Image.fromarray(ids).save(tmp_path / kind / "one.png")
    return tmp_path


def folder(own):
    return [
        *("eval", "folder", "--images", str(own / "images"), "--masks", str(own / "masks")),
        *("--classes", str(own / "classes.txt")),
    ]


def test_own_images_and_predictions_from_files(own, capsys):
    out = own / "out"
    assert main([*folder(own), "--predictions", str(own / "found"), "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["iou"] == pytest.approx({"dog": 100 * 2 / 3, "cat": 50})
    assert result["predictions"] == str(own / "found")
    assert result["published"] is None
    assert sorted(path.name for path in out.iterdir()) == [
        "confusion.png",
        "images.png",
        "iou.png",
        "result.json",
    ]
    printed = capsys.readouterr().out
    assert "mIoU 58.33 %" in printed
    assert "officially" not in printed


def write(folder, ids):
    Image.fromarray(np.array(ids, np.uint8)).save(folder / "one.png")


def test_class_255_is_scored_where_there_are_more_classes(own, capsys):
    (own / "classes.txt").write_text("".join(f"thing {index}\n" for index in range(300)))
    for kind, ids in {"masks": [[255, 299], [7, 65_535]], "found": [[255, 299], [8, 0]]}.items():
        Image.fromarray(np.array(ids, np.uint16)).save(own / kind / "one.png")
    out = own / "out"
    assert main([*folder(own), "--predictions", str(own / "found"), "--out", str(out)]) == 0
    iou = json.loads((out / "result.json").read_text())["iou"]
    assert {name: value for name, value in iou.items() if value is not None} == {
        "thing 255": 100,
        "thing 299": 100,
        "thing 7": 0,
        "thing 8": 0,
    }
    check = ["data", "check", *folder(own)[1:], "--out", str(own / "report.json")]
    assert main(check) == 0
    report = json.loads((own / "report.json").read_text())
    assert report["classes"][255]["pixels"] == report["ignored"]["pixels"] == 1


def test_masks_of_0_and_255_are_doubted_before_the_figures(own, capsys):
    write(own / "masks", [[0, 0], [255, 255]])
    out = own / "out"
    assert main([*folder(own), "--predictions", str(own / "found"), "--out", str(out)]) == 0
    said = "no mask has a pixel of cat, and all have ignored ones: 255 means ignored"
    assert said in capsys.readouterr().err
    assert said in json.loads((out / "result.json").read_text())["doubts"][0]


def test_predictions_that_are_one_off_are_doubted(own, capsys):
    (own / "classes.txt").write_text("dog\ncat\ncar\nsky\n")
    write(own / "masks", [[0, 1], [2, 2]])
    write(own / "found", [[1, 2], [3, 2]])
    assert main([*folder(own), "--predictions", str(own / "found")]) == 0
    assert "predictions are one too high in 75 % of the pixels, and right in 25 %" in (
        capsys.readouterr().err
    )


def test_masks_that_are_one_off_are_not_taken_for_masks_of_0_and_255(own, capsys):
    (own / "classes.txt").write_text("dog\ncat\ncar\nsky\n")
    write(own / "masks", [[1, 2], [3, 255]])
    write(own / "found", [[0, 1], [2, 2]])
    assert main([*folder(own), "--predictions", str(own / "found")]) == 0
    error = capsys.readouterr().err
    assert "predictions are one too low in 100 % of the pixels" in error
    assert "or the masks are one too high: do the ids of one of the two count from 1?" in error
    assert "255 means ignored" not in error


def test_some_masks_are_enough_and_what_is_left_out_is_reported(own, capsys):
    Image.new("RGB", (2, 2)).save(own / "images/two.png")
    Image.new("L", (2, 2)).save(own / "masks/strange.png")
    assert main([*folder(own), "--predictions", str(own / "found")]) == 0
    error = capsys.readouterr().err
    assert "1 photo has no labels and is left out (two.png)" in error
    assert f"masks without a photo: 1 ({own / 'masks/strange.png'})" in error


def test_pixels_without_a_prediction_are_reported(own, capsys):
    write(own / "found", [[0, 255], [1, 1]])
    assert main([*folder(own), "--predictions", str(own / "found")]) == 0
    assert "25.0 % of the labelled pixels have no prediction" in capsys.readouterr().err


def test_label_studios_corrections_are_truth(own, capsys):
    region = {
        "type": "brushlabels",
        "original_width": 2,
        "original_height": 2,
        "image_rotation": 0,
        "value": {"rle": brush_rle(np.array([[1, 1], [0, 0]], bool)), "brushlabels": ["dog"]},
    }
    task = {
        "data": {"image": "/data/upload/1/0a1b2c3d-one.png"},
        "annotations": [{"result": [region]}],
    }
    (own / "export.json").write_text(json.dumps([task]))
    command = [
        word.replace("masks", "export.json") if "masks" in word and "/" in word else word
        for word in folder(own)
    ]
    assert main([*command, "--predictions", str(own / "found")]) == 0
    assert "pixel accuracy 100.00 %" in capsys.readouterr().out


def test_own_images_and_a_model(own, capsys):
    assert main([*folder(own), "--model", "emoji", "--templates", "plain"]) == 0
    assert "protocol segment · method clean · templates plain · background none" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no data set given: expected one of voc20, "),
        (["voc99"], "unknown data set 'voc99'"),
        (["voc20"], "voc20 needs --data ROOT, the folder that holds VOCdevkit"),
        (["voc20", "--data", "nowhere"], "voc20: no folder nowhere"),
        (["voc20", "--data", ".", "--split", "test"], "voc20 has no split 'test'"),
        (["folder"], "folder needs --images DIR, --masks DIR and --classes FILE"),
        (["voc20", "--data", ".", "--images", "x"], "belong to `folder`"),
        (["--recipe", "voc20"], "unknown recipe 'voc20'"),
        (["voc21", "--recipe", "voc20-rn50"], "the recipe voc20-rn50 is for voc20, not voc21"),
        (["emoji", "--recipe", "voc20-rn50", "--model", "RN50"], "the recipe voc20-rn50 is for"),
        (["--recipe", "voc20-rn50", "--model", "RN50"], "give one of --model, --recipe and"),
        (["emoji", "--predictions", "x", "--method", "clean"], "--predictions does not go with"),
        (["emoji", "--predictions", "x", "--key-smoothing", "1"], "--predictions does not go with"),
        (["emoji", "--predictions", "nowhere"], "no folder of predictions: nowhere"),
        (["emoji", "--predictions", "x", "--templates", "plain"], "--predictions does not go with"),
        (["emoji", "--split", "train"], "emoji is drawn and has only the split val"),
        (["emoji", "--data", "x"], "emoji is drawn"),
        (["folder", "--split", "val"], "folder takes no --split"),
        (["voc20", "--data", ".", "--size", "9"], "--size belongs to `emoji`"),
        (["emoji", "--background", "none"], "needs a rule: words or a threshold"),
        (["emoji", "--method", "x"], "unknown method 'x'"),
        (["emoji", "--protocol", "x"], "unknown protocol 'x'"),
        (["emoji", "--protocol", "windows", "--window", "64"], "leave window out"),
        (["emoji", "--corruption", "fog:1"], "unknown corruption 'fog'"),
        (["emoji", "--corruption", "spatter"], "expected a corruption as NAME:SEVERITY"),
        (["emoji", "--corruption", "all"], "--corruption all needs --out DIR"),
        (["emoji", "--background", "0.5"], "emoji has no background class"),
        (["emoji", "--model", "nothing"], "unknown model 'nothing'"),
        (["emoji", "--stride", "9"], "--stride needs --window"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(arguments, message, capsys):
    assert main(["eval", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert message in line


def test_an_unwritable_folder_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["eval", "emoji", *QUICK, "--out", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_sweep_leaves_a_table_a_picture_and_a_result_for_each_cell(tmp_path, capsys):
    command = ["eval", "emoji", *QUICK, "--corruption", "all", "--out", str(tmp_path)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("(kept)") for line in lines) == 0
    assert any(line.startswith("speckle_noise ") for line in lines)
    table = json.loads((tmp_path / "sweep.json").read_text())
    assert {"protocol", "method", "templates", "background", "model", "versions"} <= table.keys()
    assert [len(values) for values in table["corrupted"].values()] == [5] * 8
    files = {path.name for path in tmp_path.iterdir()}
    assert len(files) == 41 + 2
    assert {"clean.json", "gaussian_noise_5.json", "sweep.json", "severity.png"} <= files
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("(kept)") for line in lines) == 41
    assert main([*command, "--seed", "1"]) == 2
    assert "made with other settings (seed: 0 there, 1 wanted)" in capsys.readouterr().err


def test_mistakes_and_lists_do_not_wait_for_torch():
    slow = ["torch", "matplotlib", "scipy", "torchmetrics"]
    code = (
        "import sys\nfrom maskclip.cli import main\n"
        "main(['recipes']), main(['eval', 'voc20', '--data', 'nowhere'])\n"
        f"print(sys.modules.keys() & {slow})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "set()", run.stderr


@pytest.mark.parametrize("module", ["matplotlib", "scipy", "torchmetrics"])
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert main(["eval", "emoji"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert module in line
    assert "pip install" in line
    assert "[eval]" in line
    assert main(["recipes"]) == 0


def test_a_wrong_word_leaves_no_folder(tmp_path, capsys):
    assert main(["eval", "emoji", "--method", "x", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_recipes_are_listed_with_their_scores_and_never_cut(capsys):
    assert main(["recipes"]) == 0
    measured, later, trained, embedded = (
        table.splitlines() for table in capsys.readouterr().out.rstrip().split("\n\n")
    )
    assert measured[0].split()[0] == "recipe"
    rows = {line.split()[0]: line.split()[1:] for line in measured[1:]}
    assert len(rows) == 10
    assert rows["context59-vitb16"] == ["context59", "ViT-B-16:openai", "21.7", "25.5", "9.0"]
    assert rows["voc20-rn50-speckle-noise-1"][-1] == "30.9"
    columns = {line.split()[0]: line.split()[1:10] for line in later[1:]}
    assert " ".join(columns["*-naclip-vitb16"]) == "58.9 32.2 33.2 79.7 35.2 23.3 35.5 17.4 39.4"
    assert columns["*-clean-vitb16"][-1] == "30.3"  # 30.25
    assert "context60 (C60)" in later[-1]
    assert len(trained) == 1 + 11 + 4 + 2  # published, of the embedded world, of real photos
    assert trained[11].split()[-4:] == ["80,000", "39.7", "54.7", "45.0"]
    assert embedded[0].startswith("embedded, offline")
    listed = {*rows, *(line.split()[0] for line in embedded[1:])}
    later_rows = {name for name in RECIPES if name.endswith("-vitb16")}
    assert listed | later_rows == set(REPRODUCIBLE)


def test_eval_writes_scores_that_can_be_repeated(tmp_path, capsys):
    common = ["eval", "emoji", "--limit", "2", "--short-side", "96", "--templates", "plain"]
    assert main([*common, "--out", str(tmp_path / "a")]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert main([*common, "--out", str(tmp_path / "b")]) == 0
    first, second = (json.loads((tmp_path / run / "result.json").read_text()) for run in "ab")
    assert first == second
    assert 0 < first["miou"] <= 100
    present = [value for value in first["iou"].values() if value is not None]
    assert len(first["iou"]) == len(Vocabulary.builtin("emoji"))
    assert first["miou"] == pytest.approx(np.mean(present))
    assert {"protocol", "seed", "versions", "weights", "arithmetic", "templates"} <= first.keys()


def test_another_runtime_is_measured_and_recorded(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    command = ["eval", "emoji", *QUICK, "--model", "emoji-vit"]
    found = []
    for runtime in ("torch", "onnx"):
        assert main([*command, "--runtime", runtime, "--out", str(tmp_path / runtime)]) == 0
        found.append(json.loads((tmp_path / runtime / "result.json").read_text()))
    assert found[1]["iou"] == pytest.approx(found[0]["iou"], abs=0.5)
    assert [one.get("runtime") for one in found] == [None, "onnx"]
    capsys.readouterr()
    assert main([*command, "--runtime", "tensorrt"]) == 2
    assert "--runtime: expected one of torch, onnx, openvino, auto" in capsys.readouterr().err
    assert main(["eval", "emoji", "--predictions", str(tmp_path), "--runtime", "onnx"]) == 2
    assert "--predictions does not go with" in capsys.readouterr().err


def test_labels_of_ones_own_photos_that_label_would_refine_are_named(own, capsys):
    command = [*folder(own), "--model", "emoji", "--templates", "plain"]
    assert main(command) == 0
    assert "--refine tlp,pamr measures its labels" in " ".join(capsys.readouterr().err.split())
    assert main([*command, "--refine", "none"]) == 0
    assert "measures its labels" not in capsys.readouterr().err


def test_segments_vote_by_the_samples_names_and_say_of_which(own, capsys):
    (own / "segments").mkdir()
    write(own / "segments", [[1, 1], [2, 2]])
    model = ("--model", "emoji", "--templates", "plain", "--out", str(own / "out"))
    assert main([*folder(own), *model, "--regions", str(own / "segments")]) == 0
    result = json.loads((own / "out" / "result.json").read_text())
    assert result["options"]["regions"] == str(own / "segments")
    assert len(result["regions"]) == 16
    assert f"regions {own / 'segments'}" in capsys.readouterr().out
    write(own / "segments", [[1, 1]])
    assert main([*folder(own), *model, "--regions", str(own / "segments")]) == 2
    assert "the label map is 2x1 but its image 2x2" in capsys.readouterr().err
    (own / "segments" / "one.png").rename(own / "segments" / "two.png")
    assert main([*folder(own), *model, "--regions", str(own / "segments")]) == 2
    assert "1 of 1 label maps are missing, the first" in capsys.readouterr().err


def test_superpixels_vote_on_drawn_scenes(tmp_path):
    quick = ["eval", "emoji", "--model", "emoji", *QUICK, "--out", str(tmp_path)]
    assert main([*quick, "--regions", "slic"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["regions"].startswith("scikit-image ")


def test_results_name_the_proxy(tmp_path, capsys):
    proxy = "vit_tiny_patch16_224:random"
    quick = ["eval", "emoji", "--model", "emoji-vit", *QUICK, "--out", str(tmp_path)]
    assert main([*quick, "--proxy", proxy]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["proxy"], result["method"]) == (proxy, "proxy")
    assert "+" in result["weights"]
    assert f"method proxy · proxy {proxy}" in capsys.readouterr().out
    assert main([*quick, "--proxy", "vit_tiny_patch16_225:random"]) == 2
    assert "error: --proxy: timm has no 'vit_tiny_patch16_225'" in capsys.readouterr().err


def test_what_holds_for_every_photo_is_warned_of_once(own, capsys):
    """Each photo prepares the classes anew."""
    Image.new("RGB", (8, 8)).save(own / "images/two.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(own / "masks/two.png")
    (own / "classes.toml").write_text('classes = ["dog", "cat"]\nbackground = 0.4\n')
    given = [*folder(own)[:-1], str(own / "classes.toml"), "--device", "cpu"]
    for _ in range(2):
        assert main([*given, "--model", "emoji"]) == 0
        assert capsys.readouterr().err.count("a background threshold of 0.4 does nothing") == 1
