"""Converting all label files of a data set: in parallel, and from where an earlier run stopped.

Masks appear whole or not at all, so one that is there is done. The folders are those that users of
mmsegmentation have. There, and here, the augmented training set of Pascal VOC is two parts: the
images in train.txt with VOC's own masks in SegmentationClass, and those in aug.txt with masks made
from SBD in SegmentationClassAug. No mask is copied from one folder to the other.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path, PurePosixPath

from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import atomic_path
from maskclip.core.prefetch import map_ahead
from maskclip.data.prepare import CONVERSIONS, Conversion, LabelError, convert_file, voc_lists

_AHEAD = 8  # files in flight for each worker: none waits for work, and memory stays flat
_MOST_WORKERS = 61  # Windows refuses more
_TRAINAUG_SIZE = 10_582


@dataclass(frozen=True)
class Plan:
    """What is to be converted.

    Attributes:
        conversion: the data set.
        root: the folder of all data sets.
        folder: the label files.
        files: their paths within the folder, sorted.
    """

    conversion: Conversion
    root: Path
    folder: Path
    files: tuple[str, ...] = field(repr=False)

    @property
    def targets(self) -> Path:
        """The folder of the masks."""
        return self.root / self.conversion.targets

    def target(self, file: str) -> Path:
        """Return the mask of one of the files."""
        return self.targets / self.conversion.target(file)


@dataclass(frozen=True)
class Converted:
    """What became of one label file.

    Attributes:
        source, target: the label file and its mask.
        skipped: the mask was there already.
        error: why there is no mask, in one line; None if there is one.
    """

    source: Path
    target: Path
    skipped: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Lists:
    """What became of the lists of a data set.

    Attributes:
        written: those made now.
        notes: what is missing or looks wrong, a line each.
    """

    written: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def plan_conversion(name: str, root: Path, *, source: Path | None = None) -> Plan:
    """Find the label files of a data set.

    Args:
        name: of `CONVERSIONS`.
        root: the folder that holds `VOCdevkit`, `coco_stuff164k` or `cityscapes`; masks go there.
        source: the folder of the label files, if it is not the usual one below `root`.

    Raises:
        MaskCLIPError: an unknown name; no label files; they lie where the masks would go.
    """
    if name not in CONVERSIONS:
        raise MaskCLIPError(f"unknown conversion {name!r}: expected {', '.join(CONVERSIONS)}")
    conversion = CONVERSIONS[name]
    folders = [root / usual for usual in conversion.sources] if source is None else [source]
    for folder in folders:
        files = _label_files(folder, conversion)
        if files:
            plan = Plan(conversion, root, folder, files)
            if plan.target(files[0]).resolve() == (folder / files[0]).resolve():
                raise MaskCLIPError(f"{folder}: masks would replace the label files: move these")
            return plan
    expected = " or ".join(str(folders[0] / pattern) for pattern in conversion.patterns)
    hint = f"; --data is the folder that holds {Path(conversion.targets).parts[0]}"
    raise MaskCLIPError(
        f"no label files of {conversion.title}: expected {expected}{hint if source is None else ''}"
    )


def _label_files(folder: Path, conversion: Conversion) -> tuple[str, ...]:
    """Return the paths of label files within a folder; none where there is no such folder."""
    made = conversion.ending[1]
    for pattern in conversion.patterns:
        files = tuple(
            sorted(
                path.relative_to(folder).as_posix()
                for path in folder.glob(pattern)
                # Hidden: half-written masks of a killed run, and what macOS adds to archives.
                if not path.name.startswith(".") and not (made and path.stem.endswith(made))
            )
        )
        if files:
            return files
    return ()


def usable_cpus() -> int:
    """Return the number of CPUs this process may use: of a cluster's node, its share."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def convert_files(plan: Plan, *, workers: int = 1, overwrite: bool = False) -> Iterator[Converted]:
    """Convert the files of a plan; a label file that is broken gives its error, the others go on.

    With several workers, processes are spawned: a script that calls this needs the usual
    `if __name__ == "__main__":`.

    Args:
        plan: of `plan_conversion`.
        workers: processes; with 1 the work is done in this one.
        overwrite: convert again what is there already.

    Raises:
        MaskCLIPError: the masks cannot be written, or a process died. What is done stays done.
    """
    todo = []
    for file in plan.files:
        if not overwrite and plan.target(file).exists():
            yield Converted(plan.folder / file, plan.target(file), skipped=True)
        else:
            todo.append(file)
    workers = min(workers, len(todo), _MOST_WORKERS)
    try:
        yield from _in_processes(plan, todo, workers) if workers > 1 else _in_turn(plan, todo)
    except BrokenProcessPool:
        raise MaskCLIPError(
            "a process died, perhaps for want of memory: go on with the same command and fewer "
            f"--workers than {workers}"
        ) from None
    except OSError as error:
        raise MaskCLIPError(
            f"{plan.targets}: masks cannot be written ({error.strerror or error}): mend that and "
            "go on with the same command"
        ) from error


def _in_turn(plan: Plan, files: Sequence[str]) -> Iterator[Converted]:
    return map(partial(_convert, plan.conversion.name), _pairs(plan, files))


def _in_processes(plan: Plan, files: Sequence[str], workers: int) -> Iterator[Converted]:
    pool = ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=_start_worker,
    )
    convert = partial(_convert, plan.conversion.name)
    return map_ahead(pool, convert, _pairs(plan, files), ahead=_AHEAD * workers)


def _pairs(plan: Plan, files: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """Yield each label file with its mask."""
    return ((plan.folder / file, plan.target(file)) for file in files)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Workers of a parent that was killed would wait for more work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _convert(name: str, files: tuple[Path, Path]) -> Converted:
    source, target = files
    try:
        convert_file(source, target, CONVERSIONS[name])
    except LabelError as error:
        return Converted(source, target, error=str(error))
    return Converted(source, target)


def complete_lists(plan: Plan) -> Lists:
    """Write the lists that follow from the label files, and say which others are missing.

    For `voc-aug` these are trainaug.txt and aug.txt, from SBD's files and VOC's own train.txt and
    val.txt. A list that is there is kept. The split of Pascal Context comes from elsewhere.

    Raises:
        OSError: a list cannot be read or written.
    """
    missing = [path for path in map(plan.root.joinpath, plan.conversion.lists) if not path.exists()]
    if not missing:
        return Lists()
    folder, names = missing[0].parent, " and ".join(path.name for path in missing)
    if plan.conversion.name != "voc-aug":
        return Lists(
            notes=(
                f"{folder}: {names} missing: the annotations do not tell the split, take these "
                "lists from a prepared copy of the data set",
            )
        )
    own = {name: folder / f"{name}.txt" for name in ("train", "val")}
    if not all(path.exists() for path in own.values()):
        return Lists(notes=(f"{folder}: {names} need VOC 2012's train.txt and val.txt there",))
    lists = voc_lists(
        train=own["train"].read_text(encoding="utf-8").split(),
        val=own["val"].read_text(encoding="utf-8").split(),
        sbd=(PurePosixPath(file).stem for file in plan.files),
    )
    for path in missing:
        with atomic_path(path) as temporary:
            text = "".join(f"{name}\n" for name in lists[path.stem])
            temporary.write_text(text, encoding="utf-8")
    size = len(lists["trainaug"])
    note = (
        f"VOC's train.txt and SBD make {size:,} images, the whole data sets {_TRAINAUG_SIZE:,}: if "
        f"you add some, delete {names} in {folder} and convert again"
    )
    return Lists(tuple(missing), (note,) if size != _TRAINAUG_SIZE else ())
