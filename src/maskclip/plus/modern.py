"""Modern students: a decoder of segmentation-models-pytorch over a backbone of timm.

It knows nothing of text rows: pixels in, features of D channels out. B images, D embedding
channels, H x W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip.core.errors import did_you_mean
from maskclip.plus.config import StudentError

DECODERS = tuple(smp.MODEL_ARCHITECTURES_MAPPING)
FINEST_STRIDE = 4

_DIVISOR = 32
# PAN halves a grid of stride 16 three times.
_SMALLEST_SIDE = 128
_PROBE = (128, 160)


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
        patch = max(1, FINEST_STRIDE // stride)
        self.stride = stride * patch
        self.decoder = decoder
        self.projection = nn.Conv2d(channels, embed_dim, kernel_size=patch, stride=patch)

    def forward(self, *stages: Any) -> Tensor:
        """Return features (B, D, H / stride, W / stride) of the padded images."""
        features: Tensor = self.projection(self.decoder(*stages))
        return features


def check_names(decoder: str, backbone: str) -> None:
    """Check that there are such a decoder and such a backbone.

    Raises:
        StudentError: there are not; the message names close ones and how to list all.
    """
    if decoder not in DECODERS:
        raise StudentError(
            f"decoder: no {decoder!r}{did_you_mean(decoder, DECODERS)}; with a backbone there are "
            f"{', '.join(DECODERS)}"
        )
    if not timm.is_model(backbone):
        raise StudentError(
            f"backbone: timm has no {backbone!r}{did_you_mean(backbone, timm.list_models())}; "
            "timm.list_models('*mobilenet*') lists those with such a name"
        )
    try:
        timm.get_pretrained_cfg(backbone)
    except RuntimeError as error:
        raise StudentError(
            f"backbone: timm has no weights {backbone!r}; timm.list_pretrained"
            f"('{backbone.partition('.')[0]}*') lists those it has"
        ) from error


def build(
    decoder: str, backbone: str, *, embed_dim: int, weights: str | Path | None
) -> tuple[ModernBackbone, ModernDecoder]:
    """Build a backbone and a decoder that `check_names` lets pass, and try them once.

    Args:
        decoder: a name of `DECODERS`.
        backbone: a name of timm's, with or without a tag of pretrained weights.
        embed_dim: channels D of the features.
        weights: a file of the backbone's pretrained weights, or None to start from random ones.

    Raises:
        StudentError: they do not go together, or the backbone gives no stages.
    """
    try:
        model = smp.create_model(
            decoder,
            encoder_name=f"tu-{backbone}",
            encoder_weights=None if weights is None else True,
            **_options(backbone, weights),
        )
        encoder = ModernBackbone(model.encoder)
        channels, stride = _probe(encoder, model.decoder)
    except Exception as error:  # timm and smp raise whatever their models do
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StudentError(
            f"{decoder}:{backbone} cannot be built: {reason}; take another backbone, such as "
            "mobilenetv4_conv_small or resnet18"
        ) from error
    return encoder, ModernDecoder(
        model.decoder, channels=channels, stride=stride, embed_dim=embed_dim
    )


def _options(backbone: str, weights: str | Path | None) -> dict[str, Any]:
    """Return what timm is told: to take images of any size, and where its weights are."""
    options: dict[str, Any] = {}
    pretraining = timm.get_pretrained_cfg(backbone)
    if pretraining is not None and pretraining.fixed_input_size:
        options["dynamic_img_size"] = True
    if weights is not None:
        # Older timm would read the file of some ViTs as the NumPy archive they first came in.
        options["pretrained_cfg_overlay"] = {"file": str(weights), "custom_load": False}
    return options


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
    return max(_SMALLEST_SIDE, -(-side // _DIVISOR) * _DIVISOR) - side
