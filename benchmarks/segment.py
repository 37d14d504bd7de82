"""Segmenting beside the bare encoder and the usual pipeline: `python benchmarks/segment.py`.

The ways of `three_ways.py` run in turn in one process (A B C A B C ...); so do the students of
`students.py` and their teachers, for a second table. Memory is what one run adds to a fresh process
at its peak. Every cell is kept in a file of its own below `--out`, so a stopped run goes on where
it was. On a shared machine `--clock cpu --threads 1` is steadier.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import students
import torch
from measuring import Rows, apart, in_turn, kib, machine, peak_mib, ratios, show, spans
from three_ways import REFINEMENTS, WAYS, Cell, Contest, dtype_of

from maskclip.core.files import write_json
from maskclip.tasks.evaluation.charts import line_chart

LISTS: dict[str, list[Any]] = {
    "models": ["ViT-B-16", "RN50"],
    "sizes": ["512x683", "1024x2048"],  # height x width
    "classes": [20, 59, 171],
    "batches": [1, 8],
    "precisions": ["float32", "bfloat16", "auto"],
    "refinements": list(REFINEMENTS),
    "methods": ["clean"],
    "students": ["deeplabv2-r101", "unet:mobilenetv4_conv_small"],
}
TABLES = ("ways", "students")
GROWTH = ((512, 512), (512, 1024), (1024, 1024), (1024, 2048))
GROWTH_CLASSES = (20, 59, 171, 400, 1000)
HEAD = "cell|bare, s|ours / bare|usual / ours|MiB: bare|ours|usual|can win in a cell"


def too_large(cell: Cell) -> str | None:
    """Say why the usual way would not fit: maps and their softmax, or attention, held twice."""
    pixels, size = cell.size[0] * cell.size[1], dtype_of(cell.precision).itemsize
    attention = 12 * (pixels // 256) ** 2 * size if cell.model.startswith("ViT") else 0
    needed = 2 * cell.batch * max(4 * cell.classes * pixels, attention) / 2**30
    on_cpu = cell.device == "cpu"
    free = (
        kib("meminfo", "MemAvailable") / 2**20 if on_cpu else torch.cuda.mem_get_info()[0] / 2**30
    )
    return f"needs {needed:.0f} GiB, {free:.0f} are free" if needed > 0.8 * free else None


def peak(way: str, cell: Cell) -> float:
    """Return the MiB that one run adds at its peak; to be called in a fresh process."""
    return peak_mib(getattr(Contest(cell), way), cell.device)


def measure(cell: Cell, how: Namespace, *, usual: bool = True) -> dict[str, Any]:
    """Measure a cell, or take what an earlier run left."""
    path = how.out / f"{cell}.json".replace(" ", "_").replace(":", "")
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("clock") == how.clock and (not usual or kept["usual"]):
        return kept
    skipped = too_large(cell) if usual else None
    contest = Contest(cell)
    ways = [way for way in WAYS if way != "usual" or (usual and not skipped)]
    runs = {way: getattr(contest, way) for way in ways}
    found = {
        **asdict(cell),
        "clock": how.clock,
        "machine": machine(),
        "usual": usual,
        "skipped": skipped,
        "seconds": in_turn(runs, how.repeats, clock=how.clock),
        "candidates": contest.candidates(),
    }
    del contest, runs  # the fresh processes need the memory
    if usual:
        found["peak_mib"] = {way: apart(peak, way, cell) for way in ways}
    write_json(found, path)
    return found


def row(cell: Cell, found: dict[str, Any]) -> list[str]:
    """Write a line of the table."""
    times, peaks = found["seconds"], found["peak_mib"]
    return [
        str(cell),
        spans(times["bare"]),
        ratios(times, "ours", "bare"),
        ratios(times, "usual", "ours") if "usual" in times else found["skipped"],
        *(f"{peaks[way]:.0f}" if way in peaks else "-" for way in ("bare", "ours", "usual")),
        "{:.1f}; {:.0f}".format(*found["candidates"]),
    ]


def combine(how: Namespace, refinements: Iterable[str]) -> list[Cell]:
    """Return every combination that is chosen."""
    sizes = [tuple(map(int, size.split("x"))) for size in how.sizes]
    parts = (how.models, sizes, how.classes, how.batches, how.precisions, refinements)
    devices = ([how.device], how.methods)
    return [Cell(*part) for part in product(*parts, *devices)]


def table(cells: Sequence[Cell], how: Namespace) -> Rows:
    """Measure the three ways."""
    rows = [HEAD.split("|")]
    for index, cell in enumerate(cells):
        print(f"{index + 1} of {len(cells)}: {cell}", file=sys.stderr)
        rows.append(row(cell, measure(cell, how)))
    return rows


def draw_growth(how: Namespace) -> None:
    """Draw time against pixels, and against classes, into two pictures named after `--plot`."""
    pixels: dict[str, Any] = {}
    classes: dict[str, Any] = {}
    for model, way in product(how.models, ("bare", "ours")):
        cell = Cell(model, GROWTH[0], 171, 1, "float32", "off", how.device)

        def point(cell: Cell, x: float, way: str = way) -> tuple[float, float]:
            return x, float(np.median(measure(cell, how, usual=False)["seconds"][way]))

        line = f"{model}, {way}"
        pixels[line] = [point(replace(cell, size=s), s[0] * s[1] / 1e6) for s in GROWTH]
        classes[line] = [point(replace(cell, classes=count), count) for count in GROWTH_CLASSES]
    for lines, name, title in (
        (pixels, "megapixels", "One image, 171 classes"),
        (classes, "classes", "One image of 512x512 pixels"),
    ):
        path = how.plot.with_stem(f"{how.plot.stem}-{name}")
        line_chart(lines, path, title=title, x_label=name, y_label="seconds")


def read_options(arguments: Iterable[str] | None) -> Namespace:
    parser = ArgumentParser(description="Measure segmenting: speed and memory.")
    for name, values in LISTS.items():
        parser.add_argument(f"--{name}", nargs="+", type=type(values[0]), default=values)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw growth")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/segment"), help="cells are kept")
    return parser.parse_args(None if arguments is None else list(arguments))


def main(arguments: Iterable[str] | None = None) -> None:
    how = read_options(arguments)
    os.environ["OMP_NUM_THREADS"] = str(how.threads)  # for the fresh processes
    torch.set_num_threads(how.threads)
    if "ways" in how.tables:
        rows = table(combine(how, how.refinements), how)
        show("Three ways", rows, markdown=how.markdown)
    if "students" in how.tables:
        rows = students.table(combine(how, ["off"]), how)
        show("Students beside their teachers", rows, markdown=how.markdown)
    if how.plot:
        draw_growth(how)
    print(machine())


if __name__ == "__main__":
    main()
