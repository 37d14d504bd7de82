"""How the residual attention blocks of a ViT are read: pure functions over a view of the blocks.

A reading mixes the values of all positions by weighted kernels: softmaxes of products of queries,
keys and values, or the identity, which leaves each position its own value. No N x N map is held:
kernels that torch's own attention cannot compute without one are computed in bands of rows.
B images, N tokens, C channels, A heads, c = C / A channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.clip.blocks import Block
from maskclip.clip.likeness import attend_similar, bands
from maskclip.core.method import Alignment, Method, Weighted

KERNELS: dict[str, tuple[str, ...]] = {
    "identity": (),
    "qk": ("query", "key"),
    "qq": ("query", "query"),
    "kk": ("key", "key"),
    "vv": ("value", "value"),
    "aligned": ("query", "key"),
    "similar": (),
    "proxy": (),
}
"""What a kernel compares, head by head: softmax(a b^T / sqrt(c)) of two parts, or none."""

POOLED = ("identity", "qk", "qq", "kk", "vv")
"""The kernels that an attention pool can be read by."""

ORDINARY: Weighted = (("qk", 1.0),)
"""CLIP's own attention."""

PROXY_SHARPNESS, PROXY_LEVEL = 3.0, 1.2
"""Of the likeness of a proxy's patches (ProxyCLIP, Lan et al., ECCV 2024)."""

Parts = Mapping[str, Tensor]
Bias = Callable[[slice], Tensor]
"""What is added to the logits of a band of positions: slice -> (n, N)."""
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value), B x A x N x c each -> B x A x N x c."""


class Reading(NamedTuple):
    """What the blocks of a ViT make of an image.

    Attributes:
        tokens: (B, hw, C), as a method reads the last blocks.
        keys: (B, hw, C) of the last block if wanted, before the heads are split.
        entering: (B, N, C), CLIP's own stream before its last block.
        parts: what `read_again` needs, (B, N, C) each; empty without a feedback.
    """

    tokens: Tensor
    keys: Tensor | None
    entering: Tensor
    parts: Parts = MappingProxyType({})


def mixes_positions(kernels: Weighted) -> bool:
    """Return whether a position gets anything of the others by CLIP's own attention."""
    return any(name not in ("identity", "proxy") for name, _ in kernels)


def run_block(block: Block, x: Tensor) -> Tensor:
    """Run a residual attention block as CLIP itself does; x is (B, N, C)."""
    parts = block.project(block.enter(x))
    return block.finish(x, mix(parts, ORDINARY, heads=block.heads), mlp=True)


def read_blocks(
    blocks: Sequence[Block],
    x: Tensor,
    method: Method,
    *,
    grid: tuple[int, int],
    prefix: int = 1,
    keys: bool = False,
    proxy: Tensor | None = None,
) -> Reading:
    """Run all blocks of a ViT, of which a method reads the last ones its own way.

    CLIP's own stream goes on beside that of the method, which gets its queries, keys and values
    from it. Without kernels that mix positions the class token has no part in the last block.

    Args:
        blocks: of the network.
        x: tokens (B, N, C), those of no patch first.
        method: of it, `kernels` and what is said of them.
        grid: (h, w).
        prefix: how many tokens are of no patch: N - hw.
        keys: also return the keys of the last block.
        proxy: (B, hw, D) unit vectors of another network, for the kernel `proxy`.
    """
    first = len(blocks) - method.blocks
    middle: list[Parts] = []
    for index, block in enumerate(blocks[:first]):
        if method.middle and index in method.middle.blocks:
            wanted = named(method.middle.kernels) - {"value"}
            middle.append(block.project(block.enter(x), wanted))
        x = run_block(block, x)
    entering = x
    if method.blocks == 1 and not mixes_positions(method.kernels) and not middle:
        x, prefix = x[:, prefix:], 0
    stream = x if method.residual else torch.zeros_like(x)
    found: Tensor | None = None
    again: dict[str, Tensor] = {}
    for block in blocks[first:]:
        entered = block.enter(x)
        wanted = named(method.kernels) | ({"key"} if keys else set())
        parts = block.project(entered, wanted)
        how = _attention(entered, method, grid=grid, prefix=prefix)
        mixed = _mixed(parts, method, heads=block.heads, prefix=prefix, attention=how, proxy=proxy)
        if method.feedback is not None:
            again = parts | {"stream": stream} if method.residual else dict(parts)
        if block is blocks[-1] and middle:
            added = _middle(middle, parts["value"], method, heads=block.heads)
            mixed = mixed + added
            again = again and again | {"added": added}
        stream = block.finish(stream, mixed, mlp=bool(method.mlp))
        found = parts["key"] if keys else None
        if block is not blocks[-1]:
            x = entering = run_block(block, x)
    count = grid[0] * grid[1]
    key = None if found is None else found[:, -count:]
    return Reading(stream[:, -count:], key, entering, again)


def read_again(
    block: Block,
    parts: Parts,
    method: Method,
    *,
    grid: tuple[int, int],
    alike: Bias,
    prefix: int = 1,
) -> Tensor:
    """Read the last block of a ViT once more, where patches alike are known: (B, hw, C).

    Args:
        block: the last one.
        parts: of `read_blocks`.
        method: with a `feedback`.
        grid: (h, w).
        alike: what is added to the logits.
        prefix: how many tokens are of no patch.
    """
    assert method.feedback is not None
    value, heads = parts["value"], block.heads
    scale = method.feedback.logits * (value.shape[2] // heads) ** -0.5
    biases = [*_window(value, method, grid=grid, prefix=prefix), alike]

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, biases, scale=scale)

    mixed = _mixed(parts, method, heads=heads, prefix=prefix, attention=attention)
    if "added" in parts:
        mixed = mixed + parts["added"]
    stream = parts.get("stream", torch.zeros_like(mixed))
    return block.finish(stream, mixed, mlp=bool(method.mlp))[:, prefix:]


def class_token(block: Block, x: Tensor) -> Tensor:
    """Return what the class token (B, C) becomes in a block, as CLIP itself runs it.

    Args:
        block: the last one.
        x: tokens (B, N, C) that enter it, the class token first.
    """
    entered = block.enter(x)
    parts = block.project(entered, {"key", "value"})
    parts |= block.project(entered[:, :1], {"query"}, prefix_only=True)
    mixed = mix(parts, ORDINARY, heads=block.heads)
    return block.finish(x[:, :1], mixed, mlp=True)[:, 0]


def mix(
    parts: Parts,
    kernels: Weighted,
    *,
    heads: int,
    attention: Attention = F.scaled_dot_product_attention,
) -> Tensor:
    """Return the weighted sum of what each kernel makes of the values, (B, N, C).

    Args:
        parts: of `PARTS` the value, and what the kernels name; (B, N, C) each.
        kernels: pairs of parts or the identity, at least one.
        heads: into which the channels are split.
        attention: what mixes values by queries and keys.
    """
    value = split(parts["value"], heads)

    def by(name: str) -> Tensor:
        if name == "identity":
            return parts["value"]
        first, second = (split(parts[part], heads) for part in KERNELS[name])
        return merge(attention(first, second, value))

    return weighted_sum((by(name), weight) for name, weight in kernels)


def split(x: Tensor, heads: int) -> Tensor:
    """Turn (B, N, C) into (B, A, N, c)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    """Turn (B, A, N, c) into (B, N, C)."""
    return x.transpose(1, 2).flatten(2)


def weighted_sum(terms: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Return the sum of tensors, each times its weight."""
    total: Tensor | None = None
    for term, weight in terms:
        term = term if weight == 1 else weight * term
        total = term if total is None else total + term
    assert total is not None
    return total


def gaussian_window(grid: tuple[int, int], std: float, like: Tensor, *, prefix: int = 1) -> Bias:
    """Return the Gaussian of the distance between patches, in (0, 1]; 0 for other tokens.

    Added to logits, it makes a patch look near itself (NACLIP, Hajimiri et al., WACV 2025).

    Args:
        grid: (h, w).
        std: standard deviation, in patches.
        like: gives dtype and device.
        prefix: how many tokens are of no patch, before the patches.
    """
    height, width = grid

    def one_axis(length: int) -> Tensor:
        at = torch.arange(length, device=like.device, dtype=torch.float32)
        return torch.exp(-((at[:, None] - at) ** 2) / (2 * std**2))

    vertical, horizontal = one_axis(height), one_axis(width)

    def rows(band: slice) -> Tensor:
        token = torch.arange(band.start, band.stop, device=like.device)
        patch = (token - prefix).clamp_min(0)
        y = patch // width
        x = patch - y * width  # ONNX has no remainder by a side that is not known
        near = vertical[y][:, :, None] * horizontal[x][:, None, :]
        near = near.flatten(1) * (token >= prefix)[:, None]
        return F.pad(near, (prefix, 0)).to(like.dtype)

    return rows


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    biases: Sequence[Bias] = (),
    *,
    scale: float | None = None,
) -> Tensor:
    """Return softmax(scale x q k^T + biases) v, (B, A, N, c); the scale is 1 / sqrt(c) if None."""
    if not biases:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    count = query.shape[2]
    found = []
    for band in bands(count, count):
        mask = torch.stack([bias(band) for bias in biases]).sum(dim=0)
        found.append(
            F.scaled_dot_product_attention(
                query[:, :, band], key, value, attn_mask=mask, scale=scale
            )
        )
    return torch.cat(found, dim=2)


def attend_to_like(same: Tensor, value: Tensor, *, iterations: int, temperature: Tensor) -> Tensor:
    """Mix values by the likeness of unit vectors (GEM, Bousselham et al., CVPR 2024).

    Args:
        same: what is compared with itself, (B, A, N, c).
        value: (B, A, N, c).
        iterations: how often each vector is replaced by what it attends to first.
        temperature: one an image, (B,).
    """
    scale = temperature.to(same.dtype)[:, None, None, None]
    same = F.normalize(same, dim=3)
    for _ in range(iterations):
        found = F.scaled_dot_product_attention(scale * same, same, same, scale=1.0)
        same = F.normalize(found, dim=3)
    return F.scaled_dot_product_attention(scale * same, same, value, scale=1.0)


def attend_aligned(
    query: Tensor, key: Tensor, value: Tensor, alignment: Alignment, *, prefix: int = 1
) -> Tensor:
    """Mix values by queries and keys that were turned towards them (PEARL).

    The turn of a head, c x c, is solved for centred queries and keys, weighted by the norms of the
    queries; the `prefix` tokens of no patch, their first, have no weight. Computed in float32;
    (B, A, N, c).
    """
    q, k = query.float(), key.float()
    norm = F.pad(q[:, :, prefix:].norm(dim=3, keepdim=True), (0, 0, prefix, 0))
    weight = norm / (norm.sum(dim=2, keepdim=True) + 1e-6)
    centered_q, centered_k = (x - (weight * x).sum(dim=2, keepdim=True) for x in (q, k))
    turned = k @ _turn(centered_k.mT @ centered_q, alignment.solver)
    share = alignment.centered_keys
    # a sum of two products is one of joined channels
    queries = torch.cat([q, share * centered_k], dim=3) if share else q
    keys = torch.cat([turned, centered_k], dim=3) if share else turned
    out = F.scaled_dot_product_attention(queries, keys, value.float(), scale=q.shape[3] ** -0.5)
    return out.to(value.dtype)


def _turn(m: Tensor, solver: str) -> Tensor:
    """Return M (M^T M)^(-1/2), (..., c, c)."""
    if solver == "svd":
        u, _, vh = torch.linalg.svd(m)
        turn: Tensor = u @ vh
        return turn
    eye = torch.eye(m.shape[-1], device=m.device, dtype=m.dtype)
    gram = m.mT @ m
    norm = torch.linalg.matrix_norm(gram)[..., None, None].clamp_min(1e-12)
    y, z = gram / norm + 1e-6 * eye, eye.expand_as(gram)
    for _ in range(5):
        step = 0.5 * (3 * eye - z @ y)
        y, z = y @ step, step @ z
    turn = m @ z / norm.sqrt()
    return turn


def _attention(entered: Tensor, method: Method, *, grid: tuple[int, int], prefix: int) -> Attention:
    """Return what a method mixes values by; `entered` (B, N, C) enters the attention."""
    biases = _window(entered, method, grid=grid, prefix=prefix)

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if method.unit_iterations is None:
            return attend(query, key, value, biases)
        temperature = _unit_temperature(entered, value.shape[3], method)
        return attend_to_like(
            query, value, iterations=method.unit_iterations, temperature=temperature
        )

    return attention


def _window(like: Tensor, method: Method, *, grid: tuple[int, int], prefix: int) -> list[Bias]:
    if method.window is None:
        return []
    return [gaussian_window(grid, method.window, like, prefix=prefix)]


def _mixed(
    parts: Parts,
    method: Method,
    *,
    heads: int,
    prefix: int,
    attention: Attention,
    proxy: Tensor | None = None,
) -> Tensor:
    """Return what a method's kernels make of a block's values, (B, N, C)."""

    def aligned(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend_aligned(query, key, value, method.alignment, prefix=prefix)

    def by(name: str) -> Tensor:
        if name == "proxy":
            return _attend_by_proxy(proxy, parts["value"], prefix)
        how = aligned if name == "aligned" else attention
        return mix(parts, ((name, 1.0),), heads=heads, attention=how)

    return weighted_sum((by(name), weight) for name, weight in method.kernels)


def _attend_by_proxy(proxy: Tensor | None, value: Tensor, prefix: int) -> Tensor:
    """Mix values (B, N, C) by the likeness of a proxy's patches; other tokens keep their own."""
    assert proxy is not None
    mixed = attend_similar(proxy, value[:, prefix:], PROXY_SHARPNESS, level=PROXY_LEVEL)
    return torch.cat([value[:, :prefix], mixed], dim=1)


def _unit_temperature(entered: Tensor, width: int, method: Method) -> Tensor:
    if method.unit_temperature is not None:
        return entered.new_full((entered.shape[0],), method.unit_temperature)
    temperature: Tensor = entered.norm(dim=2).mean(dim=1) * width**-0.5
    return temperature


def _middle(middle: list[Parts], value: Tensor, method: Method, *, heads: int) -> Tensor:
    """Return what the mean attention of middle blocks makes of the last block's values."""
    assert method.middle is not None
    share = method.middle.weight / len(middle)
    return weighted_sum(
        (mix({**parts, "value": value}, method.middle.kernels, heads=heads), share)
        for parts in middle
    )


def named(kernels: Weighted) -> set[str]:
    """Return which of `PARTS` kernels need, the values among them."""
    return {"value", *(part for name, _ in kernels for part in KERNELS[name])}
