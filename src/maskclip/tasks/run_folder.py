"""The run folder of a training: who may write there, what trains there, and where it goes on.

It holds config.json (all that decides the weights), samples.json (the images that it began with),
last.ckpt and previous.ckpt (the one before, should the last be damaged), best.ckpt, logs/ (CSV and
TensorBoard), overlays/ (a few images with the labels that teach the student, and its own), and in
the end student.safetensors.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from maskclip.clip.choice import settle
from maskclip.core.config import Options
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning, differences, list_differences
from maskclip.core.files import (
    InUseError,
    check_writable,
    file_fingerprint,
    lock,
    write_json,
    write_text,
)
from maskclip.core.methods import AUTO, METHODS
from maskclip.core.samples import Samples
from maskclip.core.text import read_json
from maskclip.plus.config import FIRST_WEIGHTS, Training, TrainingError
from maskclip.plus.dataset import file_sizes
from maskclip.plus.module import LAST
from maskclip.tasks.callbacks import PREVIOUS

CONFIG, SAMPLES, FINISHED = "config.json", "samples.json", "student.safetensors"

_LOCK = ".lock"
_FIRST_WEIGHTS = ("initial", "student_weights")  # files that are not needed once it has begun
_LARGEST_RECORD = 2**30  # bytes: 10 million images
_NAMED = 3  # images, in a message


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make a run folder, and keep other trainings out of it while the block runs.

    Where the block raises before anything is written there, a folder that was made goes again.

    Raises:
        MaskCLIPError: it cannot be made or written, or another training has it.
    """
    made = not out.exists()
    check_writable(out)
    with ExitStack() as stack:
        if made:
            stack.push(lambda kind, *_: _remove_if_empty(out) if kind else None)
        try:
            stack.enter_context(lock(out / _LOCK))
        except InUseError:
            raise TrainingError(
                f"{out} is in use: another training writes there. Wait for it, or choose "
                "another `out`"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{out} cannot be locked ({error}): nothing keeps a second training out of it",
                MaskCLIPWarning,
                stacklevel=3,
            )
        yield


def _remove_if_empty(out: Path) -> None:
    """Remove a run folder that holds a lock alone, or nothing."""
    with suppress(OSError):
        if {file.name for file in out.iterdir()} <= {_LOCK}:
            (out / _LOCK).unlink(missing_ok=True)
            out.rmdir()


def settle_teacher(training: Training, out: Path) -> tuple[Training, str]:
    """Return a training whose method is named, and why `auto` became it; "" where it was named.

    A training that has begun in the folder keeps its method. For a new one `auto` goes by the
    crops as the teacher sees them.

    Raises:
        MaskCLIPError: the teacher cannot be loaded.
    """
    if training.teacher.method != AUTO:
        return training, ""
    saved = _saved_choice(out) if holds_training(out) else None
    if saved is None:
        supervision = training.supervision
        side = supervision.teacher_short_side
        if side is None:
            side = round(supervision.teacher_scale * min(training.augmentation.crop))
        options = Options(short_side=side, key_smoothing=supervision.key_smoothing)
        teacher, why = settle(training.teacher, options)
        return replace(training, teacher=teacher), why
    method, why = saved
    return replace(training, teacher=replace(training.teacher, method=method)), why


def _saved_choice(out: Path) -> tuple[str, str] | None:
    """Return the method that `auto` became in a run folder, and why; None where it was named."""
    try:
        saved = read_json(out / CONFIG, "the settings of a training")
        method, why = saved["teacher"]["method"], saved["auto"]
    except (MaskCLIPError, OSError, *_OF_OTHER_CONTENT):  # which `compare` tells
        return None
    known = isinstance(method, str) and method in METHODS
    return (method, why) if known and isinstance(why, str) else None


def run_config(training: Training, samples: Samples, *, why: str = "") -> dict[str, Any]:
    """Return what config.json holds: all that decides the weights, files by their content.

    `why` is why `auto` became the teacher's method, where it did.
    """
    teacher = training.teacher
    named = {
        "teacher.name": teacher.name,
        "teacher.weights": teacher.weights,
        **{role: getattr(training, role) for role in _FIRST_WEIGHTS},
    }
    content = {
        **asdict(training),
        "files": {
            role: file_fingerprint(Path(name))
            for role, name in named.items()
            if name not in (None, *FIRST_WEIGHTS) and Path(name).is_file()
        },
        "samples": samples.metadata(),
        "classes": list(samples.vocabulary.names),
        **({"auto": why} if why else {}),
    }
    if teacher.tokenizer is not None:
        from maskclip.clip.tokenizers import folder_fingerprint

        content["files"]["teacher.tokenizer"] = folder_fingerprint(Path(teacher.tokenizer))
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def holds_training(out: Path) -> bool:
    """Return whether a training has been begun in a folder and has written a checkpoint."""
    return any(os.path.lexists(out / name) for name in (LAST, PREVIOUS))


def begin(out: Path, config: dict[str, Any], samples: Samples) -> None:
    """Write what is to be known when the training is resumed."""
    write_json(config, out / CONFIG)
    if samples.paths(0):
        sizes = [file_sizes(samples, index) for index in range(len(samples))]
        record = {"names": list(samples.names), "bytes": sizes}
        write_text(f"{json.dumps(record)}\n", out / SAMPLES)  # ASCII: names need not be UTF-8


@dataclass(frozen=True)
class Places:
    """Where the images that a training began with are now.

    Attributes:
        indices: of each, its index among the samples, or None where it is gone.
        changes: what differs, in plain words; "" if nothing does.
    """

    indices: Sequence[int | None]
    changes: str = ""


def compare(out: Path, config: dict[str, Any], samples: Samples) -> Places:
    """Compare the training that a folder holds with the one that is wanted.

    Where its files lie does not matter, nor do images that are gone or new: they are named.

    Raises:
        TrainingError: it is another training, or most of its images are gone.
    """
    try:
        saved = read_json(out / CONFIG, "the settings of a training")
        record = _read_record(out / SAMPLES) if (out / SAMPLES).exists() else None
        changes = differences(
            _comparable(saved, record), _comparable(_as_begun(config, saved), record)
        )
    except (MaskCLIPError, OSError, *_OF_OTHER_CONTENT) as error:
        raise TrainingError(
            f"{out}: what trains there cannot be read ({error}); choose another `out`"
        ) from error
    changes = [_in_plain_words(change, config) for change in changes]
    if changes:
        raise TrainingError(
            f"{out} holds another training: {list_differences(changes)}. Choose another `out`"
            f"{_start_from(out, changes)}"
        )
    if record is None:
        return Places(range(len(samples)))
    return _find(*record, samples, out=out)


_OF_OTHER_CONTENT = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def _read_record(path: Path) -> tuple[list[str], list[tuple[int, ...]]]:
    """Return the names of the images that a training began with, and the sizes of their files.

    Raises:
        MaskCLIPError: the file does not hold them.
    """
    record = read_json(path, "the images of a training", limit=_LARGEST_RECORD)
    names, sizes = (
        (record.get("names"), record.get("bytes")) if isinstance(record, dict) else (None, None)
    )
    if not (
        isinstance(names, list)
        and isinstance(sizes, list)
        and len(names) == len(sizes)
        and all(isinstance(name, str) for name in names)
        and all(isinstance(each, list) and all(type(n) is int for n in each) for each in sizes)
    ):
        raise MaskCLIPError(f"{path}: expected names of images, and the bytes of each")
    return names, list(map(tuple, sizes))


def _as_begun(config: dict[str, Any], saved: Any) -> dict[str, Any]:
    """Return the settings as if the first weights were still there: checkpoints hold others."""
    begun = saved.get("files", {}) if isinstance(saved, dict) else {}
    gone = {
        role: begun[role]
        for role in _FIRST_WEIGHTS
        if role in begun and role not in config["files"] and saved.get(role) == config[role]
    }
    return {**config, "files": {**config["files"], **gone}}


def _comparable(config: Any, record: object) -> Any:
    """Return the settings but for the paths of files, which are compared by their content."""
    if not isinstance(config, dict):
        return config
    kept = json.loads(json.dumps(config))
    kept.pop("auto", None)
    for role in kept.get("files") or {}:
        *parents, name = role.split(".")
        inner = kept
        for parent in parents:
            inner = inner[parent]
        inner[name] = "a file"
    for key in ("folders", *(("list",) if record is not None else ())):
        kept.get("samples", {}).pop(key, None)
    (kept.get("samples", {}).get("labels") or {}).pop("place", None)
    return kept


def _in_plain_words(change: str, config: dict[str, Any]) -> str:
    """Return a difference, but for that of two hashes, which says nothing to people."""
    if not change.startswith("samples.labels.content: "):
        return change
    return f"the labels in {config['samples']['labels']['place']} have changed"


def _start_from(out: Path, changes: Sequence[str]) -> str:
    """Return how a training of other settings goes on from this one's weights, where it can."""
    if any(change.startswith(("student:", "teacher.name:")) for change in changes):
        return ""
    weights = FINISHED if (out / FINISHED).exists() else LAST
    return f", and start there from the student of this one with `initial={out / weights}`"


def _find(
    names: Sequence[str], sizes: Sequence[tuple[int, ...]], samples: Samples, *, out: Path
) -> Places:
    """Return where the recorded images are now: by name, or by file name and size if moved."""
    now = {name: index for index, name in enumerate(samples.names)}
    known = set(names)
    new = {name: index for name, index in now.items() if name not in known}
    places = [now.get(name) for name in names]
    lost = [number for number, place in enumerate(places) if place is None]
    moved = 0
    if lost and new:
        elsewhere = defaultdict(list)
        for index in new.values():
            elsewhere[_content(samples.names[index], file_sizes(samples, index))].append(index)
        for number in lost:
            candidates = elsewhere.pop(_content(names[number], sizes[number]), [])
            if len(candidates) == 1:
                (places[number],) = candidates
                moved += 1
    gone = [names[number] for number, place in enumerate(places) if place is None]
    changed = [
        name
        for name, size, place in zip(names, sizes, places, strict=True)
        if place is not None and file_sizes(samples, place) != size
    ]
    if 2 * len(gone) > len(names):
        raise TrainingError(
            f"{len(gone):,} of the {len(names):,} images of the training in {out} are not there "
            f"any more ({_some(gone)}): give the images that it began with, or choose another `out`"
        )
    parts = [
        f"{len(gone):,} are gone, in whose place others are learnt from ({_some(gone)})"
        * bool(gone),
        f"{moved:,} are in another folder" * bool(moved),
        f"{len(changed):,} have changed ({_some(changed)})" * bool(changed),
        f"{len(new) - moved:,} are new and not learnt from" * (len(new) > moved),
    ]
    changes = "; ".join(part for part in parts if part)
    return Places(places, f"of {len(names):,} images, {changes}" if changes else "")


def _content(name: str, sizes: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    return PurePosixPath(name).name, sizes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
