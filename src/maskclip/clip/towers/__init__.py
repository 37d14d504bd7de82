"""CLIP's image towers, read densely: one adapter a family, and a table of them.

Wraps the networks' own modules and touches only their weights and sub-modules whose names are the
same in every release. Images arrive normalised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from maskclip.clip.attention import KERNELS, POOLED
from maskclip.clip.families import FEATURE_MAPS, Traits, traits_of, why_not
from maskclip.clip.towers.base import (
    Adapter,
    Seen,
    Tower,
    UnsupportedMethodError,
    UnsupportedTowerError,
    unsupported,
)
from maskclip.clip.towers.feature_map import FeatureMapTower
from maskclip.clip.towers.networks import Network, OpenCLIPViT, TimmViT
from maskclip.clip.towers.resnet import ResNetTower
from maskclip.clip.towers.vit import ViTTower
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import Method

__all__ = [
    "Seen",
    "Tower",
    "UnsupportedMethodError",
    "UnsupportedTowerError",
    "adapter_for",
    "build_tower",
    "can_read",
]


def adapter_for(traits: Traits) -> Adapter | None:
    """Return what reads such towers, or None where nothing here does."""
    return _ADAPTERS.get((traits.family, traits.pooling))


def build_tower(visual: nn.Module, method: Method) -> Tower:
    """Wrap an open_clip image tower; a method's activation and epsilon are set in place.

    Raises:
        UnsupportedTowerError: the tower is of another family.
        UnsupportedMethodError: it cannot compute the method.
    """
    traits = traits_of(visual)
    adapter = adapter_for(traits)
    if adapter is None:
        raise UnsupportedTowerError(
            f"{type(visual).__name__} has no dense reading here: {why_not(traits)}"
        )
    tower = adapter(visual, method)
    _check_kernels(method)
    tower.check(keys=False)
    _apply_method(visual, method)
    return tower


def can_read(visual: nn.Module, method: Method, *, keys: bool = False) -> bool:
    """Return whether a method can read an image tower, and whether there are keys under it."""
    adapter = adapter_for(traits_of(visual))
    if adapter is None:
        return False
    try:
        adapter(visual, method).check(keys=keys)
    except MaskCLIPError:
        return False
    return True


def _check_kernels(method: Method) -> None:
    middle = method.middle.kernels if method.middle else ()
    for name, _ in (*method.kernels, *middle):
        if name not in KERNELS:
            raise unsupported(
                method, f"has an unknown kernel {name!r}: expected one of {', '.join(KERNELS)}"
            )
    alone = {"similar", "proxy"} & dict(middle).keys()
    if alone:
        raise unsupported(method, f"has the kernel {min(alone)!r} in middle blocks: leave it out")
    odd = dict(method.pool).keys() - POOLED
    if odd:
        raise unsupported(
            method,
            f"has the kernel {min(odd)!r} in a pool: expected some of {', '.join(POOLED)}",
        )
    apart = method.purification or method.feedback
    if apart is not None and "proxy" in dict(method.kernels):
        what = type(apart).__name__.lower()
        raise unsupported(method, f"has a {what}, which a proxy cannot mix: leave one out")
    if (method.purification is None) == ("similar" in dict(method.kernels)):
        raise unsupported(method, "needs both a purification and the kernel 'similar', or neither")
    if method.feedback is not None:
        comparing = {name for name, _ in method.kernels} <= {"qk", "qq", "kk", "vv"}
        if not comparing or method.blocks > 1 or method.unit_iterations is not None:
            raise unsupported(
                method,
                "gives its maps back to the last block, whose kernels are then some of qk, qq, kk "
                "and vv, without unit vectors",
            )


def _apply_method(visual: nn.Module, method: Method) -> None:
    """Set the activation of every MLP and the epsilon of every LayerNorm where the method says."""
    for module in visual.modules():
        if method.activation == "gelu" and hasattr(module, "gelu"):
            module.gelu = nn.GELU()
        if method.layer_norm_eps is not None and isinstance(module, nn.LayerNorm):
            module.eps = method.layer_norm_eps


def _vit(network: Callable[[Any], Network]) -> Adapter:
    """Return what reads a ViT by a view of it."""
    return lambda visual, method: ViTTower(network(visual), method)


_ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("resnet", "attention"): ResNetTower,
    **{("vit", pooling): _vit(OpenCLIPViT) for pooling in ("tok", "avg", "attention")},
    **{
        (family, pooling): _vit(TimmViT)
        for family in ("timm-vit", "eva")
        for pooling in ("token", "avg", "map")
    },
    **{(family, "avg"): FeatureMapTower for family in FEATURE_MAPS},
}
"""Family and pooling -> what reads such towers."""
