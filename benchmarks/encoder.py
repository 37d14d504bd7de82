"""The image encoder on a CPU, way by way: `python benchmarks/encoder.py`.

Every trial runs in turn with what torch computes by itself, in one process with random weights; the
first way of a table is that. Times are of the processor, least and median; ratios are of the
least, which other work on the machine disturbs the least.

    parts     linear layers, attention and QuickGELU of one block, in the ways that were tried
    whole     the encoder in torch's own ways, with one of ours each, and with all
    batches   the encoder on 1 to 8 images at once, a single image's share
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import Rows, apart, in_turn, machine, peak_mib, show
from torch import Tensor

from maskclip.clip import acceleration, encoder
from maskclip.clip.acceleration import PLAIN, Ways
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.weights import load_clip
from maskclip.core.device import PRECISIONS
from maskclip.core.method import CLEAN

TABLES = ("parts", "whole", "batches")
TOKENS, CHANNELS, HEADS = 1377, 768, 12  # of ViT-B/16 at 512 x 683 px
Runs = Mapping[str, Callable[[], object]]


def linear_layers(dtype: torch.dtype) -> Runs:
    """An MLP's first layer."""
    x = torch.randn(1, TOKENS, CHANNELS).to(dtype)
    weight, bias = (torch.randn(*shape).to(dtype) for shape in ((3072, CHANNELS), (3072,)))
    image = x.transpose(1, 2)[..., None]  # channels_last
    kernel = weight[:, :, None, None].contiguous(memory_format=torch.channels_last)
    transposed = weight.T.contiguous()
    runs: dict[str, Callable[[], object]] = {
        "torch's": lambda: F.linear(x, weight, bias),
        "as a convolution of 1 x 1": lambda: F.conv2d(image, kernel, bias),
        "weights transposed": lambda: torch.addmm(bias, x[0], transposed),
    }
    if dtype == torch.float32:
        held = weight.to_mkldnn(), bias.to_mkldnn()
        runs["oneDNN, its weights kept"] = lambda: F.linear(x.to_mkldnn(), *held).to_dense()
        runs["oneDNN (taken)"] = lambda: acceleration.linear(x, weight, bias)
    return runs


def attentions(dtype: torch.dtype) -> Runs:
    """The attention of all heads, whose queries, keys and values are thirds of one projection."""
    joined = torch.randn(1, TOKENS, 3 * CHANNELS).to(dtype)
    q, k, v = (
        part.reshape(1, TOKENS, HEADS, -1).transpose(1, 2) for part in joined.chunk(3, dim=2)
    )

    def all_heads(rows: int) -> Tensor:
        query, keys = q[0] * q.shape[3] ** -0.5, k[0].mT
        bands = [
            (query[:, start : start + rows] @ keys).softmax(dim=2) @ v[0]
            for start in range(0, TOKENS, rows)
        ]
        return torch.cat(bands, dim=1)

    def in_rows(rows: int) -> Tensor:
        acceleration._ROWS = rows
        return acceleration.attention(q, k, v)

    return {
        "torch's": lambda: F.scaled_dot_product_attention(q, k, v),
        "all heads at once, 128 rows": lambda: all_heads(128),
        "a head at once, 64 rows": lambda: in_rows(64),
        "a head at once, all rows": lambda: in_rows(TOKENS),
        "a head at once, 256 rows (taken)": lambda: in_rows(256),
    }


def activations(dtype: torch.dtype) -> Runs:
    """What lies between an MLP's layers."""
    x = torch.randn(1, TOKENS, 4 * CHANNELS).to(dtype)
    own = x.clone()
    return {
        "QuickGELU": lambda: x * torch.sigmoid(1.702 * x),
        "SiLU": lambda: F.silu(x),
        "SiLU in place (taken in bfloat16)": lambda: F.silu(own, inplace=True),
    }


PARTS = {"linear": linear_layers, "attention": attentions, "activation": activations}


def prepared(model: str, dtype: torch.dtype, ways: Ways) -> DenseCLIP:
    """Return an encoder with random weights, which computes in the ways named."""
    built = DenseCLIP.of(load_clip(model, weights="random"), method=CLEAN)
    built.prepare(dtype, ways=ways)
    return built


def ways_of(dtype: torch.dtype) -> dict[str, Ways]:
    """Return each way alone, and together what is taken in a precision."""
    narrow = dtype == torch.bfloat16
    taken = Ways(linear=not narrow, attention=True, silu=narrow)
    single = {"attention": Ways(attention=True), "silu": Ways(silu=True)}
    if not narrow:
        single = {"linear": Ways(linear=True), **single}
    every = Ways(linear=not narrow, attention=True, silu=True)
    found = {"torch's own": PLAIN, **single, "taken": taken}
    return found if every == taken else {**found, "taken, and silu": every}


def encode(model: str, precision: str, ways: Ways, size: tuple[int, int]) -> Callable[[], object]:
    """Return what encodes one image of random pixels."""
    built = prepared(model, PRECISIONS[precision], ways)
    image = torch.rand(1, 3, *size)

    def run() -> Tensor:
        with torch.inference_mode():
            return built.encode(image).features

    return run


def peak(*which: Any) -> float:
    """Return the MiB that one run adds at its peak; to be called in a fresh process."""
    torch.set_num_threads(1)
    return peak_mib(encode(*which))


def lines(name: str, times: Mapping[str, list[float]], share: int = 1) -> Rows:
    """Write a line for each way: its least and median ms, and the ratio of the least."""
    first = min(next(iter(times.values())))
    return [
        [
            name,
            way,
            f"{1000 * min(found) / share:.1f}",
            f"{1000 * float(np.median(found)) / share:.1f}",
            f"{min(found) / first:.2f}",
        ]
        for way, found in times.items()
    ]


def parts(how: Namespace) -> Rows:
    """Measure one block's parts."""
    rows = [["part", "way", "least, ms", "median, ms", "of torch's"]]
    for precision in how.precisions:
        for part, make in PARTS.items():
            times = in_turn(make(PRECISIONS[precision]), how.repeats, clock=how.clock)
            rows += lines(f"{part}, {precision}", times)
    return rows


def whole(how: Namespace) -> Rows:
    """Measure the encoder, way by way, and what it takes of memory."""
    rows = [["encoder", "way", "least, ms", "median, ms", "of torch's own", "MiB"]]
    for model in how.models:
        for precision in how.precisions:
            named = ways_of(PRECISIONS[precision])
            if model.startswith("RN"):
                named = {way: named[way] for way in ("torch's own", "taken")}
            runs = {way: encode(model, precision, ways, how.size) for way, ways in named.items()}
            times = in_turn(runs, how.repeats, clock=how.clock)
            del runs
            memory = [apart(peak, model, precision, ways, how.size) for ways in named.values()]
            found = lines(f"{model}, {precision}", times)
            rows += [[*line, f"{mib:.0f}"] for line, mib in zip(found, memory, strict=True)]
    return rows


def batches(how: Namespace) -> Rows:
    """Measure a single image's share of a batch."""
    counts = (1, 2, 4, 8)
    rows = [["encoder", "side, px", *(f"{count} at once, ms" for count in counts)]]
    encoder._PIXELS_AT_ONCE = 10**9  # all at once
    for model in how.models:
        for precision in how.precisions:
            dtype = PRECISIONS[precision]
            built = prepared(model, dtype, ways_of(dtype)["taken"])
            for side in (224, 336, 512):
                runs = {str(n): partial(built.encode, torch.rand(n, 3, side, side)) for n in counts}
                times = in_turn(runs, how.repeats, clock=how.clock)
                shares = [f"{1000 * min(times[str(n)]) / n:.0f}" for n in counts]
                rows.append([f"{model}, {precision}", str(side), *shares])
    return rows


def read_options(arguments: Iterable[str] | None) -> Namespace:
    parser = ArgumentParser(description="Measure the image encoder on a CPU, way by way.")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--models", nargs="+", default=["ViT-B-16-quickgelu", "RN50-quickgelu"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--size", default="512x683", help="height x width")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", action="store_true")
    how = parser.parse_args(None if arguments is None else list(arguments))
    how.size = tuple(map(int, how.size.split("x")))
    return how


@torch.inference_mode()
def main(arguments: Iterable[str] | None = None) -> None:
    how = read_options(arguments)
    torch.set_num_threads(how.threads)
    torch.manual_seed(0)
    titles = {"parts": "Parts of a block", "whole": "Whole encoders", "batches": "Batches"}
    for table, measure in (("parts", parts), ("whole", whole), ("batches", batches)):
        if table in how.tables:
            show(titles[table], measure(how), markdown=how.markdown)
    print(machine())


if __name__ == "__main__":
    main()
