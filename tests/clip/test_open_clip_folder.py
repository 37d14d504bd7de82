"""Folders and repositories of open_clip: loaded everywhere, and hostile ones refused in a line."""

import json
import math

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from maskclip.clip.checkpoint import WeightsError
from maskclip.clip.hub import CONFIG, WEIGHTS, names_folder
from maskclip.clip.open_clip_folder import check_config
from maskclip.clip.published import model_config
from maskclip.clip.weights import load_clip
from maskclip.core.config import ModelConfig
from maskclip.core.errors import MaskCLIPError
from maskclip.tasks.segmenter import load
from tests.hub_server import serving

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
MODEL = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
PREPROCESS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL)
    return {key: value.contiguous() for key, value in model.state_dict().items()}


@pytest.fixture
def folder(tmp_path, state):
    """Return a folder as open_clip writes it."""
    path = tmp_path / "mine"
    write(path, {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS})
    save_file(state, path / WEIGHTS[0])
    return path


def write(path, config):
    path.mkdir(exist_ok=True)
    (path / CONFIG).write_text(json.dumps(config))


def test_a_folder_is_a_model_with_the_statistics_of_its_training(folder, state):
    clip = load_clip(str(folder))
    assert (clip.mean, clip.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert clip.name == str(folder)
    for key, value in clip.model.state_dict().items():
        assert torch.equal(value, state[key])


def test_a_bin_file_will_do_and_the_safetensors_is_taken_first(folder, state):
    torch.save(state | {"logit_scale": torch.tensor(1.0)}, folder / WEIGHTS[1])
    assert load_clip(str(folder)).temperature == pytest.approx(float(state["logit_scale"].exp()))
    (folder / WEIGHTS[0]).unlink()
    assert load_clip(str(folder)).temperature == pytest.approx(math.e)
    (folder / WEIGHTS[1]).unlink()
    with pytest.raises(WeightsError, match="has no weights beside its open_clip_config"):
        load_clip(str(folder))


def test_a_file_may_stand_for_its_weights(folder, state, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(state | {"logit_scale": torch.tensor(1.0)}, path)
    clip = load_clip(str(folder), weights=str(path))
    assert clip.temperature == pytest.approx(math.e)
    assert clip.name == f"{folder}:other.safetensors"


def test_quick_gelu_is_what_the_configuration_says(folder):
    before = load_clip(str(folder)).fingerprint
    write(folder, {"model_cfg": {**MODEL, "quick_gelu": True}})
    clip = load_clip(str(folder))
    assert "QuickGELU" in repr(clip.visual)
    assert clip.fingerprint != before


def test_it_is_a_model_for_every_verb(folder, tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 48), "red").save(tmp_path / "photo.png")
    segmenter = load(ModelConfig(name=str(folder)), device="cpu")
    found = segmenter.segment(tmp_path / "photo.png", ["dog", "car"])
    assert found.labels.shape == (48, 64)


@pytest.fixture
def hub(monkeypatch, folder):
    with serving(monkeypatch) as hub:
        for file in (CONFIG, WEIGHTS[0]):
            hub.files[f"someone/tiny/{file}"] = (folder / file).read_bytes()
        yield hub


@pytest.mark.parametrize("revision", ["", "@v1", f"@{'c' * 40}"])
def test_a_repository_of_the_hub_is_a_model(hub, folder, revision):
    name = f"hf-hub:someone/tiny{revision}"
    assert names_folder(name)
    clip = load_clip(name)
    assert clip.name == name
    assert clip.fingerprint == load_clip(str(folder)).fingerprint
    sent = len(hub.requests)
    load_clip(name)
    assert len(hub.requests) == sent  # it is on this machine now
    wanted = revision.removeprefix("@") or "main"
    files = [path for _, path, _ in hub.requests if "/resolve/" in path]
    assert files
    assert all(f"/{wanted}/" in path for path in files)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("hf-hub:someone/other", "no such repository, or it is private"),
        ("hf-hub:someone/tiny@v9", "has no revision v9"),
        ("hf-hub:", "is no name of a repository"),
        ("hf-hub:../../etc", "is no name of a repository"),
        ("hf-hub:a/b/c", "is no name of a repository"),
    ],
)
def test_repositories_that_are_not_there_are_one_line(hub, name, part):
    with pytest.raises(WeightsError, match=part) as error:
        load_clip(name)
    assert "\n" not in str(error.value)


def test_offline_the_line_says_where_it_would_lie(isolated):
    with pytest.raises(WeightsError, match="cannot be downloaded") as error:
        load_clip("hf-hub:someone/tiny")
    assert str(isolated / "hub" / "models--someone--tiny") in str(error.value)


def test_all_that_open_clip_ships_passes():
    for architecture in open_clip.list_models():
        checked = check_config(model_config(architecture))
        assert checked["embed_dim"] == model_config(architecture)["embed_dim"]


def changed(**values):
    """Return the configuration with some values of it changed, as `vision_cfg__width`."""
    found = json.loads(json.dumps(MODEL))
    for name, value in values.items():
        *parts, last = name.split("__")
        table = found
        for part in parts:
            table = table[part]
        table[last] = value
    return found


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ([1, 2], "model_cfg: expected a table"),
        ({}, "got none of embed_dim"),
        (changed(embed_dim=float("nan")), "embed_dim: expected a whole number from 1 to 8192"),
        (changed(embed_dim=10**30), "embed_dim"),
        (changed(embed_dim=True), "embed_dim"),
        (changed(vision_cfg=[]), "vision_cfg: expected a table"),
        (changed(vision_cfg__width=10**9), r"vision_cfg\.width: .*8192, got 1000000000"),
        (changed(vision_cfg__width=[64]), r"vision_cfg\.width"),
        (changed(vision_cfg__layers=[1, 1]), r"vision_cfg\.layers: .*or four of them"),
        (changed(vision_cfg__layers=10**6), r"vision_cfg\.layers"),
        (changed(vision_cfg__image_size=[32, 64]), r"image_size: expected square"),
        (changed(vision_cfg__mlp_ratio=float("inf")), r"mlp_ratio: expected a number"),
        (changed(vision_cfg__norm_kwargs={"device": "cuda"}), r"norm_kwargs: .*for eps"),
        (changed(vision_cfg__timm_model_name="vit_base_patch16_siglp_224"), "did you mean"),
        (changed(vision_cfg__timm_model_name="hf-hub:evil/code"), "timm has no network"),
        (changed(vision_cfg__timm_model_name="local-dir:/etc"), "timm has no network"),
        (changed(vision_cfg__timm_model_name={"a": 1}), "timm_model_name: expected a name"),
        (changed(vision_cfg__wdth=64), r"vision_cfg\.wdth: not known to open_clip .*width"),
        (changed(text_cfg__vocab_size=-1), r"text_cfg\.vocab_size"),
        (changed(text_cfg__vocab_size=32000), "49,408 tokens of CLIP's own"),
        (changed(text_cfg__context_length=10**7), r"text_cfg\.context_length"),
        (changed(text_cfg__tokenizer_kwargs={"trust_remote_code": True}), "tokenizer_kwargs"),
        (changed(text_cfg__hf_tokenizer_name=7), r"hf_tokenizer_name: expected a name"),
        (changed(text_cfg__heads=3), "not a readable configuration of a CLIP"),
        (changed(vision_cfg__pool_type="avg", vision_cfg__scaled_cosine_attn=True), "no dense"),
        (changed(cast_dtype="float16"), "cast_dtype: not known"),
    ],
)
def test_hostile_configurations_are_one_line_before_memory_is_taken(config, part, folder):
    write(folder, {"model_cfg": config})
    (folder / WEIGHTS[0]).write_bytes(b"never read")
    with pytest.raises(MaskCLIPError, match=part) as error:
        load_clip(str(folder))
    assert "\n" not in str(error.value)
    assert str(folder / CONFIG) in str(error.value)


@pytest.mark.parametrize(
    "statistics",
    [{"mean": [0, 0]}, {"std": [1, 1, 0]}, {"mean": [0, 0, float("nan")]}, {"std": "x"}, []],
)
def test_so_are_statistics_that_are_none(statistics, folder):
    write(folder, {"model_cfg": MODEL, "preprocess_cfg": statistics})
    with pytest.raises(WeightsError, match="preprocess_cfg"):
        load_clip(str(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_cfg": ' * 200, "\x00"])
def test_so_are_files_that_are_no_configuration(text, folder):
    (folder / CONFIG).write_text(text)
    with pytest.raises(MaskCLIPError) as error:
        load_clip(str(folder))
    assert "\n" not in str(error.value)


def test_a_configuration_that_the_weights_do_not_fit_takes_no_memory(folder, monkeypatch):
    largest = 0
    real = torch.nn.Linear.__init__

    def watched(self, inputs, outputs, *arguments, **options):
        nonlocal largest
        real(self, inputs, outputs, *arguments, **options)
        if not self.weight.is_meta:
            largest = max(largest, self.weight.numel())

    monkeypatch.setattr(torch.nn.Linear, "__init__", watched)
    config = changed(vision_cfg__width=8192, vision_cfg__layers=20)
    write(folder, {"model_cfg": config})
    with pytest.raises(WeightsError, match="does not fit"):
        load_clip(str(folder))
    assert largest == 0


def test_a_folder_without_a_configuration_says_what_is_expected(tmp_path):
    with pytest.raises(WeightsError, match=r"is a folder without open_clip_config\.json"):
        load_clip(str(tmp_path))
