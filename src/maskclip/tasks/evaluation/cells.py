"""Long measurements in cells: a file each, kept if it is of the same settings, else refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import write_json
from maskclip.core.text import read_json
from maskclip.tasks.evaluation.evaluate import ProcessGroup

Content = dict[str, Any]

REASON = "reason"
"""The key of a cell that cannot be measured: why; such a cell has no file."""


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
    """

    wanted: Mapping[str, Content]
    measure: Callable[[Sequence[str]], Iterable[tuple[str, Content]]]


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
        MaskCLIPError: a file there is of another measurement, before anything is measured.
    """
    # Only the main process looks: another could meet a file that was written since the start.
    kept = group.broadcast(
        {
            name: earlier_result(out / f"{name}.json", wanted)
            for work in works
            for name, wanted in work.wanted.items()
        }
        if group.is_main
        else None
    )
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


def earlier_result(path: Path, wanted: Content) -> Content | None:
    """Return the result that an earlier run wrote into a file, None if there is none.

    Args:
        path: the file.
        wanted: what the result must hold, of `describe`.

    Raises:
        MaskCLIPError: it is of another evaluation; the message says what differs.
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
    for key, value in wanted.items():
        if result.get(key) != value:
            raise MaskCLIPError(
                f"{path} was made with {key} {result.get(key)!r}, not {value!r}: choose another "
                "folder, or delete the results there"
            )
    return result
