"""The self-attention blocks of ViTs, one view a library's block: what readings need of them.

A block takes what enters it, projects it to queries, keys and values with all that its network does
to them, and finishes what an attention made of these. Whatever lies between, readings know no more.
B images, N tokens, C channels, A heads, c = C / A channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

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
