"""Tiny random image towers of every family of ViTs, made by open_clip and timm themselves."""

from functools import partial
from unittest import mock

import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import HybridEmbed
from timm.models.vitamin import VitCfg
from torch import nn

_OPEN_CLIP = {
    **{"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 2, "mlp_ratio": 2.0},
    "output_dim": 16,
}
_POOLED = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
_SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}


class _Stem(nn.Sequential):
    """Convolutions of stride 8, one with a BatchNorm that has an activation, as MobileCLIP's."""

    def __init__(self):
        norm = timm.layers.BatchNormAct2d(16, act_layer=nn.GELU)
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 16, 4, stride=4, bias=False), norm),
            nn.Conv2d(16, 32, 2, stride=2),
        )


def _open_clip(**fields):
    return VisionTransformer(**{**_OPEN_CLIP, **fields})


def _timm(name, *, pool, proj=None, **fields):
    """Build open_clip's wrapper around a network of timm that is smaller than its name says."""
    create = timm.create_model

    def smaller(model, **given):
        return create(model, **given, **{**_SMALL, **fields})

    with mock.patch.object(timm, "create_model", smaller):
        return TimmModel(name, 16 if proj != "none" else 32, 32, pool=pool, proj=proj)


def _mobileclip(**fields):
    embed = partial(HybridEmbed, backbone=_Stem(), proj=False)
    fields |= {"embed_layer": embed, "patch_size": 1, "no_embed_class": True}
    return _timm("vit_base_patch16_224", pool="token", **fields)


def _vitamin(**fields):
    parts = VitCfg(embed_dim=(8, 16, 32), depths=(1, 1, 1), stem_width=8)
    fields |= {"embed_cfg": parts, "patch_size": 1, "img_size": 64}
    return _timm("vitamin_small_224", pool="", proj="linear", **fields)


_PE = {"embed_dim": 64, "num_heads": 4, "attn_pool_num_heads": 4, "ref_feat_shape": (4, 4)}
_SIGLIP = "vit_base_patch16_siglip_224"
_TOWERS = {
    "clip": _open_clip,
    "clip, layer scale": partial(_open_clip, ls_init_value=0.3),
    "clipa": partial(_open_clip, pool_type="avg", no_ln_pre=True, final_ln_after_pool=True),
    "mean": partial(_open_clip, pool_type="avg"),
    "coca": partial(_open_clip, **_POOLED),
    "coca, one width": partial(_open_clip, **_POOLED, output_dim=32),
    "siglip": partial(_timm, _SIGLIP, pool="map", proj="none"),
    "pe-core": partial(_timm, "vit_pe_core_base_patch16_224", pool="map", **_PE),
    "pe-core, no class token": partial(
        *(_timm, "vit_pe_core_gigantic_patch14_448"), pool="map", **_PE
    ),
    "eva01": partial(_timm, "eva_giant_patch14_224", pool="token"),
    "eva02": partial(_timm, "eva02_base_patch16_clip_224", pool="token", ref_feat_shape=(3, 3)),
    "eva02, norms after": partial(_timm, "eva02_enormous_patch14_clip_224", pool="token"),
    "mobileclip-b": _mobileclip,
    "mobileclip2-l": partial(_timm, "vit_large_patch14_clip_224", pool="token"),
    "gap": partial(*(_timm, "vit_medium_patch16_gap_256"), pool="", proj="linear", init_values=0.5),
    "vitamin": _vitamin,
}
FAMILIES = list(_TOWERS)
NO_CLASS_TOKEN = {"siglip", "pe-core, no class token", "gap", "vitamin"}


def tiny_tower(family, *, depth=2):
    """Return a random tower in eval mode; all its parameters do something."""
    make = _TOWERS[family]
    of_open_clip = getattr(make, "func", make) is _open_clip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        visual = make(**{"layers" if of_open_clip else "depth": depth})
        for parameter in visual.parameters():
            many = parameter.ndim > 1 and parameter.numel() > max(parameter.shape)
            spread = parameter[0].numel() ** -0.5 if many else 0.3
            torch.nn.init.normal_(parameter, std=spread)
        for module in visual.modules():
            if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return visual.eval()
