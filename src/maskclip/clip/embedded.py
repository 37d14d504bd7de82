"""Models whose file says all about them: the tiny CLIPs that come with the package.

Their image towers are written here, without open_clip, whose import takes longer than a small job
does: only what a dense reading needs, with open_clip's names for every weight. Tests hold them
equal to open_clip's own. Text towers, and all other models, are open_clip's modules.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskclip.clip.checkpoint import Checkpoint, StateDict, WeightsError, one_line, read_checkpoint
from maskclip.clip.families import VISION, check_all, check_number
from maskclip.clip.fitting import build_fitting
from maskclip.clip.model import CLIPModel, OpenCLIP, temperature_of
from maskclip.core.config import SHORT_SIDES, own_refinement
from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief, parse_json

_TABLE = "token_embedding.weight"
_WORDS = 49_408  # of CLIP's tokenizer
# The numbers of a configuration: what each may be. A text tower of at least one block makes its
# file larger than the table of its words can be out of proportion.
_CONFIG = {"embed_dim": (1, 8192), "vision_cfg": (0, 0), "text_cfg": (0, 0)}
_TEXT = {
    "context_length": (1, 1024),
    "vocab_size": (_WORDS, _WORDS),
    "width": (1, 4096),
    "heads": (1, 256),
    "layers": (1, 64),
}

_EXPANSION = 4  # of a bottleneck's channels, and of an MLP's


def load_embedded(name: str) -> CLIPModel:
    """Load one of `EMBEDDED`."""
    with resources.as_file(resources.files(__package__) / "pretrained") as folder:
        path = folder / f"{name}.safetensors"
        clip = from_checkpoint(read_checkpoint(path), path)
        return replace(clip, refine=own_refinement(name))


def describes_itself(checkpoint: Checkpoint) -> bool:
    """Whether a file carries the configuration of its model, as embedded ones do."""
    return "config" in checkpoint.metadata


def from_checkpoint(checkpoint: Checkpoint, path: Path) -> CLIPModel:
    """Build the model of a file that `describes_itself`; named after the file.

    Raises:
        WeightsError: its configuration is not one, or does not fit the weights.
    """
    state, metadata = dict(checkpoint.state), checkpoint.metadata
    source = str(path)
    try:
        config = _read_config(metadata["config"])
        short_side = int(metadata["short_side"])
        check_number("short_side", short_side, SHORT_SIDES)
        ids, rows = _take_token_rows(state, config["text_cfg"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = error if isinstance(error, MaskCLIPError) else brief(error)
        raise WeightsError(f"{path}: its metadata do not describe a CLIP ({reason})") from error
    with one_line(path):
        towers = {key: value for key, value in config.items() if key != "text_cfg"}
        part = "visual."
        tower = {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}
        visual = build_fitting(lambda: light_tower(**towers), tower, source=source)
        temperature = temperature_of(state["logit_scale"], source=source)

    @cache
    def load_text() -> OpenCLIP:
        from maskclip.clip.open_clip_models import build_described  # only new words need it

        with one_line(path):
            table = rows.new_zeros((config["text_cfg"]["vocab_size"], rows.shape[1]))
            table[ids] = rows
            return build_described(config, {**state, _TABLE: table}, source=source)

    return CLIPModel(
        name=path.stem,
        visual=visual,
        load_text=load_text,
        fingerprint=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        temperature=temperature,
        context_length=config["text_cfg"]["context_length"],
        short_side=short_side,
        known_tokens=frozenset(ids[rows.any(dim=1)].tolist()),
        tower={"family": "embedded", **towers},
    )


def _read_config(text: str) -> dict[str, Any]:
    """Return a configuration whose numbers are all in their ranges.

    Raises:
        KeyError, TypeError, MaskCLIPError: it has none, or others.
    """
    config: dict[str, Any] = parse_json(text, "config", "the configuration of a CLIP")
    vision, words = config["vision_cfg"], config["text_cfg"]
    check_all({**config, "vision_cfg": 0, "text_cfg": 0}, _CONFIG)
    check_all(vision, VISION)
    check_all(words, _TEXT)
    stages = vision["layers"]
    if "patch_size" not in vision and not (isinstance(stages, list) and len(stages) == 4):
        raise MaskCLIPError(f"layers: expected those of four stages, got {brief(stages)}")
    words.setdefault("vocab_size", _WORDS)
    return config


def _take_token_rows(state: StateDict, text: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Take the few token rows that an embedded model knows out of its weights: (ids, rows).

    The table that they are rows of is made when words are new: it is large, and mostly zeros.
    """
    ids, rows = state.pop("token_embedding.ids").long(), state.pop("token_embedding.rows")
    expected = (len(ids), text["width"]) if ids.ndim == 1 else None
    if tuple(rows.shape) != expected or not ids.numel():
        raise MaskCLIPError(f"token rows {tuple(rows.shape)} for ids {tuple(ids.shape)}")
    if ids.min() < 0 or ids.max() >= text["vocab_size"]:
        raise MaskCLIPError(f"token ids: expected them from 0 to {text['vocab_size'] - 1:,}")
    return ids, rows


def light_tower(embed_dim: int, vision_cfg: dict[str, Any]) -> nn.Module:
    """Build an image tower in eval mode; its weights are to be loaded.

    Args:
        embed_dim: channels of the embedding.
        vision_cfg: as open_clip's, with the settings of a plain ResNet or ViT alone.

    Raises:
        KeyError, TypeError: a setting is missing, or one of others.
    """
    family = LightViT if "patch_size" in vision_cfg else LightResNet
    return family(embed_dim, **vision_cfg).eval()


class LightResNet(nn.Module):
    """ModifiedResNet up to its last stage, and the projections of its attention pool."""

    def __init__(
        self,
        output_dim: int,
        *,
        layers: Sequence[int],
        width: int,
        image_size: int,
        head_width: int = 64,
    ) -> None:
        super().__init__()
        channels = 3
        for number, out in enumerate((width // 2, width // 2, width), start=1):
            stride = 2 if number == 1 else 1
            self.add_module(f"conv{number}", _conv(channels, out, 3, stride=stride))
            self.add_module(f"bn{number}", nn.BatchNorm2d(out))
            channels = out
        for number, blocks in enumerate(layers, start=1):
            inner = width * 2 ** (number - 1)
            stage = []
            for index in range(blocks):
                pool = 2 if number > 1 and index == 0 else 1
                stage.append(_Bottleneck(channels, inner, pool))
                channels = inner * _EXPANSION
            self.add_module(f"layer{number}", nn.Sequential(*stage))
        self.attnpool = _AttentionPool(
            channels, channels // head_width, output_dim, image_size // 32
        )

    def stem(self, x: Tensor) -> Tensor:
        """Three convolutions and a pool: (B, 3, H, W) -> (B, C, H / 4, W / 4)."""
        for number in (1, 2, 3):
            x = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(x)).relu_()
        return nn.functional.avg_pool2d(x, 2)


class _AttentionPool(nn.Module):
    """The weights of an attention pool; `clip.towers` applies those that it needs."""

    def __init__(self, channels: int, heads: int, output_dim: int, native: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(native**2 + 1, channels))
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, output_dim)


class _Bottleneck(nn.Module):
    """1x1, 3x3, pool, 1x1, beside a shortcut that is pooled alike."""

    def __init__(self, channels: int, inner: int, pool: int) -> None:
        super().__init__()
        out = inner * _EXPANSION
        self.conv1, self.bn1 = _conv(channels, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = _conv(inner, inner, 3), nn.BatchNorm2d(inner)
        self.pool = nn.AvgPool2d(pool) if pool > 1 else nn.Identity()
        self.conv3, self.bn3 = _conv(inner, out, 1), nn.BatchNorm2d(out)
        self.downsample: nn.Module = nn.Identity()
        if channels != out:
            parts = {"-1": self.pool, "0": _conv(channels, out, 1), "1": nn.BatchNorm2d(out)}
            self.downsample = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn1(self.conv1(x)).relu_()
        inner = self.pool(self.bn2(self.conv2(inner)).relu_())
        out: Tensor = self.bn3(self.conv3(inner)) + self.downsample(x)
        return out.relu_()


class LightViT(nn.Module):
    """The weights of a VisionTransformer; `clip.towers` runs its blocks."""

    attn_pool = None
    pool_type = "tok"

    def __init__(
        self,
        output_dim: int,
        *,
        layers: int,
        width: int,
        image_size: int,
        patch_size: int,
        head_width: int = 64,
    ) -> None:
        super().__init__()
        native = image_size // patch_size
        self.grid_size = (native, native)
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(native**2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        blocks = [_block(width, heads=width // head_width) for _ in range(layers)]
        self.transformer.resblocks = nn.ModuleList(blocks)
        self.proj = nn.Parameter(torch.empty(width, output_dim))


def _block(width: int, *, heads: int) -> nn.Module:
    """Hold the weights of a residual attention block."""
    block = nn.Module()
    block.ln_1, block.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
    block.attn = nn.MultiheadAttention(width, heads, batch_first=True)
    block.ls_1, block.ls_2 = nn.Identity(), nn.Identity()
    parts = {
        "c_fc": nn.Linear(width, _EXPANSION * width),
        "gelu": nn.GELU(),
        "c_proj": nn.Linear(_EXPANSION * width, width),
    }
    block.mlp = nn.Sequential(OrderedDict(parts))
    return block


def _conv(channels: int, out: int, side: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, side, stride=stride, padding=side // 2, bias=False)
