"""The methods by name: this project's, the later ones of the field, and files of your own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.fields import UNFIT, fitting, in_words, kinds_of
from maskclip.core.method import (
    BASELINE,
    CLEAN,
    NEIGHBORS,
    PUBLISHED,
    Alignment,
    Feedback,
    Method,
    Middle,
    Purification,
)
from maskclip.core.text import brief, read_toml

CLEARCLIP = replace(CLEAN, name="clearclip", kernels=(("qq", 1.0),))
"""Patches with like queries mix; no residual, no MLP (ClearCLIP, Lan et al., ECCV 2024)."""

SCLIP = replace(CLEAN, name="sclip", kernels=(("qq", 1.0), ("kk", 1.0)), residual=True, mlp=True)
"""Like queries and like keys, in a block that is else CLIP's (SCLIP, Wang et al., ECCV 2024)."""

GEM = replace(
    CLEAN,
    name="gem",
    kernels=(("vv", 1 / 3), ("kk", 1 / 3), ("qq", 1 / 3)),
    blocks=6,
    residual=True,
    unit_iterations=1,
    position_filter="antialiased",
)
"""Unit vectors of three kinds in the last six blocks (GEM, Bousselham et al., CVPR 2024)."""

SURGERY = replace(
    CLEAN,
    name="surgery",
    kernels=(("vv", 1.0),),
    blocks=6,
    residual=True,
    position_filter="bilinear",
)
"""Like values, in a stream beside the last six blocks (CLIP Surgery, Li et al., 2023)."""

NACLIP = replace(CLEAN, name="naclip", kernels=(("kk", 1.0),), window=5.0)
"""Like keys that are near (NACLIP, Hajimiri et al., WACV 2025)."""

RESCLIP_RCS = replace(
    NACLIP,
    name="resclip-rcs",
    kernels=(("kk", 0.8),),
    middle=Middle(blocks=(5, 6, 7, 8), weight=1.2),
)
"""NACLIP and middle blocks: the first pass of ResCLIP (Yang et al., CVPR 2025)."""

RESCLIP = replace(RESCLIP_RCS, name="resclip", feedback=Feedback(logits=0.84, weight=1.26))
"""Both passes: in the second, patches of one class attend to each other."""

PEARL = replace(CLEAN, name="pearl", kernels=(("aligned", 1.0),))
"""Queries, and keys turned towards them (PEARL)."""

SCCLIP = replace(
    CLEAN,
    name="scclip",
    kernels=(("kk", 0.5), ("similar", 0.5)),
    purification=Purification(outliers="density"),
)
"""Outliers repaired, patches averaged over those alike in middle blocks (SC-CLIP, Bai et al.)."""

SFP = replace(
    SCCLIP,
    name="sfp",
    kernels=(("qq", 1 / 3), ("kk", 1 / 3), ("similar", 1 / 3)),
    purification=Purification(outliers="class_attention", cut_similarities=True),
)
"""As SC-CLIP, where outliers are patches that the class token attends to (SFP, Jin et al.)."""

METHODS = {
    method.name: method
    for method in (
        CLEAN,
        PUBLISHED,
        BASELINE,
        CLEARCLIP,
        SCLIP,
        GEM,
        SURGERY,
        NACLIP,
        RESCLIP_RCS,
        RESCLIP,
        PEARL,
        SCCLIP,
        SFP,
    )
}
"""The methods by name: `"clean"`, the default, `"published"`, and those of later papers.

Examples:
    >>> list(maskclip.METHODS)[:3]
    ['clean', 'published', 'baseline']
    >>> maskclip.METHODS["naclip"].kernels, maskclip.METHODS["naclip"].window
    ((('kk', 1.0),), 5.0)
"""


AUTO = "auto"
"""The name that stands for the method for which published figures speak (`clip.choice`)."""


class Source(NamedTuple):
    """Where a method is from, and what it was published with.

    Attributes:
        paper: its short name, authors, place and year.
        mean: its published mIoU in % of ViT-B/16, the mean over VOC21, Context60, COCO-Object,
            VOC20, Context59, COCO-Stuff, Cityscapes and ADE20K; None where there is none.
        note: what goes with that figure.
    """

    paper: str
    mean: float | None = None
    note: str = ""


SOURCES = {
    "clean": Source("MaskCLIP, Zhou et al., ECCV 2022", 30.3, "as later papers run it"),
    "published": Source("MaskCLIP, Zhou et al., ECCV 2022", note="as its code computes it"),
    "baseline": Source("CLIP, Radford et al., ICML 2021", 13.6),
    "clearclip": Source("ClearCLIP, Lan et al., ECCV 2024", 38.1),
    "sclip": Source("SCLIP, Wang et al., ECCV 2024", 38.2),
    "gem": Source("GEM, Bousselham et al., CVPR 2024", 38.3),
    "surgery": Source("CLIP Surgery, Li et al., 2023", note="Context60 29.3, COCO-Stuff 21.9"),
    "naclip": Source("NACLIP, Hajimiri et al., WACV 2025", 39.4, "42.5 with PAMR"),
    "resclip-rcs": Source("ResCLIP, Yang et al., CVPR 2025", note="its first pass alone"),
    "resclip": Source("ResCLIP, Yang et al., CVPR 2025", 41.4),
    "pearl": Source("PEARL, CVPR 2026", 43.2, "with tlp (40.6 without)"),
    "scclip": Source("SC-CLIP, Bai et al., 2024", 43.9),
    "sfp": Source("SFP, Jin et al., ICCV 2025", 44.0, "39.6 in PEARL's paper"),
}
"""Where the methods are from, by name."""

COSTS = {
    "clean": 1.0,
    "published": 1.02,
    "baseline": 1.08,
    "clearclip": 1.03,
    "sclip": 1.12,
    "gem": 2.0,
    "surgery": 1.19,
    "naclip": 1.05,
    "resclip-rcs": 1.16,
    "resclip": 1.37,
    "pearl": 1.08,
    "scclip": 1.20,
    "sfp": 1.28,
}
"""Time of encoding beside `clean`: ViT-B/16, 512 x 683 px, one thread (benchmarks/methods.py)."""


def for_any_tower(method: Method) -> bool:
    """Return whether a ResNet too can be read by a method: its pool has no blocks."""
    pooled = {name for name, _ in method.kernels} <= {"identity", "qk"}
    plain = method.middle is None and method.feedback is None and method.window is None
    return pooled and method.blocks == 1 and plain


def with_proxy(method: Method, proxy: str | None) -> Method:
    """Return a method as it reads CLIP beside a proxy, whose likeness becomes the attention.

    Raises:
        MaskCLIPError: the method has an attention of its own, or asks for a proxy where none is.
    """
    own = "proxy" in dict(method.kernels)
    if own == (proxy is not None):
        return method
    if own:
        raise MaskCLIPError(
            f"the method {method.name!r} mixes by a proxy: name a ViT of timm with `proxy=NAME`, "
            "such as vit_small_patch14_dinov2"
        )
    if method.kernels != CLEAN.kernels or method.residual or method.mlp or method.middle:
        raise MaskCLIPError(
            f"a proxy takes the place of the attention or the rest of the block that the method "
            f"{method.name!r} has: take `method=clean`, or a file of your own with the kernel proxy"
        )
    return replace(method, name="proxy", kernels=(("proxy", 1.0),))


def keeps_values(method: Method) -> bool:
    """Return whether each position keeps its own value, as MaskCLIP reads the last block."""
    alone = {name for name, _ in method.kernels} == {"identity"} and method.blocks == 1
    return alone and method.middle is None


def needed_blocks(method: Method) -> int:
    """Return how many blocks a ViT must have at least for a method to read it."""
    counts = [method.blocks]
    if method.middle is not None:
        counts.append(max(method.middle.blocks) + 1 + method.blocks)
    if method.purification is not None:
        counts.append(max(method.purification.similarity, method.purification.stages[0]) + 2)
    return max(counts)


def needs_class_token(method: Method) -> bool:
    """Return whether a method reads patches by the class token of a ViT."""
    how = method.purification
    return how is not None and (how.outliers == "class_attention" or how.class_token != 0)


def needed_patches(method: Method) -> int:
    """Return how many patches an image must have at least for a method to read it."""
    how = method.purification
    return NEIGHBORS + 1 if how is not None and how.outliers == "density" else 1


def get_method(method: str | Method) -> Method:
    """Return the method of that name, that of a file of TOML, or the method itself.

    Not of `auto`, which only the model decides.

    Raises:
        MissingFileError: there is no such file.
        MaskCLIPError: no method has that name, or the file cannot be used.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise MaskCLIPError(f"expected the name of a method, or a Method, got {brief(method)}")
    if method in METHODS:
        return METHODS[method]
    if method.lower().endswith(".toml"):
        return read_method(method)
    names = (*METHODS, AUTO)
    raise MaskCLIPError(
        f"unknown method {method!r}{did_you_mean(method, names)}: expected one of "
        f"{', '.join(names)}, or a file of TOML"
    )


def method_name(method: str | Method) -> str:
    """Return how a method is called in tables: that of a file by the file, `auto` by itself.

    Raises:
        MaskCLIPError: as `get_method`.
    """
    return AUTO if method == AUTO else get_method(method).name


def gives_probabilities(method: str | Method) -> bool:
    """Return whether a method enlarges probabilities, as that which `auto` becomes does."""
    return method == AUTO or get_method(method).upsample == "probabilities"


def read_method(path: str) -> Method:
    """Read a method of your own from TOML: the fields in which it differs from another.

    `base` names that other one (`clean`, if it is left out). `kernels` and `pool` are tables of
    names and weights; `middle`, `alignment` and `purification` are tables of their fields.

    Raises:
        MissingFileError: there is no such file.
        MaskCLIPError: the file cannot be used; names it and the field.
    """
    table = read_toml(path, "a method")
    try:
        base = METHODS.get(str(table.pop("base", "clean")))
        if base is None:
            raise MaskCLIPError(f"base: expected one of {', '.join(METHODS)}")
        method = _changed(base, {"name": Path(path).stem, **table})
    except MaskCLIPError as error:
        raise MaskCLIPError(f"{path}: {error}") from None
    assert isinstance(method, Method)
    return method


_EMPTY = {
    "middle": Middle(blocks=(0,), weight=1.0),
    "feedback": Feedback(logits=1.0, weight=1.0),
    "alignment": Alignment(),
    "purification": Purification(outliers="density"),
}
"""What the tables of a file change where the base has none."""


def _changed(base: Any, table: Mapping[str, Any], prefix: str = "") -> Any:
    """Return a method, or a part of one, with the fields of a table."""
    kinds = kinds_of(type(base))
    known = [field.name for field in fields(base)]
    values = {}
    for key, value in table.items():
        if key not in known:
            near = did_you_mean(key, known)
            raise MaskCLIPError(
                f"unknown field {prefix}{key}{near}: the fields are {', '.join(known)}"
            )
        if key in _EMPTY and isinstance(value, dict):
            part = getattr(base, key) or _EMPTY[key]
            values[key] = _changed(part, value, f"{prefix}{key}.")
            continue
        if key in ("kernels", "pool") and isinstance(value, dict):
            value = list(value.items())
        found = fitting(value, kinds[key])
        if found is UNFIT:
            raise MaskCLIPError(
                f"{prefix}{key}: expected {in_words(kinds[key])}, got {brief(value)}"
            )
        values[key] = found
    return replace(base, **values)
