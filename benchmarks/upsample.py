"""Memory and time of labels from grid maps: only what can win against K full-size maps.

    .venv/bin/python benchmarks/upsample.py

Both ways run in turn in one process (A B A B ...). Peak memory is what a run adds to a fresh
process's resident memory at its highest (Linux: VmHWM).
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from measuring import apart, in_turn, machine, peak_mib, ratios, show
from torch import Tensor

from maskclip.core import resize

REPEATS = 5
CASES = [
    (kind, classes, grid, size)
    for kind in ("smooth", "noise")
    for grid, size in (((32, 43), (512, 683)), ((64, 128), (1024, 2048)))
    for classes in (20, 59, 171, 1000)
]


def full_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge all K maps, then take the best."""
    return F.interpolate(maps[None], size, mode="bilinear")[0].argmax(0)


def pruned(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """What maskclip does."""
    whole = (range(size[0]), range(size[1]))
    return resize.label(maps[None], resize.Geometry([whole], size, size, size, resizes=1))[0]


WAYS = {"full maps": full_maps, "pruned": pruned}


def random_maps(kind: str, classes: int, grid: tuple[int, int]) -> Tensor:
    """Return the maps of a case, the same in every process.

    `smooth` is like an encoder's: probabilities whose features are four positions large. `noise`
    is the worst case: nearly every class may win in nearly every cell.
    """
    seeded = torch.Generator().manual_seed(0)
    if kind == "noise":
        return torch.rand(classes, *grid, generator=seeded)
    coarse = torch.randn(1, classes, grid[0] // 4, grid[1] // 4, generator=seeded)
    return (4 * F.interpolate(coarse, grid, mode="bicubic")[0]).softmax(dim=0)


def peak(way: str, kind: str, classes: int, grid: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the MiB that one run adds at its peak; to be called in a fresh process."""
    maps = random_maps(kind, classes, grid)
    WAYS[way](maps, (2 * grid[0], 2 * grid[1]))  # the libraries' own buffers are not the run's
    return peak_mib(partial(WAYS[way], maps, size))


def main(arguments: Iterable[str] | None = None) -> None:
    parser = ArgumentParser(description="Measure labels from grid maps: speed and memory.")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(None if arguments is None else list(arguments))
    rows = [["maps", "classes", "image", "full maps, MiB", "pruned, MiB", "time, pruned / full"]]
    for kind, classes, grid, size in CASES:
        maps = random_maps(kind, classes, grid)
        assert (full_maps(maps, size) == pruned(maps, size)).float().mean() > 0.9999
        times = in_turn({name: partial(way, maps, size) for name, way in WAYS.items()}, REPEATS)
        peaks = [f"{apart(peak, way, kind, classes, grid, size):.0f}" for way in WAYS]
        ratio = ratios(times, "pruned", "full maps")
        rows.append([kind, str(classes), f"{size[1]}x{size[0]}", *peaks, ratio])
    show("Labels from grid maps", rows, markdown=options.markdown)
    print(machine())


if __name__ == "__main__":
    main()
