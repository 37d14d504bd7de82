"""A proxy's patches give CLIP its attention: against the plain N x N sum, and what is refused."""

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from maskclip.clip import likeness
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.proxy import Proxy, ProxyError, load_proxy
from maskclip.clip.towers import UnsupportedMethodError
from maskclip.core.config import ModelConfig
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.core.method import CLEAN, Middle
from maskclip.core.methods import METHODS, read_method, with_proxy

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
METHOD = with_proxy(CLEAN, "tiny")
TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def proxy():
    """A tiny random ViT with a class token and registers, whose patches are not CLIP's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = VisionTransformer(
            img_size=35,
            patch_size=7,
            embed_dim=24,
            depth=2,
            num_heads=2,
            num_classes=0,
            reg_tokens=2,
            dynamic_img_size=True,
        )
        for weight in network.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    return Proxy(network, name="tiny", mean=(0.5, 0.4, 0.3), std=(0.3, 0.3, 0.2))


@pytest.fixture(scope="module")
def encoder(make_clip, proxy):
    visual = make_clip("vit").visual
    return DenseCLIP(visual, method=METHOD, mean=MEAN, std=STD, proxy=proxy).eval()


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def plainly(encoder, proxy, pixels):
    """Return the features (hw, D) of one image whose sides are whole cells, by the rule."""
    visual, cell = encoder.visual, encoder.cell
    grid = [side // cell for side in pixels.shape[2:]]
    seen = (pixels - proxy.mean) / proxy.std
    size = (7 * grid[0], 7 * grid[1])
    seen = F.interpolate(seen, size=size, mode="bilinear", antialias=True)
    patches = proxy.network.forward_features(seen)[0, 3:]
    unit = patches / patches.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    logits = 3 * (cosine - 1.2 * cosine.mean())
    weights = torch.where(logits < 0, -torch.inf, logits).softmax(dim=1)
    x, _ = encoder.tower.network.tokens((pixels - encoder.mean) / encoder.std, encoder.method)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    third = last.attn.in_proj_weight.shape[0] // 3
    values = F.linear(
        last.ln_1(x)[0, 1:], last.attn.in_proj_weight[-third:], last.attn.in_proj_bias[-third:]
    )
    return visual.ln_post(last.attn.out_proj(weights @ values)) @ visual.proj


@pytest.mark.parametrize("grid", [(4, 4), (3, 7)])
def test_values_are_mixed_by_the_likeness_of_the_proxys_patches(encoder, proxy, grid):
    pixels = images(1, 3, grid[0] * encoder.cell, grid[1] * encoder.cell)
    with torch.no_grad():
        found = encoder.encode(pixels).features[0].flatten(1).T
    expected = plainly(encoder, proxy, pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_bands_batches_and_padding_change_nothing(encoder, monkeypatch):
    batch = images(3, 3, 37, 51)
    whole = encoder.encode(batch, keys=True, image=True)
    assert whole.features.shape[2:] == whole.keys.shape[2:]
    monkeypatch.setattr(likeness, "BAND", 64)
    for index in range(3):
        alone = encoder.encode(batch[index : index + 1], keys=True, image=True)
        for name in ("features", "keys", "image"):
            one, many = getattr(alone, name)[0], getattr(whole, name)[index]
            torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-4)
    padded = F.pad(batch, (0, 1, 0, 0), mode="replicate")
    assert encoder.encode(padded).features.shape == whole.features.shape


@torch.no_grad()
def test_reduced_precision_flat_images_and_single_pixels_are_finite(make_clip, proxy):
    encoder = DenseCLIP(
        make_clip("vit").visual, method=METHOD, mean=MEAN, std=STD, proxy=proxy
    ).eval()
    flat = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    for pixels in (flat, flat[:, :, :1, :1], images(2, 3, 50, 33)):
        full = encoder.encode(pixels).features
        assert full.isfinite().all()
    encoder.prepare(torch.bfloat16)
    assert next(proxy.parameters()).dtype == torch.float32  # the encoder has its own
    reduced = encoder.encode(pixels).features
    assert F.cosine_similarity(reduced.float(), full, dim=1).min() > 0.98


def test_tokens_that_are_not_those_of_the_grid_are_refused(proxy):
    pixels = images(1, 3, 16, 24)
    with torch.no_grad():
        assert proxy(pixels, 8).shape == (1, 6, 24)
    other = Proxy(proxy.network, name="tiny", mean=MEAN, std=STD)
    for prefix, count in ((1, 8), (7, 2)):  # read as patches, or as class tokens
        other.prefix = prefix
        with pytest.raises(ProxyError, match=rf"tiny gives {count} tokens for 6 patches of 7 px"):
            other(pixels, 8)
        with pytest.raises(ProxyError, match=rf"tiny gives {count} tokens for 6 patches of 7 px"):
            other.check()


@torch.no_grad()
def test_a_proxy_that_changes_nothing_is_warned_of_once(proxy):
    other = Proxy(proxy.network, name="tiny", mean=MEAN, std=STD)
    flat, varied = torch.full((1, 3, 32, 32), 0.5), images(1, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other(flat[..., :8, :8], 8)  # a single position has no other to be like
        other.network.pos_embed.zero_()
        vectors = other(varied, 8)
    assert not likeness.keep_to_themselves(vectors, 1.2).any()
    with pytest.warns(MaskCLIPWarning, match=r"to tiny all patches .* the proxy changes nothing"):
        vectors = other(torch.cat([varied, flat]), 8)
    assert likeness.keep_to_themselves(vectors, 1.2).tolist() == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other(flat, 8)


def test_positions_that_are_all_alike_are_averaged():
    vectors = F.normalize(torch.ones(1, 5, 3), dim=2)
    value = torch.arange(10.0).view(1, 5, 2)
    found = likeness.attend_similar(vectors, value, 3.0, level=1.2)
    torch.testing.assert_close(found, value.mean(dim=1, keepdim=True).expand(1, 5, 2))


@torch.no_grad()
def test_a_method_of_your_own_mixes_by_a_proxy_too(make_clip, proxy, tmp_path):
    (tmp_path / "mine.toml").write_text("[kernels]\nproxy = 0.75\nkk = 0.25\n")
    method = read_method(str(tmp_path / "mine.toml"))
    visual, pixels = make_clip("vit").visual, images(1, 3, 64, 64)
    one, other = (("proxy", 1.0),), (("kk", 1.0),)

    def mixed(kernels):
        changed = replace(method, kernels=kernels)
        which = proxy if "proxy" in dict(kernels) else None
        encoder = DenseCLIP(visual, method=changed, mean=MEAN, std=STD, proxy=which).eval()
        encoder.visual.ln_post = torch.nn.Identity()  # the rest is linear
        return encoder.encode(pixels).features

    torch.testing.assert_close(
        mixed(method.kernels), 0.75 * mixed(one) + 0.25 * mixed(other), rtol=1e-4, atol=1e-4
    )


def test_what_does_not_go_together_is_reported(make_clip, proxy):
    with pytest.raises(UnsupportedMethodError, match="this model is a ResNet"):
        DenseCLIP(make_clip("resnet").visual, method=METHOD, mean=MEAN, std=STD, proxy=proxy)
    for config in ({"method": "naclip"}, {"method": "published"}):
        with pytest.raises(MaskCLIPError, match=r"takes the place of .* take `method=clean`"):
            ModelConfig(proxy=TINY, **config)
    with pytest.raises(MaskCLIPError, match="leave `method=auto` out"):
        ModelConfig(proxy=TINY, method="auto")
    with pytest.raises(MaskCLIPError, match="mixes by a proxy: name a ViT of timm"):
        ModelConfig(method=METHOD)
    deep, like = make_clip("vit", layers=12).visual, METHODS["scclip"]
    method = replace(like, kernels=(*like.kernels, ("proxy", 1.0)))
    with pytest.raises(UnsupportedMethodError, match="which a proxy cannot mix"):
        DenseCLIP(deep, method=method, mean=MEAN, std=STD, proxy=proxy)
    for name in ("similar", "proxy"):
        middle = Middle(blocks=(1,), weight=1.0, kernels=((name, 1.0),))
        with pytest.raises(UnsupportedMethodError, match=f"has the kernel '{name}' in middle"):
            DenseCLIP(deep, method=replace(CLEAN, middle=middle), mean=MEAN, std=STD)


def test_weights_are_seeded_or_read_from_a_file_without_running_it(tmp_path):
    first, again = load_proxy(f"{TINY}:random"), load_proxy(f"{TINY}:random")
    assert first.fingerprint == again.fingerprint
    assert (first.patch, first.prefix) == (16, 1)
    torch.testing.assert_close(first.mean.flatten(), torch.tensor([0.5] * 3))
    state = {key: value + 1 for key, value in first.network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    save_file(state, tmp_path / "weights.safetensors")
    for file in ("weights.pth", "weights.safetensors"):
        found = load_proxy(f"{TINY}:{tmp_path / file}")
        torch.testing.assert_close(found.network.pos_embed, state["pos_embed"])
        assert found.fingerprint != first.fingerprint
    few = dict(list(state.items())[:5])
    save_file(few, tmp_path / "few.safetensors")
    with pytest.raises(MaskCLIPError, match=r"few\.safetensors: not weights of this proxy: it lac"):
        load_proxy(f"{TINY}:{tmp_path / 'few.safetensors'}")
    wide = {**state, "norm.weight": torch.ones(7)}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(MaskCLIPError, match=r"norm\.weight is \(7,\), expected \(192,\)"):
        load_proxy(f"{TINY}:{tmp_path / 'wide.safetensors'}")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vit_tiny_patch16_2244", r"timm has no 'vit_tiny_patch16_2244' \(did you mean vit_tiny"),
        (f"{TINY}.nobody", r"timm has no weights 'vit_tiny_patch16_224\.nobody' \(did you mean"),
        ("resnet18:random", "resnet18 is no ViT of square patches"),
        ("swin_tiny_patch4_window7_224:random", "is no ViT of square patches"),
        ("vit_tiny_r_s16_p8_224:random", "is no ViT of square patches of pixels"),
        ("samvit_base_patch16:random", "is no ViT of square patches of pixels"),
        (f"{TINY}:nowhere.pth", "no such file of weights: nowhere.pth"),
        (TINY, rf"cannot be downloaded \(.*\): go online once, or give a local file, {TINY}:FILE"),
    ],
)
def test_a_proxy_that_cannot_be_had_is_one_line(name, part):
    with pytest.raises(MaskCLIPError, match=part) as error:
        load_proxy(name)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ProxyError)
