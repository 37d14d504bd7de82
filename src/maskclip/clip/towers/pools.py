"""Attention pools: a learnt query over the tokens that leave the blocks; read at every position.

As the identity kernel reads it, a position has what the pool would give if it attended to that
position alone: MaskCLIP's reading, one attention later. B images, N tokens, C tower channels, D
embedding channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.clip.attention import ORDINARY, mix
from maskclip.clip.blocks import PARTS, by_head, thirds

Step = Callable[[Tensor], Tensor]


class Pool(Protocol):
    """An attention pool and all that follows it."""

    heads: int
    """Into which its channels are split."""
    queries: bool
    """Whether positions too can be projected to queries."""

    def project(self, tokens: Tensor, wanted: Collection[str] = PARTS) -> dict[str, Tensor]:
        """Return the wanted queries, keys and values (B, N, C) of tokens that leave the blocks."""
        ...

    def output(self, mixed: Tensor) -> Tensor:
        """Return the pool's output projection of mixed values (B, N, C)."""
        ...

    def finish(self, mixed: Tensor) -> Tensor:
        """Turn mixed values (B, N, C) into features (B, N, D)."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the images' own embeddings (B, D), as the network pools tokens (B, N, C)."""
        ...


class TimmPool:
    """timm's attention pool, with the norm before it and the heads after it.

    Args:
        pool: timm's `AttentionPoolLatent`, with one query.
        before: what tokens pass first.
        after: what makes an embedding of what the pool gives.
        left_out: how many of the first tokens the pool does not attend to.
    """

    queries = True

    def __init__(self, pool: Any, *, before: Step, after: Step, left_out: int = 0) -> None:
        self.pool, self.before, self.after, self.left_out = pool, before, after, left_out
        self.heads = int(pool.num_heads)

    def project(self, tokens: Tensor, wanted: Collection[str] = PARTS) -> dict[str, Tensor]:
        """See `Pool`."""
        pool, x = self.pool, self.before(tokens)
        weights = dict(zip(PARTS[1:], pool.kv.weight.chunk(2), strict=True))
        biases = dict.fromkeys(PARTS[1:])
        if pool.kv.bias is not None:
            biases = dict(zip(PARTS[1:], pool.kv.bias.chunk(2), strict=True))
        parts = {
            part: F.linear(x, weights[part], biases[part]) for part in weights if part in wanted
        }
        if "query" in wanted:
            parts["query"] = pool.q(x)
        for part, norm in (("query", pool.q_norm), ("key", pool.k_norm)):
            if part in parts and not isinstance(norm, nn.Identity):
                parts[part] = by_head(norm, parts[part], self.heads)
        return parts

    def output(self, mixed: Tensor) -> Tensor:
        """See `Pool`."""
        found: Tensor = self.pool.proj(mixed)
        return found

    def finish(self, mixed: Tensor) -> Tensor:
        """See `Pool`."""
        x = self.output(mixed)
        if self.pool.mlp is not None:
            x = x + self.pool.mlp(self.pool.norm(x))
        return self.after(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """See `Pool`."""
        parts = self.project(tokens[:, self.left_out :], {"key", "value"})
        query = self.pool.q(self.pool.latent)
        if not isinstance(self.pool.q_norm, nn.Identity):
            query = by_head(self.pool.q_norm, query, self.heads)
        return self.finish(_pooled(query, parts, self.heads))[:, 0]


class CoCaPool:
    """open_clip's attention pool, whose first query makes the image's embedding."""

    def __init__(self, visual: Any) -> None:
        self.visual, self.pool = visual, visual.attn_pool
        self.heads = int(self.pool.attn.num_heads)
        self.queries = self.pool.attn.in_proj_weight is not None  # of the width of the tokens

    def project(self, tokens: Tensor, wanted: Collection[str] = PARTS) -> dict[str, Tensor]:
        """See `Pool`."""
        x = self.pool.ln_k(tokens)
        return {part: self._projected(x, part) for part in PARTS if part in wanted}

    def _projected(self, x: Tensor, part: str) -> Tensor:
        attention = self.pool.attn
        if self.queries:
            return thirds(x, attention.in_proj_weight, attention.in_proj_bias, {part})[part]
        weight = getattr(attention, f"{part[0]}_proj_weight")
        bias = attention.in_proj_bias.chunk(3)[PARTS.index(part)]
        return F.linear(x, weight, bias)

    def output(self, mixed: Tensor) -> Tensor:
        """See `Pool`."""
        found: Tensor = self.pool.attn.out_proj(mixed)
        return found

    def finish(self, mixed: Tensor) -> Tensor:
        """See `Pool`."""
        found: Tensor = self.visual.ln_post(self.output(mixed)) @ self.visual.proj
        return found

    def embed(self, tokens: Tensor) -> Tensor:
        """See `Pool`."""
        parts = self.project(tokens, {"key", "value"})
        query = self._projected(self.pool.ln_q(self.pool.query[:1])[None], "query")
        return self.finish(_pooled(query, parts, self.heads))[:, 0]


def _pooled(query: Tensor, parts: dict[str, Tensor], heads: int) -> Tensor:
    """Return what a learnt query (1, 1, C) gets of keys and values (B, N, C): (B, 1, C)."""
    query = query.expand(len(parts["value"]), -1, -1)
    return mix({**parts, "query": query}, ORDINARY, heads=heads)
