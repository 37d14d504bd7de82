"""A state_dict and an architecture: what its shapes tell, whether it fits, and a model filled.

Memory for a model is taken only once all shapes fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from maskclip.clip.checkpoint import WeightsError
from maskclip.core.text import printable

Model = TypeVar("Model", bound=nn.Module)

_MOST_BLOCKS = 256  # of a tower; the largest known has 48
_MOST_TOKENS = 4096  # of a text: towers hold a mask of the square of it


def build_fitting(
    build: Callable[[], Model],
    state: Mapping[str, Tensor],
    *,
    source: str,
    spelling: Callable[[str], str] = str,
    adapt: Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> Model:
    """Build a model and load a state_dict into it; memory is taken only once all shapes fit.

    Args:
        build: makes the model; called twice, the first time for its shapes alone.
        state, source, spelling: as `fit` takes them.
        adapt: a change of the state_dict that takes the model of shapes too.

    Raises:
        WeightsError: as `fit`.
    """
    with torch.device("meta"):
        shapes = build()
    if adapt is not None:
        state = adapt(shapes, state)
    given = _check(shapes, state, source=source, spelling=spelling)
    model = build()
    model.load_state_dict({key: given[spelling(key)] for key in model.state_dict()})
    return model


def fit(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    spelling: Callable[[str], str] = str,
) -> None:
    """Load a state_dict into a model, strictly.

    Args:
        model: what is filled.
        state: the weights.
        source: where they come from, for messages.
        spelling: how `state` spells a name of the model's.

    Raises:
        WeightsError: tensors are missing, extra, or of another shape, or hold values that are not
            finite; the message names them.
    """
    given = _check(model, state, source=source, spelling=spelling)
    model.load_state_dict({key: given[spelling(key)] for key in model.state_dict()})


def _check(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    spelling: Callable[[str], str],
) -> Mapping[str, Tensor]:
    """Return the state_dict, the logit scale in the model's shape, if it can fill the model."""
    expected = {spelling(key): tuple(value.shape) for key, value in model.state_dict().items()}
    # open_clip writes these as scalars or as one value, depending on its release.
    given = {
        key: value.reshape(expected[key])
        if key in ("logit_scale", "logit_bias") and value.numel() == 1 and key in expected
        else value
        for key, value in state.items()
    }
    problem = misfit(expected, given)
    if problem:
        raise WeightsError(f"{source} does not fit the architecture: {problem}")
    check_finite({key: given[key] for key in expected}, source=source)
    return given


def misfit(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor]) -> str:
    """Return which tensors are missing, extra, or of another shape than expected; "" if none is."""
    missing = [key for key in expected if key not in given]
    extra = [key for key in given if key not in expected]
    wrong = [
        f"{key} {tuple(given[key].shape)}, expected {shape}"
        for key, shape in expected.items()
        if key in given and tuple(given[key].shape) != shape
    ]
    return ", ".join(
        f"{len(keys)} {what} ({_few(keys)}{'; ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("extra", extra), ("of another shape", wrong))
        if keys
    )


def in_order(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Give tensors the names of those at the same place in a network.

    Returns:
        None unless there are as many, of the same kinds: the last part of a name, as `weight`.
    """
    kinds, given = ([key.rpartition(".")[2] for key in names] for names in (expected, state))
    return dict(zip(expected, state.values(), strict=True)) if kinds == given else None


def _few(names: list[str]) -> str:
    return printable("; ".join(name[:100] for name in names[:3]))


def check_finite(state: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse weights that are not finite.

    Raises:
        WeightsError: names the first; `source` says where they come from.
    """
    for key, values in state.items():
        if not values.is_floating_point() or not values.numel() or values.is_meta:
            continue
        low, high = (float(value) for value in values.float().aminmax())  # NaN is both
        if not math.isfinite(low) or not math.isfinite(high):
            raise WeightsError(
                f"{source}: {key} holds values that are not finite (NaN or infinity), as a "
                "training leaves that broke: take an earlier checkpoint of it"
            )


def config_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return open_clip's configuration of a CLIP as the shapes of its state_dict show it.

    Raises:
        KeyError, WeightsError: as `vision_config` and `text_config`.
    """
    vision, text = vision_config(state), text_config(state)
    _, embed_dim = _shape(state, "text_projection", 2)
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}


def vision_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return open_clip's `vision_cfg` as the shapes of a state_dict (`visual.*` keys) show it.

    Heads are taken to be 64 wide, as shapes do not show that.

    Raises:
        KeyError: the keys are not those of a ModifiedResNet or a VisionTransformer.
        WeightsError: the shapes are of neither.
    """
    if "visual.layer1.0.conv1.weight" in state:
        stages = tuple(_count(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
        positions, _ = _shape(state, "visual.attnpool.positional_embedding", 2)
        width, *_ = _shape(state, "visual.layer1.0.conv1.weight", 4)
        return {"layers": stages, "width": width, "image_size": _side(positions) * 32}
    width, _, _, patch = _shape(state, "visual.conv1.weight", 4)
    positions, _ = _shape(state, "visual.positional_embedding", 2)
    return {
        "layers": _count(state, "visual.transformer.resblocks."),
        "width": width,
        "patch_size": patch,
        "image_size": _side(positions) * patch,
    }


def text_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return open_clip's `text_cfg` as the shapes of a state_dict show it; heads are 64 wide.

    Raises:
        KeyError: the text tower is not CLIP's own.
        WeightsError: the shapes are not of a text tower.
    """
    vocab_size, width = _shape(state, "token_embedding.weight", 2)
    context_length, _ = _shape(state, "positional_embedding", 2)
    if context_length > _MOST_TOKENS:
        raise WeightsError(
            f"positional_embedding: expected at most {_MOST_TOKENS:,} tokens, got "
            f"{context_length:,}"
        )
    return {
        "context_length": context_length,
        "vocab_size": vocab_size,
        "width": width,
        "heads": max(1, width // 64),
        "layers": _count(state, "transformer.resblocks."),
    }


def _shape(state: Mapping[str, Tensor], key: str, axes: int) -> tuple[int, ...]:
    """Return the shape of a tensor that has some number of axes, none of them empty."""
    shape = tuple(state[key].shape)
    if len(shape) != axes or 0 in shape:
        raise WeightsError(f"{key}: expected {axes} axes, got the shape {shape}")
    return shape


def _side(positions: int) -> int:
    """Return the side of the grid of a table of positions, the first of which is no cell's."""
    return max(1, round(math.sqrt(positions - 1)))


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of blocks whose names begin with a prefix."""
    blocks = {key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}
    if len(blocks) > _MOST_BLOCKS:
        raise WeightsError(f"{prefix}*: expected at most {_MOST_BLOCKS} blocks, got {len(blocks)}")
    return len(blocks)
