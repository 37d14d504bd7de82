"""The authors' released MaskCLIP+ checkpoints, as students; no pickled code is ever run.

Such a file holds mmcv's {meta, state_dict, optimizer}, or a state_dict alone. Beside the student,
the state_dict may hold the CLIP that labelled for it and a step counter, which are left behind.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from maskclip.clip.checkpoint import (
    StateDict,
    WeightsError,
    fit,
    load_pickle,
    read_safetensors,
    state_dict_of,
)
from maskclip.plus.config import StudentConfig
from maskclip.plus.student import Student, build_student

_ROWS = "decode_head.text_embeddings"
_BACKGROUND = "decode_head.bg_embeddings"
_DECODER = "decode_head.decode_module."
_SKIP = f"{_DECODER}c1_bottleneck.conv.weight"
_STEM_WIDTH = "backbone.layer1.0.conv1.weight"

# The teacher, its projections (q, k, v, c of a ResNet; proj of a ViT), and the step counter.
_LEFT_BEHIND = re.compile(
    r"decode_head\.(clip\..+|[qkvc]_proj\.(weight|bias)|proj\.weight|_iter_counter)"
)
_DEPTH_OF_STAGE_3 = {6: 50, 23: 101}
# How a file spells the beginnings of the names of a student's weights.
_SPELLINGS = {
    "backbone.conv1.": "backbone.stem.",
    "backbone.bn1.": "backbone.stem.7.",
    "decoder.": _DECODER,
    "rows": _ROWS,
    "background": _BACKGROUND,
}


@dataclass(frozen=True)
class Released:
    """What a released checkpoint holds.

    Attributes:
        student: in eval mode.
        names: the class names of its `meta`, or None where it names none, or another number than
            the student has classes.
        step: the training steps taken, or None where its `meta` does not say.
    """

    student: Student
    names: tuple[str, ...] | None
    step: int | None


def read_released(path: Path) -> Released:
    """Read a checkpoint file of the authors' training, or its state_dict as `.safetensors`.

    Raises:
        WeightsError: the file is missing or damaged, would have to run code to load, is not of
            MaskCLIP+, or has too few or too many weights for a student; the message names them.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    content: Any
    if path.suffix == ".safetensors":
        content, _ = read_safetensors(path)
    else:
        content = load_pickle(path, allowed=_plain_numpy())
    student = student_from(state_dict_of(content, source=str(path)), source=str(path))
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    names = _names(meta.get("CLASSES"), len(student.classifier()))
    step = meta.get("iter")
    return Released(student, names, int(step) if isinstance(step, int | np.integer) else None)


def student_from(state: Mapping[str, Tensor], *, source: str) -> Student:
    """Return the student, in eval mode, that a state_dict in the published layout holds.

    Raises:
        WeightsError: it is not one of MaskCLIP+, or has too few or too many weights for a student.
    """
    student = build_student(config_of(state, source=source), state[_ROWS])
    fit(student, without_teacher(state), source=source, spelling=published_name)
    return student.eval()


def without_teacher(state: Mapping[str, Tensor]) -> StateDict:
    """Leave behind the labelling CLIP and the step counter of a published state_dict."""
    return {key: value for key, value in state.items() if not _LEFT_BEHIND.fullmatch(key)}


def published_name(key: str) -> str:
    """Return the name that a published state_dict has for a key of `Student.state_dict()`."""
    for ours, theirs in _SPELLINGS.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key


def config_of(state: Mapping[str, Tensor], *, source: str) -> StudentConfig:
    """Return the architecture that the names and shapes of a published state_dict tell.

    Raises:
        WeightsError: they are not those of a MaskCLIP+ student.
    """
    separable = any(key.startswith(f"{_DECODER}sep_bottleneck.") for key in state)
    telling = {_ROWS: 2, _STEM_WIDTH: 4, **({_SKIP: 4} if separable else {})}
    for key, axes in telling.items():
        if key not in state or state[key].ndim != axes:
            raise WeightsError(
                f"{source}: not a MaskCLIP+ checkpoint: expected {key} with {axes} axes, found "
                f"{_found(state, key)}; a CLIP is given with --model"
            )
    blocks = {key.split(".")[2] for key in state if key.startswith("backbone.layer3.")}
    if len(blocks) not in _DEPTH_OF_STAGE_3:
        raise WeightsError(
            f"{source}: expected {' or '.join(map(str, _DEPTH_OF_STAGE_3))} blocks in "
            f"backbone.layer3 (ResNet-50 or 101), found {len(blocks)}"
        )
    return StudentConfig(
        decoder="deeplabv3plus" if separable else "deeplabv2",
        depth=_DEPTH_OF_STAGE_3[len(blocks)],
        width=state[_STEM_WIDTH].shape[0],
        skip=state[_SKIP].shape[0] if separable else StudentConfig.skip,
        embed_dim=state[_ROWS].shape[1],
        background=_BACKGROUND in state,
    )


def _found(state: Mapping[str, Tensor], key: str) -> str:
    if key in state:
        return f"{state[key].ndim}"
    return f"{len(state)} other keys" + (f" such as {next(iter(state))}" if state else "")


def _names(classes: object, count: int) -> tuple[str, ...] | None:
    if not isinstance(classes, list | tuple) or len(classes) != count:
        return None
    return tuple(str(name) for name in classes)


def _plain_numpy() -> list[Any]:
    """Return what NumPy's scalars and arrays are unpickled through, which mmcv's `meta` may hold.

    None of it runs code of the file. NumPy 1 and 2 write different module names.
    """
    functions: list[Any] = [np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]]
    named = [
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for function in functions
        for core in ("core", "_core")
    ]
    dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefdU"}
    return [*named, *dtypes, np.ndarray, np.dtype, codecs.encode]
