"""The student of MaskCLIP+: a segmentation network whose classifier is frozen text rows.

B images, K classes, D embedding channels, H x W pixels, h x w grid positions: the pixels over the
stride of the decoder, rounded up. It is 8 for the published DeepLabv2 and 4 for DeepLabv3+.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.clip.encoder import normalize_pixels
from maskclip.core.dense import similarity
from maskclip.plus import modern
from maskclip.plus.config import StudentConfig, StudentError
from maskclip.plus.decoders import DeepLabV2, DeepLabV3Plus

_PRETRAINED_WIDTH = 64
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Student(nn.Module):
    """A backbone, a decoder, and text rows as the classifier; `build_student` puts it together.

    Args:
        config: the architecture.
        rows: (C, D) text rows, unit length; a buffer, never trained.
        backbone: (B, 3, H, W) normalised pixels -> what the decoder takes, one argument each.
        decoder: -> (B, D, h, w) or more at the bottom and right, at its `stride`.
        pixels: the mean and the standard deviation of R, G and B that the backbone expects.

    Raises:
        StudentError: the rows do not fit the architecture.
    """

    rows: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: StudentConfig,
        rows: Tensor,
        *,
        backbone: nn.Module,
        decoder: DeepLabV2 | DeepLabV3Plus | modern.ModernDecoder,
        pixels: tuple[Sequence[float], Sequence[float]] = (_IMAGENET_MEAN, _IMAGENET_STD),
    ) -> None:
        super().__init__()
        if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] != config.embed_dim:
            raise StudentError(
                f"text rows: expected (classes, {config.embed_dim}), got {tuple(rows.shape)}; take "
                "the rows of the CLIP that labels for this student, or set embed_dim to its own"
            )
        self.config = config
        self.backbone = backbone
        self.decoder = decoder
        self.dropout = nn.Dropout2d(config.dropout)
        self.register_buffer("rows", rows.detach().float().clone())
        # Drawn as published; weight decay applies to it (reference fact P3).
        row = torch.randn(1, config.embed_dim) if config.background else None
        self.background = None if row is None else nn.Parameter(row)
        for name, values in zip(("mean", "std"), pixels, strict=True):
            buffer = torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Return what the text rows classify, not normalised: (B, D, h, w).

        Those of the published students are >= 0.

        Args:
            images: (B, 3, H, W) RGB; uint8, or floating point in [0, 1]; any H and W from 1 px.

        Raises:
            ValueError: the batch has another shape or dtype.
        """
        stages = self.backbone(normalize_pixels(images, self.mean, self.std))
        features: Tensor = self.decoder(*stages)
        height, width = (-(-side // self.decoder.stride) for side in images.shape[-2:])
        return features[..., :height, :width]

    def classifier(self) -> Tensor:
        """Return one row a class, unit length: (K, D), the background first where there is one."""
        if self.background is None:
            return self.rows
        return torch.cat([F.normalize(self.background, dim=1), self.rows])

    def logits(self, features: Tensor) -> Tensor:
        """Classify features (B, D, h, w) by inner products, without temperature (P3).

        Mixed precision ends here: labels and losses hang on small differences of logits.

        Returns:
            (B, K, h, w) float32.
        """
        with torch.autocast(features.device.type, enabled=False):
            return similarity(self.dropout(features), self.classifier(), normalize=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (B, 3, H, W) on the grid: (B, K, h, w) float32."""
        return self.logits(self.features(images))


def build_student(config: StudentConfig, rows: Tensor, *, pretrained: bool = False) -> Student:
    """Build a student, in training mode.

    Args:
        config: the architecture.
        rows: (C, D) text rows, unit length.
        pretrained: start the backbone from timm's default weights, of ImageNet as a rule,
            downloaded when not cached.

    Raises:
        StudentError: the rows do not fit, there is no such decoder or backbone, they do not go
            together, or there are no pretrained weights to be had.
    """
    if config.backbone is None:
        backbone = _build_backbone(config, pretrained=pretrained)
        return Student(config, rows, backbone=backbone, decoder=_build_decoder(config))
    modern.check_names(config.decoder, config.backbone)
    weights = _imagenet_file(config.backbone) if pretrained else None
    encoder, decoder = modern.build(
        config.decoder, config.backbone, embed_dim=config.embed_dim, weights=weights
    )
    pretraining = timm.get_pretrained_cfg(config.backbone)
    pixels = (pretraining.mean, pretraining.std) if pretraining else (_IMAGENET_MEAN, _IMAGENET_STD)
    return Student(config, rows, backbone=encoder, decoder=decoder, pixels=pixels)


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
    """Return the path of timm's default weights for a model; download them when not cached."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    from maskclip.clip.download import check_reachable

    pretraining = timm.get_pretrained_cfg(name)
    if pretraining is None or not pretraining.hf_hub_id:
        raise StudentError(
            f"timm has no pretrained weights of {name}; start from random ones with "
            "pretrained=False, or take one of timm.list_pretrained()"
        )
    repository = pretraining.hf_hub_id
    file = pretraining.hf_hub_filename or "model.safetensors"
    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return cached
    try:
        check_reachable()
        return hf_hub_download(repository, file)
    except Exception as error:  # besides OSError, those of the HTTP library that the client uses
        raise StudentError(
            f"the pretrained weights of {name} ({repository}/{file}) are not on this machine and "
            "cannot be downloaded; go online once, or start from random weights with "
            "pretrained=False (--scratch)"
        ) from error
