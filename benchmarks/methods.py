"""What each method costs beside `clean`: `python benchmarks/methods.py`.

Every method encodes the same images by a randomly initialised model of full size, in turn in one
process (A B C A B C ...), at one precision; one that reads twice does so for 21 classes. Memory is
what one run adds to a fresh process at its peak.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable

import torch
from measuring import apart, in_turn, machine, peak_mib, ratios, show, spans

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.model import CLIPModel
from maskclip.clip.proxy import load_proxy
from maskclip.clip.weights import load_clip
from maskclip.core import refinement
from maskclip.core.dense import Dense, Scoring, read_again
from maskclip.core.method import CLEAN
from maskclip.core.methods import METHODS, with_proxy

PROXY = "proxy"
"""What `clean` becomes beside a proxy."""


def encoder(clip: CLIPModel, name: str, how: Namespace) -> DenseCLIP:
    """Return what a method encodes with, as `segment` prepares it."""
    proxy = load_proxy(f"{how.proxy}:random") if name == PROXY else None
    method = CLEAN if proxy is None else with_proxy(CLEAN, how.proxy)
    built = DenseCLIP.of(clip, method=METHODS.get(name, method), proxy=proxy).to(how.device)
    built.prepare(getattr(torch, how.precision))
    return built


def words(dense: Dense, encoder: DenseCLIP) -> Scoring:
    """Return 21 classes, each at home in another patch: words of random rows are all nowhere."""
    found = dense.features[0].flatten(1).float()
    found = found - found.mean(dim=1, keepdim=True)
    rows = torch.nn.functional.normalize(found[:, :: found.shape[1] // 21][:, :21].T, dim=1)
    classes = tuple(range(len(rows)))
    return Scoring(rows=rows, classes=classes, method=encoder.method, temperature=100.0)


def run(encoder: DenseCLIP, batch: torch.Tensor) -> Dense:
    """Read images as a method does, twice where it has a feedback."""
    dense = encoder.encode(batch)
    return read_again(dense, words(dense, encoder))


def images(how: Namespace) -> torch.Tensor:
    """Return the images, the same in every process."""
    seeded = torch.Generator().manual_seed(0)
    return torch.rand(how.batch, 3, *how.size, generator=seeded).to(how.device)


@torch.inference_mode()
def peak(name: str, how: Namespace) -> float:
    """Return the MiB that one run adds at its peak; to be called in a fresh process."""
    torch.set_num_threads(how.threads)
    built, batch = encoder(load_clip(how.model, weights="random"), name, how), images(how)
    return peak_mib(lambda: run(built, batch), how.device)


@torch.inference_mode()
def methods(how: Namespace) -> list[list[str]]:
    """Return the table of the methods."""
    clip, batch = load_clip(how.model, weights="random"), images(how)
    built = {name: encoder(clip, name, how) for name in how.methods}
    runs = {name: (lambda one=one: run(one, batch)) for name, one in built.items()}
    times = in_turn(runs, how.repeats, clock=how.clock)
    rows = [["method", "seconds", "beside clean", "peak, MiB"]]
    for name in how.methods:
        memory = f"{apart(peak, name, how):.0f}" if how.memory else "-"
        rows.append([name, spans(times[name]), ratios(times, name, "clean"), memory])
    return rows


@torch.inference_mode()
def refinements(how: Namespace) -> list[list[str]]:
    """Return the table of the refinements, of 21 classes, beside the encoder."""
    clip, batch = load_clip(how.model, weights="random"), images(how)[:1]
    clean = encoder(clip, "clean", how)
    grid = tuple(-(-side // clean.cell) for side in how.size)
    seeded = torch.Generator().manual_seed(1)
    maps = torch.rand(1, 21, *grid, generator=seeded).to(how.device)
    rows = torch.nn.functional.normalize(torch.rand(21, 512, generator=seeded), dim=1)
    own = refinement.own_weights(rows.to(how.device))
    large = torch.nn.functional.interpolate(maps, how.size, mode="bilinear")
    runs = {
        "clean": lambda: clean.encode(batch),
        "pamr": lambda: refinement.pamr(maps, batch),
        "tlp": lambda: refinement.propagate(large, batch, own),
    }
    times = in_turn(runs, how.repeats, clock=how.clock)
    lines = [[name, spans(times[name]), ratios(times, name, "clean")] for name in runs]
    return [["refinement", "seconds", "beside encoding (clean)"], *lines]


def main(arguments: Iterable[str] | None = None) -> None:
    parser = ArgumentParser(description="Measure the methods beside clean.")
    parser.add_argument("--model", default="ViT-B-16")
    known = [*METHODS, PROXY]
    parser.add_argument("--methods", nargs="+", choices=known, default=known)
    parser.add_argument("--proxy", default="vit_small_patch14_dinov2")
    parser.add_argument("--size", nargs=2, type=int, default=(512, 683), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--markdown", action="store_true")
    how = parser.parse_args(None if arguments is None else list(arguments))
    how.size = tuple(how.size)
    torch.set_num_threads(how.threads)
    title = f"{how.model}, {how.batch} x {how.size[0]} x {how.size[1]}, {how.precision}"
    show(f"Methods: {title}", methods(how), markdown=how.markdown)
    show(f"Refinements: {title}", refinements(how), markdown=how.markdown)
    print(machine())


if __name__ == "__main__":
    main()
