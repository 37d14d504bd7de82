"""Apple's own files of MobileCLIP, under the names that open_clip's converter knows; and whose
statistics a file without a tag is taken to have.
"""

import re

import open_clip
import pytest
import timm
import torch

from maskclip.clip.open_clip_models import _build
from maskclip.clip.published import statistics_of
from maskclip.clip.weights import load_clip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
OF_TEXT = (
    ("text_projection", "projection_layer"),
    ("token_embedding", "embedding_layer"),
    ("positional_embedding", "positional_embedding.pos_embed.pos_embed"),
    ("ln_final", "final_layer_norm"),
    ("resblocks.", ""),
    ("ln_1", "pre_norm_mha.0"),
    ("attn.", "pre_norm_mha.1."),
    ("in_proj_", "qkv_proj."),
    ("ln_2", "pre_norm_ffn.0"),
    ("mlp.c_fc", "pre_norm_ffn.1"),
    ("mlp.c_proj", "pre_norm_ffn.4"),
)
OF_FASTVIT = (
    ("stem", "patch_embed"),
    ("conv_kxk", "rbr_conv"),
    ("conv_scale", "rbr_scale"),
    ("identity", "rbr_skip"),
    ("final_conv", "conv_exp"),
    ("large_conv", "lkb_origin"),
    (".mlp.", ".convffn."),
    ("se.fc1", "se.reduce"),
    ("se.fc2", "se.expand"),
    (".gamma", ""),
)
OF_VIT = (
    ("patch_embed.backbone.", "patch_emb."),
    (".conv.", ".block.conv."),
    (".bn.", ".block.norm."),
    ("blocks.", "transformer."),
    ("norm1", "pre_norm_mha.0"),
    ("attn.proj.", "attn.out_proj."),
    ("attn.qkv.", "attn.qkv_proj."),
    ("attn.", "pre_norm_mha.1."),
    ("norm2", "pre_norm_ffn.0"),
    ("mlp.fc1", "pre_norm_ffn.1"),
    ("mlp.fc2", "pre_norm_ffn.4"),
)
ARCHITECTURES = {"MobileCLIP-S1": ("fastvit_mci0", "avg"), "MobileCLIP-B": ("vit", "token")}


def renamed(key, pairs):
    for ours, theirs in pairs:
        key = key.replace(ours, theirs)
    return key


def of_fastvit(key):
    """Stages are one list: their blocks, a downsampling before the next, and once positions."""
    key = renamed(key, OF_FASTVIT)
    found = re.match(r"stages\.(\d)\.(blocks|downsample\.proj|pos_emb\.pos_enc)\.(.*)", key)
    if found is None:
        return key
    stage, rest = int(found[1]), found[3]
    if found[2] == "blocks":
        return f"network.{(0, 2, 4, 7)[stage]}.{rest}"
    return f"network.{2 * stage - 1}.proj.{rest}" if "proj" in found[2] else f"network.6.pe.{rest}"


def of_vit(key):
    key = "post_transformer_norm." + key.removeprefix("norm.") if key[:5] == "norm." else key
    return "pos_embed.pos_embed.pos_embed" if key == "pos_embed" else renamed(key, OF_VIT)


def as_apple(state, fastvit):
    """Return a state_dict under Apple's names; its heads have no bias."""
    found = {"logit_scale": state["logit_scale"]}
    head = "head.proj" if fastvit else "classifier.proj"
    for key, value in state.items():
        name = key.removeprefix("visual.trunk.")
        if key.startswith("text."):
            name = renamed(key.removeprefix("text."), OF_TEXT)
            value = value[None, None] if "pos_embed" in name else value
            found[f"text_encoder.{name}"] = value
        elif re.fullmatch(r"head\.(fc\.)?weight", name):
            found[f"image_encoder.model.{head}"] = value.T
        elif name != key and not name.startswith("head."):
            value = value[None] if name == "pos_embed" else value
            found[f"image_encoder.model.{(of_fastvit if fastvit else of_vit)(name)}"] = value
    return found


@pytest.fixture(params=ARCHITECTURES)
def architecture(request, monkeypatch):
    """An architecture of MobileCLIP, smaller than it is."""
    network, pool = ARCHITECTURES[request.param]
    create = timm.create_model
    if network == "vit":
        network = "vit_base_mci_224"
        monkeypatch.setattr(timm, "create_model", lambda *a, **b: create(*a, **b, depth=1))
    vision = {"timm_model_name": network, "timm_model_pretrained": False, "timm_pool": pool}
    config = {
        "embed_dim": 16,
        "vision_cfg": {**vision, "timm_proj": None, "image_size": 64},
        "text_cfg": TEXT,
        "custom_text": True,
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, request.param, config)
    return request.param, config


def test_files_of_apple_are_the_models_that_they_were(architecture, tmp_path):
    name, config = architecture
    model = _build({**config, "text_cfg": dict(TEXT)})
    state = model.state_dict()
    for key, value in state.items():
        if key in ("visual.trunk.head.fc.bias", "visual.trunk.head.bias"):
            value.zero_()
    path = tmp_path / "mobileclip.pt"
    torch.save(as_apple(state, fastvit=name == "MobileCLIP-S1"), path)
    clip = load_clip(name, weights=str(path))
    found = clip.model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert (clip.mean, clip.std) == ((0.0,) * 3, (1.0,) * 3)


def test_a_file_without_a_tag_has_the_statistics_that_all_tags_share():
    halves = ((0.5,) * 3, (0.5,) * 3)
    assert statistics_of("ViT-B-16-SigLIP2", "") == halves
    assert statistics_of("ViT-L-14", "laion2b_s32b_b82k") == halves
    openai = statistics_of("ViT-B-16", "openai")
    for several in ("ViT-L-14", "ViT-B-16", "ViT-S-16"):  # which differ, agree, and are none
        assert statistics_of(several, "") == openai
