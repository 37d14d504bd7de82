"""The contract of every family of ViTs: open_clip's embeddings, and what a position is read as."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from maskclip.clip.attention import gaussian_window
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.families import traits_of
from maskclip.clip.feedback import alike
from maskclip.clip.positions import rotary_table
from maskclip.clip.towers import UnsupportedMethodError, build_tower, can_read
from maskclip.core.method import BASELINE, CLEAN, PUBLISHED, Feedback
from maskclip.core.methods import CLEARCLIP, METHODS, NACLIP, SCCLIP, needed_patches
from tests.clip.tiny_towers import FAMILIES, NO_CLASS_TOKEN, tiny_tower

MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.25, 0.2)
EVA = [family for family in FAMILIES if family.startswith("eva")]
POOLED = ["coca", "coca, one width", "siglip", "pe-core", "pe-core, no class token"]
MEANS = ["clipa", "mean", "gap", "vitamin"]


def encoder(visual, method=CLEAN):
    return DenseCLIP(visual, method=method, mean=MEAN, std=STD).eval()


def photos(count, height, width):
    generator = torch.Generator().manual_seed(height + width)
    return torch.rand(count, 3, height, width, generator=generator)


def native(family):
    return photos(2, *(2 * [64 if family == "vitamin" else 32]))


def normalized(images):
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def embeddings(visual, images):
    """Return the embeddings that open_clip's own forward gives."""
    found = visual(normalized(images))
    return found[0] if isinstance(found, tuple) else found


@pytest.fixture(scope="module")
def towers():
    return {family: tiny_tower(family) for family in FAMILIES}


def tokens_of(network, images):
    """Return the stream before and after the last block, as the network's own blocks run."""
    seen = []
    handle = network.visual.trunk.blocks[-1].register_forward_hook(
        lambda _, given, out: seen.extend((given[0], out))
    )
    network.visual(normalized(images))
    handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_pooled_embeddings_are_open_clips(towers, family):
    images, network = native(family), encoder(towers[family])
    expected = embeddings(towers[family], images)
    assert expected.std() > 0.01
    torch.testing.assert_close(network.pool(images), expected, rtol=1e-5, atol=1e-5)
    dense = network.encode(images, keys=True, image=True)
    torch.testing.assert_close(dense.image, expected, rtol=1e-5, atol=1e-5)
    assert dense.features.shape[:2] == expected.shape
    assert dense.keys.shape[2:] == dense.features.shape[2:]
    assert network.class_token == (family not in NO_CLASS_TOKEN)
    assert network.cell == (16 if family == "vitamin" else 8)


@pytest.mark.parametrize("size", [(48, 64), (24, 40)])
@pytest.mark.parametrize("family", ["siglip", "pe-core", "eva02", "mobileclip2-l", "gap"])
@torch.inference_mode()
def test_other_sizes_are_those_of_a_network_set_to_them(family, size):
    """timm filters what it shrinks, so the tables are compared where both do the same."""
    visual = tiny_tower(family)
    method = replace(CLEAN, position_filter="antialiased")
    found = encoder(visual, method).pool(photos(2, *size))
    visual.trunk.set_input_size(img_size=size)
    expected = embeddings(visual, photos(2, *size))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mean", "gap"])
@torch.inference_mode()
def test_the_mean_of_the_map_is_the_embedding_where_all_of_it_is_linear(towers, family):
    images = photos(2, 48, 56) if family == "mean" else native(family)
    network = encoder(towers[family])
    for method in (CLEAN, PUBLISHED, BASELINE):
        network = encoder(towers[family], replace(method, mean=MEAN, std=STD))
        features = network.encode(images).features
        torch.testing.assert_close(
            features.mean(dim=(2, 3)), network.pool(images), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("family", POOLED)
@torch.inference_mode()
def test_a_pool_that_sees_one_position_gives_what_is_read_there(towers, family):
    """The identity is what the whole pool gives where its attention has nowhere else to look."""
    network = encoder(towers[family])
    view = network.tower.network
    tokens = torch.randn(1, 1, 64 if "pe" in family else 32)
    view.pool.left_out = 0
    found = network.tower._features(tokens)
    torch.testing.assert_close(found[:, 0], view.pool.embed(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["siglip", "pe-core"])
@torch.inference_mode()
def test_an_attention_pool_is_read_by_its_values(towers, family):
    visual, images = towers[family], native(family)
    network, trunk = encoder(visual), visual.trunk
    _, x = tokens_of(network, images)
    pool, count = trunk.attn_pool, 16
    x = trunk.norm(x)[:, -count:]
    key, value = pool.kv(x).chunk(2, dim=2)
    out = pool.proj(value)
    expected = visual.head(trunk.head(out + pool.mlp(pool.norm(out))))
    dense = network.encode(images, keys=True)
    torch.testing.assert_close(dense.features.flatten(2).mT, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dense.keys.flatten(2).mT, key, rtol=1e-4, atol=1e-5)
    same = pool.q(x).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
    values = value.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
    mixed = (same @ same.mT * pool.scale).softmax(dim=3) @ values
    out = pool.proj(mixed.transpose(1, 2).flatten(2))
    expected = visual.head(trunk.head(out + pool.mlp(pool.norm(out))))
    found = encoder(visual, replace(CLEAN, pool=(("qq", 1.0),))).encode(images).features
    torch.testing.assert_close(found.flatten(2).mT, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", EVA)
@torch.inference_mode()
def test_eva_is_read_by_its_values_in_the_whole_block(towers, family):
    """As CLIPSelf does; a method that says otherwise of residual and MLP is followed."""
    visual, images = towers[family], native(family)
    network, block = encoder(visual), visual.trunk.blocks[-1]
    x, _ = tokens_of(network, images)
    x, attn = x[:, 1:], block.attn
    after = not hasattr(block, "gamma_1")
    entered = x if after else block.norm1(x)
    if attn.qkv is None:
        value = attn.v_proj(entered)
    else:
        value = F.linear(entered, attn.qkv.weight.chunk(3)[2], attn.v_bias)
    out = attn.proj(attn.norm(value))
    alone = block.norm1(out) if after else out
    whole = x + alone
    whole = whole + (block.norm2(block.mlp(whole)) if after else block.mlp(block.norm2(whole)))
    for method, stream in ((CLEAN, whole), (replace(CLEAN, residual=False, mlp=False), alone)):
        expected = visual.trunk.head(visual.trunk.norm(stream))
        found = encoder(visual, method).encode(images).features
        torch.testing.assert_close(found.flatten(2).mT, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_ordinary_attention_read_densely_is_the_networks_own(towers, family):
    """Queries and keys have their norms and turns: the last block gives what the network's does."""
    visual, images = towers[family], native(family)
    if not hasattr(visual, "trunk"):
        pytest.skip("held by the tests of open_clip's towers")
    method = replace(CLEAN, kernels=(("qk", 1.0),), residual=True, mlp=True)
    network = encoder(visual, method)
    _, x = tokens_of(network, images)
    prefix = network.tower.network.prefix
    expected = network.tower._features(x[:, prefix:])
    found = network.encode(images).features
    torch.testing.assert_close(found.flatten(2).mT, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_rotary_positions_are_timms_own(towers):
    for family in ("pe-core", "eva02", "pe-core, no class token"):
        rope = towers[family].trunk.rope
        torch.testing.assert_close(rotary_table(rope, (4, 4)), rope.get_embed())
    halves = [rotary_table(rope, grid)[:, :8] for grid in ((8, 8), (4, 4))]
    torch.testing.assert_close(halves[0].view(8, 8, -1)[::2, ::2].flatten(0, 1), halves[1])


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_each_method_runs_or_is_refused_in_one_line(family):
    visual = tiny_tower(family, depth=10)
    side = 96 if family == "vitamin" else 48  # 36 patches
    batch = photos(2, side - 5, side)
    own = encoder(visual).pool(batch)
    for name, method in METHODS.items():
        if name in ("scclip", "sfp") and family in NO_CLASS_TOKEN:
            assert not can_read(visual, method)
            with pytest.raises(UnsupportedMethodError, match=f"'{name}' .* class token") as refused:
                encoder(visual, method)
            assert "\n" not in str(refused.value)
            continue
        assert can_read(visual, method)
        network = encoder(visual, replace(method, activation="model", layer_norm_eps=None))
        together = network.encode(batch, image=True)
        assert together.features.shape[2:] == (6, 6)
        alone = network.encode(batch[1:]).features
        torch.testing.assert_close(together.features[1:], alone, rtol=1e-3, atol=1e-4)
        if method.mean is None and method.position_filter == "bicubic":
            torch.testing.assert_close(together.image, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_bfloat16_and_the_smallest_images(family):
    network = encoder(tiny_tower(family))
    assert network.encode(photos(1, 1, 9)).features.isfinite().all()
    batch = native(family)
    exact = F.normalize(network.encode(batch).features, dim=1)
    network.prepare(torch.bfloat16)
    rough = F.normalize(network.encode(batch, keys=True).features.float(), dim=1)
    assert (exact * rough).sum(dim=1).mean() > 0.98


@torch.inference_mode()
def test_a_purification_without_the_class_token_reads_networks_that_have_none(towers):
    own = replace(SCCLIP.purification, class_token=0.0, similarity=0, stages=(0, 0))
    method = replace(SCCLIP, name="mine", purification=own)
    assert needed_patches(method) == 31
    found = encoder(towers["siglip"], method).encode(photos(1, 48, 48))
    assert found.features.isfinite().all()


def test_windows_and_classes_of_patches_hold_without_a_class_token():
    like, classes = torch.zeros(1), torch.tensor([[0, 0, 1], [1, 1, 0]])
    how = Feedback(logits=1.0, weight=1.0)
    for make in (
        lambda prefix: gaussian_window((2, 3), 1.5, like, prefix=prefix),
        lambda prefix: alike(classes, how, like, prefix=prefix),
    ):
        bare, beside, two = (make(prefix)(slice(0, 6 + prefix)) for prefix in (0, 1, 2))
        assert torch.equal(F.pad(bare, (1, 0, 1, 0)), beside)
        assert torch.equal(F.pad(bare, (2, 0, 2, 0)), two)
        assert torch.equal(make(2)(slice(1, 4)), two[1:4])


def test_a_graph_of_it_takes_images_of_any_size():
    """Position tables and rotary positions are made for the grid within the graph."""
    network = encoder(tiny_tower("pe-core"), NACLIP)
    size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        graph = torch.export.export(network, (photos(2, 48, 56),), dynamic_shapes=(size,)).module()
        other = photos(1, 33, 64)
        torch.testing.assert_close(graph(other), network(other), rtol=1e-4, atol=1e-5)


class TestRefused:
    """What a network has not is said in one line."""

    def test_kernels_of_a_pool(self, towers, make_clip):
        method = replace(CLEARCLIP, name="mine", pool=(("qq", 1.0),))
        for family in ("clip", "gap", "eva01"):
            with pytest.raises(UnsupportedMethodError, match="'mine' mixes within an attention"):
                encoder(towers[family], method)
        with pytest.raises(UnsupportedMethodError, match=r"'mine' .*queries of positions"):
            encoder(towers["coca"], method)
        encoder(towers["coca, one width"], method)
        encoder(towers["coca"], replace(method, pool=(("kk", 1.0),)))
        with pytest.raises(UnsupportedMethodError, match="those of a ResNet's are `kernels`"):
            encoder(make_clip("resnet").visual, replace(CLEAN, pool=(("qk", 1.0),)))
        with pytest.raises(UnsupportedMethodError, match="'proxy' in a pool: expected some of id"):
            encoder(towers["siglip"], replace(CLEAN, pool=(("proxy", 1.0),)))

    def test_networks_of_another_form(self, towers):
        visual = tiny_tower("pe-core")
        visual.trunk.blocks[0].attn.gate = torch.nn.Linear(64, 64)
        assert traits_of(visual).family == "other"
        registers = tiny_tower("gap")
        registers.trunk.reg_token = torch.nn.Parameter(torch.zeros(1, 1, 32))
        assert not can_read(registers, CLEAN)
        with pytest.raises(Exception, match="TimmModel has no dense reading here"):
            build_tower(registers, CLEAN)
