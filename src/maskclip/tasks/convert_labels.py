"""Convert all label files of a data set to masks, in parallel; a stopped run can be resumed.

Masks are written atomically, so one that exists is complete. The folders are those of
mmsegmentation. As there, the augmented training set of Pascal VOC has two parts: the images of
train.txt with VOC's own masks in SegmentationClass, and those of aug.txt with masks made from SBD
in SegmentationClassAug. No mask is copied from one folder to the other.
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

import numpy as np
from PIL import Image

from maskclip.core.errors import MaskCLIPError, require_extra
from maskclip.core.files import atomic_path, name_problem
from maskclip.core.prefetch import prefetch
from maskclip.core.text import brief, read_json, read_text
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.annotations.base import MAX_BYTES, mapping, sequence, text
from maskclip.data.annotations.coco import CocoObjects, is_coco
from maskclip.data.conversions import (
    CONVERSIONS,
    Conversion,
    ConversionError,
    convert_file,
    voc_lists,
)

_AHEAD = 8  # files in flight per worker: none is idle, and memory stays bounded
_MOST_WORKERS = 61  # the limit of Windows
_TRAINAUG_SIZE = 10_582
_SPLITS = ("train2017", "val2017")  # COCO's folders of photos, and in the names of its files


@dataclass(frozen=True)
class Plan:
    """The label files of one data set, and where their masks go.

    Attributes:
        conversion: the data set.
        root: the folder of all data sets.
        folder: the label files; the file of instances where these are converted.
        files: their paths relative to the folder, sorted; or the photos of the instances.
        instances: what the photos' masks are made of, instead of label files.
    """

    conversion: Conversion
    root: Path
    folder: Path
    files: tuple[str, ...] = field(repr=False)
    instances: CocoObjects | None = field(default=None, repr=False, compare=False)

    @property
    def targets(self) -> Path:
        """The folder of the masks."""
        return self.root / self.conversion.targets

    def target(self, file: str) -> Path:
        """Return the path of a file's mask."""
        return self.targets / self.conversion.target(file)


@dataclass(frozen=True)
class ConversionResult:
    """The outcome for one label file.

    Attributes:
        source, target: the label file and its mask.
        skipped: whether the mask existed already.
        error: why there is no mask, in one line; None on success.
    """

    source: Path
    target: Path
    skipped: bool = False
    error: str | None = None


@dataclass(frozen=True)
class SplitLists:
    """The outcome for the files that list the images of each split.

    Attributes:
        written: the lists written now.
        notes: what is missing or looks wrong, one line each.
    """

    written: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def plan_conversion(name: str, root: Path, *, source: Path | None = None) -> Plan:
    """Find the label files of a data set.

    Args:
        name: of `CONVERSIONS`.
        root: the folder that holds `VOCdevkit`, `coco_stuff164k` or `cityscapes`; masks go there.
        source: the folder of the label files, if it is not the usual one below `root`; or the JSON
            of COCO's instances, for a data set that can be made of them.

    Raises:
        MaskCLIPError: unknown name; no label files; masks would overwrite the label files; scipy is
            needed to read them and not installed; the instances cannot be used; no such source.
    """
    if name not in CONVERSIONS:
        raise MaskCLIPError(f"unknown conversion {name!r}: expected {', '.join(CONVERSIONS)}")
    conversion = CONVERSIONS[name]
    if source is not None and not source.exists():
        raise MaskCLIPError(f"no such file or folder: {source}")
    if source is not None and source.is_file():
        return _plan_of_instances(conversion, root, [source])
    folders = [root / usual for usual in conversion.sources] if source is None else [source]
    for folder in folders:
        files = _label_files(folder, conversion)
        if files:
            plan = Plan(conversion, root, folder, files)
            if plan.target(files[0]).resolve() == (folder / files[0]).resolve():
                raise MaskCLIPError(f"{folder}: masks would overwrite the label files: move these")
            if files[0].lower().endswith(".mat"):
                require_extra("eval", "scipy")
            return plan
    expected = [folders[0] / pattern for pattern in conversion.patterns]
    if conversion.instances:
        usual = root / conversion.instances
        place = usual if source is None else source / usual.name
        found = sorted(place.parent.glob(place.name))
        if found:
            return _plan_of_instances(conversion, root, found)
        expected.append(place)
    hint = f"; `data` is the folder that holds {Path(conversion.targets).parts[0]}"
    raise MaskCLIPError(
        f"no label files of {conversion.title}: expected {' or '.join(map(str, expected))}"
        f"{hint if source is None else ''}"
    )


def _plan_of_instances(conversion: Conversion, root: Path, files: Sequence[Path]) -> Plan:
    """Read COCO's instances.

    Raises:
        MaskCLIPError: the data set is not made of them, or they cannot be used.
    """
    if not conversion.instances:
        raise MaskCLIPError(
            f"{files[0]} is a file: {conversion.name} needs a folder of label files"
        )
    contents, photos = {}, []
    for file in files:
        content = read_json(file, "COCO's instances", limit=MAX_BYTES)
        if not is_coco(content):
            raise MaskCLIPError(
                f"{file}: expected COCO's instances: images, annotations and categories, as "
                "instances_val2017.json has them"
            )
        contents[file] = content
        names = []
        for image in sequence(content["images"], "a list of images", file):
            name = text(mapping(image, "an image", file).get("file_name"), "its file_name", file)
            names.append(PurePosixPath(name).name)
        folder = _split_of(file, names, root / Path(conversion.targets).parent / "images")
        photos += [f"{folder}/{name}" for name in names]
    objects = CocoObjects(files[0], contents, photos, Vocabulary.builtin(conversion.vocabulary))
    if not objects.photos:
        raise MaskCLIPError(f"{files[0]}: no photo is listed by its plain name")
    return Plan(conversion, root, files[0], tuple(sorted(objects.photos)), objects)


def _split_of(file: Path, names: Sequence[str], images: Path) -> str:
    """Return the split of instances: what their file's name says, or else where the photos lie.

    Raises:
        MaskCLIPError: neither tells.
    """
    named, listed = {split for split in _SPLITS if split in file.name}, set(names)
    here = named or {
        path.parent.name
        for split in _SPLITS
        for path in (images / split).glob("*")  # nothing where there is no folder
        if path.name in listed
    }
    if len(here) != 1:
        first, second = _SPLITS
        if named:
            why = f"its name has both {first} and {second}"
        elif here:
            why = f"it lists photos of both {first} and {second} in {images}"
        else:
            why = f"none of its photos lies in {first} or {second} of {images}"
        raise MaskCLIPError(
            f"{file}: {why}: its name must hold one of the two, such as instances_val2017.json"
        )
    return here.pop()


def _label_files(folder: Path, conversion: Conversion) -> tuple[str, ...]:
    """Return the paths of label files within a folder; none where there is no such folder."""
    made = tuple(filter(None, (each.ending[1] for each in CONVERSIONS.values())))
    for pattern in conversion.patterns:
        files = tuple(
            sorted(
                path.relative_to(folder).as_posix()
                for path in folder.glob(_any_case(pattern))
                # Hidden: half-written masks of a killed run, and what macOS adds to archives. Those
                # that end otherwise are masks that were made, of this data set or another.
                if not path.name.startswith(".") and not path.stem.endswith(made)
            )
        )
        if files:
            return files
    return ()


def _any_case(pattern: str) -> str:
    """Return a glob pattern whose suffix may be in upper or lower case."""
    stem, dot, suffix = pattern.rpartition(".")
    return stem + dot + "".join(f"[{letter}{letter.upper()}]" for letter in suffix)


def convert_files(
    plan: Plan, *, workers: int = 1, overwrite: bool = False
) -> Iterator[ConversionResult]:
    """Convert the files of a plan; a file that cannot be read is an error in its result.

    With several workers, processes are spawned: a script that calls this needs the usual
    `if __name__ == "__main__":`.

    Args:
        plan: of `plan_conversion`.
        workers: number of processes; with 1 the work is done in this one.
        overwrite: whether to convert files again whose masks exist.

    Raises:
        MaskCLIPError: the masks cannot be written, or a process died; finished masks stay.
    """
    todo = []
    for file in plan.files:
        source = plan.folder if plan.instances is not None else plan.folder / file
        target = plan.target(file)
        problem = name_problem(target)
        if problem is not None:
            error = f"{source}: no mask can be called {brief(target.name)}: {problem}"
            yield ConversionResult(source, target, error=error)
        elif not overwrite and target.exists():
            yield ConversionResult(source, target, skipped=True)
        else:
            todo.append(file)
    workers = min(workers, len(todo), _MOST_WORKERS)
    if plan.instances is not None:
        workers = 1  # each process would have to read them all
    try:
        yield from _in_processes(plan, todo, workers) if workers > 1 else _in_turn(plan, todo)
    except BrokenProcessPool:
        raise MaskCLIPError(
            "a process died, perhaps out of memory: resume with the same command and fewer "
            f"`workers` than {workers}"
        ) from None
    except OSError as error:
        raise MaskCLIPError(
            f"{plan.targets}: masks cannot be written ({error.strerror or error}): fix this and "
            "resume with the same command"
        ) from error


def _in_turn(plan: Plan, files: Sequence[str]) -> Iterator[ConversionResult]:
    if plan.instances is not None:
        return map(partial(_paint, plan, plan.instances), files)
    return map(partial(_convert, plan.conversion.name), _pairs(plan, files))


def _in_processes(plan: Plan, files: Sequence[str], workers: int) -> Iterator[ConversionResult]:
    pool = ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=_start_worker,
    )
    convert = partial(_convert, plan.conversion.name)
    return prefetch(pool, convert, _pairs(plan, files), ahead=_AHEAD * workers)


def _pairs(plan: Plan, files: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """Yield each label file with its mask."""
    return ((plan.folder / file, plan.target(file)) for file in files)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker with its parent; it would wait forever for a parent that was killed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _convert(name: str, files: tuple[Path, Path]) -> ConversionResult:
    source, target = files
    try:
        convert_file(source, target, CONVERSIONS[name])
    except ConversionError as error:
        return ConversionResult(source, target, error=str(error))
    return ConversionResult(source, target)


def _paint(plan: Plan, instances: CocoObjects, photo: str) -> ConversionResult:
    """Write the mask of a photo's instances."""
    target = plan.target(photo)
    try:
        mask = Image.fromarray(instances.read(photo).astype(np.uint8))
    except MaskCLIPError as error:
        return ConversionResult(plan.folder, target, error=str(error))
    with atomic_path(target) as temporary:
        mask.save(temporary, format="PNG")
    return ConversionResult(plan.folder, target)


def write_split_lists(plan: Plan) -> SplitLists:
    """Write the image lists that follow from the label files, and note which others are missing.

    For `voc-aug` these are trainaug.txt and aug.txt, from SBD's files and VOC's own train.txt and
    val.txt. Existing lists are kept. The splits of Pascal Context have to come from elsewhere.

    Raises:
        OSError: a list cannot be read or written.
    """
    missing = [path for path in map(plan.root.joinpath, plan.conversion.lists) if not path.exists()]
    if not missing:
        return SplitLists()
    folder, names = missing[0].parent, " and ".join(path.name for path in missing)
    if plan.conversion.name != "voc-aug":
        return SplitLists(
            notes=(
                f"{folder}: {names} missing: the annotations do not contain the splits, take "
                "these lists from a prepared copy of the data set",
            )
        )
    own = {name: folder / f"{name}.txt" for name in ("train", "val")}
    if not all(path.exists() for path in own.values()):
        return SplitLists(
            notes=(f"{folder}: to make {names}, VOC 2012's train.txt and val.txt are needed there",)
        )
    lists = voc_lists(
        train=read_text(own["train"], "a list of images").split(),
        val=read_text(own["val"], "a list of images").split(),
        sbd=(PurePosixPath(file).stem for file in plan.files),
    )
    for path in missing:
        with atomic_path(path) as temporary:
            text = "".join(f"{name}\n" for name in lists[path.stem])
            temporary.write_text(text, encoding="utf-8")
    size = len(lists["trainaug"])
    note = (
        f"trainaug has {size:,} images, the complete data set {_TRAINAUG_SIZE:,}: to add images, "
        f"delete {names} in {folder} and convert again"
    )
    return SplitLists(tuple(missing), (note,) if size != _TRAINAUG_SIZE else ())
