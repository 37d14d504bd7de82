"""How a residual attention block is read: pure functions of its weights, chosen by names.

A reading mixes the values of all positions by weighted kernels: softmaxes of products of queries,
keys and values, or the identity, which leaves each position its own value. No N x N map is held.
B images, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

PARTS = ("query", "key", "value")
"""The thirds of an attention's input projection, in their order."""

KERNELS: dict[str, tuple[str, str] | None] = {
    "identity": None,
    "qk": ("query", "key"),
}
"""What mixes the values: softmax(a b^T / sqrt(head width)) of two parts, head by head, or None."""

Weighted = Sequence[tuple[str, float]]
"""Kernels by name, each with its weight in the sum."""

ORDINARY: Weighted = (("qk", 1.0),)
"""CLIP's own attention."""


class BlockReading(NamedTuple):
    """What a block makes of its tokens, and their keys where these were asked for."""

    tokens: Tensor
    keys: Tensor | None


def mixes_positions(kernels: Weighted) -> bool:
    """Return whether a position gets anything of the others."""
    return any(KERNELS[name] is not None for name, _ in kernels)


def mix(parts: Mapping[str, Tensor], kernels: Weighted, *, heads: int) -> Tensor:
    """Return the weighted sum of what each kernel makes of the values, (B, N, C).

    Args:
        parts: of `PARTS` the value, and what the kernels name; (B, N, C) each.
        kernels: from `KERNELS`, at least one.
        heads: into which the channels are split.
    """
    total: Tensor | None = None
    for name, weight in kernels:
        pair = KERNELS[name]
        if pair is None:
            mixed = parts["value"]
        else:
            query, key, value = (
                _split(parts[part], heads) for part in (*pair, "value")
            )  # B x heads x N x C / heads
            mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        mixed = mixed if weight == 1 else weight * mixed
        total = mixed if total is None else total + mixed
    assert total is not None
    return total


def read_block(
    block: Any,
    x: Tensor,
    kernels: Weighted = ORDINARY,
    *,
    residual: bool = True,
    mlp: bool = True,
    keys: bool = False,
) -> BlockReading:
    """Run a residual attention block of a ViT; the defaults are what CLIP itself does.

    Args:
        block: open_clip's, or one of the same parts.
        x: tokens (B, N, C).
        kernels: what mixes the values; only what they name is projected.
        residual: whether the tokens are added to what the attention makes of them.
        mlp: whether the block's MLP follows, with its own residual.
        keys: also return the keys (B, N, C), before the heads are split.
    """
    attention = block.attn
    if not isinstance(attention, nn.MultiheadAttention) and mixes_positions(kernels):
        return BlockReading(block(x), None)  # open_clip's own attention holds no map either
    normed = block.ln_1(x)
    parts = _project(attention, normed, _named(kernels) | ({"key"} if keys else set()))
    out = block.ls_1(attention.out_proj(mix(parts, kernels, heads=attention.num_heads)))
    if residual:
        out = x + out
    if mlp:
        out = out + block.ls_2(block.mlp(block.ln_2(out)))
    return BlockReading(out, parts["key"] if keys else None)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _named(kernels: Weighted) -> set[str]:
    pairs = (KERNELS[name] for name, _ in kernels)
    return {"value", *(part for pair in pairs if pair for part in pair)}


def _project(attention: Any, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
    """Return the wanted thirds of an attention's input projection."""
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if len(wanted) == len(PARTS):
        return dict(zip(PARTS, F.linear(x, weight, bias).chunk(3, dim=2), strict=True))
    weights = dict(zip(PARTS, weight.chunk(3), strict=True))
    biases = dict.fromkeys(PARTS) if bias is None else dict(zip(PARTS, bias.chunk(3), strict=True))
    return {part: F.linear(x, weights[part], biases[part]) for part in PARTS if part in wanted}
