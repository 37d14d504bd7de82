"""Long measurements in cells: a file each, kept if it is of the same settings, else refused."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning, differences, list_differences
from maskclip.core.files import write_json
from maskclip.core.text import brief, read_json
from maskclip.tasks.evaluation.evaluate import ProcessGroup

Content = dict[str, Any]

REASON = "reason"
"""The key of a cell that cannot be measured: why; such a cell has no file."""

_SCORE, _NUMBERS, _OBJECT = "a number or null", "a list of numbers, one an image", "an object"
_TEXTS, _PUBLISHED = "a list of strings", "an object with `miou`, or null"

SCORED: Mapping[str, str] = {
    "miou": _SCORE,
    "pixel_accuracy": _SCORE,
    "frequency_weighted_iou": _SCORE,
    "iou": _OBJECT,
    "accuracy": _OBJECT,
}
"""What every result of an evaluation holds beside its settings: key -> the kind of its value."""

COMPARED: Mapping[str, str] = {
    **SCORED,
    "seconds": _SCORE,
    "memory_mib": _SCORE,
    "influences": _NUMBERS,
    "machine": _OBJECT,
}
"""The same of results that are compared with each other."""

_PERHAPS = {"doubts": _TEXTS, "differs_from_protocol": _TEXTS, "published": _PUBLISHED}


class Cell(NamedTuple):
    """One measurement.

    `result` is the content of its file; `kept` is whether an earlier run made it.
    """

    name: str
    result: Content
    kept: bool


@dataclass(frozen=True, eq=False)
class Work:
    """Cells that are measured together.

    Attributes:
        wanted: what the result of each cell must hold, by the cell's name, which is that of its
            file without `.json`.
        measure: the names of missing cells -> these, each with its content.
        kinds: what it must hold besides, `SCORED` or `COMPARED`.
    """

    wanted: Mapping[str, Content]
    measure: Callable[[Sequence[str]], Iterable[tuple[str, Content]]]
    kinds: Mapping[str, str]


def run_cells(
    works: Sequence[Work], out: Path, *, group: ProcessGroup, apart: bool = False
) -> Iterator[Cell]:
    """Measure what is missing, and yield all cells; each gets its file as soon as it is known.

    Args:
        works: in the order in which they are done.
        out: the folder of the files.
        group: the processes that share the measuring, each of which gets all cells.
        apart: whether each process measures works of its own, and gets those of the others at the
            end; otherwise all of them measure every work together.

    Raises:
        MaskCLIPError: a file there is damaged or of another measurement; nothing is measured.
    """
    # Only the main process looks: another could meet a file that was written since the start.
    kept = group.broadcast(_earlier_results(works, out) if group.is_main else None)
    measured: list[Cell] = []
    turn = 0
    for work in works:
        missing = [name for name in work.wanted if kept[name] is None]
        yield from (Cell(name, kept[name], True) for name in work.wanted if name not in missing)
        if not missing:
            continue
        turn += 1
        if apart and turn % group.world_size != group.rank:
            continue
        for name, content in work.measure(missing):
            if REASON not in content and (apart or group.is_main):
                write_json(content, out / f"{name}.json")
            measured.append(Cell(name, content, kept=False))
            yield measured[-1]
    if apart:
        for rank, cells in enumerate(group.all_gather(measured)):
            if rank != group.rank:
                yield from cells


def _earlier_results(works: Sequence[Work], out: Path) -> dict[str, Content | None]:
    """Return what is there of each cell; say how many are of another number of images."""
    kept = {
        name: earlier_result(out / f"{name}.json", wanted, work.kinds)
        for work in works
        for name, wanted in work.wanted.items()
    }
    replaced = [n for n, found in kept.items() if found is None and (out / f"{n}.json").exists()]
    if replaced:
        warnings.warn(
            f"results in {out} that are of another number of images are measured again: "
            f"{len(replaced)}",
            MaskCLIPWarning,
            stacklevel=2,
        )
    return kept


def earlier_result(
    path: Path, wanted: Content, kinds: Mapping[str, str] = SCORED
) -> Content | None:
    """Return the result that an earlier run wrote into a file, None if there is none.

    One of other images alone counts as none, unless it is of more of them and not known to be of
    but some.
    A damaged one is refused, not measured again: it is not this program's to throw away.

    Args:
        path: the file.
        wanted: what the result must hold, of `describe`.
        kinds: what it must hold besides, `SCORED` or `COMPARED`.

    Raises:
        MaskCLIPError: it is of another evaluation, and the message says what differs; or damaged.
    """
    try:
        result = read_json(path, "a result of an evaluation")
    except FileNotFoundError:
        return None
    except MaskCLIPError as error:
        raise MaskCLIPError(f"{error}; move it away") from None
    if not isinstance(result, dict):
        raise MaskCLIPError(f"{path}: not a result of an evaluation: move it away")
    wanted = json.loads(json.dumps(wanted))  # tuples become lists, as in the file
    changes = differences({key: result.get(key) for key in wanted}, wanted)
    if len(changes) == 1 and _limited(result, wanted):
        return None
    if changes:
        raise MaskCLIPError(
            f"{path} was made with other settings ({list_differences(changes)}): choose another "
            "folder, or delete the results there"
        )
    there = {key: kind for key, kind in _PERHAPS.items() if key in result}
    for key, kind in {**kinds, **there}.items():
        if key not in result or not _is(kind, result[key], wanted.get("images")):
            found = brief(result[key]) if key in result else "nothing"
            raise MaskCLIPError(
                f"{path} is damaged: expected {kind} as {key}, got {found}: delete it, and it is "
                "measured again"
            )
    return {**result, **wanted}  # a setting that is null may be missing in the file


def _limited(result: Content, wanted: Content) -> bool:
    """Return whether a result is of fewer images than wanted, or of but some of the official."""
    images, limit = result.get("images"), wanted.get("images")
    if type(images) is not int or type(limit) is not int or images == limit:
        return False
    official = result.get("official_images")
    return images < limit or (type(official) is int and images < official)


def _is(kind: str, value: Any, images: object) -> bool:
    if kind == _OBJECT:
        return isinstance(value, dict)
    if kind == _NUMBERS:
        return isinstance(value, list) and len(value) == images and all(map(_is_number, value))
    if kind == _TEXTS:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if kind == _PUBLISHED and isinstance(value, dict):
        return _is_number(value.get("miou"))
    return value is None or (kind == _SCORE and _is_number(value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
