"""What a network cannot do is refused by its name alone: no weights are asked for."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import open_clip
import pytest
from PIL import Image

from maskclip.cli import main
from maskclip.clip import hub, published
from maskclip.clip.weights import load_of, remembering
from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError
from maskclip.tasks.model_names import names_clip
from maskclip.web.models import Models

WORDS = ("-c", "dog", "-c", "grass")
SCENES = ("emoji", "--size", "64", "--limit", "1", "--templates", "plain")


@pytest.fixture
def asked(monkeypatch):
    """Count what is asked of the net, and give nothing."""
    names = []

    def nothing(name, *_, **__):
        names.append(name)
        raise hub.DownloadError("there is no net")

    monkeypatch.setattr(hub, "download", nothing)
    monkeypatch.setattr(published, "fetch_address", nothing)
    return names


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photos" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return str(path)


def commands(photo, out):
    return {
        "segment": ("segment", photo, *WORDS, "--out", f"{out}/labels"),
        "label": ("label", photo, *WORDS, "--out", f"{out}/labels"),
        "train": ("train", "--images", f"{out}/photos", *WORDS, "--out", f"{out}/run"),
        "eval": ("eval", *SCENES, "--out", f"{out}/eval"),
        "export": ("export", f"{out}/a.onnx", *WORDS),
    }


@pytest.mark.parametrize("verb", ["segment", "label", "train", "eval", "export"])
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("RN50:openai", "--method", "scclip"), "reads the blocks of a ViT"),
        (("convnext_base", "--key-smoothing", "1"), "a feature map, without keys"),
    ],
)
def test_no_verb_asks_for_weights_of_a_network_that_cannot(
    verb, options, line, photo, tmp_path, asked, capsys
):
    command = commands(photo, tmp_path)[verb]
    assert main([*command, "--model", *options]) == 2
    assert line in capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize(
    ("verb", "options", "line"),
    [
        ("label", ("--class-confidence", "cat=0.5"), "which is not one of the 2 classes"),
        ("export", ("--method", "resclip"), "reads a photo again by its own first labels"),
        ("train", ("--student", "unet:nonsense"), "timm has no 'nonsense'"),
        ("train", ("--student", "uNet:resnet18"), "no decoder 'uNet' (did you mean unet"),
        ("train", ("--student-weights", "gone.pth"), "no file 'gone.pth'"),
    ],
)
def test_what_else_of_a_job_cannot_be_is_said_before(
    verb, options, line, photo, tmp_path, asked, capsys
):
    command = commands(photo, tmp_path)[verb]
    assert main([*command, "--model", "ViT-B-16:openai", *options]) == 2
    assert line in capsys.readouterr().err
    assert asked == []


def test_neither_does_a_comparison_nor_a_service(tmp_path, asked, capsys):
    grid = ("--models", "RN50:openai", "--methods", "scclip,naclip", "--refine", "none")
    assert main(["compare", *SCENES, *grid, "--out", str(tmp_path / "compared")]) == 2
    assert "reads the blocks of a ViT" in capsys.readouterr().out
    models = Models(["RN50:openai", "convnext_base"])
    with pytest.raises(MaskCLIPError, match="reads the blocks of a ViT"):
        models.get("RN50:openai", "scclip", Options())
    for method in ("clean", "auto"):
        with pytest.raises(MaskCLIPError, match="without keys"):
            models.get("convnext_base", method, Options(key_smoothing=1))
    assert asked == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--method", "scclip", "--window", "48"), "needs more than 30 patches"),
        (("--method", "scclip", "--key-smoothing", "1"), "has no keys"),
        (("--short-side", "5"), "less than half of one position of the model's grid (16 px)"),
        (("--method", "resclip", "--runtime", "onnx"), "reads a photo again"),
        (("--model", "RN50:openai", "--proxy", "vit_tiny_patch16_224"), "the blocks of a ViT"),
        (("--proxy", "vit_tiny_patch16_224", "--runtime", "onnx"), "a proxy is run by PyTorch"),
        (("--runtime", "onnx", "--precision", "bfloat16"), "does not compute in bfloat16"),
        (("--precision", "float23"), "unknown precision 'float23'"),
        (("--templates", "plane"), "unknown templates 'plane'"),
        (("--proxy", "resnet50"), "resnet50 is no ViT of square patches"),
        (("--proxy", "swin_tiny_patch4_window7_224"), "window7_224 is no ViT of square patches"),
        (("--proxy", "vit_tiny_patch16_222"), "timm has no 'vit_tiny_patch16_222'"),
        (("--proxy", "vit_tiny_patch16_224:gone.pth"), "no such file of weights: gone.pth"),
    ],
)
def test_nor_is_asked_where_options_do_not_go_together(options, line, photo, asked, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["segment", photo, *WORDS, "--model", "ViT-B-16:openai", *options]) == 2
    assert line in capsys.readouterr().err
    assert asked == []


def test_too_few_blocks_are_known_from_the_configuration_too(tmp_path, asked, monkeypatch):
    """Of an architecture by its name, and of a folder by its configuration."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny-16", config)
    folder = tmp_path / "tiny"
    folder.mkdir()
    about = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    for name in ("ViT-tiny-16", str(folder)):
        deep = ModelConfig(name=name, method="gem")
        with pytest.raises(MaskCLIPError, match="needs 6 blocks, and this ViT has 2"):
            load_of(deep)
        with remembering(), pytest.raises(MaskCLIPError, match="weights"):
            load_of(replace(deep, method="clean"))  # which goes on to look for them


_WITHOUT_TORCH = """
import json, sys
from maskclip.cli import main
for arguments in json.loads(sys.argv[1]):
    assert main(arguments) == 2, arguments
    assert "torch" not in sys.modules, arguments
"""


def test_typing_errors_are_refused_before_torch_is_imported(tmp_path):
    """Its import takes seconds, on a machine that is busy a minute."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "student.safetensors").write_bytes(b"")
    (tmp_path / "classes.toml").write_text("[[classes]\n")
    typed = ["--model", "runs/mine/student.safetensor"]
    meant = "runs/mine/student.safetensors"
    lines = {
        "nowhere: no such file": [
            *(["segment", "nowhere", "-c", "dog"], ["segment", "nowhere", "-c", "a", "-c", "b"]),
            ["label", "./nowhere", "-c", "dog"],
        ],
        "no folder of images: nowhere": [["train", "--images", "nowhere", "-c", "a", "-c", "b"]],
        "classes.toml is not valid TOML": [
            *([verb, "photos", "--classes", "classes.toml"] for verb in ("segment", "label")),
            ["train", "--images", "photos", "--classes", "classes.toml"],
        ],
        f"no such model file or folder (did you mean {meant}?)": [
            *(["segment", "photos", *typed], ["label", "photos", *typed], ["serve", *typed]),
            ["compare", "emoji", "--models", typed[1]],
            ["train", "--images", "photos", "-c", "a", "-c", "b", *typed],
        ],
    }
    commands = [command for each in lines.values() for command in each]
    commands = [[*one, *(["--out", "out"] if one[0] != "serve" else [])] for one in commands]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, json.dumps(commands)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = [line for line, each in lines.items() for _ in each]
    said = done.stderr.splitlines()
    assert len(said) == len(expected)
    assert all(line in one for line, one in zip(expected, said, strict=True)), said


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("runs/mine/student.safetensor", ["runs/mine/student.safetensors"]),
        ("runs/mine/student", ["runs/mine/student.safetensors"]),
        ("run/mine/student.safetensors", ["runs/mine/student.safetensors"]),
        ("runs/mien", ["runs/mine"]),
        ("./gone", []),
        ("gone.pht", []),
        ("a/b/c", []),
    ],
)
def test_a_path_where_nothing_lies_is_no_name_of_a_model(name, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "student.safetensors").write_bytes(b"")
    hint = f" (did you mean {' or '.join(meant)}?)" if meant else ""
    with pytest.raises(MaskCLIPError, match=f"{re.escape(name + ': no such model file')}") as found:
        names_clip(name)
    assert str(found.value).endswith(f"or folder{hint}")


@pytest.mark.parametrize("name", ["ViT-B/16", "ViT-B-16:openai", "RN50x4", "hf-hub:a/b.c", "x.y"])
def test_names_of_clips_are_no_paths(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RN50x4.pt").write_bytes(b"")
    assert names_clip(name)
