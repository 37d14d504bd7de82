"""What `method="auto"` becomes: by the network, by what it sees at once, and by what is asked."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower

from maskclip.clip.choice import choose, settle
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.families import told_by_shapes
from maskclip.clip.published import architectures, model_config
from maskclip.clip.weights import load_clip
from maskclip.core.config import EMBEDDED, ModelConfig, Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import CLEAN
from maskclip.core.methods import NACLIP, get_method

PLAIN = [name for name in architectures() if told_by_shapes(model_config(name))]
WINDOWS = Options(short_side=336, window=224, stride=112)


def loaded(name, short_side=512, **vision):
    """What is known of a model before its encoder is built, without its weights."""
    config = model_config(name)
    with torch.device("meta"):
        vision = CLIPVisionCfg(**{**config["vision_cfg"], **vision})
        visual = _build_vision_tower(config["embed_dim"], vision)
    return SimpleNamespace(visual=visual, known_tokens=None, short_side=short_side)


@pytest.mark.parametrize(
    ("name", "options", "method", "why"),
    [
        ("RN50", {}, "clean", "no blocks"),
        ("RN50", WINDOWS, "clean", "no blocks"),
        ("ViT-B-16", WINDOWS, "scclip", "43.9 in windows of 224 px, where MaskCLIP has 30.3"),
        ("ViT-B-16", {"short_side": 224}, "scclip", "43.9"),
        ("ViT-B-16", {"window": 96}, "scclip", "43.9"),
        ("ViT-B-16", {"window": 80}, "naclip", "nothing in it is made for one network"),
        ("ViT-B-16", {}, "naclip", "windows of 224 px, and 512 px are seen at once"),
        ("ViT-B-16", {"window": 336}, "naclip", "336 px are seen"),
        ("ViT-B-16", {"window": 448, "short_side": 336}, "naclip", "336 px are seen"),
        ("ViT-B-16", {"window": 224, "short_side": 0}, "naclip", "photos of any size"),
        ("ViT-B-16", {"short_side": 0}, "naclip", "photos of any size"),
        ("ViT-B-16", replace(WINDOWS, key_smoothing=1.0), "naclip", "no keys to smooth"),
        ("ViT-B-16-quickgelu", WINDOWS, "scclip", "43.9"),
        ("ViT-L-14", WINDOWS, "naclip", "36.2 on ViT-L/14, where MaskCLIP falls to 13.7"),
        ("ViT-L-14-336", {}, "naclip", "for its published figure: 36.2 on ViT-L/14"),
        ("ViT-B-32", WINDOWS, "naclip", "nothing in it is made for one network"),
        ("ViT-S-16", WINDOWS, "naclip", "nothing in it is made for one network"),
        ("ViT-H-14", {}, "naclip", "nothing in it is made for one network"),
        ("MobileCLIP2-S0", {}, "clean", "a feature map has no attention"),
        ("convnext_base", WINDOWS, "clean", "a feature map has no attention"),
        ("EVA02-B-16", {}, "naclip", "nothing in it is made for one network"),
        ("MobileCLIP2-B", WINDOWS, "naclip", "nothing in it is made for one network"),
        ("ViT-B-16-SigLIP", WINDOWS, "clean", "no class token is the embedding"),
        ("PE-Core-T-16-384", {}, "clean", "no class token is the embedding"),
        ("ViT-L-14-CLIPA", {}, "clean", "no class token is the embedding"),
    ],
)
def test_it_goes_by_the_evidence(name, options, method, why):
    options = Options(**options) if isinstance(options, dict) else options
    choice = choose(loaded(name), "auto", options)
    assert choice.method is get_method(method)
    assert why in choice.why
    assert "\n" not in choice.why


@pytest.mark.parametrize("options", [Options(), WINDOWS, Options(key_smoothing=1.0)], ids=str)
@pytest.mark.parametrize("name", [*PLAIN, "EVA02-B-16", "ViT-B-16-SigLIP", "PE-Core-T-16-384"])
def test_every_listed_architecture_can_be_read_by_it(name, options):
    clip = loaded(name)
    encoder = DenseCLIP(
        clip.visual,
        method=choose(clip, "auto", options).method,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    if options.key_smoothing:
        encoder.check_keys()


@pytest.mark.parametrize(
    ("vision", "why"),
    [({"layers": 3}, "fewer than 4 blocks"), ({"layers": 1, "width": 64}, "fewer than 4")],
    ids=str,
)
def test_where_no_other_method_runs_or_was_published_it_is_clean(vision, why):
    choice = choose(loaded("ViT-B-16", **vision), "auto", WINDOWS)
    assert choice.method is CLEAN
    assert why in choice.why


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_models_are_read_as_measured_best(name):
    assert choose(load_clip(name), "auto", WINDOWS).method is CLEAN


def test_what_is_named_stays():
    mine = replace(NACLIP, name="mine")
    for method in ("scclip", mine):
        assert choose(loaded("RN50"), method) == (get_method(method), "")
        config = ModelConfig(name="nowhere", method=method)
        assert settle(config, Options()) == (config, "")
    with pytest.raises(MaskCLIPError, match="did you mean auto"):
        ModelConfig(method="autos")


def test_a_config_is_settled_by_its_model():
    config, why = settle(ModelConfig(name="emoji", method="auto"), Options())
    assert (config.method, config.name) == ("clean", "emoji")
    assert "drawn scenes" in why
