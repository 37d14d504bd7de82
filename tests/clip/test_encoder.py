from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from maskclip.clip.encoder import DenseCLIP, fold_batch_norms
from maskclip.clip.model import shared_copy
from maskclip.core.method import BASELINE, CLEAN, IMAGENET_MEAN, IMAGENET_STD, PUBLISHED

MEAN, STD = (0.48, 0.45, 0.41), (0.27, 0.26, 0.28)
FAMILIES = ["vit", "resnet"]
METHODS = [CLEAN, PUBLISHED]
CHANNELS = {"vit": 32, "resnet": 256}  # of the keys
CELLS = {"vit": 8, "resnet": 32}


@pytest.fixture(scope="module")
def encoders(make_clip):
    return {
        (family, method): DenseCLIP(
            make_clip(family).visual, method=method, mean=MEAN, std=STD
        ).eval()
        for family in FAMILIES
        for method in METHODS
    }


def random_images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def grid_of(family, method, height, width):
    def along(length):
        if family == "vit":
            return -(-length // 8)
        if method is CLEAN:
            return -(-length // 32)
        length = (max(length, 32) + 1) // 2  # the stem's stride, then four pools that floor
        return length // 16

    return along(height), along(width)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "size", [(1, 1), (31, 1), (1, 40), (32, 32), (33, 64), (75, 53), (513, 97), (4096, 64)]
)
def test_any_size_gives_its_grid(family, method, size, encoders):
    encoder = encoders[family, method]
    if family == "vit" and size == (4096, 64):
        size = (1024, 64)  # attention over 4096 tokens takes too long for a test
    with torch.inference_mode():
        dense = encoder.encode(random_images(1, 3, *size), keys=True)
    grid = grid_of(family, method, *size)
    assert dense.features.shape == (1, 16, *grid)
    assert dense.keys.shape == (1, CHANNELS[family], *grid)
    cell = CELLS[family]
    assert encoder.cell == cell
    assert dense.covered == (size if method is PUBLISHED else (cell * grid[0], cell * grid[1]))
    assert dense.features.isfinite().all()
    assert dense.keys.isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_and_fractions_are_the_same_image(family, method, encoders):
    encoder = encoders[family, method]
    pixels = (255 * random_images(2, 3, 40, 70)).to(torch.uint8)
    with torch.inference_mode():
        found = encoder.encode(pixels).features
        for dtype in (torch.float32, torch.float64):
            again = encoder.encode(pixels.to(dtype) / 255).features
            torch.testing.assert_close(found, again)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("method", "mean", "std"), [(CLEAN, MEAN, STD), (PUBLISHED, IMAGENET_MEAN, IMAGENET_STD)]
)
def test_images_are_normalised_once_and_padded_with_zeros(family, method, mean, std, encoders):
    encoder, seen = encoders[family, method], []
    hook = encoder.visual.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = random_images(1, 3, 20, 30)
    with torch.inference_mode():
        encoder.encode(images)
    hook.remove()
    expected = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(seen[0][:, :, :20, :30], expected)
    assert not seen[0][:, :, 20:].any()
    assert not seen[0][:, :, :, 30:].any()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_a_batch_do_not_meet(family, method, encoders):
    images = random_images(3, 3, 40, 24)
    with torch.inference_mode():
        together = encoders[family, method].encode(images, keys=True)
        alone = encoders[family, method].encode(images[1:2], keys=True)
    torch.testing.assert_close(together.features[1:2], alone.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.keys[1:2], alone.keys, rtol=1e-4, atol=1e-5)


class TestLastBlock:
    """What the last ViT block computes, and what it must not."""

    @pytest.fixture
    def forbidden(self, make_clip, monkeypatch):
        """An encoder whose last block fails when it attends, or when its MLP runs."""

        def build(method, *names):
            encoder = DenseCLIP(make_clip("vit").visual, method=method, mean=MEAN, std=STD).eval()
            last = encoder.visual.transformer.resblocks[-1]

            def refuse(*_, **__):
                raise AssertionError("computed, and not needed")

            for name in names:
                monkeypatch.setattr(getattr(last, name), "forward", refuse)
            monkeypatch.setattr(last, "forward", refuse)
            return encoder

        return build

    @pytest.mark.parametrize("keys", [False, True])
    def test_clean_needs_no_attention_and_no_mlp(self, forbidden, keys):
        encoder = forbidden(CLEAN, "attn", "mlp", "ln_2")
        with torch.inference_mode():
            dense = encoder.encode(random_images(1, 3, 32, 32), keys=keys)
        assert (dense.keys is not None) == keys

    @pytest.mark.parametrize("keys", [False, True])
    def test_published_needs_no_attention(self, forbidden, keys):
        with torch.inference_mode():
            forbidden(PUBLISHED, "attn").encode(random_images(1, 3, 32, 32), keys=keys)

    @pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
    @pytest.mark.parametrize("keys", [False, True])
    def test_queries_count_for_nothing_and_keys_only_where_wanted(self, make_clip, method, keys):
        encoder = DenseCLIP(make_clip("vit").visual, method=method, mean=MEAN, std=STD).eval()
        attention = encoder.visual.transformer.resblocks[-1].attn
        unused = slice(0, 32) if keys else slice(0, 64)
        with torch.inference_mode():
            attention.in_proj_weight[unused] = float("nan")
            attention.in_proj_bias[unused] = float("nan")
            dense = encoder.encode(random_images(1, 3, 32, 32), keys=keys)
        assert dense.features.isfinite().all()
        assert dense.keys is None or dense.keys.isfinite().all()

    def test_takes_few_operations(self, make_clip):
        """The matrix products of the last block: value and output, and one more for keys."""
        encoder = DenseCLIP(make_clip("vit", layers=1).visual, mean=MEAN, std=STD).eval()
        from torch.utils.flop_counter import FlopCounterMode

        def flops(*, keys):
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                encoder.encode(random_images(1, 3, 32, 32), keys=keys)
            return counter.get_total_flops()

        product = 2 * 16 * 32 * 32  # 16 patches, 32 channels to 32
        patches, projection = 2 * 16 * 3 * 64 * 32, 2 * 16 * 32 * 16
        assert flops(keys=False) == patches + 2 * product + projection
        assert flops(keys=True) == flops(keys=False) + product


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_keys_do_not_change_the_features(family, method, encoders):
    images = random_images(1, 3, 40, 64)
    with torch.inference_mode():
        without = encoders[family, method].encode(images)
        beside = encoders[family, method].encode(images, keys=True)
    assert without.keys is None
    torch.testing.assert_close(without.features, beside.features)


def test_vit_features_follow_the_formula(make_clip):
    """Clean: ln_post(out_proj(v_proj(ln_1 x))) projected; keys: k_proj(ln_1 x)."""
    visual = make_clip("vit").visual
    encoder = DenseCLIP(visual, mean=MEAN, std=STD).eval()
    visual = encoder.visual
    images, entering = random_images(1, 3, 32, 32), []
    last = visual.transformer.resblocks[-1]
    hook = last.ln_1.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    with torch.inference_mode():
        dense = encoder.encode(images, keys=True)
        hook.remove()
        normed = last.ln_1(entering[0][:, -16:])
        _, key, value = (normed @ last.attn.in_proj_weight.T + last.attn.in_proj_bias).chunk(3, -1)
        features = visual.ln_post(last.attn.out_proj(value)) @ visual.proj
    torch.testing.assert_close(dense.features.flatten(2).mT, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dense.keys.flatten(2).mT, key, rtol=1e-4, atol=1e-5)


def test_a_whole_attention_on_one_position_is_the_dense_reading(make_clip):
    """With one token, attention passes its value on: pooling and dense reading agree."""
    visual = make_clip("resnet", image_size=32).visual
    with torch.no_grad():
        visual.attnpool.positional_embedding.zero_()
    encoder = DenseCLIP(visual, mean=MEAN, std=STD).eval()
    images = random_images(2, 3, 32, 32)
    with torch.inference_mode():
        dense = encoder.encode(images).features
        torch.testing.assert_close(dense[:, :, 0, 0], encoder.pool(images), rtol=1e-4, atol=1e-5)


def test_layer_scale_scales_the_value(make_clip):
    """The last block's branch is scaled before ln_post, as in the ordinary forward."""
    visual = make_clip("vit", layers=1, ls_init_value=0.5).visual
    encoder = DenseCLIP(visual, mean=MEAN, std=STD).eval()
    images = random_images(1, 3, 32, 32)
    with torch.inference_mode():
        scaled = encoder.encode(images).features
        block = encoder.visual.transformer.resblocks[0]
        block.attn.out_proj.weight.mul_(0.5)
        block.attn.out_proj.bias.mul_(0.5)
        block.ls_1 = torch.nn.Identity()
        torch.testing.assert_close(encoder.encode(images).features, scaled)


class TestPositions:
    def first_tokens(self, encoder, size):
        """Return what the position table added to the patches, and the class token's share."""
        added = []
        visual = encoder.visual
        hook = visual.ln_pre.register_forward_pre_hook(lambda _, inputs: added.append(inputs[0]))
        with torch.inference_mode():
            visual.conv1.weight.zero_()
            encoder.encode(random_images(1, 3, *size))
        hook.remove()
        return added[0][0]

    @pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
    def test_the_native_grid_takes_the_table_as_it_is(self, make_clip, method):
        encoder = DenseCLIP(make_clip("vit").visual, method=method, mean=MEAN, std=STD)
        found = self.first_tokens(encoder, (32, 32))
        torch.testing.assert_close(found[1:], encoder.visual.positional_embedding[1:].detach())

    @pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
    def test_another_grid_resizes_it(self, make_clip, method):
        encoder = DenseCLIP(make_clip("vit").visual, method=method, mean=MEAN, std=STD)
        table = encoder.visual.positional_embedding.detach()
        maps = table[1:].view(1, 4, 4, 32).permute(0, 3, 1, 2)
        maps = torch.nn.functional.interpolate(maps, size=(3, 7), mode="bicubic")
        found = self.first_tokens(encoder, (20, 50))
        torch.testing.assert_close(found[1:], maps[0].flatten(1).T)

    def test_as_many_tokens_in_another_shape(self, make_clip):
        """2 x 8 positions for a 4 x 4 table: published reads it in raster order, clean does not."""
        raw = make_clip("vit").visual.positional_embedding[1:].detach()
        for method, same in ((PUBLISHED, True), (CLEAN, False)):
            encoder = DenseCLIP(make_clip("vit").visual, method=method, mean=MEAN, std=STD)
            found = self.first_tokens(encoder, (16, 64))[1:]
            assert torch.allclose(found, raw) == same


@pytest.mark.parametrize("family", FAMILIES)
def test_shifting_by_a_cell_shifts_clean_features(make_clip, family):
    """Away from the border, and without positions, the same content has the same feature."""
    visual = make_clip(family, **({"layers": 1} if family == "vit" else {})).visual
    if family == "vit":
        with torch.no_grad():
            visual.positional_embedding.zero_()
    encoder = DenseCLIP(visual, mean=MEAN, std=STD).eval()
    cell = encoder.cell
    scene = random_images(1, 3, 9 * cell, 10 * cell)
    with torch.inference_mode():
        left = encoder.encode(scene[:, :, :, : 9 * cell]).features
        right = encoder.encode(scene[:, :, :, cell:]).features
    margin = slice(3, 6)
    torch.testing.assert_close(
        left[:, :, margin, 4:7], right[:, :, margin, 3:6], rtol=1e-3, atol=1e-3
    )
    assert left.std() > 0.01


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_lower_precision_stays_near(make_clip, family, precision):
    images = random_images(1, 3, 40, 64)
    encoder = DenseCLIP(make_clip(family).visual, mean=MEAN, std=STD).eval()
    with torch.inference_mode():
        exact = encoder.encode(images, keys=True).features
        encoder.visual.to(precision)
        dense = encoder.encode(images, keys=True)
    cosine = torch.cosine_similarity(dense.features.float(), exact, dim=1)
    assert cosine.min() > 0.95


@pytest.mark.parametrize("run", ["encode", "pool"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32), r"\(B, 3, H, W\), got \(3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), r"got \(1, 1, 32, 32\)"),
        (torch.zeros(1, 32, 32, 3), r"got \(1, 32, 32, 3\)"),
        (torch.zeros(0, 3, 32, 32), "got"),
        (torch.zeros(1, 3, 0, 32), "got"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), r"torch\.int64"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.bool), r"torch\.bool"),
    ],
)
def test_other_shapes_and_types_are_refused(encoders, run, images, message):
    with pytest.raises(ValueError, match=message):
        getattr(encoders["vit", CLEAN], run)(images)


class TestSharing:
    """Encoders of one model, each by its own method, dtype and layout; the model stays as it is."""

    @pytest.mark.parametrize("order", [(CLEAN, PUBLISHED), (PUBLISHED, CLEAN)], ids=str)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_methods_do_not_meet(self, family, order, make_clip):
        model = make_clip(family, quick_gelu=True)
        side = {"vit": 32, "resnet": 64}[family]
        images = random_images(1, 3, side, side)
        with torch.inference_mode():
            own, layers = model.encode_image(images), str(model)
            alone = [
                DenseCLIP(
                    make_clip(family, quick_gelu=True).visual, method=method, mean=MEAN, std=STD
                )
                .eval()
                .encode(images, keys=True)
                for method in order
            ]
            built = [DenseCLIP(model.visual, method=m, mean=MEAN, std=STD).eval() for m in order]
            for encoder, expected in zip(built, alone, strict=True):
                found = encoder.encode(images, keys=True)
                assert torch.equal(found.features, expected.features)
                assert torch.equal(found.keys, expected.keys)
            if family == "vit":
                assert not torch.equal(alone[0].features, alone[1].features)
            built[0].prepare(torch.bfloat16)
            assert torch.equal(built[1].encode(images).features, alone[1].features)
            assert torch.equal(model.encode_image(images), own)
        assert str(model) == layers
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}

    @pytest.mark.parametrize("family", FAMILIES)
    def test_weights_are_not_held_twice(self, family, make_clip):
        visual = make_clip(family).visual
        encoder = DenseCLIP(visual, method=PUBLISHED, mean=MEAN, std=STD)
        encoder.requires_grad_(False)
        ours, theirs = dict(encoder.visual.named_parameters()), dict(visual.named_parameters())
        assert ours.keys() == theirs.keys()
        for name, weight in theirs.items():
            assert ours[name].data_ptr() == weight.data_ptr()
            assert weight.requires_grad

    @torch.inference_mode()
    def test_a_part_may_be_left_out(self, make_clip, tokenizer):
        """As for the text tower on another device: the image tower stays where it is."""
        model, tokens = make_clip("vit"), tokenizer(["a dog"])
        expected = model.encode_text(tokens)
        text = shared_copy(model, leave_out=model.visual).to(torch.float64)
        torch.testing.assert_close(text.encode_text(tokens).float(), expected)
        assert not list(text.visual.parameters())
        assert torch.equal(model.encode_text(tokens), expected)
        assert len(list(model.visual.parameters()))


class TestPrepared:
    @pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
    @pytest.mark.parametrize("family", FAMILIES)
    @torch.inference_mode()
    def test_computes_the_same(self, make_clip, family, method):
        visual = make_clip(family).visual
        plain, prepared = (
            DenseCLIP(visual, method=method, mean=MEAN, std=STD).eval() for _ in range(2)
        )
        prepared.prepare(torch.float32)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
        images = random_images(2, 3, 70, 90)
        expected, found = (encoder.encode(images, keys=True) for encoder in (plain, prepared))
        torch.testing.assert_close(found.features, expected.features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.keys, expected.keys, rtol=1e-4, atol=1e-5)
        prepared.prepare(torch.bfloat16)  # again
        assert prepared.encode(images).features.dtype == torch.bfloat16

    def test_only_a_norm_that_follows_its_convolution_is_folded(self):
        module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
        fold_batch_norms(module)
        assert isinstance(module[2], nn.BatchNorm2d)


class TestExport:
    """One exported program serves batches and sizes that it was not exported with."""

    @pytest.mark.parametrize("prepared", [False, True])
    @pytest.mark.parametrize("method", [CLEAN, PUBLISHED, BASELINE], ids=lambda m: m.name)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_other_sizes_are_those_of_the_module(self, make_clip, family, method, prepared):
        encoder = DenseCLIP(make_clip(family).visual, method=method, mean=MEAN, std=STD).eval()
        if prepared:
            encoder.prepare(torch.float32)
        sizes = {0: Dim("batch", min=1, max=64)}
        sizes |= {2: Dim("height", min=64, max=4096), 3: Dim("width", min=64, max=4096)}
        example = random_images(2, 3, 96, 160)
        program = export(encoder, (example,), dynamic_shapes={"images": sizes}).module()
        for shape in [(1, 3, 64, 64), (3, 3, 131, 97), (2, 3, 96, 160)]:
            images = random_images(*shape)
            with torch.inference_mode():
                expected = encoder(images)
                assert torch.equal(expected, encoder.encode(images).features)
                torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-5)

    def test_a_grid_of_as_many_positions_is_resized(self, make_clip):
        """The published method would read the table in raster order; a program has one path."""
        visual = make_clip("vit").visual
        encoder = DenseCLIP(visual, method=PUBLISHED, mean=MEAN, std=STD).eval()
        resizing = DenseCLIP(
            visual, method=replace(PUBLISHED, position_resize="grid"), mean=MEAN, std=STD
        ).eval()
        sizes = {2: Dim("height", min=16, max=4096), 3: Dim("width", min=16, max=4096)}
        program = export(
            encoder, (random_images(1, 3, 40, 48),), dynamic_shapes={"images": sizes}
        ).module()
        images = random_images(1, 3, 16, 64)  # 2 x 8 positions, for a table of 4 x 4
        with torch.inference_mode():
            assert not torch.allclose(encoder(images), resizing(images), atol=1e-3)
            torch.testing.assert_close(program(images), resizing(images), rtol=1e-4, atol=1e-5)


def test_attention_takes_no_path_that_holds_its_map(make_clip, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("this holds an N x N map for every head")

    monkeypatch.setattr(torch, "_native_multi_head_attention", refuse)
    visual = make_clip("vit").visual
    with torch.inference_mode():
        encoder = DenseCLIP(visual, mean=(0.5,) * 3, std=(0.5,) * 3).eval()
        encoder.encode(torch.zeros(1, 3, 64, 64))
        encoder.pool(torch.zeros(1, 3, 32, 32))
