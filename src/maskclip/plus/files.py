"""Students as files, with what they were trained to tell apart; no pickled code is ever run.

Written is `.safetensors`, whose header describes the student; read are these, Lightning's
checkpoints of a training, and the authors' released ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskclip.clip.checkpoint import (
    StateDict,
    WeightsError,
    fit,
    load_pickle,
    read_safetensors,
    state_dict_of,
)
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import atomic_path
from maskclip.core.vocabulary import Vocabulary, builtin_names
from maskclip.plus.config import StudentConfig
from maskclip.plus.recognize import LIGHTNING_SUFFIX, METADATA_KEY
from maskclip.plus.released import read_released
from maskclip.plus.student import Student, build_student

SHORT_SIDE = 512
"""The working size of students that name none, in px: that of the published tests."""

VERSION = 1
"""Of the metadata in a file; another one is refused."""

_SPELLINGS = {"aeroplane": "airplane"}  # PASCAL's, and that of the built-in class sets
_PREFIX = "student."  # of the student's weights in a Lightning checkpoint


@dataclass(frozen=True, eq=False)
class TrainedStudent:
    """A student and what is known of it.

    Attributes:
        student: the network; in eval mode when it was read from a file.
        vocabulary: its classes in order, or None where they are not known.
        step: the training steps taken, or None where they are not known.
        short_side: of the images it is made for, in px.
    """

    student: Student
    vocabulary: Vocabulary | None = None
    step: int | None = None
    short_side: int = SHORT_SIDE

    def __post_init__(self) -> None:
        classes = len(self)
        if self.vocabulary is not None and len(self.vocabulary) != classes:
            raise WeightsError(
                f"the student tells {classes} classes apart, the vocabulary has "
                f"{len(self.vocabulary)}; give the classes that it was trained on, in their order"
            )

    def __len__(self) -> int:
        """Return the number of classes, a background included."""
        return len(self.student.rows) + self.student.config.background


def student_metadata(trained: TrainedStudent) -> dict[str, Any]:
    """Describe a student with plain JSON values: architecture, classes and working size."""
    vocabulary = trained.vocabulary
    return {
        "version": VERSION,
        "config": asdict(trained.student.config),
        "vocabulary": None if vocabulary is None else vocabulary.to_dict(),
        "short_side": trained.short_side,
    }


def save_student(trained: TrainedStudent, path: Path) -> None:
    """Write a student as `.safetensors`, whole or not at all.

    Raises:
        WeightsError: the path has another suffix.
        OSError: it cannot be written.
    """
    from safetensors.torch import save_file

    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: students are written as .safetensors; choose such a name")
    metadata = {**student_metadata(trained), "step": trained.step}
    state = {
        key: value.detach().cpu().contiguous()
        for key, value in trained.student.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={METADATA_KEY: json.dumps(metadata, allow_nan=False)})


def read_student(path: Path) -> TrainedStudent:
    """Read a student's file: of `save_student`, of Lightning (`.ckpt`), or of the authors.

    Raises:
        WeightsError: it is missing or damaged, holds no student, describes one that cannot be, or
            has other weights than it describes; or it would have to run code to load.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such student file")
    if path.suffix == LIGHTNING_SUFFIX:
        return _read_lightning(path)
    if path.suffix == ".safetensors":
        state, header = read_safetensors(path)
        if METADATA_KEY in header:
            metadata = _parse(header[METADATA_KEY], source=str(path))
            return _trained(state, metadata, metadata.get("step"), source=str(path))
    released = read_released(path)
    return TrainedStudent(released.student, _builtin_of(released.names), released.step)


def file_fingerprint(path: Path) -> str:
    """Return a hash of a file's content, 16 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _read_lightning(path: Path) -> TrainedStudent:
    source = str(path)
    content = load_pickle(path)
    if not isinstance(content, dict) or not isinstance(content.get(METADATA_KEY), dict):
        raise WeightsError(
            f"{source}: not a checkpoint of a student's training: it has no description of one "
            f"under the key {METADATA_KEY!r}"
        )
    state = {
        key.removeprefix(_PREFIX): value
        for key, value in state_dict_of(content, source=source).items()
        if key.startswith(_PREFIX)
    }
    return _trained(state, content[METADATA_KEY], content.get("global_step"), source=source)


def _parse(text: str, *, source: str) -> Mapping[str, Any]:
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise WeightsError(f"{source}: the description of the student in it is damaged")
    return metadata


def _trained(
    state: StateDict, metadata: Mapping[str, Any], step: object, *, source: str
) -> TrainedStudent:
    """Build a student, in eval mode, from untrusted metadata and weights."""
    if metadata.get("version") != VERSION:
        raise WeightsError(
            f"{source}: a student of file version {metadata.get('version')!r}; this maskclip reads "
            f"version {VERSION}"
        )
    config = _config(metadata.get("config"), source=source)
    vocabulary = _vocabulary(metadata.get("vocabulary"), source=source)
    if step is not None and (not _is(step, int) or step < 0):  # type: ignore[operator]  # an int
        raise WeightsError(f"{source}: expected the number of training steps, got {step!r}")
    short_side = metadata.get("short_side", SHORT_SIDE)
    if not _is(short_side, int) or short_side < 1:
        raise WeightsError(f"{source}: short_side: expected px from 1, got {short_side!r:.40}")
    student = _fitted(config, state, source=source)
    try:
        return TrainedStudent(
            student,
            vocabulary,
            step,  # type: ignore[arg-type]  # as checked
            short_side,
        )
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None


def _fitted(config: StudentConfig, state: StateDict, *, source: str) -> Student:
    """Return the student of an architecture; memory is taken only once the weights fit it."""
    rows = state.get("rows")
    if rows is None:
        raise WeightsError(f"{source}: no student in it: the text rows are missing")
    try:
        with torch.device("meta"):
            shape_only = build_student(config, rows.to("meta"))
        fit(shape_only, {key: _shape_of(value) for key, value in state.items()}, source=source)
        student = build_student(config, rows)
    except MaskCLIPError as error:
        message = str(error)
        raise WeightsError(
            message if message.startswith(source) else f"{source}: {message}"
        ) from error
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond any tensor's
        raise WeightsError(f"{source}: no student can have the architecture {config}") from error
    fit(student, state, source=source)
    return student.eval()


def _shape_of(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _config(values: object, *, source: str) -> StudentConfig:
    """Return an architecture; fields that the file does not have are those of the default."""
    known = {field.name: field.default for field in fields(StudentConfig)}
    if not isinstance(values, dict):
        raise WeightsError(f"{source}: no architecture of a student in its description")
    for name, value in values.items():
        if name not in known:
            raise WeightsError(
                f"{source}: unknown field {name!r} of the architecture; a newer maskclip wrote it"
            )
        default = known[name]
        if not _alike(value, default):
            raise WeightsError(
                f"{source}: {name}: expected a value such as {default!r}, got {value!r:.40}"
            )
    try:
        return StudentConfig(**values)
    except (MaskCLIPError, TypeError) as error:
        raise WeightsError(f"{source}: {error}") from error


def _alike(value: object, default: object) -> bool:
    """Return whether a value is of the kind of a field's default."""
    if default is None:
        return True
    return _is(value, type(default)) or (isinstance(default, float) and _is(value, int))


def _is(value: object, kind: type) -> bool:
    return type(value) is kind  # a bool is no int here


def _vocabulary(values: object, *, source: str) -> Vocabulary | None:
    if values is None:
        return None
    if not _is_vocabulary(values):
        raise WeightsError(f"{source}: its description of the classes is damaged")
    assert isinstance(values, dict)
    try:
        return Vocabulary.from_dict(values)
    except (MaskCLIPError, TypeError) as error:
        raise WeightsError(f"{source}: {error}") from error


def _is_vocabulary(values: object) -> bool:
    """Return whether values are of the types that `Vocabulary.to_dict` gives."""
    if not isinstance(values, dict):
        return False
    names: Any = values.get("names")
    prompts: Any = values.get("prompts")
    colors: Any = values.get("colors")
    return (
        _all(names, str)
        and _all(prompts, list)
        and all(_all(words, str) for words in prompts)
        and _all(colors, list)
        and all(_all(color, int) and len(color) == 3 for color in colors)
        and type(values.get("threshold")) in (type(None), int, float)
    )


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _builtin_of(names: tuple[str, ...] | None) -> Vocabulary | None:
    """Return the built-in class set with these names in this order, however they are spelt."""
    if names is None:
        return None
    wanted = [_letters(name) for name in names]
    for builtin in builtin_names():
        vocabulary = Vocabulary.builtin(builtin)
        if [_letters(name) for name in vocabulary.names] == wanted:
            return vocabulary
    return None


def _letters(name: str) -> str:
    letters = "".join(filter(str.isalnum, name.lower()))
    return _SPELLINGS.get(letters, letters)
