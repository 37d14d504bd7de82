"""Encoders prepared for CPUs: linear layers and attention in the way that is faster there.

What torch computes by default is not the fastest everywhere: its products in float32 are MKL's,
which take twice oneDNN's time on processors of other makers than Intel, and its fused attention
makes little use of instructions for bfloat16. Whichever way this machine computes faster is
measured (`core.probe`); all ways are public functions of torch. They are put in place of torch's
own while an encoder runs (`torch.overrides`), so blocks of every library are computed by them.
B images, A heads, N tokens, c channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from maskclip.core.device import BFLOAT16, PRECISIONS
from maskclip.core.probe import Probe, Run

_ROWS = 256
"""Rows of an attention map that are computed at once: they and their softmax stay in caches."""
_LEAST_TOKENS = {torch.float32: 512, torch.bfloat16: 128}
"""Below, torch's own attention is as fast (benchmarks/encoder.py)."""
_LEAST_ROWS = 32
"""Rows for which weights are not worth handing to oneDNN."""


class Ways(NamedTuple):
    """How an encoder computes.

    Attributes:
        linear: linear layers in float32 by oneDNN, not by MKL.
        attention: attention by products in rows, not by torch's fused function.
        silu: QuickGELU as a SiLU, its factor in the weights around it.
    """

    linear: bool = False
    attention: bool = False
    silu: bool = False


PLAIN = Ways()
"""All as torch computes it."""


class Accelerated(TorchFunctionMode):
    """While it is entered, torch's functions compute in an encoder's ways."""

    def __init__(self, ways: Ways) -> None:
        super().__init__()
        self._instead: dict[Any, Callable[..., Tensor]] = {}
        if ways.linear:
            self._instead[F.linear] = linear
        if ways.attention:
            self._instead[F.scaled_dot_product_attention] = attention

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call what stands for a function of torch; called by torch."""
        computed: Callable[..., Any] = self._instead.get(func, func)
        return computed(*args, **(kwargs or {}))


def best_ways(dtype: torch.dtype) -> Ways:
    """Return the ways in which this machine's CPU computes fastest in a precision."""
    attends = ATTENTION.get(dtype)
    return Ways(
        linear=dtype == torch.float32 and LINEAR.pays(),
        attention=attends is not None and attends.pays(),
        silu=dtype == torch.bfloat16,
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `F.linear`, float32 on CPUs by oneDNN: the same but for the order of sums."""
    rows = x.numel() // max(1, x.shape[-1])
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.is_mkldnn or rows < _LEAST_ROWS:
        return F.linear(x, weight, bias)
    # Weights are handed over at each call: kept in both forms they would take twice the memory.
    return _by_onednn(x, weight.to_mkldnn(), None if bias is None else bias.to_mkldnn())


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    **more: Any,
) -> Tensor:
    """Return `F.scaled_dot_product_attention`, by products in rows of a head's map.

    With a mask or the like, and where there are few tokens, it is torch's own.
    """
    least = _LEAST_TOKENS.get(query.dtype)
    special = attn_mask is not None or dropout_p or is_causal or any(more.values())
    other = special or query.ndim != 4 or query.device.type != "cpu"
    if least is None or other or min(query.shape[2], key.shape[2]) < least:
        own: Tensor = F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more
        )
        return own
    query = query * (query.shape[3] ** -0.5 if scale is None else scale)
    # laid out so that joining the heads moves nothing
    size = (query.shape[0], query.shape[2], query.shape[1], value.shape[3])
    out = query.new_empty(size).transpose(1, 2)
    for image in range(query.shape[0]):
        for head in range(query.shape[1]):
            _attend(query[image, head], key[image, head], value[image, head], out[image, head])
    return out


def _attend(query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
    """Write softmax(q k^T) v of one head, (N, c) each, into `out`."""
    product: Callable[[Tensor, Tensor], Tensor] = F.linear
    first, second = key, value.T
    if query.dtype == torch.float32:
        first, second = (x.contiguous().to_mkldnn() for x in (first, second))
        product = _by_onednn
    for start in range(0, len(query), _ROWS):
        band = slice(start, start + _ROWS)
        out[band] = product(product(query[band], first).softmax(dim=1), second)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x.to_mkldnn(), weight, bias).to_dense()


def fold_quick_gelu(module: nn.Module) -> None:
    """Turn every QuickGELU between two linear layers into a SiLU, in place; for inference alone.

    x sigmoid(1.702 x) is silu(1.702 x) / 1.702: the layer before it takes the factor, the one after
    it the inverse. The module's weights are replaced, not changed.
    """
    for parent in list(module.modules()):
        children = list(parent.named_children())
        # what changes nothing in inference may lie between
        children = [(n, c) for n, c in children if not isinstance(c, nn.Identity | nn.Dropout)]
        for (_, before), (name, act), (_, after) in zip(
            children, children[1:], children[2:], strict=False
        ):
            if not (isinstance(before, nn.Linear) and isinstance(after, nn.Linear)):
                continue
            if type(act).__name__ == "QuickGELU":
                _scale(before, 1.702, bias=True)
                _scale(after, 1 / 1.702, bias=False)
                setattr(parent, name, nn.SiLU(inplace=True))


def _scale(layer: nn.Linear, factor: float, *, bias: bool) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() * factor, layer.weight.requires_grad)
    if bias and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach() * factor, layer.bias.requires_grad)


def _layers() -> tuple[Run, Run]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(side, 768, generator=generator) for side in (256, 768))
    return lambda: F.linear(x, weight), lambda: linear(x, weight)


def _attentions(dtype: torch.dtype) -> Callable[[], tuple[Run, Run]]:
    def runs() -> tuple[Run, Run]:
        generator = torch.Generator().manual_seed(0)
        heads = min(12, torch.get_num_threads() ** 2)  # enough work for all threads
        q, k, v = torch.randn(3, 1, heads, 1536, 64, generator=generator).to(dtype)
        return lambda: F.scaled_dot_product_attention(q, k, v), lambda: attention(q, k, v)

    return runs


LINEAR = Probe("linear", "linear layers in float32 by oneDNN, not by MKL", most=0.9, runs=_layers)
ATTENTION = {
    dtype: Probe(
        f"attention-{name}",
        f"attention in {name} by products in rows, not by torch's function",
        most=0.9,
        runs=_attentions(dtype),
    )
    for name, dtype in PRECISIONS.items()
    if dtype in _LEAST_TOKENS
}
PROBES = (BFLOAT16, LINEAR, *ATTENTION.values())
"""All choices that hang on the machine; `maskclip doctor --benchmark` measures them."""
