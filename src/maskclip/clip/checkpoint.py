"""Weights files, read without trusting them: `.safetensors`, files of torch, OpenAI's archives.

Nothing of a file is ever run (`archives`), no file takes more memory than a few times its size, and
whatever it holds, the answer is its tensors or one line.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from maskclip.clip.archives import TorchFile, read_torch_file
from maskclip.clip.unpickling import Stored, Unusable
from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief, printable

StateDict = dict[str, Tensor]

# Scalars that OpenAI's archives carry beside their weights.
_OPENAI_CONSTANTS = ("input_resolution", "context_length", "vocab_size")
_LARGEST_GROWTH = 8
"""Bytes of float32 weights a byte of a file: values of one byte grow to 4, and two may share it."""


class WeightsError(MaskCLIPError):
    """Weights cannot be found, read, or fitted to their architecture."""


@dataclass(frozen=True)
class Checkpoint:
    """What a weights file holds.

    Attributes:
        state: the state_dict in open_clip's (which is OpenAI's) key layout, float32.
        quick_gelu: whether the file is an OpenAI archive, whose networks use QuickGELU.
        metadata: the string pairs of a safetensors header; empty for other files.
    """

    state: StateDict
    quick_gelu: bool
    metadata: Mapping[str, str]


@contextmanager
def one_line(path: Path, what: str = "weights file") -> Iterator[None]:
    """Turn what the block raises over a file that need not be trusted into one line that names it.

    Args:
        path: the file.
        what: what it should be, for the message.

    Raises:
        WeightsError: in place of any other exception; those of ours pass if they name the file.
    """
    try:
        yield
    except MaskCLIPError as error:
        if str(path) in str(error):
            raise
        raise WeightsError(f"{path}: {error}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: not a {what}, or one that would have to run code to load "
            f"({_reason(error)}); expected tensors only: save its state_dict as .safetensors and "
            "give that"
        ) from error
    except Exception as error:  # damage shows as nearly any: a lookup, a decoding, a struct ...
        raise WeightsError(f"{path}: not a readable {what} ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    text = printable(str(error).strip().partition("\n")[0])
    if isinstance(error, EOFError | StopIteration):
        return "it ends early"
    if isinstance(error, LookupError):  # its text is what was looked for
        return "it is damaged"
    if isinstance(error, MemoryError):
        return "it asks for too much memory"
    if not text:
        return type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} ..."


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a weights file: `.safetensors`, an open_clip `.pt` / `.bin`, or an OpenAI `.pt` archive.

    Raises:
        WeightsError: the file is missing, is not a weights file, or needs pickled code to load.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    with one_line(path):
        is_script, state, beside = _read(path)
        metadata = beside if path.suffix == ".safetensors" else {}
        state = {key.removeprefix("module."): value for key, value in state.items()}
        quick_gelu = is_script
        for key in _OPENAI_CONSTANTS:
            quick_gelu = state.pop(key, None) is not None or quick_gelu
        return Checkpoint({k: v.float() for k, v in state.items()}, quick_gelu, metadata)


def read_weights(path: Path) -> tuple[StateDict, Mapping[str, Any]]:
    """Read the tensors of a `.safetensors` file or of a file of torch's, without running code.

    Returns:
        The state_dict, and what the file holds beside it: the string pairs of a safetensors
        header, or the other entries of a dictionary that has a state_dict under that key.

    Raises:
        WeightsError: the file is damaged, holds no state_dict, or names anything but tensors and
            plain values.
    """
    with one_line(path):
        return _read(path)[1:]


def _read(path: Path) -> tuple[bool, StateDict, Mapping[str, Any]]:
    """Return whether a file is a TorchScript archive, its state_dict, and what is beside it."""
    if path.suffix == ".safetensors":
        return False, *_read_safetensors(path)
    file = read_torch_file(path)
    content, beside = file.content, {}
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        beside = {key: value for key, value in content.items() if key != "state_dict"}
        content = content["state_dict"]
    return file.is_script, _read_state(file, content), beside


def _read_state(file: TorchFile, content: Any) -> StateDict:
    """Read the tensors of a state_dict, once it is known to be one."""
    path = file.path
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Stored | Unusable)
        for key, value in content.items()
    ):
        raise WeightsError(
            f"{path}: expected a state_dict (names to tensors) or one under that key"
        )
    for key, value in content.items():
        if isinstance(value, Unusable):
            raise WeightsError(f"{path}: {brief(key)} is {value.what}: expected plain numbers")
    _check_size(path, [value.shape for value in content.values()])
    return file.read(content)


def _read_safetensors(path: Path) -> tuple[StateDict, Mapping[str, str]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        _check_size(path, [tuple(file.get_slice(name).get_shape()) for name in names])
        state = {name: file.get_tensor(name) for name in names}
        for name, value in state.items():
            if value.is_complex() or value.is_quantized:
                raise WeightsError(f"{path}: {brief(name)} is complex: expected plain numbers")
        return state, file.metadata() or {}


def _check_size(path: Path, shapes: list[tuple[int, ...]]) -> None:
    """Refuse weights that would take far more memory than their file does."""
    needed, size = 4 * sum(map(prod, shapes)), path.stat().st_size
    if needed > _LARGEST_GROWTH * size:
        raise WeightsError(
            f"{path}: asks for {needed:,} bytes of weights in a file of {size:,}: it is damaged, "
            "or made to fill the memory"
        )
