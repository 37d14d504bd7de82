"""Families of image towers: what tells them apart, and which are read here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import brief

SUPPORTED = (
    "a ModifiedResNet (RN50, RN101, RN50x4, RN50x16, RN50x64), a VisionTransformer (ViT-B-32, "
    "ViT-B-16, ViT-L-14, ViT-H-14, ViT-bigG-14 and their variants, CLIPA, CoCa), or a network of "
    "timm: SigLIP, PE-Core, EVA, MobileCLIP, ViTamin, ConvNeXt, Swin"
)

_REASONS = {
    "vision_transformer_relpos": "its blocks know positions by their distances on one grid alone",
}
# Of families that have no honest reading.


class Traits(NamedTuple):
    """What decides whether a tower can be read densely.

    Attributes:
        family: `resnet`, `vit` of open_clip; `timm-vit` and `eva`, and other modules of timm; or
            what else the tower is.
        pooling: how its embedding is made: `attention` over a map or tokens (`map`, as timm calls
            it), `tok` or `token` of the class token, `avg`, ...
    """

    family: str
    pooling: str


OTHER = Traits("other", "other")
"""Of towers that nothing here reads."""

_MODULES = {
    "vision_transformer": "timm-vit",
    "vision_transformer_hybrid": "timm-vit",
    "vitamin": "timm-vit",
}
# Modules of timm that make the same class; other families are called as their modules.

FEATURE_MAPS = ("convnext", "fastvit", "swin_transformer")
"""Families of timm whose networks end in a feature map, averaged."""


def traits_of_config(config: Mapping[str, Any]) -> Traits:
    """Return the traits of the image tower of open_clip's model configuration."""
    vision = config["vision_cfg"]
    if vision.get("timm_model_name"):
        return _traits_of_timm(vision)
    if isinstance(vision["layers"], list | tuple):
        return Traits("resnet", "attention")
    if vision.get("scaled_cosine_attn"):
        return OTHER
    attention = vision.get("attentional_pool")
    if not attention:
        return Traits("vit", vision.get("pool_type", "tok"))
    first = attention is True and vision.get("pool_type", "tok") == "tok"
    return Traits("vit", "attention") if first else OTHER


def why_not(traits: Traits) -> str:
    """Return why such towers are not read, or what is."""
    return _REASONS.get(traits.family, f"expected {SUPPORTED}")


def told_by_shapes(config: Mapping[str, Any]) -> bool:
    """Return whether the shapes of its weights tell a configuration: it is a CLIP as OpenAI's."""
    plain = traits_of_config(config) in (Traits("resnet", "attention"), Traits("vit", "tok"))
    return plain and "multimodal_cfg" not in config


def _traits_of_timm(vision: Mapping[str, Any]) -> Traits:
    """Return the traits of a trunk of timm, by the module that makes it."""
    import timm  # not quick to import, but open_clip has done it

    name = vision["timm_model_name"]
    if not timm.is_model(name):
        return OTHER
    module = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    pooling = vision.get("timm_pool", "avg") or "avg"  # networks of open_clip's list that name none
    return Traits(_MODULES.get(module, module), pooling)


def traits_of(visual: Any) -> Traits:
    """Return the traits of an image tower, by its modules."""
    if getattr(visual, "attnpool", None) is not None and hasattr(visual, "layer4"):
        return Traits("resnet", "attention")
    if hasattr(visual, "trunk") and hasattr(visual, "head"):
        return _traits_of_trunk(visual.trunk)
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is None or not hasattr(visual, "class_embedding") or visual.proj is None:
        return OTHER
    attention = blocks[-1].attn
    cosine = getattr(attention, "logit_scale", None) is not None
    if cosine or not hasattr(attention, "in_proj_weight"):
        return OTHER
    if visual.attn_pool is None:
        return Traits("vit", visual.pool_type)
    first = getattr(visual, "attn_pool_contrastive", None) is None and visual.pool_type == "tok"
    return Traits("vit", "attention") if first else OTHER


_BLOCKS = {"VisionTransformer": {"Block"}, "Eva": {"EvaBlock", "EvaBlockPostNorm"}}


def _traits_of_trunk(trunk: Any) -> Traits:
    """Return the traits of a network of timm."""
    kind = type(trunk).__name__
    if kind not in _BLOCKS:
        pool = getattr(getattr(trunk, "head", None), "global_pool", None)
        return Traits(type(trunk).__module__.rpartition(".")[2], getattr(pool, "pool_type", ""))
    rope = getattr(trunk, "rope", None)
    plain = (
        all(type(block).__name__ in _BLOCKS[kind] for block in trunk.blocks)
        and all(_is_plain(block.attn) for block in trunk.blocks)
        and getattr(trunk, "reg_token", None) is None
        and (rope is None or type(rope).__name__ == "RotaryEmbeddingCat")
    )
    if not plain:
        return OTHER
    return Traits("eva" if kind == "Eva" else "timm-vit", trunk.global_pool)


def _is_plain(attention: Any) -> bool:
    """Return whether an attention of timm has a key and a value for each query, and no gates."""
    gated = getattr(attention, "gate", None) is not None
    return not gated and getattr(attention, "num_kv_groups", 1) == 1


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
