"""Weights files, read without trusting them: `.safetensors`, files of torch, OpenAI's archives.

Nothing of a file is ever run (`archives`), no file takes more memory than a few times its size, and
whatever it holds, the answer is its tensors or one line. The names that other programs give to
CLIP's weights become open_clip's, which are OpenAI's: wrappers put prefixes before names
(torch.compile, DistributedDataParallel, training engines), and Hugging Face transformers has names
of its own, and matrices that lie the other way.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from maskclip.clip.archives import TorchFile, read_torch_file
from maskclip.clip.unpickling import Stored, Unusable
from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief, printable, read_json

StateDict = dict[str, Tensor]

# Scalars that OpenAI's archives carry beside their weights.
_OPENAI_CONSTANTS = ("input_resolution", "context_length", "vocab_size")
_MOST_HEADS = 256
_LARGEST_GROWTH = 8
"""Bytes of float32 weights a byte of a file: values of one byte grow to 4, and two may share it."""


class WeightsError(MaskCLIPError):
    """Weights cannot be found, read, or fitted to their architecture."""


class MissingWeightsError(WeightsError):
    """Weights are not on this machine and cannot be downloaded.

    `reason` is the message without what could be taken in their place.
    """

    def __init__(self, reason: str, instead: str = "") -> None:
        super().__init__(f"{reason}, or {instead}" if instead else reason)
        self.reason = reason


@dataclass(frozen=True)
class Checkpoint:
    """What a weights file holds.

    Attributes:
        state: the state_dict in open_clip's (which is OpenAI's) key layout, float32.
        quick_gelu: whether its networks use QuickGELU: OpenAI's archives do, and transformers
            writes it beside its files; None where nothing says so.
        metadata: the string pairs of a safetensors header; empty for other files.
        of_transformers: whether the file has the layout of Hugging Face transformers.
        heads: those of the image and the text tower, where a file says so.
    """

    state: StateDict
    quick_gelu: bool | None
    metadata: Mapping[str, str]
    of_transformers: bool = False
    heads: tuple[int, int] | None = None


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
        constants = [state.pop(key, None) for key in _OPENAI_CONSTANTS]
        says_so = is_script or any(value is not None for value in constants)
        quick_gelu: bool | None = True if says_so else None
        heads, of_transformers = None, is_of_transformers(state)
        if of_transformers:
            state = from_transformers(state)
            quick_gelu, heads = _read_configuration(path)
        weights = {key: value.float() for key, value in state.items()}
        return Checkpoint(weights, quick_gelu, metadata, of_transformers, heads)


def _read_configuration(path: Path) -> tuple[bool | None, tuple[int, int] | None]:
    """Return what transformers' config.json says beside its weights: (QuickGELU, heads)."""
    beside = path.parent / "config.json"
    if not beside.is_file():
        return None, None
    config = read_json(beside, "the configuration of a CLIP of transformers")
    parts = [config.get(f"{tower}_config") or {} for tower in ("vision", "text")]
    defaults = {"vision": 12, "text": 8}  # values equal to transformers' own are left out
    quick_gelu = all(part.get("hidden_act", "quick_gelu") == "quick_gelu" for part in parts)
    vision, text = (
        part.get("num_attention_heads", default)
        for part, default in zip(parts, defaults.values(), strict=True)
    )
    if not all(type(count) is int and 0 < count <= _MOST_HEADS for count in (vision, text)):
        raise WeightsError(f"{beside}: num_attention_heads: expected a number from 1")
    return quick_gelu, (vision, text)


def read_weights(path: Path) -> tuple[StateDict, Mapping[str, Any]]:
    """Read the tensors of a `.safetensors` file or of a file of torch's, without running code.

    Returns:
        The state_dict, without the prefixes of wrappers, and what the file holds beside it: the
        string pairs of a safetensors header, or the other entries of a dictionary that has the
        state_dict under one of `LEVELS`.

    Raises:
        WeightsError: the file is damaged, holds no state_dict, or names anything but tensors and
            plain values.
    """
    with one_line(path):
        return _read(path)[1:]


def _read(path: Path) -> tuple[bool, StateDict, Mapping[str, Any]]:
    """Return whether a file is a TorchScript archive, its state_dict, and what is beside it."""
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
        return False, plain_names(state), metadata
    file = read_torch_file(path)
    content, beside = unwrap(file.content)
    return file.is_script, plain_names(_read_state(file, content)), beside


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


Value = TypeVar("Value")

LEVELS = ("state_dict", "model_state_dict", "model", "module")
"""The keys under which programs keep a state_dict beside other things."""

_WRAPPERS = ("module.", "model.", "state_dict.")
_COMPILED = re.compile(r"(^|\.)(?:_orig_mod\.)+")  # a part of a model can be compiled too

_VISION, _TEXT = "vision_model.", "text_model."
_TRANSFORMERS = f"{_TEXT}embeddings.token_embedding.weight"
_BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_NAMES = {
    f"{_VISION}embeddings.class_embedding": "visual.class_embedding",
    f"{_VISION}embeddings.patch_embedding.weight": "visual.conv1.weight",
    f"{_VISION}embeddings.position_embedding.weight": "visual.positional_embedding",
    f"{_VISION}pre_layrnorm.weight": "visual.ln_pre.weight",  # spelt so there
    f"{_VISION}pre_layrnorm.bias": "visual.ln_pre.bias",
    f"{_VISION}post_layernorm.weight": "visual.ln_post.weight",
    f"{_VISION}post_layernorm.bias": "visual.ln_post.bias",
    _TRANSFORMERS: "token_embedding.weight",
    f"{_TEXT}embeddings.position_embedding.weight": "positional_embedding",
    f"{_TEXT}final_layer_norm.weight": "ln_final.weight",
    f"{_TEXT}final_layer_norm.bias": "ln_final.bias",
}
_TURNED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
_COUNTERS = {f"{_VISION}embeddings.position_ids", f"{_TEXT}embeddings.position_ids"}


def unwrap(content: Any) -> tuple[Any, dict[Any, Any]]:
    """Return the innermost state_dict of a file's content, and what lies beside it on the way."""
    beside: dict[Any, Any] = {}
    for _ in range(2 * len(LEVELS)):
        if not isinstance(content, dict):
            break
        level = next((key for key in LEVELS if isinstance(content.get(key), dict)), None)
        if level is None:
            break
        beside |= {key: value for key, value in content.items() if key != level}
        content = content[level]
    return content, beside


def plain_names(state: Mapping[str, Value]) -> dict[str, Value]:
    """Return a state_dict without the prefixes of wrappers, in whatever order they were put.

    Raises:
        ValueError: two weights have one name without them.
    """
    found: dict[str, Value] = {}
    for key, value in state.items():
        name, before = _COMPILED.sub(r"\1", key), ""
        while name != before:
            before = name
            for wrapper in _WRAPPERS:
                name = name.removeprefix(wrapper)
        if name in found:
            raise ValueError(f"two of its weights are called {name}, but for prefixes")
        found[name] = value
    return found


def is_of_transformers(state: Mapping[str, Tensor]) -> bool:
    """Whether a state_dict has the names of transformers' CLIP."""
    return _TRANSFORMERS in state


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state_dict of transformers' CLIP under open_clip's names; other names stay.

    Raises:
        KeyError: a part of an attention is missing.
    """
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        block = _BLOCK.fullmatch(key)
        if key in _TURNED:
            found[_TURNED[key]] = value.mT.contiguous() if value.ndim == 2 else value
        elif block is not None:
            _add_of_block(found, state, block)
        elif key not in _COUNTERS:
            found[_NAMES.get(key, key)] = value
    return found


def _add_of_block(
    found: dict[str, Tensor], state: Mapping[str, Tensor], block: re.Match[str]
) -> None:
    """Add one weight of a block; the three of an attention are one, added with the first."""
    tower, number, part, kind = block.groups()
    target = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}."
    if part == "self_attn.q_proj":
        stem = block[0].removesuffix(f"q_proj.{kind}")
        parts = [state[f"{stem}{letter}_proj.{kind}"] for letter in "qkv"]
        found[f"{target}attn.in_proj_{kind}"] = torch.cat(parts)
    elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
        found[f"{target}{_IN_BLOCK.get(part, part)}.{kind}"] = state[block[0]]
