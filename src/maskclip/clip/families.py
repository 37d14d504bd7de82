"""Families of image towers: what tells them apart, and which are read here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief

SUPPORTED = (
    "ModifiedResNet (RN50, RN101, RN50x4, RN50x16, RN50x64) and VisionTransformer with class-token "
    "pooling (ViT-B/32, B/16, L/14, L/14@336, H/14, g/14, bigG/14 and their variants)"
)


class Traits(NamedTuple):
    """What decides whether a tower can be read densely.

    Attributes:
        family: `resnet`, `vit`, or what else the tower is.
        pooling: how its embedding is made: `attention` over a map, `tok` of the class token, ...
    """

    family: str
    pooling: str


OTHER = Traits("other", "other")
"""Of towers that nothing here reads."""


def traits_of_config(config: Mapping[str, Any]) -> Traits:
    """Return the traits of the image tower of open_clip's model configuration."""
    vision = config["vision_cfg"]
    if "multimodal_cfg" in config or vision.get("timm_model_name"):
        return OTHER
    if isinstance(vision["layers"], list | tuple):
        return Traits("resnet", "attention")
    if vision.get("scaled_cosine_attn"):
        return OTHER
    pooling = "attentional" if vision.get("attentional_pool") else vision.get("pool_type", "tok")
    return Traits("vit", pooling)


def traits_of(visual: Any) -> Traits:
    """Return the traits of an image tower, by its modules."""
    if getattr(visual, "attnpool", None) is not None and hasattr(visual, "layer4"):
        return Traits("resnet", "attention")
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is None or not hasattr(visual, "class_embedding") or visual.proj is None:
        return OTHER
    attention = blocks[-1].attn
    cosine = getattr(attention, "logit_scale", None) is not None
    if cosine or not hasattr(attention, "in_proj_weight"):
        return OTHER
    return Traits("vit", visual.pool_type if visual.attn_pool is None else "attentional")


VISION = {
    "layers": (1, 64),
    "width": (2, 8192),
    "image_size": (1, 4096),
    "patch_size": (1, 1024),
    "head_width": (1, 1024),
}
"""The numbers of a plain image tower's configuration, as open_clip names them: what each may be."""

_EMBED_DIM = (1, 8192)
# Of the numbers of any configuration.
_OPTIONAL = {"patch_size", "head_width", "vocab_size", "heads"}


def check_tower(config: Mapping[str, Any]) -> None:
    """Refuse a configuration of an image tower that is not plain numbers in their ranges.

    Args:
        config: `embed_dim` and `vision_cfg`, as open_clip's.

    Raises:
        KeyError, TypeError, MaskCLIPError: a number is missing, out of its range, or unknown.
    """
    check_number("embed_dim", config["embed_dim"], _EMBED_DIM)
    check_all(config["vision_cfg"], VISION)


def check_all(values: Mapping[str, Any], ranges: Mapping[str, tuple[int, int]]) -> None:
    """Refuse numbers out of their ranges, and those that are missing or unknown.

    Raises:
        KeyError, MaskCLIPError: names the first.
    """
    for name in values.keys() | (ranges.keys() - _OPTIONAL):
        found = values[name]
        for number in found if name == "layers" and isinstance(found, list) else [found]:
            check_number(name, number, ranges[name])


def check_number(name: str, number: object, bounds: tuple[int, int]) -> None:
    """Refuse what is no whole number in a range.

    Raises:
        MaskCLIPError: names it.
    """
    if type(number) is not int or not bounds[0] <= number <= bounds[1]:
        raise MaskCLIPError(
            f"{name}: expected a number from {bounds[0]} to {bounds[1]:,}, got {brief(number)}"
        )
