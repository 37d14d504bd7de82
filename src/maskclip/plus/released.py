"""The layout of the authors' released checkpoints: its names, and what they say of the student.

Such a file holds mmcv's {meta, state_dict, optimizer}, or a state_dict alone. Beside the student,
the state_dict may hold the CLIP that labelled for it and a step counter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from maskclip.core.vocabulary import Vocabulary, builtin_names
from maskclip.plus.config import StudentConfig, StudentError

if TYPE_CHECKING:
    from torch import Tensor

ROWS = "decode_head.text_embeddings"
"""The text rows: the name by which such a file is recognised."""

CLIPS = {1024: "RN50:openai", 768: "RN50x16:openai", 512: "ViT-B-16:openai"}
"""The CLIPs that labelled for the authors' students, by the channels of their text rows."""

_BACKGROUND = "decode_head.bg_embeddings"
_DECODER = "decode_head.decode_module."
_SKIP = f"{_DECODER}c1_bottleneck.conv.weight"
_STEM_WIDTH = "backbone.layer1.0.conv1.weight"

# The teacher, its projections (q, k, v, c of a ResNet; proj of a ViT), and the step counter.
_NOT_THE_STUDENT = re.compile(
    r"decode_head\.(clip\..+|[qkvc]_proj\.(weight|bias)|proj\.weight|_iter_counter)"
)
_DEPTH_OF_STAGE_3 = {6: 50, 23: 101}
# Beginnings of the names of a student's weights -> those that the authors' code gives them.
_PREFIXES = {
    "backbone.conv1.": "backbone.stem.",
    "backbone.bn1.": "backbone.stem.7.",
    "decoder.": _DECODER,
    "rows": ROWS,
    "background": _BACKGROUND,
}
_CLASS_NAMES = {"aeroplane": "airplane"}  # PASCAL's, and that of the built-in class sets


def config_of(state: Mapping[str, Tensor], *, source: str) -> StudentConfig:
    """Return the architecture that the names and shapes of a published state_dict imply.

    Raises:
        StudentError: they are not those of a MaskCLIP+ student.
    """
    separable = any(key.startswith(f"{_DECODER}sep_bottleneck.") for key in state)
    needed = {ROWS: 2, _STEM_WIDTH: 4, **({_SKIP: 4} if separable else {})}
    for key, axes in needed.items():
        if key not in state or state[key].ndim != axes:
            raise StudentError(
                f"{source}: not a MaskCLIP+ checkpoint: expected {key} with {axes} axes, found "
                f"{_found(state, key)}; a CLIP is a `model` by name"
            )
    blocks = {key.split(".")[2] for key in state if key.startswith("backbone.layer3.")}
    if len(blocks) not in _DEPTH_OF_STAGE_3:
        raise StudentError(
            f"{source}: expected {' or '.join(map(str, _DEPTH_OF_STAGE_3))} blocks in "
            f"backbone.layer3 (ResNet-50 or 101), found {len(blocks)}"
        )
    return StudentConfig(
        decoder="deeplabv3plus" if separable else "deeplabv2",
        depth=_DEPTH_OF_STAGE_3[len(blocks)],
        width=state[_STEM_WIDTH].shape[0],
        skip=state[_SKIP].shape[0] if separable else StudentConfig.skip,
        embed_dim=state[ROWS].shape[1],
        background=_BACKGROUND in state,
    )


def _found(state: Mapping[str, Tensor], key: str) -> str:
    if key in state:
        return f"{state[key].ndim}"
    return f"{len(state)} other keys" + (f" such as {next(iter(state))}" if state else "")


def without_teacher(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state_dict without the labelling CLIP and the step counter."""
    return {key: value for key, value in state.items() if not _NOT_THE_STUDENT.fullmatch(key)}


def published_name(key: str) -> str:
    """Return the name that a published state_dict has for a key of `Student.state_dict()`."""
    for ours, theirs in _PREFIXES.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key


def vocabulary_of(meta: object, *, classes: int) -> Vocabulary | None:
    """Return the built-in class set that mmcv's `meta` lists, however its names are spelt.

    Args:
        meta: an entry of the file, of any type.
        classes: the student's number of classes.

    Returns:
        None where it lists no classes, other ones, or another number of them.
    """
    names = meta.get("CLASSES") if isinstance(meta, dict) else None
    if not isinstance(names, list | tuple) or len(names) != classes:
        return None
    wanted = [_letters(str(name)) for name in names]
    for builtin in builtin_names():
        vocabulary = Vocabulary.builtin(builtin)
        if [_letters(name) for name in vocabulary.names] == wanted:
            return vocabulary
    return None


def _letters(name: str) -> str:
    letters = "".join(filter(str.isalnum, name.lower()))
    return _CLASS_NAMES.get(letters, letters)


def step_of(meta: object) -> int | None:
    """Return the training steps that mmcv's `meta` counts, or None where it does not."""
    step = meta.get("iter") if isinstance(meta, dict) else None
    return step if type(step) is int and 0 <= step < 2**53 else None
