"""The contract with open_clip: same modules, same embeddings, and which families are taken."""

import json
from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIPVisionCfg, _build_vision_tower

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.families import told_by_shapes, traits_of, traits_of_config, why_not
from maskclip.clip.open_clip_models import _described
from maskclip.clip.published import architectures, model_config
from maskclip.clip.towers import (
    UnsupportedMethodError,
    UnsupportedTowerError,
    adapter_for,
    build_tower,
)
from maskclip.clip.weights import load_clip
from maskclip.core.method import BASELINE, CLEAN, PUBLISHED
from maskclip.core.methods import METHODS, for_any_tower

VIT = {"width": 32, "layers": 2, "patch_size": 8, "image_size": 32}
MEAN, STD = (0.48, 0.45, 0.41), (0.27, 0.26, 0.28)
VARIANTS = {
    "resnet": ("resnet", {}),
    "resnet, deeper": ("resnet", {"layers": (2, 1, 2, 1), "image_size": 96}),
    "vit": ("vit", {}),
    "QuickGELU": ("vit", {"quick_gelu": True}),
    "layer scale": ("vit", {"ls_init_value": 0.3}),
    "no ln_pre": ("vit", {"no_ln_pre": True}),
    "ln_post after pooling": ("vit", {"final_ln_after_pool": True}),
    "patch dropout": ("vit", {"patch_dropout": 0.5}),
    "fixed positions": ("vit", {"pos_embed_type": "sin_cos_2d"}),
    "odd heads": ("vit", {"width": 44, "head_width": 11, "mlp_ratio": 4.3637}),
    "other epsilon": ("vit", {"norm_kwargs": {"eps": 1e-3}}),
    "qk norm": ("vit", {"qk_norm": True}),
    "scaled heads": ("vit", {"scale_heads": True}),
    "norms of NormFormer": ("vit", {"scale_attn_inner": True, "scale_attn": True}),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pooled_embeddings_are_open_clips(variant, dtype, make_clip):
    family, vision = VARIANTS[variant]
    clip = make_clip(family, **vision)
    side = vision.get("image_size", 64 if family == "resnet" else 32)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, 3, side, side), generator=generator, dtype=torch.uint8)
    scaled = images.float() / 255
    encoder = DenseCLIP(clip.visual, method=CLEAN, mean=MEAN, std=STD).eval()
    statistics = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    mean, std = statistics
    with torch.inference_mode():
        expected = clip.encode_image((scaled - mean) / std)
        pixels = images if dtype == torch.uint8 else scaled
        found = encoder.pool(pixels)
        beside = encoder.encode(pixels, image=True)
        plain = encoder.encode(pixels)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(beside.image, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(beside.features, plain.features)
    assert plain.image is None


READINGS = [
    pytest.param(family, method, id=f"{family}-{method.name}")
    for family in ("resnet", "vit")
    for method in METHODS.values()
    if family == "vit" or for_any_tower(method)
]


@pytest.mark.parametrize(("family", "method"), READINGS)
@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
def test_images_own_embeddings_are_clips_whatever_the_method(family, method, size, make_clip):
    visual = make_clip("vit", layers=10).visual if family == "vit" else make_clip(family).visual
    encoder = DenseCLIP(visual, method=method, mean=MEAN, std=STD).eval()
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        dense = encoder.encode(images, image=True)
        assert dense.image.shape == (2, dense.features.shape[1])
        torch.testing.assert_close(dense.image, encoder.pool(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dense.image[1:], encoder.pool(images[1:]), rtol=1e-4, atol=1e-5)


def test_a_resnet_resizes_its_position_table_to_the_grid(make_clip):
    visual = make_clip("resnet").visual  # native 64 px: a table of 2 x 2 positions
    encoder = DenseCLIP(visual, method=CLEAN, mean=MEAN, std=STD).eval()
    pool = encoder.visual.attnpool
    grid = pool.positional_embedding[1:].detach().view(1, 2, 2, -1).permute(0, 3, 1, 2)
    larger = F.interpolate(grid, size=(1, 3), mode="bicubic")
    table = torch.cat([pool.positional_embedding[:1], larger.flatten(2)[0].T])
    images = torch.rand(1, 3, 32, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = encoder.pool(images)
        pool.positional_embedding = torch.nn.Parameter(table)
        x = encoder._normalize(images)
        visual = encoder.visual
        for stage in (visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = stage(x)
        torch.testing.assert_close(found, pool(x), rtol=1e-4, atol=1e-5)


PLAIN = [name for name in architectures() if told_by_shapes(model_config(name))]
ONE_A_FAMILY = [
    *("ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP2-378", "nllb-clip-base-siglip", "PE-Core-T-16-384"),
    *("PE-Core-bigG-14-448", "EVA01-g-14", "EVA02-B-16", "EVA02-E-14", "MobileCLIP2-B"),
    *("MobileCLIP2-L-14", "ViTamin-S", "vit_medium_patch16_gap_256", "coca_ViT-B-32", "coca_base"),
    *("ViT-L-14-CLIPA", "ViT-M-16-alt"),
]


@pytest.mark.parametrize("name", dict.fromkeys([*PLAIN, *ONE_A_FAMILY]))
def test_listed_architectures_are_taken(name):
    config = model_config(name)
    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]))
    assert traits_of(visual) == traits_of_config(config)
    side = 32 if isinstance(config["vision_cfg"].get("layers"), list) else 0
    if not side and hasattr(visual, "patch_size"):
        side = visual.patch_size[0]
    for method in (CLEAN, PUBLISHED):
        assert build_tower(visual, method).cell == (side or visual.trunk.patch_embed.feat_ratio())


def test_every_architecture_is_read_or_has_a_reason():
    for name in set(open_clip.list_models()) - set(architectures()):
        traits = traits_of_config(model_config(name))
        assert adapter_for(traits) is None
        assert "expected" not in why_not(traits), name
        with pytest.raises(UnsupportedTowerError, match=f"{name} has no dense reading") as refused:
            load_clip(name, weights="random")
        assert "\n" not in str(refused.value)


def test_every_tower_is_described_in_plain_values():
    """By numbers or by its name: a student's file says so what it starts from."""
    for name in architectures():
        config = model_config(name)
        described = _described(config, name)
        assert json.loads(json.dumps(described)) == described
        if not told_by_shapes(config):
            assert described["name"] == name
    siglip = model_config("ViT-B-16-SigLIP")
    siglip["vision_cfg"]["timm_model_pretrained"] = False  # as folders of open_clip have it
    assert _described(siglip, "hf-hub:timm/x")["name"] == "ViT-B-16-SigLIP"
    siglip["vision_cfg"]["image_size"] = 160
    assert _described(siglip, "hf-hub:timm/x") is None


def test_the_two_original_families_are_listed():
    original = {"RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"}
    original |= {"ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"}
    original |= {"ViT-H-14", "ViT-g-14", "ViT-bigG-14"}
    assert original <= set(architectures())


@pytest.mark.parametrize(
    "vision",
    [
        {"attentional_pool": "parallel", "attn_pooler_heads": 2},
        {"pool_type": "none"},
        {"scaled_cosine_attn": True},
    ],
    ids=str,
)
def test_other_towers_are_refused_by_their_modules(vision, make_clip):
    visual = make_clip("vit", **vision).visual
    told = traits_of_config({"vision_cfg": {**VIT, **vision}})
    for traits in (told, traits_of(visual)):
        assert adapter_for(traits) is None
    with pytest.raises(UnsupportedTowerError, match=r"ModifiedResNet .* VisionTransformer .* timm"):
        DenseCLIP(visual, mean=MEAN, std=STD)


@pytest.mark.parametrize("visual", [torch.nn.Identity(), torch.nn.Sequential(torch.nn.ReLU())])
def test_what_is_no_tower_is_refused(visual):
    with pytest.raises(UnsupportedTowerError, match=type(visual).__name__):
        build_tower(visual, CLEAN)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_refused_or_clean_tower_keeps_its_settings(family, make_clip):
    visual = make_clip(family, quick_gelu=True).visual
    before = [str(module) for module in visual.modules()]
    build_tower(visual, CLEAN)
    assert [str(module) for module in visual.modules()] == before


def test_the_published_method_takes_exact_gelu_and_its_own_epsilon(make_clip):
    visual = make_clip("vit", quick_gelu=True).visual
    build_tower(visual, PUBLISHED)
    norms = [module for module in visual.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
    kinds = {type(block.mlp.gelu) for block in visual.transformer.resblocks}
    assert kinds == {torch.nn.GELU}


class TestRefusedMethods:
    """What a tower cannot compute is said in one line, before any image."""

    @pytest.mark.parametrize("kernels", [(("values", 1.0),), (("identity", 0.5), ("qx", 0.5))])
    @pytest.mark.parametrize("family", ["vit", "resnet"])
    def test_unknown_kernels(self, family, kernels, make_clip):
        method = replace(CLEAN, name="mine", kernels=kernels)
        with pytest.raises(UnsupportedMethodError, match=r"'mine' .*identity, qk") as error:
            DenseCLIP(make_clip(family).visual, method=method, mean=MEAN, std=STD)
        assert "\n" not in str(error.value)

    def test_keys_of_a_baseline_resnet(self, make_clip):
        encoder = DenseCLIP(make_clip("resnet").visual, method=BASELINE, mean=MEAN, std=STD).eval()
        images = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
        assert encoder.encode(images).features.shape[2:] == (2, 3)
        for refused in (encoder.check_keys, lambda: encoder.encode(images, keys=True)):
            with pytest.raises(UnsupportedMethodError, match="no key smoothing"):
                refused()


@pytest.mark.parametrize("variant", ["qk norm", "scaled heads", "norms of NormFormer"])
def test_attentions_of_another_form_are_read_as_they_are(variant, make_clip):
    """All that stands between the projections and the softmax, and after it, is in each reading."""
    visual = make_clip("vit", **VARIANTS[variant][1]).visual
    for block in visual.transformer.resblocks:
        for name, weight in block.named_parameters():
            torch.nn.init.normal_(weight, 1 if "ln" in name or "scale" in name else 0, 0.1)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoder = DenseCLIP(visual, method=BASELINE, mean=MEAN, std=STD).eval()
    with torch.inference_mode():
        x, _ = encoder.tower.network.tokens(encoder._normalize(images), BASELINE)
        expected = encoder.visual.transformer(x)[:, 1:]
        expected = encoder.visual.ln_post(expected) @ encoder.visual.proj
        found = encoder.encode(images, keys=True)
    torch.testing.assert_close(found.features.flatten(2).mT, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "cell", "token"), [("vit", 8, True), ("resnet", 32, False)])
def test_an_encoder_says_what_its_tower_is(family, cell, token, make_model):
    clip = make_model(family, temperature=40.0)
    for method, temperature in ((CLEAN, 40), (PUBLISHED, 100), (BASELINE, 100)):
        encoder = DenseCLIP.of(clip, method=method)
        assert (encoder.cell, encoder.class_token) == (cell, token)
        assert encoder.temperature == temperature
    override = replace(CLEAN, temperature=50)
    assert DenseCLIP.of(clip, method=override).temperature == 50


def test_baseline_positions_of_one_colour_are_alike(make_clip):
    """Attention over equal positions gives each of them the value that plain reading gives."""
    clip = make_clip("resnet")
    images = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)  # one position: no borders differ
    found = [
        DenseCLIP(clip.visual, method=method, mean=MEAN, std=STD).eval().encode(images).features
        for method in (BASELINE, PUBLISHED)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
