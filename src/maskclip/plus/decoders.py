"""The decoders of the published students: two stages of a backbone in, features for text rows out.

The modules' names are those of mmsegmentation's, so that published weights need no table. B images,
D embedding channels; shallow is stage 1 (B, c, H/4, W/4), deep is stage 4 (B, C, H/8, W/8).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_V2_DILATIONS = (6, 12, 18, 24)
_V3_DILATIONS = (12, 24, 36)


class DeepLabV2(nn.Module):
    """The sum of four dilated 3 x 3 convolutions; features are >= 0 (reference fact P2).

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
    """Return a depthwise and a pointwise convolution, each with BatchNorm and ReLU (P2)."""
    depthwise = _conv(inputs, inputs, 3, dilation=dilation, groups=inputs)
    pointwise = _conv(inputs, outputs, 1)
    return nn.Sequential(OrderedDict(depthwise_conv=depthwise, pointwise_conv=pointwise))


def _resize(x: Tensor, *, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
