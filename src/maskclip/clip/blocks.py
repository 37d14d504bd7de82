"""The self-attention blocks of ViTs, one view a library's block: what readings need of them.

A block takes what enters it, projects it to queries, keys and values with all that its network does
to them, and finishes what an attention made of these. Whatever lies between, readings know no more.
B images, N tokens, C channels, A heads, c = C / A channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARTS = ("query", "key", "value")
"""The thirds of an attention's input projection, in their order."""


class Block(Protocol):
    """A residual block of attention and MLP, as a reading takes it apart."""

    heads: int
    """Into which the channels of queries, keys and values are split."""

    def enter(self, x: Tensor) -> Tensor:
        """Return what of a stream (B, N, C) enters the attention."""
        ...

    def project(
        self, entered: Tensor, wanted: Collection[str] = PARTS, *, prefix_only: bool = False
    ) -> dict[str, Tensor]:
        """Return the wanted of `PARTS`, (B, N, C) each, as the attention compares and mixes them.

        Args:
            entered: of `enter`; all tokens, or the patches alone.
            wanted: some of `PARTS`.
            prefix_only: whether these are the tokens before the patches alone.
        """
        ...

    def output(self, mixed: Tensor) -> Tensor:
        """Return what the attention gives for mixed values (B, N, C): its output projection."""
        ...

    def finish(self, stream: Tensor, mixed: Tensor, *, mlp: bool) -> Tensor:
        """Add what an attention mixed (B, N, C) to a stream, and run the MLP if wanted."""
        ...


class OpenCLIPBlock:
    """open_clip's residual attention block, with torch's attention or its own."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.heads = int(block.attn.num_heads)

    def enter(self, x: Tensor) -> Tensor:
        """See `Block`."""
        found: Tensor = self.block.ln_1(x)
        return found

    def project(
        self, entered: Tensor, wanted: Collection[str] = PARTS, *, prefix_only: bool = False
    ) -> dict[str, Tensor]:
        """See `Block`."""
        attention = self.block.attn
        parts = thirds(entered, attention.in_proj_weight, attention.in_proj_bias, wanted)
        for part, name in (("query", "ln_q"), ("key", "ln_k")):
            norm = getattr(attention, name, None)
            if norm is not None and part in parts:
                parts[part] = by_head(norm, parts[part], self.heads)
        return parts

    def output(self, mixed: Tensor) -> Tensor:
        """See `Block`."""
        attention = self.block.attn
        scale = getattr(attention, "head_scale", None)
        if scale is not None:
            mixed = by_head(lambda x: x * scale[:, 0], mixed, self.heads)
        if hasattr(attention, "ln_inner"):
            mixed = attention.ln_inner(mixed)
        found: Tensor = attention.out_proj(mixed)
        return self.block.ln_attn(found) if hasattr(self.block, "ln_attn") else found

    def finish(self, stream: Tensor, mixed: Tensor, *, mlp: bool) -> Tensor:
        """See `Block`."""
        block = self.block
        out: Tensor = stream + block.ls_1(self.output(mixed))
        if mlp:
            out = out + block.ls_2(block.mlp(block.ln_2(out)))
        return out


class TimmBlock:
    """The blocks of timm's VisionTransformer and Eva, these with norms before or after.

    Args:
        block: of the network.
        turns: rotary positions of the patches, sines and cosines (hw, 2c), if it has some.
    """

    def __init__(self, block: Any, turns: Tensor | None = None) -> None:
        self.block = block
        self.heads = int(block.attn.num_heads)
        self.turns = turns
        # blocks with norms after attention and MLP have no layer scale of either name
        self.norms_after = not hasattr(block, "ls1") and not hasattr(block, "gamma_1")

    def enter(self, x: Tensor) -> Tensor:
        """See `Block`."""
        found: Tensor = x if self.norms_after else self.block.norm1(x)
        return found

    def project(
        self, entered: Tensor, wanted: Collection[str] = PARTS, *, prefix_only: bool = False
    ) -> dict[str, Tensor]:
        """See `Block`."""
        attention = self.block.attn
        if attention.qkv is None:
            layers = zip(PARTS, (attention.q_proj, attention.k_proj, attention.v_proj), strict=True)
            parts = {part: layer(entered) for part, layer in layers if part in wanted}
        else:
            bias = attention.qkv.bias
            if getattr(attention, "q_bias", None) is not None:
                bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
            parts = thirds(entered, attention.qkv.weight, bias, wanted)
        for part, norm in (("query", attention.q_norm), ("key", attention.k_norm)):
            if part not in parts:
                continue
            if not isinstance(norm, nn.Identity):
                parts[part] = by_head(norm, parts[part], self.heads)
            if self.turns is not None and not prefix_only:
                parts[part] = self._turned(parts[part], self.turns)
        return parts

    def _turned(self, x: Tensor, turns: Tensor) -> Tensor:
        """Turn the channels of patches (B, N, C), two and two, by their positions."""
        count = turns.shape[0]
        sine, cosine = turns.chunk(2, dim=1)
        patches = x[:, -count:].reshape(x.shape[0], count, self.heads, -1)
        first, second = patches[..., ::2], patches[..., 1::2]
        if getattr(self.block.attn, "rotate_half", False):
            first, second = patches.chunk(2, dim=3)
            beside = torch.cat([-second, first], dim=3)
        else:
            beside = torch.stack([-second, first], dim=4).flatten(3)
        turned = (patches * cosine[:, None] + beside * sine[:, None]).to(x.dtype).flatten(2)
        return torch.cat([x[:, :-count], turned], dim=1)

    def output(self, mixed: Tensor) -> Tensor:
        """See `Block`."""
        attention = self.block.attn
        found: Tensor = attention.proj(attention.norm(mixed))
        return found

    def finish(self, stream: Tensor, mixed: Tensor, *, mlp: bool) -> Tensor:
        """See `Block`."""
        block, found = self.block, self.output(mixed)
        if self.norms_after:
            out: Tensor = stream + block.norm1(found)
            return out + block.norm2(block.mlp(out)) if mlp else out
        out = stream + self._scaled("1", found)
        return out + self._scaled("2", block.mlp(block.norm2(out))) if mlp else out

    def _scaled(self, which: str, x: Tensor) -> Tensor:
        """Apply the layer scale of the attention ("1") or the MLP ("2"), where there is one."""
        if hasattr(self.block, f"ls{which}"):
            found: Tensor = getattr(self.block, f"ls{which}")(x)
            return found
        gamma = getattr(self.block, f"gamma_{which}")
        return x if gamma is None else gamma * x


def thirds(
    x: Tensor, weight: Tensor, bias: Tensor | None, wanted: Collection[str] = PARTS
) -> dict[str, Tensor]:
    """Return the wanted thirds of a projection to queries, keys and values, (B, N, C) each."""
    if len(wanted) == len(PARTS):
        return dict(zip(PARTS, F.linear(x, weight, bias).chunk(3, dim=2), strict=True))
    weights = dict(zip(PARTS, weight.chunk(3), strict=True))
    biases = dict.fromkeys(PARTS) if bias is None else dict(zip(PARTS, bias.chunk(3), strict=True))
    return {part: F.linear(x, weights[part], biases[part]) for part in PARTS if part in wanted}


def by_head(function: Callable[[Tensor], Tensor], x: Tensor, heads: int) -> Tensor:
    """Apply a function of (B, N, A, c) to channels (B, N, C)."""
    return function(x.reshape(*x.shape[:2], heads, -1)).flatten(2)
