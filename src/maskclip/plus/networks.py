"""The networks of students: pixels in, features for text rows out; no words, no classes.

Two decoders on a ResNet-v1c as published, whose modules have mmsegmentation's names; over any
backbone of timm, the first of these, and any decoder of segmentation-models-pytorch. B images, D
embedding channels, H x W pixels; shallow is stage 1 (B, c, H/4, W/4), deep is stage 4 (B, C, H/8,
W/8).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.core.errors import did_you_mean
from maskclip.plus.config import IMAGENET, RANDOM, StudentConfig, StudentError
from maskclip.plus.from_teacher import STRIDE, build_modules
from maskclip.plus.pretraining import check_first_weights, first_weights

_ON_ANY_BACKBONE = "deeplabv2"
DECODERS = (*smp.MODEL_ARCHITECTURES_MAPPING, _ON_ANY_BACKBONE)
"""The decoders that go over a backbone of timm."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_PRETRAINED_WIDTH = 64
_V2_DILATIONS = (6, 12, 18, 24)
_V3_DILATIONS = (12, 24, 36)
_FINEST_STRIDE = 4
_DIVISOR = 32
_SMALLEST_SIDE = 128  # PAN halves a grid of stride 16 three times
_PROBE = (128, 160)  # height x width, px


@dataclass(frozen=True)
class Network:
    """A backbone and a decoder.

    Attributes:
        backbone: (B, 3, H, W) normalised pixels -> what the decoder takes, one argument each.
        decoder: -> (B, D, h, w) or more at the bottom and right.
        stride: pixels per position of the features.
        mean, std: of R, G and B, for pixels in [0, 1], as the backbone expects them.
    """

    backbone: nn.Module
    decoder: nn.Module
    stride: int
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD


def build_network(config: StudentConfig, *, weights: str = RANDOM) -> Network:
    """Build the network of an architecture, in training mode.

    Args:
        config: the architecture.
        weights: from which the backbone starts, as `first_weights` takes them.

    Raises:
        MaskCLIPError: there is no such decoder or backbone, they do not go together, or the weights
            cannot be had or do not fit.
    """
    check_network(config, weights=weights)
    if config.tower is not None:
        return Network(*build_modules(config), STRIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    if config.backbone is None:
        return _build_published(config, weights=weights)
    if config.decoder == _ON_ANY_BACKBONE:
        return _build_dilated(config, config.backbone, weights=weights)
    return _build_modern(config, config.backbone, weights=weights)


def check_network(config: StudentConfig, *, weights: str = RANDOM) -> None:
    """Refuse an architecture or first weights that there are not; nothing is built for it.

    Raises:
        StudentError: as `build_network`, as far as is known before anything is downloaded.
    """
    if config.tower is not None:
        return
    if config.backbone is not None:
        _check_names(config.decoder, config.backbone)
    elif weights == IMAGENET and config.width != _PRETRAINED_WIDTH:
        raise StudentError(
            f"`student_weights`: expected width {_PRETRAINED_WIDTH}, got {config.width}; other "
            f"widths start from a file of their own, or from {RANDOM} weights"
        )
    check_first_weights(weights, config.backbone or _published_backbone(config))


def _published_backbone(config: StudentConfig) -> str:
    return f"resnet{config.depth}c"


def _build_published(config: StudentConfig, *, weights: str) -> Network:
    """Build a DeepLab on timm's ResNet-v1c, at stride 8 dilated as in published code, P1."""
    name = _published_backbone(config)
    options: dict[str, Any] = {
        "stem_width": config.width // 2,
        "channels": tuple(config.width * 2**stage for stage in range(4)),
    }
    with first_weights(weights, name, **options) as file:
        backbone = _dilated(name, (1, 4), file, **options)
    shallow, deep = 4 * config.width, 32 * config.width
    decoder: DeepLabV2 | DeepLabV3Plus
    if config.decoder == "deeplabv2":
        decoder = DeepLabV2(deep=deep, embed_dim=config.embed_dim)
    else:
        decoder = DeepLabV3Plus(
            shallow=shallow, skip=config.skip, deep=deep, embed_dim=config.embed_dim
        )
    return Network(backbone, decoder, decoder.stride)


def _build_dilated(config: StudentConfig, backbone: str, *, weights: str) -> Network:
    """Build the published DeepLabv2 on any backbone that timm can dilate to stride 8."""
    try:
        with torch.device("meta"):
            strides = _dilated(backbone, None, None).feature_info.reduction()
        if strides[-1] != DeepLabV2.stride:
            raise ValueError(f"the last of its stages has stride {strides[-1]}")
    except Exception as error:  # timm raises whatever its models do
        raise StudentError(
            f"{config.decoder}:{backbone} cannot be built: timm does not dilate this backbone to "
            f"stride {DeepLabV2.stride}; take one that it does, such as resnet18 or "
            "tf_efficientnet_lite0"
        ) from error
    deepest = len(strides) - 1
    with first_weights(weights, backbone) as file:
        encoder = _dilated(backbone, (deepest - 1, deepest), file)
    decoder = DeepLabV2(deep=encoder.feature_info.channels()[-1], embed_dim=config.embed_dim)
    statistics = _pixel_statistics(backbone)
    return Network(DilatedBackbone(encoder), decoder, decoder.stride, *statistics)


def _dilated(name: str, stages: tuple[int, ...] | None, file: Path | None, **options: Any) -> Any:
    """Build a backbone at stride 8, with weights from a file."""
    if stages is not None:
        options["out_indices"] = stages
    if file is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": _overlay(file)}
    return timm.create_model(name, features_only=True, output_stride=8, **options)


def _overlay(file: Path) -> dict[str, Any]:
    """Return what makes timm read a file of tensors.

    Older timm would read those of some ViTs as the NumPy archives that they first came in.
    """
    return {"file": str(file), "custom_load": False}


def _pixel_statistics(backbone: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and the standard deviation of pixels with which a backbone was trained."""
    pretraining = timm.get_pretrained_cfg(backbone)
    if pretraining is None:
        return IMAGENET_MEAN, IMAGENET_STD
    return pretraining.mean, pretraining.std


def _build_modern(config: StudentConfig, backbone: str, *, weights: str) -> Network:
    """Build a backbone and a decoder, and try them once."""
    pretraining = timm.get_pretrained_cfg(backbone)
    options: dict[str, Any] = {"encoder_weights": None}
    if pretraining is not None and pretraining.fixed_input_size:
        options["dynamic_img_size"] = True
    with first_weights(weights, backbone) as file:
        if file is not None:
            options |= {"encoder_weights": True, "pretrained_cfg_overlay": _overlay(file)}
        try:
            model = smp.create_model(config.decoder, encoder_name=f"tu-{backbone}", **options)
            encoder = ModernBackbone(model.encoder)
            channels, stride = _probe(encoder, model.decoder)
        except Exception as error:  # timm and smp raise whatever their models do
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise StudentError(
                f"{config.decoder}:{backbone} cannot be built: {reason}; take another backbone, "
                "such as mobilenetv4_conv_small or resnet18"
            ) from error
    decoder = ModernDecoder(
        model.decoder, channels=channels, stride=stride, embed_dim=config.embed_dim
    )
    return Network(encoder, decoder, decoder.stride, *_pixel_statistics(backbone))


def _check_names(decoder: str, backbone: str) -> None:
    """Refuse a decoder or a backbone that does not exist, and name close ones."""
    if decoder not in DECODERS:
        raise StudentError(
            f"`student`: no decoder {decoder!r}{did_you_mean(decoder, DECODERS)}; with a backbone "
            f"there are {', '.join(DECODERS)}"
        )
    if not timm.is_model(backbone):
        raise StudentError(
            f"`student`: timm has no {backbone!r}{did_you_mean(backbone, timm.list_models())}: "
            "expected a backbone of timm, as in unet:mobilenetv4_conv_small"
        )
    try:
        timm.get_pretrained_cfg(backbone)
    except RuntimeError as error:
        known = timm.list_pretrained(f"{backbone.partition('.')[0]}*")
        raise StudentError(
            f"`student`: timm has no weights {backbone!r}{did_you_mean(backbone, known)}: leave "
            "what follows the point out, or name others"
        ) from error


class DeepLabV2(nn.Module):
    """The sum of four dilated 3 x 3 convolutions; features are >= 0 (published code, P2).

    Args:
        deep: channels C of stage 4.
        embed_dim: channels D of the features.
    """

    stride = 8

    def __init__(self, *, deep: int, embed_dim: int) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            _conv(deep, embed_dim, 3, dilation=dilation) for dilation in _V2_DILATIONS
        )

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Return features (B, D, H/8, W/8); the shallow stage is not used."""
        first, *others = self.aspp_modules
        features: Tensor = first(deep)
        for branch in others:
            features = features + branch(deep)
        return features


class DeepLabV3Plus(nn.Module):
    """Depthwise-separable ASPP with an image pool, refined at a quarter of the image's size.

    In training its image pool normalises one value an image: batches need two images or more.

    Args:
        shallow: channels c of stage 1.
        skip: channels to which stage 1 is reduced.
        deep: channels C of stage 4.
        embed_dim: channels D of the features.
    """

    stride = 4

    def __init__(self, *, shallow: int, skip: int, deep: int, embed_dim: int) -> None:
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), _conv(deep, embed_dim, 1))
        branches = [_separable(deep, embed_dim, dilation=dilation) for dilation in _V3_DILATIONS]
        self.aspp_modules = nn.ModuleList([_conv(deep, embed_dim, 1), *branches])
        self.bottleneck = _conv((1 + len(self.aspp_modules)) * embed_dim, embed_dim, 3)
        self.c1_bottleneck = _conv(shallow, skip, 1)
        self.sep_bottleneck = nn.Sequential(
            _separable(embed_dim + skip, embed_dim), _separable(embed_dim, embed_dim)
        )

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """Return features (B, D, H/4, W/4)."""
        pooled = _resize(self.image_pool(deep), like=deep)
        branches = [branch(deep) for branch in self.aspp_modules]
        context = self.bottleneck(torch.cat([pooled, *branches], dim=1))
        joined = torch.cat([_resize(context, like=shallow), self.c1_bottleneck(shallow)], dim=1)
        features: Tensor = self.sep_bottleneck(joined)
        return features


def _conv(
    inputs: int, outputs: int, kernel: int, *, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return convolution, BatchNorm and ReLU that keep the size, initialised as published."""
    conv = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        padding=kernel // 2 * dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    layers = {"conv": conv, "bn": nn.BatchNorm2d(outputs), "relu": nn.ReLU(inplace=True)}
    return nn.Sequential(OrderedDict(layers))


def _separable(inputs: int, outputs: int, *, dilation: int = 1) -> nn.Sequential:
    """Return a depthwise and a pointwise convolution, each with BatchNorm and ReLU.

    So it is in the published code, P2.
    """
    depthwise = _conv(inputs, inputs, 3, dilation=dilation, groups=inputs)
    pointwise = _conv(inputs, outputs, 1)
    return nn.Sequential(OrderedDict(depthwise_conv=depthwise, pointwise_conv=pointwise))


def _resize(x: Tensor, *, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class ModernBackbone(nn.Module):
    """An encoder for images of any size: they are padded with zeros at the bottom and right.

    Args:
        encoder: takes (B, 3, H, W) whose sides are multiples of 32 from 128.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Any, ...]:
        """Return what the decoder takes: one list of stages, and for DPT the prefix tokens too.

        Args:
            pixels: (B, 3, H, W) floating point, normalised.
        """
        bottom, right = (_missing(side) for side in pixels.shape[-2:])
        stages = self.encoder(F.pad(pixels, (0, right, 0, bottom)))
        return stages if isinstance(stages, tuple) else (stages,)


class DilatedBackbone(ModernBackbone):
    """An encoder of timm's at stride 8, for images of any size: they are padded in the same way."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the last two stages of (B, 3, H, W) floating point, normalised."""
        (stages,) = super().forward(pixels)
        return tuple(stages)


class ModernDecoder(nn.Module):
    """A decoder and a linear projection of its output to features, at stride 4 or coarser.

    What a decoder gives at a finer stride is projected in patches of 4 x 4 pixels: features of D
    channels at every pixel would take 1 GiB for 512 x 512 pixels at D = 1024, and lie in as few
    dimensions as the decoder has channels, which are 16 for U-Net.

    Args:
        decoder: takes what the backbone returns; gives (B, channels, H / stride, W / stride).
        channels: those of its output.
        stride: pixels a position of its output.
        embed_dim: channels D of the features.
    """

    def __init__(self, decoder: nn.Module, *, channels: int, stride: int, embed_dim: int) -> None:
        super().__init__()
        patch = max(1, _FINEST_STRIDE // stride)
        self.stride = stride * patch
        self.decoder = decoder
        self.projection = nn.Conv2d(channels, embed_dim, kernel_size=patch, stride=patch)

    def forward(self, *stages: Any) -> Tensor:
        """Return features (B, D, H / stride, W / stride) of the padded images."""
        features: Tensor = self.projection(self.decoder(*stages))
        return features


@torch.no_grad()
def _probe(encoder: ModernBackbone, decoder: nn.Module) -> tuple[int, int]:
    """Return the channels and the stride of a decoder's output; the modules stay in training."""
    output = decoder.eval()(*encoder.eval()(torch.zeros(1, 3, *_PROBE)))
    encoder.train()
    decoder.train()
    stride = _PROBE[0] // output.shape[-2]
    if tuple(output.shape[-2:]) != tuple(side // stride for side in _PROBE):
        raise ValueError(f"{_PROBE} pixels give {tuple(output.shape[-2:])} positions")
    return output.shape[1], stride


def _missing(side: int) -> int:
    """Return by how many pixels a side falls short of a multiple of 32 from 128."""
    whole = (side + _DIVISOR - 1) // _DIVISOR * _DIVISOR
    return cast(int, torch.sym_max(_SMALLEST_SIDE, whole)) - side  # `max` would bind an export
