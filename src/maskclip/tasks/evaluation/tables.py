"""The table of a comparison, from its cells: as values, Markdown, CSV, JSON, and a chart."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskclip.core.files import write_json, write_text
from maskclip.core.methods import AUTO
from maskclip.tasks.evaluation.cells import REASON, Content
from maskclip.tasks.evaluation.quality import quality_chart

NONE = "none"
"""How a cell without refinement is called."""

_SURE = 1.96  # standard errors that hold 95 % of a normal distribution
_ENOUGH = 50  # images from which on an interval means something
_SHARED = (
    *("dataset", "split", "images", "official_images", "protocol", "templates", "precision"),
    *("corruption", "background", "list", "versions"),
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A cell as a line of the table; what is not known, or does not apply, is None.

    Attributes:
        model, method, refinement: which cell; a student has no method.
        images: how many were measured.
        miou, pixel_accuracy: in percent.
        difference: of mIoU to the model's first line that was measured.
        margin: half of the 95 % interval of the difference, were other images of the kind taken;
            from 50 images on.
        published: mIoU of the same settings on all images, in percent.
        seconds: an image, the median.
        memory_mib: at the peak.
        differs: what is not the protocol's, or not that of a method's published figures.
        reason: why there are no figures.
    """

    model: str
    method: str | None
    refinement: str
    images: int | None = None
    miou: float | None = None
    pixel_accuracy: float | None = None
    difference: float | None = None
    margin: float | None = None
    published: float | None = None
    seconds: float | None = None
    memory_mib: float | None = None
    differs: str | None = None
    reason: str | None = None


def make_lines(
    cells: Mapping[str, Content],
    called: Mapping[str, tuple[str, str | None, str]],
    published: Mapping[str, float | None],
) -> list[Line]:
    """Return the lines of a table, in the order of `called`.

    Args:
        cells: name -> content, of `run_readings`.
        called: name -> model, method, refinement.
        published: name -> published mIoU.
    """
    firsts: dict[str, Content] = {}
    lines = []
    for name, (model, method, refinement) in called.items():
        content = cells[name]
        if REASON in content:
            reason = content[REASON]
            lines.append(Line(model=model, method=method, refinement=refinement, reason=reason))
            continue
        first = firsts.setdefault(model, content)
        if method == AUTO:
            method = f"{AUTO} ({content['method']})"
        difference, margin = _difference(content, first)
        lines.append(
            Line(
                model=model,
                method=method,
                refinement=refinement,
                images=content["images"],
                miou=content["miou"],
                pixel_accuracy=content["pixel_accuracy"],
                difference=difference,
                margin=margin,
                published=published.get(name),
                seconds=content["seconds"],
                memory_mib=content["memory_mib"],
                differs="; ".join(content.get("differs_from_protocol", ())) or None,
            )
        )
    return lines


def _difference(content: Content, first: Content) -> tuple[float | None, float | None]:
    """Return the difference of mIoU and half its 95 % interval; None of the first line itself."""
    if content is first or content["miou"] is None or first["miou"] is None:
        return None, None
    moved = np.subtract(content["influences"], first["influences"])
    enough = len(moved) >= _ENOUGH
    margin = _SURE * math.sqrt(float(np.square(moved).sum())) if enough else None
    return content["miou"] - first["miou"], margin


def best_line(lines: Sequence[Line]) -> Line | None:
    """Return the line of the highest mIoU; None where too few images were measured to say."""
    measured = [line for line in lines if line.miou is not None and (line.images or 0) >= _ENOUGH]
    return max(measured, key=lambda line: line.miou or 0.0, default=None)


def as_text(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of what was measured; the best mIoU, if any, has a star.

    Columns in which nothing is known are left out.
    """
    best = best_line(lines)
    columns = {
        "model": [line.model for line in lines],
        "method": [line.method or "" for line in lines],
        "refinement": [line.refinement for line in lines],
        "mIoU %": [_one(line.miou) + "*" * (line is best) for line in lines],
        "to the first": [_with_margin(line) for line in lines],
        "published": [_one(line.published) for line in lines],
        "pixels %": [_one(line.pixel_accuracy) for line in lines],
        "s an image": ["" if line.seconds is None else f"{line.seconds:.3g}" for line in lines],
        "peak MiB": ["" if line.memory_mib is None else f"{line.memory_mib:.0f}" for line in lines],
    }
    measured = [index for index, line in enumerate(lines) if line.reason is None]
    kept = {name: [cells[i] for i in measured] for name, cells in columns.items()}
    kept = {name: cells for name, cells in kept.items() if any(cells) or name == "mIoU %"}
    return list(kept), [list(row) for row in zip(*kept.values(), strict=True)]


NUMBERS = ("mIoU %", "to the first", "published", "pixels %", "s an image", "peak MiB")
"""The columns of `as_text` that are numbers."""

SPARE = ("peak MiB", "pixels %", "to the first", "published")
"""Those that a narrow terminal goes without, the first of these first."""


def as_grid(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Return mIoU alone: a row a model and method, a column a refinement."""
    best = best_line(lines)
    measured = [line for line in lines if line.reason is None]
    refinements = list(dict.fromkeys(line.refinement for line in measured))
    found = {(line.model, line.method, line.refinement): line for line in measured}
    rows = []
    for model, method in dict.fromkeys((line.model, line.method) for line in measured):
        row = [found.get((model, method, refinement)) for refinement in refinements]
        scores = ["" if one is None else _one(one.miou) + "*" * (one is best) for one in row]
        rows.append([model, method or "", *scores])
    return ["model", "method", *refinements], rows


def reasons(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Return what was not measured, and why; cells of one model and reason are one."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for line in lines:
        if line.reason is not None:
            why = line.reason.replace(f"the method {line.method!r}", "the method")
            what = line.method or "student"
            whole = all(
                other.reason is not None
                for other in lines
                if (other.model, other.method) == (line.model, line.method)
            )
            what = what if whole else f"{what} with {line.refinement}"
            found.setdefault((line.model, why), {})[what] = None
    return [(f"{model}: {', '.join(names)}", why) for (model, why), names in found.items()]


def _one(score: float | None) -> str:
    return "" if score is None else f"{score:.1f}"


def _with_margin(line: Line) -> str:
    if line.difference is None:
        return ""
    margin = "" if line.margin is None else f" ± {line.margin:.1f}"
    return f"{line.difference:+.1f}{margin}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; whatever a cell holds is shown as it is."""
    cells = [[cell.replace("|", r"\|").replace("*", r"\*") for cell in row] for row in rows]
    lines = [list(columns), ["---"] * len(columns), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_comparison(
    lines: Sequence[Line], cells: Mapping[str, Content], out: Path, *, title: str
) -> list[Path]:
    """Write the table as compare.md, .csv and .json, and compare.png; return the paths.

    Args:
        lines: of `make_lines`.
        cells: the contents, for what they have in common.
        out: the folder.
        title: of the table and the chart.

    Raises:
        OSError: the folder cannot be written.
    """
    paths = [out / f"compare.{suffix}" for suffix in ("md", "csv", "json", "png")]
    parts = [f"# {title}\n"]
    if len({line.refinement for line in lines if line.reason is None}) > 1:
        star = "" if best_line(lines) is None else "; the best has a star"
        parts += [f"mIoU in %{star}.\n", markdown(*as_grid(lines))]
    parts += [NOTES + "\n", markdown(*as_text(lines))]
    missing = reasons(lines)
    if missing:
        parts.append(markdown(["not measured", "why"], missing))
    write_text("\n".join(parts), paths[0])
    table = io.StringIO()
    writer = csv.DictWriter(table, list(Line.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    write_text(table.getvalue(), paths[1])
    write_json({**_in_common(cells), "cells": [asdict(line) for line in lines]}, paths[2])
    curves: dict[tuple[str, str], list[tuple[str, float, float]]] = {}
    for line in lines:
        if line.seconds is not None and line.miou is not None:
            point = (line.refinement, line.seconds, line.miou)
            curves.setdefault((line.model, line.method or "student"), []).append(point)
    quality_chart(curves, paths[3], title=title)
    return paths


NOTES = (
    "A photo is encoded once for all refinements of a method: the time (the median of an image) is "
    "that of encoding and of the own refinement. The peak is that of the GPU, weights included, or "
    "on a CPU of the whole process. `to the first` is the difference to the model's first line, "
    "with its 95 % interval over images. Of fewer than 50 images there is no interval, and no "
    "line is called the best."
)
"""What figures of a comparison mean."""


def _in_common(cells: Mapping[str, Content]) -> dict[str, Any]:
    """Return the settings that all cells share, and every machine that measured some."""
    measured = [content for content in cells.values() if REASON not in content]
    if not measured:
        return {}
    first = measured[0]
    shared = {key: first[key] for key in _SHARED if key in first}
    machines = {json.dumps(content["machine"]): content["machine"] for content in measured}
    return {**shared, "machines": list(machines.values())}
