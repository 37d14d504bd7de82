"""What the benchmarks share: clocks, peak memory, fresh processes, tables."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from maskclip.core.files import write_json

Rows = list[list[str]]
"""A table: its head, then its lines."""

CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,  # of all threads of this process
    "children": lambda: sum(os.times()[2:4]),  # of the processes that it started and that ended
}


def seconds(run: Callable[[], object], *, clock: str = "wall") -> float:
    """Return how long a run takes by one of `CLOCKS`."""
    now = CLOCKS[clock]
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = now()
    run()
    wait()
    return now() - start


def in_turn(
    runs: Mapping[str, Callable[[], object]], repeats: int, *, clock: str = "wall"
) -> dict[str, list[float]]:
    """Time runs in turn (A B A B ...), after one unmeasured turn."""
    turns = [[seconds(run, clock=clock) for run in runs.values()] for _ in range(repeats + 1)]
    return dict(zip(runs, map(list, zip(*turns[1:], strict=True)), strict=True))


def peak_mib(run: Callable[[], object], device: str = "cpu") -> float:
    """Return the MiB that a run adds at its peak; on a CPU, to be called in a fresh process."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before = kib("self/status", "VmRSS")
    run()
    return (kib("self/status", "VmHWM") - before) / 1024


def kib(file: str, key: str) -> int:
    """Return a figure of a file of /proc."""
    lines = Path("/proc", file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what an earlier run left in a file, or make it and leave it there."""
    if not path.exists():
        write_json(make(), path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def spans(values: Sequence[float]) -> str:
    """Write a median and its quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def ratios(times: Mapping[str, Sequence[float]], one: str, other: str) -> str:
    """Write how many times as long one way takes as another, turn by turn."""
    return spans(np.divide(times[one], times[other]).tolist())


def show(title: str, rows: Rows, *, markdown: bool) -> None:
    """Print a table, or its markdown."""
    head, *body = rows
    if markdown:
        lines = ["| " + " | ".join(line) + " |" for line in rows]
        print(f"\n{title}\n", lines[0], "|" + "---|" * len(head), *lines[1:], sep="\n")
        return
    table = Table(*head, title=title)
    for line in body:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def machine() -> str:
    """Name what this runs on."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "an unknown processor",
    )
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    python = ".".join(map(str, sys.version_info[:3]))
    threads = torch.get_num_threads()
    return f"{threads} threads of {cpu}{gpu}; torch {torch.__version__}, Python {python}"
