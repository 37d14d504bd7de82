"""Segmenting beside the bare encoder and the usual pipeline: `python benchmarks/segment.py`.

Three ways run in turn in one process (A B C A B C ...), with random weights:

    bare   the limit: open_clip's own `encode_image`, from a ready, normalised tensor. Its position
           table is resized beforehand, and its attention runs through SDPA: torch's inference path
           for MultiheadAttention, which is slower here, is switched off.
    usual  the field's pipeline, from a decoded photo to labels: attention that returns its weights,
           the last block's queries, keys and values through the output projection, an MLP on the
           value path and the ordinary output beside it; K maps enlarged, softmax, argmax.
    ours   `Segmenter.segment`, from a decoded photo of the network's size to labels. Text rows are
           kept, as after the first image.

All see photos padded to whole cells. Memory is what one run adds to a fresh process at its peak.
Cells are kept in files below `--out`, so a stopped run goes on where it was. On a shared machine
`--clock cpu --threads 1` is steadier; but one thread keeps torch from oneDNN's 1x1 and 3x3
convolutions, so ResNets want two (and `OMP_WAIT_POLICY=passive`, or waiting counts as work).
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.prompts import text_rows
from maskclip.clip.weights import load_clip
from maskclip.core import refine
from maskclip.core.charts import line_chart
from maskclip.core.device import PRECISIONS
from maskclip.core.files import write_json
from maskclip.core.method import CLEAN
from maskclip.core.vocabulary import Vocabulary
from maskclip.core.windows import pad_bottom_right
from maskclip.tasks.segment import Segmenter

REFINEMENTS: dict[str, Any] = {"off": {}, "KS+PD": {"key_smoothing": 1, "prompt_denoising": 0.5}}
LISTS: dict[str, list[Any]] = {
    "models": ["ViT-B-16", "RN50"],
    "sizes": ["512x683", "1024x2048"],  # height x width
    "classes": [20, 59, 171],
    "batches": [1, 8],
    "precisions": ["float32", "bfloat16"],
    "refinements": list(REFINEMENTS),
    "only": ["cells", "text", "start"],
}
BLOBS = 4  # patches of colour along a picture's short side
DIRECTIONS = 8  # in which random features are spread
GROWTH = ((512, 512), (512, 1024), (1024, 1024), (1024, 2048))
GROWTH_CLASSES = (20, 59, 171, 400, 1000)
TEXTS = {"emoji": None, "ViT-B-16": "random"}  # models, and weights
HEAD = "cell|bare, s|ours / bare|usual / ours|MiB: bare|ours|usual|can win in a cell"

WAYS = ("bare", "usual", "ours")

Rows = list[list[str]]


@dataclass(frozen=True)
class Cell:
    """One line of the table."""

    model: str
    size: tuple[int, int]
    classes: int
    batch: int
    precision: str
    refinement: str
    device: str

    def __str__(self) -> str:
        size, count = f"{self.size[0]}x{self.size[1]}", f"K{self.classes} B{self.batch}"
        return f"{self.model} {size} {count} {self.precision} {self.refinement} {self.device}"


def smooth_photo(size: tuple[int, int], seed: int) -> Image.Image:
    """Draw soft patches of colour: a random picture whose dense features are smooth."""
    seeded, factor = torch.Generator().manual_seed(seed), BLOBS / min(size)
    coarse = torch.randn(1, 3, *(round(side * factor) for side in size), generator=seeded)
    pixels = 128 + 70 * F.interpolate(coarse, size, mode="bicubic")[0]
    return Image.fromarray(pixels.clamp(0, 255).byte().permute(1, 2, 0).numpy())


def pixels_of(photos: Sequence[Image.Image]) -> Tensor:
    """Return photos of one size as (B, 3, H, W) uint8."""
    return torch.stack([torch.from_numpy(np.array(photo)).permute(2, 0, 1) for photo in photos])


@torch.no_grad()
def spread(encoder: DenseCLIP) -> None:
    """Let random weights tell regions apart as trained ones do, by their last linear maps alone.

    A random tower gives all positions nearly one feature, and one class would win everywhere:
    features (and a ResNet's keys) are centred, their strongest directions made equally strong.
    """
    visual: Any = encoder.visual
    dense = encoder.encode(pixels_of([smooth_photo((192, 288), seed=9)]), keys=True)
    if hasattr(visual, "attnpool"):
        pool = visual.attnpool
        for linear, maps in ((pool.c_proj, dense.features), (pool.k_proj, dense.keys)):
            mean, change = whitening(maps)
            linear.bias.copy_((linear.bias - mean) @ change)
            linear.weight.copy_(change.T @ linear.weight)
    else:
        mean, change = whitening(dense.features)
        visual.ln_post.bias.sub_(torch.linalg.lstsq(visual.proj.T, mean[:, None]).solution[:, 0])
        visual.proj.copy_(visual.proj @ change)


def whitening(maps: Any) -> tuple[Tensor, Tensor]:
    """Return the mean (D) of a map, and what (D, D) makes its strongest directions alike."""
    positions = maps[0].flatten(1).T
    mean = positions.mean(dim=0)
    _, strength, directions = torch.linalg.svd(positions - mean, full_matrices=False)
    scale = len(positions) ** 0.5 / strength[:DIRECTIONS]
    return mean, (directions[:DIRECTIONS].T * scale) @ directions[:DIRECTIONS]


class Contest:
    """The three ways on one cell's photos and classes."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.device, dtype = cell, torch.device(cell.device), PRECISIONS[cell.precision]
        self.clip = load_clip(cell.model, weights="random")
        spread(DenseCLIP(self.clip.model.visual, mean=self.clip.mean, std=self.clip.std))
        self.visual: Any = copy.deepcopy(self.clip.model.visual).to(self.device, dtype)
        self.segmenter = Segmenter(
            self.clip,
            method=CLEAN,
            device=self.device,
            precision=cell.precision,
            templates="plain",
        )
        self.photos = [smooth_photo(cell.size, seed) for seed in range(cell.batch)]
        self.vocabulary = Vocabulary.parse([f"class {index}" for index in range(cell.classes)])
        seeded = torch.Generator().manual_seed(1)
        rows = torch.randn(cell.classes, self.visual.output_dim, generator=seeded)
        self.rows = F.normalize(rows, dim=1).to(self.device)
        self.segmenter._rows[self.vocabulary] = self.rows
        self.options = REFINEMENTS[cell.refinement]
        self.ready = self.normalised()
        fit_positions(self.visual, [s // self.segmenter.encoder.cell for s in self.ready.shape[2:]])

    def normalised(self) -> Tensor:
        """Return the photos as the encoder takes them, padded to whole cells."""
        side, pixels = self.segmenter.encoder.cell, pixels_of(self.photos).to(self.device)
        mean, std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (self.clip.mean, self.clip.std)
        )
        height, width = (-(-length // side) * side for length in self.cell.size)
        padded = pad_bottom_right((pixels.float() / 255 - mean) / std, (height, width))
        return padded.to(PRECISIONS[self.cell.precision])

    @torch.inference_mode()
    def bare(self) -> Any:
        torch.backends.mha.set_fastpath_enabled(False)
        return self.visual(self.ready)

    @torch.inference_mode()
    def usual(self) -> Any:
        torch.backends.mha.set_fastpath_enabled(True)
        read = usual_resnet if hasattr(self.visual, "attnpool") else usual_vit
        features, keys = read(self.visual, self.normalised())
        maps = F.conv2d(F.normalize(features.float(), dim=1), self.rows[:, :, None, None])
        if self.options:
            maps = usual_refinement(maps, keys.float())
        maps = F.interpolate(maps, self.cell.size, mode="bilinear")
        return maps.softmax(dim=1).argmax(dim=1).cpu().numpy()

    def ours(self) -> Any:
        torch.backends.mha.set_fastpath_enabled(True)
        return self.segmenter.segment(self.photos, self.vocabulary, short_side=0, **self.options)

    @torch.inference_mode()
    def candidates(self) -> tuple[float, float]:
        """Return how many classes can win in a grid cell: the mean, and a row's most (its mean)."""
        pixels = pixels_of(self.photos[:1]).to(self.device)
        dense = self.segmenter.encoder.encode(pixels, keys=bool(self.options))
        maps = refine.similarity(dense.features, self.rows)
        maps = refine.refine(maps, dense.keys, method=CLEAN, **self.options)
        best, worst = F.max_pool2d(maps, 2, stride=1)[0], -F.max_pool2d(-maps, 2, stride=1)[0]
        count = (best >= worst.amax(dim=0)).sum(dim=0).float()
        return float(count.mean()), float(count.amax(dim=1).mean())


def fit_positions(visual: Any, grid: Sequence[int]) -> None:
    """Resize a tower's position table for a grid (h, w), in place."""
    holder = getattr(visual, "attnpool", visual)
    table = holder.positional_embedding.detach()
    native = round((len(table) - 1) ** 0.5)
    maps = table[1:].float().T.reshape(1, -1, native, native)
    maps = F.interpolate(maps, list(grid), mode="bicubic")[0].flatten(1).T
    holder.positional_embedding = nn.Parameter(torch.cat([table[:1], maps.to(table.dtype)]))


def usual_vit(visual: Any, images: Tensor) -> list[Tensor]:
    """Read a ViT as the published code does: features (B, D, h, w) and keys (B, C, h, w)."""
    x = visual._embeds(images)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = usual_block(block, x)
    inner = F.linear(last.ln_1(x), last.attn.in_proj_weight, last.attn.in_proj_bias)
    _, key, value = (last.attn.out_proj(part) for part in inner.chunk(3, dim=-1))
    value = value + x
    value = value + last.mlp(last.ln_2(value))
    visual.ln_post(usual_block(last, x))  # computed there, and not read
    features = visual.ln_post(value) @ visual.proj
    grid = [side // visual.patch_size[0] for side in images.shape[2:]]
    return [tokens[:, 1:].transpose(1, 2).unflatten(2, grid) for tokens in (features, key)]


def usual_block(block: Any, x: Tensor) -> Any:
    """Run a residual block whose attention returns its weights, which nobody reads."""
    normed = block.ln_1(x)
    x = x + block.attn(normed, normed, normed, need_weights=True)[0]
    return x + block.mlp(block.ln_2(x))


def usual_resnet(visual: Any, images: Tensor) -> list[Tensor]:
    """Read a ResNet as the published code does."""
    x = visual.stem(images)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = stage(x)

    def pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
        return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)

    pool = visual.attnpool
    pointwise(pool.q_proj, x)  # computed there, and not read
    return [pointwise(pool.c_proj, pointwise(pool.v_proj, x)), pointwise(pool.k_proj, x)]


def usual_refinement(maps: Tensor, keys: Tensor) -> Tensor:
    """Denoise prompts, then smooth keys by the hw x hw affinity, as the published code does."""
    best = (100 * maps).softmax(dim=1).amax(dim=(2, 3))
    flat = (100 * maps.masked_fill(best[:, :, None, None] < 0.5, -100)).softmax(dim=1)
    flat = flat.flatten(2).transpose(1, 2)
    unit = F.normalize(keys.flatten(2).transpose(1, 2), dim=1)
    affinity = unit @ unit.transpose(1, 2)
    smooth = torch.where(flat.amax(dim=2, keepdim=True) < 1, affinity @ flat, flat)
    return smooth.transpose(1, 2).reshape(maps.shape).contiguous()  # else softmax takes 8 x as long


def seconds(run: Callable[[], Any], clock: str = "wall") -> float:
    """Return how long a run takes."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = now()
    run()
    wait()
    return now() - start


def peak(way: str, cell: Cell) -> float:
    """Return the MiB that one run adds at its peak; to be called in a fresh process."""
    run = getattr(Contest(cell), way)
    if cell.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = proc("self/status", "VmRSS")
    run()
    return (proc("self/status", "VmHWM") - before) / 1024


def proc(file: str, key: str) -> int:
    """Return a figure of /proc, in KiB."""
    lines = Path("/proc", file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def too_large(cell: Cell) -> str | None:
    """Say why the usual way would not fit: maps and their softmax, or attention, held twice."""
    pixels, size = cell.size[0] * cell.size[1], PRECISIONS[cell.precision].itemsize
    attention = 12 * (pixels // 256) ** 2 * size if cell.model.startswith("ViT") else 0
    needed = 2 * cell.batch * max(4 * cell.classes * pixels, attention) / 2**30
    on_cpu = cell.device == "cpu"
    free = (
        proc("meminfo", "MemAvailable") / 2**20 if on_cpu else torch.cuda.mem_get_info()[0] / 2**30
    )
    return f"needs {needed:.0f} GiB, {free:.0f} are free" if needed > 0.8 * free else None


def measure(cell: Cell, how: Namespace, *, usual: bool = True) -> dict[str, Any]:
    """Measure a cell, or take what an earlier run left."""
    path = how.out / f"{cell}.json".replace(" ", "_").replace(":", "")
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    done = not usual or "usual" in kept.get("seconds", ()) or kept.get("skipped")
    if done and kept.get("clock") == how.clock:
        return kept
    skipped, contest = too_large(cell) if usual else None, Contest(cell)
    runs = {way: getattr(contest, way) for way in (WAYS if usual and not skipped else WAYS[::2])}
    turns = [[seconds(run, how.clock) for run in runs.values()] for _ in range(how.repeats + 1)]
    found = {
        **asdict(cell),
        **{"clock": how.clock, "threads": torch.get_num_threads(), "skipped": skipped},
        "seconds": dict(zip(runs, zip(*turns[1:], strict=True), strict=True)),
        "candidates": contest.candidates(),
    }
    ways = list(runs)
    del contest, runs
    found["peak_mib"] = {way: apart(peak, way, cell) for way in ways}
    write_json(found, path)
    return found


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def spans(values: Sequence[float]) -> str:
    """Write a median and its quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def ratio(found: dict[str, Any], one: str, other: str) -> str:
    """Write how many times as long one way takes as another, turn by turn."""
    times = found["seconds"]
    if not {one, other} <= times.keys():
        return found["skipped"] or "-"
    return spans(np.divide(times[one], times[other]))


def row(found: dict[str, Any], cell: Cell) -> list[str]:
    """Write a line of the table."""
    peaks = (found["peak_mib"].get(way) for way in ("bare", "ours", "usual"))
    return [
        *(str(cell), spans(found["seconds"]["bare"])),
        *(ratio(found, *ways) for ways in (("ours", "bare"), ("usual", "ours"))),
        *("-" if mib is None else f"{mib:.0f}" for mib in peaks),
        "{:.1f}; {:.0f}".format(*found["candidates"]),
    ]


def growth(how: Namespace) -> None:
    """Draw time against pixels, and against classes, into two pictures named after `--plot`."""
    pixels: dict[str, Any] = {}
    classes: dict[str, Any] = {}
    for model, way in product(how.models, ("bare", "ours")):
        cell, line = Cell(model, GROWTH[0], 171, 1, "float32", "off", how.device), f"{model}, {way}"

        def point(other: Cell, x: float, way: str = way) -> tuple[float, float]:
            return x, float(np.median(measure(other, how, usual=False)["seconds"][way]))

        pixels[line] = [point(replace(cell, size=s), s[0] * s[1] / 1e6) for s in GROWTH]
        classes[line] = [point(replace(cell, classes=count), count) for count in GROWTH_CLASSES]
    for lines, name, title in (
        (pixels, "megapixels", "One image, 171 classes"),
        (classes, "classes", "One image of 512x512 pixels"),
    ):
        path = how.plot.with_stem(f"{how.plot.stem}-{name}")
        line_chart(lines, path, title=title, x_label=name, y_label="seconds")


def text_seconds(model: str, folder: Path) -> float:
    """Return how long the text rows of 1,000 classes take; to be called in a fresh process."""
    clip, names = load_clip(model, weights=TEXTS[model]), [f"thing {i}" for i in range(1000)]
    return seconds(lambda: text_rows(clip, names, templates="plain", folder=folder))


def texts(how: Namespace) -> Rows:
    """Measure text rows when computed, and when read from the cache on disk."""
    rows = [["model", "computed, ms", "from disk, ms"]]
    for model in TEXTS:
        with tempfile.TemporaryDirectory() as folder:
            first, *later = (
                1e3 * apart(text_seconds, model, Path(folder)) for _ in range(how.repeats + 1)
            )
        rows.append([model, f"{first:.0f}", spans(later)])
    return rows


def starts(how: Namespace) -> Rows:
    """Measure commands from a cold process, in turn, beside what they cannot do without."""
    with tempfile.TemporaryDirectory() as folder:
        # Bytecode is kept, as for any user after the first day, whatever this process was told.
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{folder}/pyc"}

        def run(arguments: str) -> None:
            command = [sys.executable, *shlex.split(arguments)]
            subprocess.run(command, check=True, capture_output=True, env=env, cwd=folder)

        run("-m maskclip emoji scenes --out . --count 1")
        commands = {
            "python": "-c pass",
            "import torch": "-c 'import torch'",
            "import open_clip": "-c 'import open_clip'",
            "maskclip --help": "-m maskclip --help",
            "maskclip segment": "-m maskclip segment JPEGImages --vocabulary emoji --model emoji",
        }
        turns = [
            [seconds(partial(run, arguments)) for arguments in commands.values()]
            for _ in range(how.repeats + 1)
        ]
    times = zip(commands, zip(*turns[1:], strict=True), strict=True)
    return [["command", "seconds"], *([name, spans(values)] for name, values in times)]


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


def read_options(arguments: Iterable[str] | None) -> Namespace:
    parser = ArgumentParser(description="Measure segmenting: speed and memory.")
    for name, values in LISTS.items():
        parser.add_argument(f"--{name}", nargs="+", type=type(values[0]), default=values)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small photos, few cells")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw growth")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/segment"), help="cells are kept")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.quick:
        options.sizes, options.classes, options.repeats = ["256x341"], [171], 3
        options.batches, options.precisions = [1], ["float32"]
    return options


def cells(how: Namespace) -> Rows:
    """Measure every combination that is asked for."""
    sizes = [tuple(map(int, size.split("x"))) for size in how.sizes]
    parts = (how.models, sizes, how.classes, how.batches, how.precisions, how.refinements)
    every = [Cell(*part, how.device) for part in product(*parts)]
    rows = [HEAD.split("|")]
    for index, cell in enumerate(every):
        print(f"{index + 1} of {len(every)}: {cell}", file=sys.stderr)
        rows.append(row(measure(cell, how), cell))
    return rows


SECTIONS = {"cells": cells, "text": texts, "start": starts}


def main(arguments: Iterable[str] | None = None) -> None:
    how = read_options(arguments)
    os.environ["OMP_NUM_THREADS"] = str(how.threads)  # for the fresh processes
    torch.set_num_threads(how.threads)
    for name in how.only:
        show(name, SECTIONS[name](how), markdown=how.markdown)
    if how.plot:
        growth(how)


if __name__ == "__main__":
    main()
