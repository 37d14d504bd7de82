"""Students beside the CLIPs that teach them: what a training buys, as a table of `segment.py`.

Networks with random weights run in turn in one process (A B C A B C ...), each through its own
`segment`, on photos that are not resized.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from measuring import Rows, apart, in_turn, kept, machine, peak_mib, ratios, spans
from three_ways import Cell, Contest

from maskclip.core.method import CLEAN
from maskclip.plus.config import parse_student
from maskclip.plus.files import TrainedStudent
from maskclip.plus.student import build_student
from maskclip.tasks.without_clip import StudentSegmenter

HEAD = "photos|network|images a second|time / teacher's|MiB"


def run_of(network: str, contest: Contest) -> Callable[[], object]:
    """Return what labels a cell's photos with its teacher, or with a student of that teacher."""
    if network == contest.cell.model:
        return contest.ours
    rows = contest.rows.cpu()
    student = build_student(parse_student(network, embed_dim=rows.shape[1]), rows)
    segmenter = StudentSegmenter(
        TrainedStudent(student, contest.vocabulary),
        name=network,
        fingerprint="",
        method=CLEAN,
        device=contest.device,
        precision=contest.cell.precision,
    )
    return partial(segmenter.segment, contest.photos, short_side=0)


def peak(network: str, cell: Cell) -> float:
    """Return the MiB that one run adds at its peak; to be called in a fresh process."""
    return peak_mib(run_of(network, Contest(cell)), cell.device)


def measure(cell: Cell, networks: Sequence[str], how: Namespace) -> dict[str, Any]:
    peaks = {network: apart(peak, network, cell) for network in networks}  # while memory is free
    contest = Contest(cell)
    runs = {network: run_of(network, contest) for network in networks}
    return {
        **asdict(cell),
        "clock": how.clock,
        "machine": machine(),
        "seconds": in_turn(runs, how.repeats, clock=how.clock),
        "peak_mib": peaks,
    }


def table(cells: Sequence[Cell], how: Namespace) -> Rows:
    """Measure the chosen students beside the teacher of each cell."""
    rows = [HEAD.split("|")]
    for index, cell in enumerate(cells):
        print(f"{index + 1} of {len(cells)}: {cell}, students", file=sys.stderr)
        networks = [cell.model, *how.students]
        name = f"{cell} {' '.join(how.students)} {how.clock}.json"
        path = how.out / name.replace(" ", "_").replace(":", "")
        found = kept(path, partial(measure, cell, networks, how))
        times, peaks = found["seconds"], found["peak_mib"]
        rows += [
            [
                str(cell),
                network,
                spans((cell.batch / np.array(times[network])).tolist()),
                ratios(times, network, cell.model),
                f"{peaks[network]:.0f}",
            ]
            for network in networks
        ]
    return rows
