"""Students' files: recognised, read and written. No pickled code is ever run.

Three formats: `.safetensors`, whose header describes the student, the only one that is written;
Lightning's `.ckpt` of a training; and the authors' `.pth`, or its state_dict as `.safetensors`,
whose layout `released` knows. Quick to import: torch and timm wait until a file is read.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskclip.core.config import SHORT_SIDES
from maskclip.core.errors import MaskCLIPError, differences, list_differences
from maskclip.core.files import atomic_path, read_entry
from maskclip.core.text import brief, parse_json
from maskclip.core.vocabulary import Vocabulary
from maskclip.plus import released
from maskclip.plus.config import StudentConfig, StudentError

if TYPE_CHECKING:
    from torch import Tensor

    from maskclip.plus.student import Student

METADATA_KEY = "maskclip"
"""The key of `StudentMetadata`, in a safetensors header and in a Lightning checkpoint."""

SHORT_SIDE = 512
"""The working size of students that name none, in px: that of the published tests."""

TEMPLATES = "published"
"""The prompts of students that name none."""

VERSION = 1
"""Of the metadata in a file; another one is refused."""

_MOST_STEPS = 2**53  # what any JSON reader takes for a whole number
_LONGEST_NAME = 200  # characters, of a decoder or backbone
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}")  # a file's too, but no path
_HUB_NAME = re.compile(r"hf-hub:\w[\w.-]{0,95}/\w[\w.-]{0,95}(@\w[\w.-]{0,95})?")
_LIGHTNING_SUFFIX = ".ckpt"
_LIGHTNING_PREFIX = "student."  # of the student's weights in a Lightning checkpoint
_RUN_FILES = ("student.safetensors", "best.ckpt", "last.ckpt", "previous.ckpt")
_STUDENTS_ROWS = re.compile(rb"student\.((_orig_mod|module|model)\.)*rows")
_SCANNED = 4 * 2**20  # bytes: names of weights come first in files that are not archives
_MOST_NAMES = 8 * 2**20  # bytes: more is not the list of names of any student


@dataclass(frozen=True, kw_only=True)
class StudentMetadata:
    """What a file says of a student beside its weights.

    Attributes:
        config: the architecture.
        vocabulary: its classes in order, or None where they are not known.
        step: the training steps taken, or None where they are not known.
        short_side: of the images it is made for, in px.
        clip: the name of the CLIP that gave its text rows, or of its file, or of the preview that
            gave rows of its own; None where it is not known.
        templates: of the prompts that the rows are of.
        language: of their words, where the CLIP's tokenizer writes it before them.
    """

    config: StudentConfig
    vocabulary: Vocabulary | None = None
    step: int | None = None
    short_side: int = SHORT_SIDE
    clip: str | None = None
    templates: str = TEMPLATES
    language: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "version": VERSION,
            "config": {**asdict(self.config), "counts": list(self.config.counts)},
            "vocabulary": None if self.vocabulary is None else self.vocabulary.to_dict(),
            "short_side": self.short_side,
            "step": self.step,
            "clip": self.clip,
            "templates": self.templates,
            **({} if self.language is None else {"language": self.language}),
        }

    @classmethod
    def from_dict(cls, values: object, *, source: str) -> StudentMetadata:
        """Check values that need not be trusted; those that are absent have their defaults.

        Raises:
            StudentError: they are not those of `to_dict`; `source` says where they come from.
        """
        if not isinstance(values, dict):
            raise StudentError(f"{source}: the description of the student in it is damaged")
        if values.get("version") != VERSION:
            raise StudentError(
                f"{source}: a student of file version {brief(values.get('version'))}; this "
                f"maskclip reads version {VERSION}"
            )
        step, short_side = values.get("step"), values.get("short_side", SHORT_SIDE)
        if step is not None and (type(step) is not int or not 0 <= step < _MOST_STEPS):
            raise StudentError(
                f"{source}: expected the number of training steps, got {brief(step)}"
            )
        low, high = SHORT_SIDES
        if type(short_side) is not int or not low <= short_side <= high:
            raise StudentError(
                f"{source}: short_side: expected px from {low} to {high:,}, got {brief(short_side)}"
            )
        clip, templates = values.get("clip"), values.get("templates", TEMPLATES)
        language = values.get("language")
        for name, text in (("clip", clip), ("templates", templates), ("language", language)):
            if not _is_name(text) and not (text is None and name != "templates"):
                raise StudentError(f"{source}: {name}: expected a name, got {brief(text)}")
        config = _read_config(values.get("config"), source=source)
        classes = values.get("vocabulary")
        try:
            vocabulary = None if classes is None else Vocabulary.from_dict(classes)
        except MaskCLIPError as error:
            raise StudentError(f"{source}: {error}") from error
        return cls(
            config=config,
            vocabulary=vocabulary,
            step=step,
            short_side=short_side,
            clip=clip,
            templates=templates,
            language=language,
        )


def clip_name(model: str) -> str:
    """Return what a student's file calls the CLIP of that name or file: no folders of a machine."""
    return model if _HUB_NAME.fullmatch(model) else Path(model).name


def _is_name(text: object) -> bool:
    """Return whether a value is the name of a CLIP, or of a file, and neither path nor address."""
    return isinstance(text, str) and any(kind.fullmatch(text) for kind in (_NAME, _HUB_NAME))


def _read_config(values: object, *, source: str) -> StudentConfig:
    """Return an architecture of untrusted values; fields that are absent have their defaults."""
    known = {field.name: field.default for field in fields(StudentConfig)}
    if not isinstance(values, dict):
        raise StudentError(f"{source}: no architecture of a student in its description")
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    for name, value in given.items():
        if name not in known:
            raise StudentError(
                f"{source}: unknown field {brief(name)} of the architecture; a newer maskclip "
                "wrote it"
            )
        default = known[name]
        if isinstance(value, str) and len(value) > _LONGEST_NAME:
            raise StudentError(f"{source}: {name}: expected a name, got {brief(value)}")
        numbers = isinstance(default, float) and type(value) is int
        if name == "tower" and not isinstance(value, dict | None):
            raise StudentError(f"{source}: {name}: expected a table, got {brief(value)}")
        if default is not None and type(value) is not type(default) and not numbers:
            raise StudentError(
                f"{source}: {name}: expected a value such as {default!r}, got {brief(value)}"
            )
    try:
        return StudentConfig(**given)
    except (MaskCLIPError, TypeError) as error:
        raise StudentError(f"{source}: {error}") from error


@dataclass(frozen=True, eq=False)
class TrainedStudent:
    """A student and what is known of it.

    Attributes:
        student: the network; in eval mode when it was read from a file.
        vocabulary, step, short_side, clip, templates, language: as in `StudentMetadata`.

    Raises:
        StudentError: the vocabulary has another number of classes.
    """

    student: Student
    vocabulary: Vocabulary | None = None
    step: int | None = None
    short_side: int = SHORT_SIDE
    clip: str | None = None
    templates: str = TEMPLATES
    language: str | None = None

    def __post_init__(self) -> None:
        if self.vocabulary is not None and len(self.vocabulary) != len(self):
            raise StudentError(
                f"the student has {len(self)} classes, the vocabulary has {len(self.vocabulary)}; "
                "give the classes that it was trained on, in their order"
            )

    def __len__(self) -> int:
        """Return the number of classes, a background included."""
        return len(self.student)

    @property
    def metadata(self) -> StudentMetadata:
        """What its file says of it."""
        return StudentMetadata(
            config=self.student.config,
            vocabulary=self.vocabulary,
            step=self.step,
            short_side=self.short_side,
            clip=self.clip,
            templates=self.templates,
            language=self.language,
        )


def save_student(trained: TrainedStudent, path: Path) -> None:
    """Write a student as `.safetensors`, whole or not at all.

    Raises:
        StudentError: the path has another suffix.
        OSError: it cannot be written.
    """
    from safetensors.torch import save_file

    if path.suffix != ".safetensors":
        raise StudentError(f"{path}: students are written as .safetensors; choose such a name")
    metadata = json.dumps(trained.metadata.to_dict(), allow_nan=False)
    state = {
        key: value.detach().cpu().contiguous()
        for key, value in trained.student.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={METADATA_KEY: metadata})


def read_student(path: Path) -> TrainedStudent:
    """Read a student's file: of `save_student`, of Lightning (`.ckpt`), or of the authors.

    A run folder of a training is read as `student_file` says.

    Raises:
        MaskCLIPError: it is missing or damaged, holds no student, describes one that cannot be, or
            has other weights than it describes; or it would have to run code to load.
    """
    from maskclip.clip.checkpoint import one_line

    path = student_file(path)
    if path.is_dir():
        raise StudentError(
            f"{path}: a folder without a student: expected {' or '.join(_RUN_FILES[:3])} in it, "
            "as `maskclip train` leaves them"
        )
    if not path.is_file():
        raise StudentError(f"{path}: no such student file")
    with one_line(path, "student file"):
        return _read(path)


def _read(path: Path) -> TrainedStudent:
    from maskclip.clip.checkpoint import read_weights
    from maskclip.plus.student import student_from

    source = str(path)
    state, beside = read_weights(path)
    spelling: Callable[[str], str] = str
    if path.suffix == ".safetensors" and METADATA_KEY in beside:
        values = parse_json(beside[METADATA_KEY], source, "the description of a student")
        metadata = StudentMetadata.from_dict(values, source=source)
    elif path.suffix == _LIGHTNING_SUFFIX:
        metadata = _describe_checkpoint(beside, source=source)
        state = _without_prefix(state)
    else:
        metadata = _describe_released(state, beside.get("meta"), source=source)
        state, spelling = released.without_teacher(state), released.published_name
    student = student_from(metadata.config, state, source=source, spelling=spelling)
    return TrainedStudent(
        student,
        metadata.vocabulary,
        metadata.step,
        metadata.short_side,
        clip=metadata.clip,
        templates=metadata.templates,
        language=metadata.language,
    )


def take_weights(student: Student, path: Path) -> None:
    """Load the weights of a student's file, but not its text rows: the classes may be others.

    Raises:
        MaskCLIPError: it cannot be read, or holds a student of another architecture.
    """
    given = read_student(path).student
    if given.config != student.config:
        changes = differences(asdict(given.config), asdict(student.config))
        raise StudentError(
            f"{path}: another student than the one wanted: {list_differences(changes)}"
        )
    weights = {key: value for key, value in given.state_dict().items() if key != "rows"}
    student.load_state_dict(weights, strict=False)


def _describe_checkpoint(beside: Mapping[str, Any], *, source: str) -> StudentMetadata:
    values = beside.get(METADATA_KEY)
    if not isinstance(values, dict):
        raise StudentError(
            f"{source}: not a checkpoint of a student's training: it has no description of one "
            f"under the key {METADATA_KEY!r}"
        )
    return StudentMetadata.from_dict({**values, "step": beside.get("global_step")}, source=source)


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the student's weights in a Lightning checkpoint."""
    from maskclip.clip.checkpoint import plain_names

    part = _LIGHTNING_PREFIX
    return plain_names({k.removeprefix(part): v for k, v in state.items() if k.startswith(part)})


def _describe_released(
    state: Mapping[str, Tensor], meta: object, *, source: str
) -> StudentMetadata:
    config = released.config_of(state, source=source)
    classes = len(state[released.ROWS]) + config.background
    return StudentMetadata(
        config=config,
        vocabulary=released.vocabulary_of(meta, classes=classes),
        step=released.step_of(meta),
        clip=released.CLIPS.get(config.embed_dim),
    )


def student_file(path: Path) -> Path:
    """Return the file of a student: of a run folder, the best that the training has reached.

    That is what it has finished, else its best checkpoint, else its last or the one before; empty
    files are none. Any other path stays.
    """
    if not path.is_dir():
        return path
    there = (path / name for name in _RUN_FILES if (path / name).is_file())
    return next((file for file in there if file.stat().st_size), path)


def is_student_file(path: Path) -> bool:
    """Return whether a file is a student's, of any format that `read_student` reads.

    So is a run folder that has one.

    Nothing is unpickled and no weights are read. A missing or damaged file is none, but a missing
    `.ckpt` is, as nothing else that can be given for a model ends so.
    """
    path = student_file(path)
    try:
        if not path.is_file():
            return path.suffix == _LIGHTNING_SUFFIX
        if path.suffix == ".safetensors":
            return _is_safetensors_student(path)
        names = _names_of_weights(path)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False
    return _STUDENTS_ROWS.search(names) is not None or released.ROWS.encode() in names


def _is_safetensors_student(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_NAMES:
            return False
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        return False
    metadata = header.get("__metadata__")
    described = isinstance(metadata, dict) and METADATA_KEY in metadata
    return described or any(key.endswith(released.ROWS) for key in header)


def _names_of_weights(path: Path) -> bytes:
    """Return the bytes among which `torch.save` writes the names of weights."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return file.read(_SCANNED)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith("/data.pkl") and entry.file_size <= _MOST_NAMES:
                return read_entry(archive, entry, most=_MOST_NAMES)
    return b""
