"""Readings of a residual attention block, beside their formula with the N x N map written out."""

import pytest
import torch

from maskclip.clip import attention
from maskclip.clip.attention import KERNELS, mix, read_block

IDENTITY, ORDINARY = (("identity", 1.0),), (("qk", 1.0),)
MIXTURE = (("identity", 0.3), ("qk", 1.2))
HEADS, CHANNELS, TOKENS = 2, 32, 17


@pytest.fixture(scope="module")
def block(make_clip):
    return make_clip("vit", ls_init_value=0.7).visual.transformer.resblocks[-1]


@pytest.fixture(scope="module")
def tokens():
    return torch.randn(3, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(0))


def maps(parts, kernels):
    """Return the weights of the values, (B, heads, N, N)."""
    total = 0
    for name, weight in kernels:
        if KERNELS[name] is None:
            total = total + weight * torch.eye(TOKENS)
        else:
            a, b = (parts[part].unflatten(2, (HEADS, -1)).transpose(1, 2) for part in KERNELS[name])
            width = CHANNELS // HEADS
            total = total + weight * (a @ b.mT / width**0.5).softmax(dim=-1)
    return total


def written_out(block, x, kernels, *, residual, mlp):
    attn = block.attn
    projected = block.ln_1(x) @ attn.in_proj_weight.T + attn.in_proj_bias
    parts = dict(zip(("query", "key", "value"), projected.chunk(3, dim=2), strict=True))
    value = parts["value"].unflatten(2, (HEADS, -1)).transpose(1, 2)
    mixed = (maps(parts, kernels) @ value).transpose(1, 2).flatten(2)
    out = block.ls_1(mixed @ attn.out_proj.weight.T + attn.out_proj.bias)
    out = x + out if residual else out
    return (out + block.ls_2(block.mlp(block.ln_2(out))) if mlp else out), parts["key"]


@torch.inference_mode()
@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize(("residual", "mlp"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("kernels", [IDENTITY, ORDINARY, MIXTURE, (("identity", -2.0),)], ids=str)
def test_a_reading_follows_its_formula(block, tokens, kernels, residual, mlp, keys):
    found = read_block(block, tokens, kernels, residual=residual, mlp=mlp, keys=keys)
    expected, key = written_out(block, tokens, kernels, residual=residual, mlp=mlp)
    torch.testing.assert_close(found.tokens, expected, rtol=1e-4, atol=1e-5)
    assert (found.keys is not None) == keys
    if keys:
        torch.testing.assert_close(found.keys, key, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_ordinary_reading_is_the_block_itself(block, tokens):
    found = read_block(block, tokens).tokens
    torch.testing.assert_close(found, block(tokens), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_new_kernel_is_a_row_of_the_table(block, tokens, monkeypatch):
    monkeypatch.setitem(attention.KERNELS, "vv", ("value", "value"))
    kernels = (("vv", 0.5), ("qk", 0.5))
    found = read_block(block, tokens, kernels, residual=False, mlp=False).tokens
    expected, _ = written_out(block, tokens, kernels, residual=False, mlp=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_no_map_of_all_pairs_is_held():
    count, largest = 1500, 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    parts = {part: torch.randn(1, count, 8) for part in ("query", "key", "value")}
    with torch.inference_mode(), Watch():
        mix(parts, MIXTURE, heads=2)
    assert largest == 8 * count
