"""Which methods read which of open_clip's image towers: by trying, without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from maskclip.clip.checkpoint import WeightsError, one_line
from maskclip.clip.hub import names_folder
from maskclip.clip.model import DEFAULT_SHORT_SIDE
from maskclip.clip.open_clip_folder import read_folder
from maskclip.clip.published import check_read, known_config
from maskclip.clip.towers import UnsupportedMethodError, build_tower, can_read
from maskclip.core.config import ModelConfig, Options
from maskclip.core.method import CLEAN
from maskclip.core.methods import AUTO, METHODS, get_method, with_proxy
from maskclip.core.view import check_view

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


def check_ahead(config: ModelConfig, options: Options) -> None:
    """Refuse what the network of a CLIP cannot compute, while nothing is known but its name.

    Of a repository of the hub the configuration is downloaded, and no weights. What the name does
    not tell is left to those that load the model.

    Args:
        config: a CLIP by name, read how.
        options: how images will be cut, and whether keys are smoothed.

    Raises:
        UnsupportedMethodError: the network cannot compute the method, or has no keys under it.
        UnsupportedTowerError: it has no dense reading.
        MaskCLIPError: images are cut too small.
    """
    method = CLEAN if config.method == AUTO else get_method(config.method)
    try:
        visual = _shapes_of(config.name)
    except WeightsError:  # no such model: those that load it say so better
        return
    tower = build_tower(visual, with_proxy(method, config.proxy))
    if options.key_smoothing is not None:
        tower.check(keys=True)
    check_view(
        options,
        working_size=DEFAULT_SHORT_SIDE,
        cell=tower.cell,
        check_size=tower.check_size,
    )


def _shapes_of(name: str) -> nn.Module:
    """Return the image tower of an architecture, a folder or a repository, without weights.

    Raises:
        WeightsError: there is no such model, or it is not one that open_clip could have written.
        UnsupportedTowerError: its tower has no dense reading.
    """
    from maskclip.clip.open_clip_models import build_visual

    if names_folder(name):
        config = read_folder(name).config
        check_read(config, name)
    else:
        config = known_config(name, ())
    with one_line(Path(name), "configuration of a CLIP"), torch.device("meta"):
        return build_visual(config["embed_dim"], config["vision_cfg"], quick_gelu=False)
