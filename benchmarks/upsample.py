"""Memory and time of labels from grid maps: only what can win against K full-size maps.

    .venv/bin/python benchmarks/upsample.py

For time both ways run in turn in one process (A B A B ...), and the median ratio is given. Peak
memory is what a run adds to a fresh process's resident memory at its highest (Linux: VmHWM).
"""

from __future__ import annotations

import statistics
import time
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from maskclip.core import resize

RUNS = 5
CASES = [
    (kind, classes, grid, size)
    for kind in ("smooth", "noise")
    for grid, size in (((32, 43), (512, 683)), ((64, 128), (1024, 2048)))
    for classes in (20, 59, 171)
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
    WAYS[way](maps, (8, 8))  # the libraries' own buffers are not the run's
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    WAYS[way](maps, size)
    return (_status("VmHWM") - before) / 1024


def seconds(way: str, maps: Tensor, size: tuple[int, int]) -> float:
    """Return how long one run takes."""
    start = time.perf_counter()
    WAYS[way](maps, size)
    return time.perf_counter() - start


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def main() -> None:
    """Print the table."""
    table = Table("maps", "classes", "image", "full maps MiB", "pruned MiB", "time ratio")
    spawn = get_context("spawn")
    for kind, classes, grid, size in CASES:
        maps = random_maps(kind, classes, grid)
        assert (full_maps(maps, size) == pruned(maps, size)).float().mean() > 0.9999
        runs = [{way: seconds(way, maps, size) for way in WAYS} for _ in range(RUNS)]
        ratio = statistics.median(run["pruned"] / run["full maps"] for run in runs)
        peaks = {}
        for way in WAYS:
            with spawn.Pool(1) as pool:
                peaks[way] = pool.apply(peak, (way, kind, classes, grid, size))
        table.add_row(
            kind,
            str(classes),
            f"{size[1]}x{size[0]}",
            f"{peaks['full maps']:.0f}",
            f"{peaks['pruned']:.0f}",
            f"{ratio:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
