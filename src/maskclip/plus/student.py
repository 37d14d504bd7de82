"""The student of MaskCLIP+: a segmentation network whose classifier is frozen text rows.

B images, K classes, D embedding channels, H x W pixels, h x w grid positions: H/8 x W/8 for
DeepLabv2 and H/4 x W/4 for DeepLabv3+, rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.clip.encoder import normalise_pixels
from maskclip.core.errors import MaskCLIPError
from maskclip.core.refine import similarity
from maskclip.plus.decoders import DeepLabV2, DeepLabV3Plus

Decoder = Literal["deeplabv2", "deeplabv3plus"]

DEPTHS = (50, 101)
_PRETRAINED_WIDTH = 64
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class StudentError(MaskCLIPError):
    """A student cannot be built as asked."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The architecture of a student.

    The defaults are those published with RN50 as the teacher. With ViT-B/16 the authors' students
    have depth 50, though their recipes are named after 101.

    Attributes:
        decoder: "deeplabv2" or "deeplabv3plus".
        depth: layers of the ResNet-v1c, 50 or 101.
        width: channels after its stem, even; stage i has 4 x width x 2^(i - 1).
        skip: channels to which DeepLabv3+ reduces stage 1; DeepLabv2 does not read it.
        embed_dim: channels D of text rows and features: 1024 for RN50, 768 RN50x16, 512 ViT-B/16.
        background: whether a learnable background is class 0, before those of the text rows.
        dropout: the share of feature channels dropped in training before classification.
    """

    decoder: Decoder = "deeplabv2"
    depth: int = 101
    width: int = 64
    skip: int = 48
    embed_dim: int = 1024
    background: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.decoder not in get_args(Decoder):
            raise StudentError(
                f"decoder: expected {_either(get_args(Decoder))}, got {self.decoder!r}"
            )
        if self.depth not in DEPTHS:
            raise StudentError(f"depth: expected {_either(DEPTHS)}, got {self.depth}")
        if self.width < 2 or self.width % 2:
            raise StudentError(f"width: expected an even number from 2, got {self.width}")
        for name in ("skip", "embed_dim"):
            if getattr(self, name) < 1:
                raise StudentError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise StudentError(f"dropout: expected a share in [0, 1), got {self.dropout}")


def _either(values: tuple[object, ...]) -> str:
    return " or ".join(str(value) for value in values)


class Student(nn.Module):
    """ResNet-v1c of output stride 8, a decoder, and text rows as the classifier.

    Args:
        config: the architecture.
        rows: (C, D) text rows, unit length; a buffer, never trained.
        backbone: modules that return stages 1 and 4 of (B, 3, H, W); see `build_student`.

    Raises:
        StudentError: the rows do not fit the architecture.
    """

    rows: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: StudentConfig, rows: Tensor, backbone: nn.Module) -> None:
        super().__init__()
        if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] != config.embed_dim:
            raise StudentError(
                f"text rows: expected (classes, {config.embed_dim}), got {tuple(rows.shape)}; take "
                "the rows of the CLIP that labels for this student, or set embed_dim to its own"
            )
        self.config = config
        self.backbone = backbone
        self.decoder = _build_decoder(config)
        self.dropout = nn.Dropout2d(config.dropout)
        self.register_buffer("rows", rows.detach().float().clone())
        # Drawn as published; weight decay applies to it (reference fact P3).
        row = torch.randn(1, config.embed_dim) if config.background else None
        self.background = None if row is None else nn.Parameter(row)
        for name, values in (("mean", _IMAGENET_MEAN), ("std", _IMAGENET_STD)):
            buffer = torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Return what the text rows classify, not normalised: (B, D, h, w), >= 0.

        Args:
            images: (B, 3, H, W) RGB; uint8, or floating point in [0, 1]; any H and W from 1 px.

        Raises:
            ValueError: the batch has another shape or dtype.
        """
        shallow, deep = self.backbone(normalise_pixels(images, self.mean, self.std))
        features: Tensor = self.decoder(shallow, deep)
        return features

    def classifier(self) -> Tensor:
        """Return one row a class, unit length: (K, D), the background first where there is one."""
        if self.background is None:
            return self.rows
        return torch.cat([F.normalize(self.background, dim=1), self.rows])

    def logits(self, features: Tensor) -> Tensor:
        """Classify features (B, D, h, w) by inner products, without temperature (P3).

        Returns:
            (B, K, h, w) float32.
        """
        return similarity(self.dropout(features), self.classifier(), normalise=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (B, 3, H, W) on the grid: (B, K, h, w) float32."""
        return self.logits(self.features(images))


def build_student(config: StudentConfig, rows: Tensor, *, pretrained: bool = False) -> Student:
    """Build a student, in training mode.

    Args:
        config: the architecture.
        rows: (C, D) text rows, unit length.
        pretrained: start the backbone from timm's ImageNet weights, downloaded when not cached.

    Raises:
        StudentError: the rows do not fit, or there are no pretrained weights to be had.
    """
    return Student(config, rows, _build_backbone(config, pretrained=pretrained))


def _build_decoder(config: StudentConfig) -> DeepLabV2 | DeepLabV3Plus:
    shallow, deep = 4 * config.width, 32 * config.width
    if config.decoder == "deeplabv2":
        return DeepLabV2(deep=deep, embed_dim=config.embed_dim)
    return DeepLabV3Plus(shallow=shallow, skip=config.skip, deep=deep, embed_dim=config.embed_dim)


def _build_backbone(config: StudentConfig, *, pretrained: bool) -> nn.Module:
    """Return timm's ResNet-v1c; at output stride 8 its dilations are the published ones (P1)."""
    name = f"resnet{config.depth}c"
    options: dict[str, Any] = {
        "features_only": True,
        "out_indices": (1, 4),
        "output_stride": 8,
        "stem_width": config.width // 2,
        "channels": tuple(config.width * 2**stage for stage in range(4)),
    }
    if pretrained:
        if config.width != _PRETRAINED_WIDTH:
            raise StudentError(
                f"pretrained: expected width {_PRETRAINED_WIDTH}, got {config.width}; other widths "
                "start from random weights"
            )
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": _imagenet_file(name)}}
    backbone: nn.Module = timm.create_model(name, **options)
    return backbone


def _imagenet_file(name: str) -> str:
    """Return the path of timm's ImageNet weights for a model; download them when not cached."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    from maskclip.clip.download import check_reachable

    repository, file = f"timm/{name}.gluon_in1k", "model.safetensors"
    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return cached
    try:
        check_reachable()
        return hf_hub_download(repository, file)
    except Exception as error:  # besides OSError, those of the HTTP library that the client uses
        raise StudentError(
            f"the ImageNet weights of {name} ({repository}/{file}) are not on this machine and "
            "cannot be downloaded; go online once, or start from random weights with "
            "pretrained=False"
        ) from error
