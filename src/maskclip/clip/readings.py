"""Which methods read which families of open_clip's image towers: by trying, without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from maskclip.clip.published import model_config
from maskclip.clip.towers import UnsupportedMethodError, build_tower, can_read
from maskclip.core.method import CLEAN
from maskclip.core.methods import METHODS

EXAMPLES = {
    "CLIP's ResNets": "RN50",
    "CLIP's ViTs": "ViT-B-16",
    "EVA01": "EVA01-g-14",
    "EVA02": "EVA02-B-16",
    "EVA02-E": "EVA02-E-14",
    "MobileCLIP-B": "MobileCLIP2-B",
    "MobileCLIP-L": "MobileCLIP2-L-14",
    "SigLIP, SigLIP 2": "ViT-B-16-SigLIP2",
    "PE-Core": "PE-Core-T-16-384",
    "PE-Core bigG": "PE-Core-bigG-14-448",
    "CoCa": "coca_ViT-B-32",
    "CLIPA": "ViT-L-14-CLIPA",
    "ViTamin": "ViTamin-S",
    "ViT-M, a mean": "vit_medium_patch16_gap_256",
    "MobileCLIP-S0 to S2": "MobileCLIP2-S0",
    "MobileCLIP2-S3, S4": "MobileCLIP2-S3",
    "ConvNeXt": "convnext_base_w",
    "Swin": "swin_base_patch4_window7_224",
}
"""A family of towers -> an architecture of it."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the image tower of an architecture can be read.

    Attributes:
        architecture: as open_clip calls it.
        cell: pixels between two grid positions.
        parameters: of the image tower.
        refused: by the name of a method that cannot read it, why; in one line.
        keys: whether the clean method has keys, which key smoothing needs.
    """

    architecture: str
    cell: int
    parameters: int
    refused: Mapping[str, str]
    keys: bool

    def methods(self) -> list[str]:
        """Return the built-in methods that read it."""
        return [name for name in METHODS if name not in self.refused]


def reading_of(architecture: str) -> Reading:
    """Try all built-in methods on an architecture's image tower; no memory is taken for weights.

    Raises:
        MaskCLIPError: open_clip does not know the architecture, or it has no dense reading.
    """
    visual = _shapes_of(architecture)
    refused: dict[str, str] = {}
    for name, method in METHODS.items():
        try:
            build_tower(visual, method)
        except UnsupportedMethodError as error:
            refused[name] = str(error)
    return Reading(
        architecture=architecture,
        cell=build_tower(visual, CLEAN).cell,
        parameters=sum(weight.numel() for weight in visual.parameters()),
        refused=refused,
        keys=can_read(visual, CLEAN, keys=True),
    )


def families() -> Iterator[tuple[str, Reading]]:
    """Yield each family of towers and how it is read."""
    for family, architecture in EXAMPLES.items():
        yield family, reading_of(architecture)


def _shapes_of(architecture: str) -> nn.Module:
    from maskclip.clip.open_clip_models import build_visual

    config = model_config(architecture)
    with torch.device("meta"):
        return build_visual(config["embed_dim"], config["vision_cfg"], quick_gelu=False)
