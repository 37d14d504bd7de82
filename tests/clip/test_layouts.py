"""Weights under the names of other programs: the same network, and the same labels."""

import itertools
import json
import math
import re

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from maskclip.clip.checkpoint import WeightsError, read_checkpoint
from maskclip.clip.weights import load_clip
from maskclip.core.errors import MaskCLIPWarning

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 2}
CONFIG = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}
PREFIXES = ("_orig_mod.", "module.", "model.")


@pytest.fixture(scope="module")
def state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.CLIP(8, dict(VISION), dict(TEXT)).state_dict()


@pytest.fixture
def tiny(monkeypatch):
    """Make open_clip know the architecture."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-small-8", CONFIG)
    known = {"openai": {"hf_hub": "a/b/", "quick_gelu": True}, "laion": {"hf_hub": "a/c/"}}
    for name in ("vit-small-8", "ViT-small-8"):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, known)
    return "ViT-small-8"


ORDERS = [
    "".join(order) for count in (1, 2, 3) for order in itertools.permutations(PREFIXES, count)
] + ["module.module.", "_orig_mod._orig_mod.module.model."]


@pytest.mark.parametrize("prefix", ORDERS)
def test_prefixes_of_wrappers_are_taken_off(prefix, state, tmp_path):
    wrapped = {f"{prefix}{key}": value for key, value in state.items()}
    torch.save(wrapped, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt").state
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_a_part_that_was_compiled_alone_has_its_names(state, tmp_path):
    wrapped = {re.sub(r"^visual\.", "visual._orig_mod.", key): v for key, v in state.items()}
    save_file({k: v.contiguous() for k, v in wrapped.items()}, tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors").state.keys() == state.keys()


@pytest.mark.parametrize(
    "levels",
    [("state_dict",), ("model",), ("model", "state_dict"), ("state_dict", "model"), ("module",),
     ("model_state_dict",), ("model", "model", "state_dict")],
)  # fmt: skip
def test_levels_above_a_state_dict_are_opened(levels, state, tmp_path):
    content = {f"module.{key}": value for key, value in state.items()}
    for level in levels:
        content = {level: content, "epoch": 3, "optimizer": {"state": {0: torch.ones(1)}}}
    torch.save(content, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").state.keys() == state.keys()


def test_two_weights_of_one_name_are_reported(state, tmp_path):
    torch.save({**state, "module.visual.proj": state["visual.proj"]}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"a\.pt: .*two of its weights are called visual\.proj"):
        read_checkpoint(tmp_path / "a.pt")


def as_transformers(state):
    """Return weights under the names, and in the matrices, of Hugging Face transformers' CLIPModel.

    Written by hand from its modules' names: transformers itself is not among our packages.
    """
    renamed = {}
    blocks = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
              "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    whole = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    stems = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for key, value in state.items():
        tower = "vision_model" if key.startswith("visual.") else "text_model"
        block = re.fullmatch(
            r"(?:visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", key
        )
        if block:
            number, part, kind = block.groups()
            stem = f"{tower}.encoder.layers.{number}"
            if part == "attn.in_proj":
                for letter, rows in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"{stem}.self_attn.{letter}_proj.{kind}"] = rows
            else:
                renamed[f"{stem}.{blocks[part]}.{kind}"] = value
        elif key in ("visual.proj", "text_projection"):
            name = "visual_projection" if key == "visual.proj" else "text_projection"
            renamed[f"{name}.weight"] = value.T  # a Linear holds it the other way
        elif key in whole:
            renamed[whole[key]] = value
        else:
            stem, _, kind = key.rpartition(".")
            renamed[f"{stems[stem]}.{kind}"] = value
    for tower, count in (("vision_model", 17), ("text_model", 77)):
        renamed[f"{tower}.embeddings.position_ids"] = torch.arange(count)[None]
    return {key: value.clone().contiguous() for key, value in renamed.items()}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_the_layout_of_transformers_is_the_same_network(name, state, tmp_path):
    renamed = as_transformers(state)
    path = tmp_path / name
    save_file(renamed, path) if name.endswith("safetensors") else torch.save(renamed, path)
    found = read_checkpoint(path).state
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def uses_quick_gelu(clip):
    return any(isinstance(module, QuickGELU) for module in clip.model.modules())


@pytest.mark.parametrize(
    ("activation", "quick"), [("quick_gelu", True), ("gelu", False), (None, True)]
)
def test_config_json_says_which_activation(activation, quick, state, tmp_path, recwarn):
    save_file(as_transformers(state), tmp_path / "model.safetensors")
    part = {} if activation is None else {"hidden_act": activation}
    config = {"vision_config": {**part, "num_attention_heads": 2},
              "text_config": {**part, "num_attention_heads": 4}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    clip = load_clip(str(tmp_path / "model.safetensors"))
    assert uses_quick_gelu(clip) == quick
    assert clip.model.visual.transformer.resblocks[0].attn.num_heads == 2
    assert clip.model.transformer.resblocks[0].attn.num_heads == 4
    assert not [warning for warning in recwarn if warning.category is MaskCLIPWarning]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"vision_config": 3}',
        '{"vision_config": {"num_attention_heads": 0}}',
        '{"text_config": {"num_attention_heads": 1e9}}',
    ],
)
def test_a_config_json_that_is_none_is_one_line(text, state, tmp_path):
    save_file(as_transformers(state), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=re.escape(str(tmp_path))) as error:
        load_clip(str(tmp_path / "model.safetensors"))
    assert "\n" not in str(error.value)


def test_without_it_the_tag_says_so_or_transformers_does(state, tiny, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(as_transformers(state), path)
    with pytest.warns(MaskCLIPWarning, match=r"no config\.json.*QuickGELU"):
        assert uses_quick_gelu(load_clip(str(path)))
    assert not uses_quick_gelu(load_clip(f"{tiny}:laion", weights=str(path)))
    assert uses_quick_gelu(load_clip(f"{tiny}:openai", weights=str(path)))


@pytest.mark.parametrize("cells", [2, 6])
def test_positions_of_another_image_size_are_resized_for_a_name(cells, state, tiny, tmp_path):
    table = state["visual.positional_embedding"]
    grid = table[1:].T.reshape(1, 64, 4, 4)
    other = F.interpolate(grid, size=(cells, cells), mode="bicubic", antialias=True)
    other = torch.cat([table[:1], other.flatten(2)[0].T])
    torch.save({**state, "visual.positional_embedding": other}, tmp_path / "a.pt")
    with pytest.warns(MaskCLIPWarning, match=rf"has {cells**2 + 1} positions, resized to 17"):
        clip = load_clip(f"{tiny}:laion", weights=str(tmp_path / "a.pt"))
    found = clip.model.visual.positional_embedding.detach()
    grid = other[1:].T.reshape(1, 64, cells, cells)
    back = F.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True)
    assert torch.equal(found[0], table[0])
    torch.testing.assert_close(found[1:], back.flatten(2)[0].T)


def test_positions_of_another_text_length_are_resized_for_a_name(state, tiny, tmp_path):
    table = torch.linspace(0, 1, 32)[:, None].expand(32, 16).clone()
    torch.save({**state, "positional_embedding": table}, tmp_path / "a.pt")
    with pytest.warns(MaskCLIPWarning, match="has 32 positions, resized to 77"):
        clip = load_clip(f"{tiny}:laion", weights=str(tmp_path / "a.pt"))
    found = clip.model.positional_embedding.detach()
    assert math.isclose(float(found[-1, 0]), 1, abs_tol=0.02)
    assert (found.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_positions_of_no_square_do_not_fit(rows, state, tiny, tmp_path):
    table = torch.zeros(rows, 64)
    torch.save({**state, "visual.positional_embedding": table}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"visual\.positional_embedding \(\d, 64\), expected"):
        load_clip(f"{tiny}:laion", weights=str(tmp_path / "a.pt"))
