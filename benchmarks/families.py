"""What each family of image towers is, and costs: `python benchmarks/families.py`.

An architecture of every family that `maskclip.clip.readings` names is built at full size with
random weights, in a process of its own, and encodes one photo by the clean method. Then each
method reads a smaller one, so that the list of methods is one of what ran. Towers larger than
`--most` parameters are only described.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable

import torch
from measuring import apart, in_turn, machine, peak_mib, show, spans

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.model import OPENAI_MEAN, OPENAI_STD
from maskclip.clip.open_clip_models import build_named
from maskclip.clip.readings import EXAMPLES, reading_of
from maskclip.core.method import CLEAN
from maskclip.core.methods import METHODS

_SMALL = 224  # px of the photo that each method reads


def photo(*size: int) -> torch.Tensor:
    """Return a photo of noise, the same in every process."""
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def measure(architecture: str, how: Namespace) -> tuple[list[float], float, list[str]]:
    """Return seconds and peak MiB of the clean method, and the methods that ran.

    To be called in a fresh process.
    """
    torch.set_num_threads(how.threads)
    torch.manual_seed(0)
    visual = build_named(architecture, quick_gelu=False).eval()

    def encoder(name: str) -> DenseCLIP:
        built = DenseCLIP(visual, method=METHODS[name], mean=OPENAI_MEAN, std=OPENAI_STD)
        built.prepare(torch.float32)
        return built

    clean, large, small = encoder(CLEAN.name), photo(*how.size), photo(_SMALL, _SMALL)
    clean.encode(small)
    peak = peak_mib(lambda: clean.encode(large))
    runs = {"clean": lambda: clean.encode(large)}
    times = in_turn(runs, how.repeats, clock=how.clock)["clean"] if how.repeats else []
    ran = []
    for name in reading_of(architecture).methods():
        found = encoder(name).encode(small).features
        if bool(found.isfinite().all()):
            ran.append(name)
    return times, peak, ran


def described(names: Iterable[str]) -> str:
    """Name methods shortly: all, or all but a few."""
    names = set(names)
    missing = [name for name in METHODS if name not in names]
    if not missing:
        return f"all {len(METHODS)}"
    if len(missing) < len(names):
        return f"all but {', '.join(missing)}"
    return ", ".join(name for name in METHODS if name in names)


def families(how: Namespace) -> list[list[str]]:
    """Return the table of the families."""
    rows = [["family", "architecture", "parameters", "grid", "methods", "seconds", "MiB"]]
    for family, architecture in EXAMPLES.items():
        if how.only and architecture not in how.only:
            continue
        reading = reading_of(architecture)
        grid = "x".join(str(-(-side // reading.cell)) for side in how.size)
        line = [family, architecture, f"{reading.parameters / 1e6:,.0f} M", grid]
        if reading.parameters > how.most * 1e6:
            rows.append([*line, f"{described(reading.methods())} (not run)", "-", "-"])
            continue
        times, peak, ran = apart(measure, architecture, how)
        rows.append([*line, described(ran), spans(times) if times else "-", f"{peak:.0f}"])
        print(*rows[-1], sep=" | ", flush=True)
    return rows


def main(arguments: Iterable[str] | None = None) -> None:
    parser = ArgumentParser(description="Measure the families of image towers.")
    parser.add_argument("--only", nargs="+", choices=EXAMPLES.values(), default=())
    parser.add_argument("--size", nargs=2, type=int, default=(512, 683), metavar=("H", "W"))
    parser.add_argument("--most", type=float, default=1000, help="million parameters that are run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--markdown", action="store_true")
    how = parser.parse_args(None if arguments is None else list(arguments))
    how.size = tuple(how.size)
    title = f"Families: one photo of {how.size[0]} x {how.size[1]} px, random weights, float32"
    show(title, families(how), markdown=how.markdown)
    print(machine())


if __name__ == "__main__":
    main()
