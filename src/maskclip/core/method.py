"""The arithmetic that turns CLIP into dense labels, as named choices.

Every difference between the authors' code and this project's default is one field of `Method`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from maskclip.core.errors import MaskCLIPError

IMAGENET_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
IMAGENET_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One complete set of arithmetic choices.

    Attributes:
        name: what users type.
        activation: activation of the image tower; `"model"` is the one it was trained with.
            The authors always use exact GELU, although OpenAI's CLIPs were trained with QuickGELU.
        layer_norm_eps: epsilon of every LayerNorm of the image tower; None is the model's own.
        temperature: probabilities are softmax(temperature x cosine); None is the model's own, of
            its training. The authors always take 100, as OpenAI's CLIPs have; a protocol may set
            another.
        mean, std: RGB statistics for pixels in [0, 1]; None is the model's own. The authors
            normalise with ImageNet's.
        position_resize: when a ViT's position table is resized. `"grid"`: when the grid differs.
            `"count"`: when the number of tokens differs, so that a 7x28 grid reads a 14x14 table
            in raster order.
        kernels: what the last attention mixes its values by, as (name, weight): `identity` leaves
            each position its own, as MaskCLIP reads CLIP; `qk` mixes all, as CLIP itself does.
        residual: whether what enters a ViT's last block is added to what its attention gives.
        mlp: whether the MLP of a ViT's last block follows.
        project_keys: whether the keys of the last ViT block pass its output projection.
        pad_to_cells: whether a ResNet's input is padded to whole cells; otherwise its pools drop
            the last rows and columns.
        stretch: whether the grid's maps are stretched over the unpadded image; otherwise each
            cell keeps its true place.
        antialias: whether shrinking the input image filters out what is too fine for its new size.
        normalize_keys: key smoothing compares keys normalised over their `"channels"` (cosine,
            as the paper writes) or each channel over all `"positions"` (as its code does).
        smoothed_probabilities: whether key smoothing averages (weights sum to one, results are
            probabilities) or only adds.
        keep_best_class: whether prompt denoising keeps the best class when all would be dropped.
        upsample: what is enlarged to the image: `"probabilities"`, or the `"maps"` as they are
            (cosines, or what key smoothing made of them).
        resizes: 1, from grid to image; or 2, by way of the size that the network saw.
    """

    CLEAN: ClassVar[Method]
    PUBLISHED: ClassVar[Method]
    BASELINE: ClassVar[Method]

    name: str
    activation: Literal["model", "gelu"]
    layer_norm_eps: float | None
    temperature: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    position_resize: Literal["grid", "count"]
    kernels: tuple[tuple[str, float], ...]
    residual: bool
    mlp: bool
    project_keys: bool
    pad_to_cells: bool
    stretch: bool
    antialias: bool
    normalize_keys: Literal["channels", "positions"]
    smoothed_probabilities: bool
    keep_best_class: bool
    upsample: Literal["probabilities", "maps"]
    resizes: Literal[1, 2]


CLEAN = Method(
    name="clean",
    activation="model",
    layer_norm_eps=None,
    temperature=None,
    mean=None,
    std=None,
    position_resize="grid",
    kernels=(("identity", 1.0),),
    residual=False,
    mlp=False,
    project_keys=False,
    pad_to_cells=True,
    stretch=False,
    antialias=True,
    normalize_keys="channels",
    smoothed_probabilities=True,
    keep_best_class=True,
    upsample="probabilities",
    resizes=1,
)
"""The default: what the paper and the later literature describe."""

PUBLISHED = Method(
    name="published",
    activation="gelu",
    layer_norm_eps=1e-6,
    temperature=100.0,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    position_resize="count",
    kernels=(("identity", 1.0),),
    residual=True,
    mlp=True,
    project_keys=True,
    pad_to_cells=False,
    stretch=True,
    antialias=False,
    normalize_keys="positions",
    smoothed_probabilities=False,
    keep_best_class=False,
    upsample="maps",
    resizes=2,
)
"""What the authors' released code computes; the published figures came from it."""

BASELINE = replace(PUBLISHED, name="baseline", kernels=(("qk", 1.0),))
"""The paper's comparison row: CLIP's ordinary attention, read densely (published code, R4)."""

Method.CLEAN, Method.PUBLISHED, Method.BASELINE = CLEAN, PUBLISHED, BASELINE

METHODS = {method.name: method for method in (CLEAN, PUBLISHED, BASELINE)}


def get_method(method: str | Method) -> Method:
    """Return the method of that name, or the method itself.

    Raises:
        MaskCLIPError: no method has that name.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise MaskCLIPError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    return METHODS[method]
