"""Reading CLIP weight files without trusting them, and fitting them to an architecture.

No pickled code is ever run: `.safetensors`, `torch.load(weights_only=True)`, and for OpenAI's
TorchScript archives `torch.jit.load`, of which only the state_dict is read.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from maskclip.core.errors import MaskCLIPError

StateDict = dict[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)

# Scalars that OpenAI's archives carry beside their weights.
_OPENAI_CONSTANTS = ("input_resolution", "context_length", "vocab_size")
_EMBEDDED_FORMAT = "maskclip-embedded-1"


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


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a weights file: `.safetensors`, an open_clip `.pt` / `.bin`, or an OpenAI `.pt` archive.

    Raises:
        WeightsError: the file is missing, is not a weights file, or needs pickled code to load.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    quick_gelu = path.suffix != ".safetensors" and _is_torchscript(path)
    state, beside = (_read_torchscript(path), {}) if quick_gelu else read_weights(path)
    metadata = beside if path.suffix == ".safetensors" else {}
    if metadata.get("format") == _EMBEDDED_FORMAT:
        state = _expand_token_table(state, metadata)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    for key in _OPENAI_CONSTANTS:
        quick_gelu = state.pop(key, None) is not None or quick_gelu
    return Checkpoint({k: v.float() for k, v in state.items()}, quick_gelu, metadata)


def read_weights(path: Path, *, allowed: Sequence[Any] = ()) -> tuple[StateDict, Mapping[str, Any]]:
    """Read the tensors of a `.safetensors` file or of one of `torch.save`, without running code.

    Args:
        path: the file.
        allowed: what a file of `torch.save` may name beside tensors and plain values, in the form
            that `torch.serialization.safe_globals` takes.

    Returns:
        The state_dict, and what the file holds beside it: the string pairs of a safetensors
        header, or the other entries of a dictionary that has a state_dict under that key.

    Raises:
        WeightsError: the file is damaged, holds no state_dict, or names anything that is not
            allowed.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _load_pickle(path, allowed)
    beside: Mapping[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        beside = {key: value for key, value in content.items() if key != "state_dict"}
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise WeightsError(
            f"{path}: expected a state_dict (names to tensors) or one under that key"
        )
    return content, beside


def _read_safetensors(path: Path) -> tuple[StateDict, Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def _load_pickle(path: Path, allowed: Sequence[Any]) -> Any:
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: not a weights file, or one that would have to run code to load; expected "
            "tensors only: save its state_dict as .safetensors and give that"
        ) from error
    except Exception as error:  # damage shows as nearly any: a lookup, a decoding, a struct ...
        reason = (str(error).splitlines() or ["it ends early"])[0]
        raise WeightsError(f"{path}: not a readable weights file ({reason})") from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):  # what reads it says so
        return False


def _read_torchscript(path: Path) -> StateDict:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated; OpenAI's files are not new
            archive: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return dict(archive.state_dict())
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path}: not a readable TorchScript archive ({reason})") from error


def _expand_token_table(state: StateDict, metadata: Mapping[str, str]) -> StateDict:
    """Put the few token rows that an embedded model knows into a full table of zeros."""
    ids, rows = state.pop("token_embedding.ids").long(), state.pop("token_embedding.rows")
    size = json.loads(metadata["config"])["text_cfg"].get("vocab_size", 49408)
    table = rows.new_zeros((size, rows.shape[1]))
    table[ids] = rows
    return {**state, "token_embedding.weight": table}


def build_fitting(
    build: Callable[[], Model],
    state: Mapping[str, Tensor],
    *,
    source: str,
    spelling: Callable[[str], str] = str,
) -> Model:
    """Build a model and load a state_dict into it; memory is taken only once all shapes fit.

    Args:
        build: makes the model; called twice, the first time for its shapes alone.
        state, source, spelling: as `fit` takes them.

    Raises:
        WeightsError: as `fit`.
    """
    with torch.device("meta"):
        shapes = build()
    _check_shapes(shapes, state, source=source, spelling=spelling)
    model = build()
    fit(model, state, source=source, spelling=spelling)
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
        WeightsError: tensors are missing, extra, or of another shape; the message names them.
    """
    given = _check_shapes(model, state, source=source, spelling=spelling)
    model.load_state_dict({key: given[spelling(key)] for key in model.state_dict()})


def _check_shapes(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    spelling: Callable[[str], str],
) -> Mapping[str, Tensor]:
    """Return the state_dict, the logit scale in the model's shape, if all of it fits the model."""
    expected = {spelling(key): tuple(value.shape) for key, value in model.state_dict().items()}
    # open_clip writes the logit scale as a scalar or as one value, depending on its release.
    given = {
        key: value.reshape(expected[key]) if key == "logit_scale" and key in expected else value
        for key, value in state.items()
    }
    missing = [key for key in expected if key not in given]
    extra = [key for key in given if key not in expected]
    wrong = [
        f"{key} {tuple(given[key].shape)}, expected {shape}"
        for key, shape in expected.items()
        if key in given and tuple(given[key].shape) != shape
    ]
    problems = [
        f"{len(keys)} {what} ({'; '.join(keys[:3])}{'; ...' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("extra", extra), ("of another shape", wrong))
        if keys
    ]
    if problems:
        raise WeightsError(f"{source} does not fit the architecture: {', '.join(problems)}")
    return given


def vision_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return open_clip's `vision_cfg` as the shapes of a state_dict (`visual.*` keys) show it.

    Heads are taken to be 64 wide, as shapes do not show that.

    Raises:
        KeyError: the keys are not those of a ModifiedResNet or a VisionTransformer.
    """
    if "visual.layer1.0.conv1.weight" in state:
        stages = tuple(
            len({key.split(".")[2] for key in state if key.startswith(f"visual.layer{stage}.")})
            for stage in (1, 2, 3, 4)
        )
        side = round((state["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
        width = state["visual.layer1.0.conv1.weight"].shape[0]
        return {"layers": stages, "width": width, "image_size": side * 32}
    patch = state["visual.conv1.weight"].shape[-1]
    side = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "layers": _count_blocks(state, "visual.transformer.resblocks."),
        "width": state["visual.conv1.weight"].shape[0],
        "patch_size": patch,
        "image_size": side * patch,
    }


def text_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return open_clip's `text_cfg` as the shapes of a state_dict show it; heads are 64 wide.

    Raises:
        KeyError: the text tower is not CLIP's own.
    """
    vocab_size, width = state["token_embedding.weight"].shape
    return {
        "context_length": state["positional_embedding"].shape[0],
        "vocab_size": vocab_size,
        "width": width,
        "heads": max(1, width // 64),
        "layers": _count_blocks(state, "transformer.resblocks."),
    }


def _count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})
