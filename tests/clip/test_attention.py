"""Readings of residual attention blocks, beside their formula with the N x N map written out."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from maskclip.clip import likeness, purification
from maskclip.clip.attention import KERNELS, read_blocks, run_block
from maskclip.clip.blocks import OpenCLIPBlock
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.towers import UnsupportedMethodError
from maskclip.core.method import CLEAN, Middle
from maskclip.core.methods import METHODS, NACLIP, SCCLIP, SFP, needed_blocks, needed_patches

HEADS, CHANNELS, GRID = 2, 32, (5, 4)
TOKENS = 1 + GRID[0] * GRID[1]
WEIGHTED = [
    (("identity", 1.0),),
    (("qk", 1.0),),
    (("identity", 0.3), ("qk", 1.2)),
    (("identity", -2.0),),
    (("qq", 1.0), ("kk", 1.0)),
    (("vv", 0.5), ("qk", 0.5)),
]


@pytest.fixture(scope="module")
def blocks(make_clip):
    return make_clip("vit", ls_init_value=0.7).visual.transformer.resblocks


@pytest.fixture(scope="module")
def tokens():
    return torch.randn(3, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(0))


def projected(block, x):
    attn = block.attn
    found = block.ln_1(x) @ attn.in_proj_weight.T + attn.in_proj_bias
    parts = [part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in found.chunk(3, dim=2)]
    return dict(zip(("query", "key", "value"), parts, strict=True))


def maps(parts, kernels, added=0.0):
    """Return the weights of the values, (B, heads, N, N)."""
    total = 0
    for name, weight in kernels:
        if name == "identity":
            total = total + weight * torch.eye(TOKENS)
        else:
            a, b = (parts[part] for part in KERNELS[name])
            width = CHANNELS // HEADS
            total = total + weight * (a @ b.mT / width**0.5 + added).softmax(dim=-1)
    return total


def finished(block, stream, weights, value, *, mlp):
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    out = stream + block.ls_1(mixed @ block.attn.out_proj.weight.T + block.attn.out_proj.bias)
    return out + block.ls_2(block.mlp(block.ln_2(out))) if mlp else out


def distances(grid):
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in grid), indexing="ij")
    at = torch.stack([y.flatten(), x.flatten()], dim=1)
    return torch.cdist(at, at)


def views(blocks):
    return [OpenCLIPBlock(block) for block in blocks]


def read(blocks, x, /, **fields):
    return read_blocks(views(blocks), x, replace(CLEAN, **fields), grid=GRID)


@torch.inference_mode()
@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize(("residual", "mlp"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("kernels", WEIGHTED, ids=str)
def test_a_reading_follows_its_formula(blocks, tokens, kernels, residual, mlp, keys):
    block = blocks[-1]
    method = replace(CLEAN, kernels=kernels, residual=bool(residual), mlp=bool(mlp))
    found = read_blocks(views([block]), tokens, method, grid=GRID, keys=keys)
    parts = projected(block, tokens)
    expected = finished(
        block, residual * tokens, maps(parts, kernels), parts["value"], mlp=bool(mlp)
    )
    torch.testing.assert_close(found.tokens, expected[:, 1:], rtol=1e-4, atol=1e-5)
    assert (found.keys is not None) == keys
    if keys:
        key = parts["key"].transpose(1, 2).flatten(2)[:, 1:]
        torch.testing.assert_close(found.keys, key, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_window_is_a_gaussian_added_to_the_logits_of_patches(blocks, tokens):
    block, kernels = blocks[-1], (("kk", 1.0),)
    found = read([block], tokens, kernels=kernels, window=1.5).tokens
    near = F.pad(torch.exp(-(distances(GRID) ** 2) / (2 * 1.5**2)), (1, 0, 1, 0))
    parts = projected(block, tokens)
    expected = finished(block, 0, maps(parts, kernels, near), parts["value"], mlp=False)
    torch.testing.assert_close(found, expected[:, 1:], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_several_last_blocks_are_fed_by_the_ordinary_stream(blocks, tokens):
    kernels = (("vv", 1.0),)
    found = read(blocks, tokens, kernels=kernels, blocks=2, residual=True).tokens
    stream, x = tokens, tokens
    for block in blocks:
        parts = projected(block, x)
        stream = finished(block, stream, maps(parts, kernels), parts["value"], mlp=False)
        x = block(x)
    torch.testing.assert_close(found, stream[:, 1:], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_attention_of_middle_blocks_mixes_the_last_values(blocks, tokens):
    middle = Middle(blocks=(0,), weight=0.5)
    found = read(blocks, tokens, kernels=(("kk", 1.0),), middle=middle).tokens
    weights = 0.5 * maps(projected(blocks[0], tokens), (("qk", 1.0),))
    parts = projected(blocks[1], blocks[0](tokens))
    weights = weights + maps(parts, (("kk", 1.0),))
    expected = finished(blocks[1], 0, weights, parts["value"], mlp=False)
    torch.testing.assert_close(found, expected[:, 1:], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_an_ordinary_run_is_the_block_itself(blocks, tokens):
    torch.testing.assert_close(
        run_block(OpenCLIPBlock(blocks[0]), tokens), blocks[0](tokens), rtol=1e-4, atol=1e-5
    )


def test_outliers_are_replaced_by_their_sound_neighbours():
    grid = (3, 4)
    patches = torch.arange(12.0)[None, :, None].repeat(1, 1, 2)
    outliers = torch.zeros(1, 12, dtype=torch.bool)
    outliers[0, [0, 1]] = True
    found = purification.repair(patches, outliers, grid)[0, :, 0]
    assert found[0] == (4 + 5) / 2  # of its three neighbours one is an outlier
    assert found[1] == (2 + 4 + 5 + 6) / 4
    assert torch.equal(found[2:], patches[0, 2:, 0])
    everywhere = torch.ones(1, 12, dtype=torch.bool)
    assert torch.equal(purification.repair(patches, everywhere, grid), patches)


def test_a_patch_far_from_all_others_is_the_outlier():
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 40, 8, generator=generator)
    patches[0, 7] += 30
    patches[1, 21] -= 30
    assert purification.outlier_factor(patches).argmax(dim=1).tolist() == [7, 21]


def test_patches_that_the_class_attends_to_more_than_they_do_are_outliers(blocks, tokens):
    block = blocks[0]
    weights = maps(projected(block, tokens), (("qk", 1.0),)).mean(dim=1)
    of_class, own = 1.5 * weights[:, 0, 1:], weights.diagonal(dim1=1, dim2=2)[:, 1:]
    attended = of_class > own
    assert 0 < attended.sum() < attended.numel()
    with torch.inference_mode():
        found = purification.attended(OpenCLIPBlock(block), tokens, weight=1.5, most=TOKENS)
        few = purification.attended(OpenCLIPBlock(block), tokens, weight=1.5, most=2)
    assert torch.equal(found, attended)
    for image, chosen in enumerate(few):
        wanted = of_class[image].where(attended[image], 0).topk(2)
        assert chosen.nonzero()[:, 0].tolist() == sorted(wanted.indices[wanted.values > 0].tolist())


@pytest.mark.parametrize("least", [None, 0.3])
def test_values_are_mixed_by_cosines_above_their_mean(least):
    vectors = likeness.unit(torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0)))
    value = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(1))
    cosines = vectors @ vectors.mT
    if least is not None:
        cosines = cosines.where(cosines >= least, 0)
    above = 3 * (cosines - cosines.mean(dim=(1, 2), keepdim=True))
    expected = above.masked_fill(above < 0, -torch.inf).softmax(dim=2) @ value
    found = likeness.attend_similar(vectors, value, 3.0, least=least)
    torch.testing.assert_close(found, expected)


# -- whole encoders --

DEEP = {"layers": 10, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
VIT_METHODS = [name for name in METHODS if name not in ("clean", "published", "baseline")]


@pytest.fixture(scope="module")
def deep(make_clip):
    return make_clip("vit", **DEEP).visual


def encoder(visual, method):
    return DenseCLIP(visual, method=method, mean=(0.5,) * 3, std=(0.25,) * 3).eval()


def photos(count, height, width):
    generator = torch.Generator().manual_seed(height)
    return torch.rand(count, 3, height, width, generator=generator)


def features(network, batch):
    """Return what a method reads, the second time where it reads twice: halves are two classes."""
    dense = network.encode(batch)
    if dense.again is None:
        return dense.features
    classes = torch.zeros(len(batch), *dense.features.shape[2:], dtype=torch.int64)
    classes[:, :, classes.shape[2] // 2 :] = 1
    return dense.again.read(dense.again.parts, classes)


@torch.inference_mode()
@pytest.mark.parametrize("name", METHODS)
def test_images_of_any_shape_do_not_depend_on_their_batch(deep, name):
    network = encoder(deep, METHODS[name])
    for height, width in ((48, 50), (72, 40)):
        batch = photos(3, height, width)
        together = features(network, batch)
        assert together.shape[2:] == (-(-height // 8), -(-width // 8))
        alone = torch.cat([features(network, one[None]) for one in batch])
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("name", METHODS)
def test_the_smallest_images_are_read_or_refused(deep, name):
    network = encoder(deep, METHODS[name])
    for height, width in ((1, 1), (3, 100), (40, 48), (41, 48)):
        patches = -(-height // 8) * -(-width // 8)
        if patches >= needed_patches(METHODS[name]):
            found = features(network, photos(2, height, width))
            assert found.shape == (2, 16, -(-height // 8), -(-width // 8))
            assert found.isfinite().all()
        else:
            with pytest.raises(UnsupportedMethodError, match=f"px have {patches}: ") as refused:
                network.encode(photos(2, height, width))
            assert "\n" not in str(refused.value)


@pytest.mark.parametrize("layers", [1, 4, 5, 6, 9, 10, 12])
def test_a_vit_has_the_blocks_that_a_method_needs_or_is_refused(make_clip, layers):
    visual = make_clip("vit", **{**DEEP, "layers": layers}).visual
    for name, method in METHODS.items():
        needed = needed_blocks(method)
        if layers >= needed:
            encoder(visual, method)
            continue
        with pytest.raises(UnsupportedMethodError) as refused:
            encoder(visual, method)
        assert str(refused.value) == (
            f"the method {name!r} needs {needed} blocks, and this ViT has {layers}"
        )


@torch.inference_mode()
@pytest.mark.parametrize("name", VIT_METHODS)
def test_bands_of_rows_change_nothing(deep, name, monkeypatch):
    network, batch = encoder(deep, METHODS[name]), photos(2, 48, 56)
    whole = features(network, batch)
    monkeypatch.setattr(likeness, "BAND", 100)
    torch.testing.assert_close(features(network, batch), whole, rtol=1e-3, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_is_near_float32(deep, name):
    network, batch = encoder(deep, METHODS[name]), photos(1, 64, 64)
    exact = F.normalize(features(network, batch), dim=1)
    network.prepare(torch.bfloat16)
    rough = F.normalize(features(network, batch).float(), dim=1)
    assert (exact * rough).sum(dim=1).mean() > 0.98


@pytest.mark.parametrize("name", VIT_METHODS)
def test_no_map_of_all_pairs_is_held(deep, name, monkeypatch):
    side = 8 * 24
    monkeypatch.setattr(likeness, "BAND", 24 * 24 * 8)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    network, batch = encoder(deep, METHODS[name]), photos(1, side, side)
    with torch.inference_mode(), Watch():
        features(network, batch)
    assert largest < (24 * 24) ** 2 / 2


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (METHODS["gem"], "needs 6 blocks, and this ViT has 2"),
        (METHODS["surgery"], "needs 6 blocks"),
        (METHODS["resclip-rcs"], "needs 10 blocks"),
        (SCCLIP, "needs 10 blocks"),
        (replace(NACLIP, kernels=(("kv", 1.0),)), "unknown kernel 'kv': expected one of identity"),
        (replace(NACLIP, kernels=(("similar", 1.0),)), "both a purification and the kernel"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_a_vit_cannot_compute_is_refused(make_clip, method, reason):
    with pytest.raises(Exception, match=reason):
        encoder(make_clip("vit").visual, method)


@pytest.mark.parametrize("name", VIT_METHODS)
def test_a_resnet_refuses_what_reads_blocks(make_clip, name):
    with pytest.raises(Exception, match=f"'{name}' reads the blocks of a ViT, and this model is a"):
        encoder(make_clip("resnet").visual, METHODS[name])


def test_an_image_of_too_few_patches_and_keys_are_refused(deep):
    with pytest.raises(Exception, match="more than 30 patches, and 32x24 px have 12"):
        encoder(deep, SCCLIP).encode(photos(1, 24, 32))
    with pytest.raises(Exception, match="and 32x24 px have 12"):
        encoder(deep, SCCLIP).check_size(24, 32)
    for method in set(METHODS.values()) - {SCCLIP}:
        encoder(deep, method).check_size(1, 1)
    encoder(deep, SFP).encode(photos(1, 24, 32))
    with pytest.raises(Exception, match="has no keys: drop key smoothing"):
        encoder(deep, SCCLIP).check_keys()
