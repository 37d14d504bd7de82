"""Encoders prepared for CPUs: other ways to the same features."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.export import Dim, export

import maskclip
from maskclip import Vocabulary
from maskclip.clip import acceleration as module
from maskclip.clip import encoder as encoders
from maskclip.clip.acceleration import (
    PLAIN,
    Accelerated,
    Ways,
    attention,
    best_ways,
    fold_quick_gelu,
    linear,
)
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.weights import load_clip
from maskclip.core.method import BASELINE, CLEAN
from maskclip.emoji.scenes import draw_scene
from tests.clip.tiny_towers import FAMILIES, tiny_tower

ALL = Ways(linear=True, attention=True, silu=True)
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


class QuickGELU(nn.Module):
    """As open_clip and timm have one each."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def few_tokens(monkeypatch):
    """Let attention in rows begin where tests are fast, with a last band that is not full."""
    monkeypatch.setattr(module, "_LEAST_TOKENS", {torch.float32: 8, torch.bfloat16: 8})
    monkeypatch.setattr(module, "_ROWS", 24)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [4, 100])
@torch.inference_mode()
def test_linear_layers_are_the_same(rows, bias):
    x, weight = random(2, rows, 48)[:, 1:], random(64, 48, seed=1)
    args = (x, weight, random(64, seed=2) if bias else None)
    torch.testing.assert_close(linear(*args), F.linear(*args), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@torch.inference_mode()
def test_attention_is_the_same(few_tokens, dtype, bound, scale):
    """Also of parts that lie apart, as the thirds of one projection do, and of other widths."""
    joined = random(2, 70, 3 * 4 * 16, dtype=dtype)
    q, k, v = (part.reshape(2, 70, 4, 16).transpose(1, 2) for part in joined.chunk(3, dim=2))
    v = v[..., :12]
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    found = attention(q, k, v, scale=scale)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=bound)
    torch.testing.assert_close(
        found[:1, :2], attention(q[:1, :2], k[:1, :2], v[:1, :2], scale=scale)
    )


@torch.inference_mode()
def test_attention_with_a_mask_is_torchs(few_tokens):
    q, k, v = random(3, 1, 2, 40, 8)
    mask = random(40, 40)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.equal(attention(q, k, v, attn_mask=mask), expected)
    assert torch.equal(attention(q, k, v, mask), expected)
    causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.equal(attention(q, k, v, is_causal=True), causal)


def test_torch_is_itself_again_afterwards(few_tokens, monkeypatch):
    """Blocks of every library get the encoder's ways, while it runs and no longer."""
    made, own = [], module._by_onednn
    monkeypatch.setattr(module, "_by_onednn", lambda *args: made.append(0) or own(*args))
    block = timm.layers.Attention(32, num_heads=4).eval()
    x = random(1, 40, 32).requires_grad_()
    with Accelerated(ALL):
        block(x)
    count = len(made)
    assert count > 2  # more than the linear layers
    block(x)
    with pytest.raises(ValueError, match="spoilt"), Accelerated(ALL):
        raise ValueError("spoilt")
    block(x)
    assert len(made) == count


@pytest.mark.parametrize("between", [[], [nn.Dropout(0.5)], [nn.Identity(), nn.Dropout(0.1)]])
@torch.inference_mode()
def test_quick_gelu_is_folded_into_the_layers_around_it(between):
    layers = [nn.Linear(8, 32), QuickGELU(), *between, nn.Linear(32, 8)]
    mlp = nn.Sequential(nn.LayerNorm(8), nn.Sequential(*layers)).eval()
    before = [weight.clone() for weight in mlp.parameters()]
    shared = list(mlp.parameters())
    x = 3 * random(5, 8)
    expected = mlp(x)
    fold_quick_gelu(mlp)
    assert isinstance(mlp[1][1], nn.SiLU)
    torch.testing.assert_close(mlp(x), expected, rtol=1e-5, atol=1e-6)
    for weight, value in zip(shared, before, strict=True):
        assert torch.equal(weight, value)


def test_what_cannot_be_folded_stays():
    others = nn.Sequential(
        nn.Linear(4, 4), QuickGELU(), nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()
    )
    fold_quick_gelu(others)
    assert isinstance(others[1], QuickGELU)
    assert isinstance(others[4], nn.GELU)


@pytest.mark.parametrize("method", [CLEAN, BASELINE], ids=lambda m: m.name)
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("family", ["resnet", "vit"])
@torch.inference_mode()
def test_an_encoder_gives_its_features_in_all_ways(make_clip, few_tokens, family, quick, method):
    model = make_clip(family, quick_gelu=quick)
    images = torch.rand(2, 3, 96, 120, generator=torch.Generator().manual_seed(0))
    own = [weight.clone() for weight in model.visual.parameters()]
    plain, found = (
        DenseCLIP(model.visual, method=method, mean=MEAN, std=STD).eval() for _ in range(2)
    )
    plain.prepare(torch.float32, ways=PLAIN)
    found.prepare(torch.float32, ways=ALL)
    expected, dense = (one.encode(images, keys=method is CLEAN) for one in (plain, found))
    torch.testing.assert_close(dense.features, expected.features, rtol=1e-4, atol=1e-5)
    if expected.keys is not None:
        torch.testing.assert_close(dense.keys, expected.keys, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pool(images), plain.pool(images), rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, model.visual.parameters(), own))  # which are shared


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_blocks_of_every_library_are_computed_so(family, few_tokens, monkeypatch):
    made = {"_by_onednn": 0, "_attend": 0}
    for name in made:
        own = getattr(module, name)

        def counted(*args, name=name, own=own):
            made[name] += 1
            return own(*args)

        monkeypatch.setattr(module, name, counted)
    visual = tiny_tower(family)
    plain, found = (DenseCLIP(visual, mean=MEAN, std=STD).eval() for _ in range(2))
    plain.prepare(torch.float32, ways=PLAIN)
    found.prepare(torch.float32, ways=ALL)
    images = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    expected = plain.encode(images).features
    assert not any(made.values())
    features = found.encode(images).features
    assert all(made.values())
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@torch.inference_mode()
def test_bfloat16_in_rows_is_as_near_to_float32_as_torchs(few_tokens):
    """Features of a trained ViT: the least cosine, and the labels of drawn scenes."""
    clip, words = load_clip("emoji-vit"), Vocabulary.builtin("emoji")
    exact, fast = (
        maskclip.load("emoji-vit", device="cpu", precision=precision, templates="plain")
        for precision in ("float32", "bfloat16")
    )
    fast.encoder = DenseCLIP.of(clip)
    fast.encoder.prepare(torch.bfloat16, ways=ALL)
    same = []
    for seed in range(2):
        image = draw_scene(seed, size=256).image
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        near, expected = (one.encoder.encode(pixels).features.float() for one in (fast, exact))
        assert F.cosine_similarity(near, expected, dim=1).min() > 0.9995
        scene = Image.fromarray(image)
        same.append(exact.segment(scene, words).labels == fast.segment(scene, words).labels)
    assert np.mean(same) >= 0.995


def test_only_large_networks_on_cpus_are_prepared_by_what_was_measured(make_clip, monkeypatch):
    monkeypatch.setattr(encoders, "best_ways", lambda dtype: ALL)
    for least, expected in ((0, ALL), (10**9, PLAIN)):
        monkeypatch.setattr(encoders, "LARGE", least)
        encoder = DenseCLIP(make_clip("vit").visual, method=CLEAN, mean=MEAN, std=STD)
        encoder.prepare(torch.float32)
        assert encoder.ways == expected


@pytest.mark.parametrize("pays", [True, False])
def test_the_probes_choose(monkeypatch, pays):
    monkeypatch.setattr(module.Probe, "pays", lambda self: pays)
    assert best_ways(torch.float32) == Ways(linear=pays, attention=pays)
    assert best_ways(torch.bfloat16) == Ways(attention=pays, silu=True)
    assert best_ways(torch.float16) == PLAIN


@torch.inference_mode()
def test_a_batch_is_read_in_passes_of_a_cpus_size(make_clip, monkeypatch):
    """An image's features do not hang on which others are in the batch."""
    monkeypatch.setattr(encoders, "LARGE", 0)
    monkeypatch.setattr(encoders, "_PIXELS_AT_ONCE", 2 * 64 * 80)
    encoder = DenseCLIP(make_clip("vit").visual, method=CLEAN, mean=MEAN, std=STD)
    encoder.prepare(torch.float32, ways=PLAIN)
    images = torch.rand(5, 3, 64, 80)
    found = encoder.encode(images, keys=True)
    for start, stop in ((0, 2), (2, 4), (4, 5)):
        alone = encoder.encode(images[start:stop], keys=True)
        assert torch.equal(found.features[start:stop], alone.features)
        assert torch.equal(found.keys[start:stop], alone.keys)
    with pytest.raises(ValueError, match="expected images"):
        encoder.encode(images[:0])


def test_an_export_knows_nothing_of_this_machine(make_clip):
    encoder = DenseCLIP(make_clip("vit").visual, method=CLEAN, mean=MEAN, std=STD).eval()
    encoder.prepare(torch.float32, ways=ALL)
    sizes = {2: Dim("height", min=64, max=4096), 3: Dim("width", min=64, max=4096)}
    images = torch.rand(1, 3, 96, 160)
    program = export(encoder, (images,), dynamic_shapes={"images": sizes})
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(images), encoder(images), rtol=1e-4, atol=1e-5)
