"""A last block that is read again by the classes of its patches, with N x N maps written out."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from maskclip.clip import attention, feedback, likeness
from maskclip.clip.attention import read_again, read_blocks
from maskclip.clip.blocks import OpenCLIPBlock
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.feedback import alike
from maskclip.clip.towers import UnsupportedMethodError
from maskclip.core.method import CLEAN, Feedback, Middle
from maskclip.core.methods import METHODS, RESCLIP

PLAIN = Feedback(logits=1.0, weight=1.0)
SIZES = [(6, 4), (7, 7), (5, 9), (1, 8), (8, 1), (1, 1)]


def blobs(height, width, count, seed=0):
    """Return classes that lie together, (h, w)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, count, -(-height // 3), -(-width // 3), generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bilinear").argmax(dim=1)[0]


def naive(classes, how):
    """Return what is added, with every line walked point by point."""
    height, width = classes.shape
    count, last = classes.numel(), max(height, width) - 1
    at = [(i // width, i % width) for i in range(count)]
    share = torch.linspace(0, 1, last + 1)
    found = torch.zeros(count, count)
    for i, (y, x) in enumerate(at):
        for j, (v, u) in enumerate(at):
            steps = max(abs(v - y), abs(u - x))
            ends = torch.tensor([[y, x]]) * (1 - share[:, None])
            line = (ends + torch.tensor([[v, u]]) * share[:, None]).round().long()
            line = line if how.whole_lines else line[: steps + 1]
            inside = (classes[line[:, 0], line[:, 1]] == classes[y, x]).all()
            if classes[y, x] == classes[v, u]:
                far = torch.exp(torch.tensor(-steps / max(last, 1)))
                found[i, j] = 1 if inside or not how.connected else far
    size = min(count, int(6 * how.blur + 1))
    size += 1 - size % 2
    offsets = torch.arange(size) - size // 2
    kernel = torch.exp(-(offsets**2) / (2 * how.blur**2))
    kernel = kernel / kernel.sum()
    blurred = F.conv1d(found[:, None], kernel[None, None], padding=size // 2)[:, 0]
    rows = blurred / (blurred.sum(dim=1, keepdim=True) + 1e-8)
    return how.weight * F.pad(rows / rows.max(), (1, 0, 1, 0))


@pytest.mark.parametrize("fields", [{}, {"whole_lines": False}, {"connected": False}], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_patches_of_one_class_are_alike(size, fields):
    how = replace(PLAIN, weight=1.3, blur=2.0, **fields)
    for count in (1, 3):
        classes = blobs(*size, count)
        found = alike(classes, how, torch.zeros(1))(slice(0, classes.numel() + 1))
        torch.testing.assert_close(found, naive(classes, how), rtol=0, atol=1e-3)


def test_a_class_in_two_places_counts_less_by_their_distance():
    classes = torch.tensor([[0, 1, 0, 0]])
    how = replace(PLAIN, blur=0.01)  # no blur
    found = alike(classes, how, torch.zeros(1))(slice(0, 5))
    far = torch.exp(torch.tensor([-2 / 3, -1.0]))
    first = torch.stack([torch.tensor(1.0), torch.tensor(0.0), far[0], far[1]])
    expected = torch.stack([first / first.sum(), torch.tensor([0.0, 1.0, 0, 0])])
    torch.testing.assert_close(found[1:3, 1:], expected, rtol=0, atol=1e-3)
    assert not found[0].any()
    assert not found[:, 0].any()


def test_bands_of_rows_change_nothing(monkeypatch):
    classes = blobs(7, 10, 3)
    whole = alike(classes, PLAIN, torch.zeros(1))(slice(0, 71))
    monkeypatch.setattr(likeness, "BAND", 1000)
    monkeypatch.setattr(feedback, "PAIRS", 300)
    bias = alike(classes, PLAIN, torch.zeros(1))
    parts = [bias(band) for band in likeness.bands(71, 71)]
    assert len(parts) > 3
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("window", [None, 2.0])
@pytest.mark.parametrize("kernels", [(("kk", 0.8),), (("qq", 0.5), ("kk", 0.4))], ids=str)
@pytest.mark.parametrize("whole", [False, True])
def test_a_second_reading_follows_its_formula(make_clip, kernels, window, whole):
    blocks = make_clip("vit", layers=3).visual.transformer.resblocks
    heads, grid = blocks[0].attn.num_heads, (3, 4)
    x = torch.randn(1, 13, 32, generator=torch.Generator().manual_seed(0))
    method = replace(
        CLEAN,
        kernels=kernels,
        window=window,
        residual=whole,
        mlp=whole,
        middle=Middle(blocks=(0, 1), weight=0.6),
        feedback=Feedback(logits=0.7, weight=1.5),
    )
    bias = alike(blobs(*grid, 2), method.feedback, x)
    views = [OpenCLIPBlock(block) for block in blocks]
    reading = read_blocks(views, x, method, grid=grid)
    found = read_again(views[-1], reading.parts, method, grid=grid, alike=bias)

    def projected(block, x):
        normed = block.ln_1(x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        parts = [part.unflatten(2, (heads, -1)).transpose(1, 2) for part in normed.chunk(3, dim=2)]
        return dict(zip("qkv", parts, strict=True))

    middle = 0
    for block in blocks[:-1]:
        parts = projected(block, x)
        middle = middle + 0.3 * (parts["q"] @ parts["k"].mT / 4).softmax(dim=3)
        x = block(x)
    parts, added = projected(blocks[-1], x), bias(slice(0, 13))
    if window is not None:
        added = added + attention.gaussian_window(grid, window, x)(slice(0, 13))
    weights = middle
    for name, weight in kernels:
        logits = parts[name[0]] @ parts[name[1]].mT / 4
        weights = weights + weight * (0.7 * logits + added).softmax(dim=3)
    mixed = (weights @ parts["v"]).transpose(1, 2).flatten(2)
    last = blocks[-1]
    out = mixed @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
    if whole:
        out = x + out
        out = out + last.mlp(last.ln_2(out))
    torch.testing.assert_close(found, out[:, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("vit", {"kernels": (("identity", 1.0),)}, "some of qk, qq, kk and vv"),
        ("vit", {"blocks": 2}, "some of qk, qq, kk and vv"),
        ("vit", {"unit_iterations": 1}, "without unit vectors"),
        ("resnet", {"kernels": (("qk", 1.0),)}, "this model is a ResNet"),
    ],
    ids=str,
)
def test_what_cannot_be_given_back_is_refused(make_clip, family, fields, message):
    method = replace(METHODS["sclip"], name="mine", feedback=PLAIN, **fields)
    with pytest.raises(UnsupportedMethodError, match=message):
        DenseCLIP(make_clip(family).visual, method=method, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_the_default_is_the_published_ones():
    how = RESCLIP.feedback
    assert (how.logits, how.weight) == pytest.approx((2.1 * (1 - 0.6), 2.1 * 0.6))
