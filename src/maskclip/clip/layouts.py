"""The names that other programs give to CLIP's weights, as open_clip's (which are OpenAI's).

Wrappers put prefixes before names (torch.compile, DistributedDataParallel, training engines), and
Hugging Face transformers has names of its own, and matrices that lie the other way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

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
