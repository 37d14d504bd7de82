"""Towers whose embedding is a head on the mean of a last feature map: ConvNeXt, FastViT, Swin."""

from dataclasses import replace

import pytest
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from torch import nn

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.families import traits_of, traits_of_config
from maskclip.clip.published import architectures, model_config
from maskclip.clip.towers import UnsupportedMethodError, build_tower, can_read
from maskclip.core.method import CLEAN, PUBLISHED
from maskclip.core.methods import METHODS

MEAN, STD = (0.48, 0.45, 0.41), (0.27, 0.26, 0.28)
SWIN = "swin_base_patch4_window7_224"
CELLS = {"convnext": 32, "convnext mlp": 32, "fastvit": 32, "fastvit, five stages": 64, "swin": 32}


def images_of(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def make_encoder(make_timm_clip):
    def make(family, method=CLEAN, *, double=False):
        visual = make_timm_clip(family).visual
        encoder = DenseCLIP(visual, method=method, mean=MEAN, std=STD).eval()
        return encoder.double() if double else encoder

    return make


@pytest.mark.parametrize("family", CELLS)
@torch.inference_mode()
def test_pooled_embeddings_are_open_clips(family, make_timm_clip, make_encoder):
    clip, encoder = make_timm_clip(family), make_encoder(family)
    side = 256 if family.startswith("fastvit") else 224  # that of its training
    images = images_of(2, 3, side, side)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = clip.encode_image((images - mean) / std)
    assert expected.std() > 0.01
    torch.testing.assert_close(encoder.pool(images), expected, rtol=1e-5, atol=1e-5)
    beside = encoder.encode(images, image=True)
    torch.testing.assert_close(beside.image, expected, rtol=1e-5, atol=1e-5)
    assert beside.keys is None


@pytest.mark.parametrize("family", ["fastvit", "fastvit, five stages", "swin"])
@torch.inference_mode()
def test_the_mean_of_a_linear_reading_is_the_embedding(family, make_encoder):
    encoder = make_encoder(family, double=True)
    dense = encoder.encode(images_of(2, 3, 96, 160), image=True)
    mean = dense.features.mean(dim=(2, 3))
    torch.testing.assert_close(mean, dense.image, rtol=0, atol=1e-8)


@pytest.mark.parametrize("family", ["convnext", "convnext mlp"])
@torch.inference_mode()
def test_convnext_has_norm_and_head_at_every_position(family, make_timm_clip, make_encoder):
    visual, encoder = make_timm_clip(family).visual, make_encoder(family)
    images = images_of(1, 3, 64, 96)
    features = encoder.encode(images).features
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    x = visual.trunk.forward_features((images - mean) / std)
    one = visual.head(visual.trunk.head.norm(x).permute(0, 2, 3, 1))
    torch.testing.assert_close(features, one.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
    single = visual.head(visual.trunk.forward_head(x[:, :, 1:2, 2:3]))  # an image of one position
    torch.testing.assert_close(features[:, :, 1, 2], single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [CLEAN, PUBLISHED], ids=lambda m: m.name)
@pytest.mark.parametrize("size", [(1, 1), (75, 301), (64, 32), (97, 64)])
@pytest.mark.parametrize("family", CELLS)
@torch.inference_mode()
def test_any_size_gives_a_grid_that_covers_it(family, size, method, make_encoder):
    encoder, cell = make_encoder(family, method), CELLS[family]
    dense = encoder.encode(images_of(1, 3, *size))
    grid = tuple(dense.features.shape[-2:])
    assert encoder.cell == cell
    assert dense.features.isfinite().all()
    if method is CLEAN:
        assert grid == tuple(-(-side // cell) for side in size)
        assert dense.covered == tuple(cell * side for side in grid)
    else:
        assert dense.covered == size
        assert all(
            abs(found - max(1, side / cell)) < 1 for found, side in zip(grid, size, strict=True)
        )


@pytest.mark.parametrize("family", CELLS)
@torch.inference_mode()
def test_images_of_a_batch_do_not_meet(family, make_encoder):
    encoder = make_encoder(family)
    images = images_of(3, 3, 70, 130)
    together = encoder.encode(images, image=True)
    alone = encoder.encode(images[1:2], image=True)
    torch.testing.assert_close(together.features[1:2], alone.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.image[1:2], alone.image, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", CELLS)
@torch.inference_mode()
def test_finer_grids_are_those_of_the_stages(family, make_encoder):
    encoder = make_encoder(family)
    images = images_of(1, 3, 70, 130)
    finer, dense = encoder.staged(images)
    torch.testing.assert_close(dense.features, encoder.encode(images).features)
    height, width = dense.covered
    strides = [height // maps.shape[2] for maps in finer]
    assert strides == [stride for stride in (4, 8, 16, 32) if stride < encoder.cell]
    assert strides == [width // maps.shape[3] for maps in finer]


@pytest.mark.parametrize("family", CELLS)
@torch.inference_mode()
def test_a_prepared_tower_computes_the_same(family, make_timm_clip, make_encoder):
    plain, prepared = make_encoder(family), make_encoder(family)
    weights = len(list(make_timm_clip(family).visual.parameters()))
    prepared.prepare(torch.float32)
    images = images_of(2, 3, 70, 130)
    expected, found = plain.encode(images), prepared.encode(images)
    torch.testing.assert_close(found.features, expected.features, rtol=1e-4, atol=1e-5)
    norms = [m for m in prepared.modules() if isinstance(m, nn.BatchNorm2d)]
    plain_norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) < len(plain_norms) or not plain_norms
    assert len(list(make_timm_clip(family).visual.parameters())) == weights  # a copy was merged
    prepared.prepare(torch.bfloat16)
    assert prepared.encode(images).features.dtype == torch.bfloat16


@pytest.mark.parametrize("family", CELLS)
def test_methods_that_need_attention_and_keys_are_refused(family, make_timm_clip, make_encoder):
    visual = make_timm_clip(family).visual
    read = {name for name, method in METHODS.items() if can_read(visual, method)}
    assert read == {"clean", "published", "baseline"}
    assert not can_read(visual, CLEAN, keys=True)
    with pytest.raises(UnsupportedMethodError, match=r"'naclip' .*feature map.*clean, published"):
        make_encoder(family, METHODS["naclip"])
    proxied = replace(CLEAN, name="proxy", kernels=(("proxy", 1.0),))
    assert not can_read(visual, proxied)
    with pytest.raises(UnsupportedMethodError, match=r"keys.*drop key smoothing"):
        make_encoder(family).encode(images_of(1, 3, 64, 64), keys=True)


def test_a_swin_sees_more_in_larger_images(make_encoder):
    """Its windows stay those of its training: what lies beyond them reaches a cell by shifts."""
    encoder = make_encoder("swin")
    images = images_of(1, 3, 448, 448)
    with torch.inference_mode():
        whole = encoder.encode(images).features
        images[:, :, :, 416:] = 0
        changed = (encoder.encode(images).features - whole).abs().amax(dim=1)[0]
    assert changed[:, -1].min() > 1e-3
    assert changed.isfinite().all()


@pytest.mark.parametrize(
    ("name", "cell"),
    [("convnext_large_d", 32), ("MobileCLIP-S1", 32), ("MobileCLIP2-S3", 64), (SWIN, 32)],
)
def test_architectures_are_known_by_name_and_by_their_modules(name, cell):
    config = model_config(name)
    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]))
    assert name in architectures()
    assert traits_of(visual) == traits_of_config(config)
    assert build_tower(visual, CLEAN).cell == cell
