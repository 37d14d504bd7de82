"""What a network cannot do is refused by its name alone: no weights are asked for."""

import json
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
        ("train", ("--student", "uNet:resnet18"), "no 'uNet' (did you mean unet"),
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
