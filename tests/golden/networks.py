"""The weights behind the golden arrays: read where they were recorded, drawn from seeds elsewhere.

Every tensor has a stream of numpy's PCG64 of its own, seeded by (seed, crc32 of its name), so that
neither the order of drawing nor torch's generators have a part in it.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from safetensors.torch import load_file
from torch import Tensor, nn

from maskclip.clip.fitting import vision_config
from maskclip.plus import released
from maskclip.plus.student import Student, student_from

State = dict[str, Tensor]
EMBED_DIM = 64


def read_tower(folder: Path, name: str) -> State:
    """Return an image tower's weights by OpenAI's names: `visual.*`."""
    recorded = folder / "weights" / f"{name}_openai.safetensors"
    if recorded.is_file():
        return load_file(recorded)
    tensors = {"vit_tiny": draw_vit, "rn_tiny": draw_resnet}[name]()
    return {f"visual.{key}": value for key, value in tensors.items()}


def read_rows(folder: Path, name: str) -> Tensor:
    """Return the text rows (C, D) of the classes, float32."""
    return load_file(folder / "weights" / f"{name}_text.safetensors")["text_embeddings"]


def read_student(case: Path) -> State:
    """Return a training's state before its first step, by the authors' names.

    Args:
        case: the arrays of a training, `maskclip_plus/NAME.npz`.
    """
    recorded = case.with_name(f"{case.stem}_init.safetensors")
    if recorded.is_file():
        return load_file(recorded)
    metadata = json.loads(case.with_suffix(".json").read_text(encoding="utf-8"))
    layout = metadata["state_dict_layout"]
    student = draw_student(metadata["seed"], {key: shape for key, (shape, _) in layout.items()})
    rows = read_rows(case.parents[1], metadata["case"]["teacher"])
    return {**student, "decode_head.text_embeddings": rows}


def build_student(state: State, *, source: str) -> Student:
    """Return the student, in eval mode, of a state by the authors' names."""
    config = released.config_of(state, source=source)
    own = released.without_teacher(state)
    return student_from(config, own, source=source, spelling=released.published_name)


def build_tower(state: State, *, quick_gelu: bool = False) -> nn.Module:
    """Return open_clip's image tower of given weights, in eval mode."""
    last = state.get("visual.proj", state.get("visual.attnpool.c_proj.weight"))
    embed_dim = last.shape[1] if "visual.proj" in state else last.shape[0]
    tower = _build_vision_tower(
        embed_dim, CLIPVisionCfg(**vision_config(state)), quick_gelu=quick_gelu
    )
    own = {key.removeprefix("visual."): value for key, value in state.items()}
    outcome = tower.load_state_dict(own, strict=False)
    assert not outcome.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in outcome.missing_keys)
    return tower.eval()


def draw_vit(seed: int = 1003, *, width: int = 192, layers: int = 4, patch: int = 16) -> State:
    """Draw a ViT for images of 224 px."""
    scale = width**-0.5

    def normal(name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        state[name] = _normal(seed, name, shape, std, mean)

    def norm(name: str) -> None:
        normal(f"{name}.weight", width, std=0.1, mean=1.0)
        normal(f"{name}.bias", width, std=0.05)

    def linear(name: str, out: int, into: int, std: float) -> None:
        weight, bias = ("_weight", "_bias") if name.endswith("in_proj") else (".weight", ".bias")
        normal(name + weight, out, into, std=std)
        normal(name + bias, out, std=0.02)

    state: State = {}
    normal("class_embedding", width, std=scale)
    normal("positional_embedding", (224 // patch) ** 2 + 1, width, std=2 * scale)
    normal("proj", width, EMBED_DIM, std=scale)
    normal("conv1.weight", width, 3, patch, patch, std=0.01)
    norm("ln_pre")
    for index in range(layers):
        block = f"transformer.resblocks.{index}"
        linear(f"{block}.attn.in_proj", 3 * width, width, 1.5 * scale)
        linear(f"{block}.attn.out_proj", width, width, scale * 0.5)
        norm(f"{block}.ln_1")
        linear(f"{block}.mlp.c_fc", 4 * width, width, scale)
        linear(f"{block}.mlp.c_proj", width, 4 * width, scale * 0.5)
        norm(f"{block}.ln_2")
    norm("ln_post")
    return state


def draw_resnet(
    seed: int = 1004, *, layers: tuple[int, ...] = (2, 1, 2, 1), width: int = 16
) -> State:
    """Draw a ModifiedResNet for images of 224 px."""

    def conv(name: str, norm: str, out: int, into: int, kernel: int) -> None:
        state.update(_conv(seed, f"{name}.weight", (out, into, kernel, kernel)))
        state.update(_batch_norm(seed, norm, out))

    state: State = {}
    conv("conv1", "bn1", width // 2, 3, 3)
    conv("conv2", "bn2", width // 2, width // 2, 3)
    conv("conv3", "bn3", width, width // 2, 3)
    into = width
    for stage, blocks in enumerate(layers, start=1):
        planes = width * 2 ** (stage - 1)
        for index in range(blocks):
            block = f"layer{stage}.{index}"
            conv(f"{block}.conv1", f"{block}.bn1", planes, into, 1)
            conv(f"{block}.conv2", f"{block}.bn2", planes, planes, 3)
            conv(f"{block}.conv3", f"{block}.bn3", planes * 4, planes, 1)
            if index == 0:
                conv(f"{block}.downsample.0", f"{block}.downsample.1", planes * 4, into, 1)
            into = planes * 4
    positions = (7**2 + 1, into)
    pool = "attnpool.positional_embedding"
    state[pool] = _normal(seed, pool, positions, into**-0.5)
    for layer, out in (("k", into), ("q", into), ("v", into), ("c", EMBED_DIM)):
        name = f"attnpool.{layer}_proj"
        state[f"{name}.weight"] = _normal(seed, f"{name}.weight", (out, into), into**-0.5)
        state[f"{name}.bias"] = _normal(seed, f"{name}.bias", (out,), 0.02)
    return state


def draw_student(seed: int, shapes: dict[str, list[int]]) -> State:
    """Draw a student's convolutions and BatchNorms, given the shapes of all its tensors."""
    state: State = {}
    for name, shape in shapes.items():
        if len(shape) == 4:
            state.update(_conv(seed, name, tuple(shape)))
        elif name.endswith("running_var"):
            state.update(_batch_norm(seed, name.removesuffix(".running_var"), shape[0]))
    return state


def _conv(seed: int, name: str, shape: tuple[int, ...]) -> State:
    inputs = shape[1] * shape[2] * shape[3]
    return {name: _normal(seed, name, shape, (2.0 / inputs) ** 0.5)}


def _batch_norm(seed: int, name: str, size: int) -> State:
    # The last norm of a residual branch has small gains; the stem's own `bn3` is none of these.
    gains = (0.2, 0.6) if name.endswith(".bn3") else (0.7, 1.3)
    return {
        f"{name}.weight": _uniform(seed, f"{name}.weight", size, *gains),
        f"{name}.bias": _normal(seed, f"{name}.bias", (size,), 0.1),
        f"{name}.running_mean": _normal(seed, f"{name}.running_mean", (size,), 0.1),
        f"{name}.running_var": _uniform(seed, f"{name}.running_var", size, 0.5, 1.5),
        f"{name}.num_batches_tracked": torch.tensor(0),
    }


def _normal(seed: int, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> Tensor:
    drawn = _stream(seed, name).standard_normal(shape) * std + mean
    return torch.from_numpy(drawn.astype(np.float32))


def _uniform(seed: int, name: str, size: int, low: float, high: float) -> Tensor:
    return torch.from_numpy(_stream(seed, name).uniform(low, high, size).astype(np.float32))


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
