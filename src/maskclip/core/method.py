"""The arithmetic that turns CLIP into dense labels, as named choices.

Every difference between the authors' code and this project's default is one field of `Method`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from maskclip.core.errors import MaskCLIPError
from maskclip.core.fields import check_fields
from maskclip.core.text import brief

IMAGENET_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
IMAGENET_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)


Weighted = tuple[tuple[str, float], ...]
"""Kernels by name, each with its weight in their sum."""


@dataclass(frozen=True, kw_only=True)
class Middle:
    """The attention of middle blocks, added to that of the last one (ResCLIP).

    Attributes:
        blocks: which, counted from 0; their mean is taken.
        weight: of the mean.
        kernels: what the attention of a middle block is.
    """

    blocks: tuple[int, ...]
    weight: float
    kernels: Weighted = (("qk", 1.0),)

    def __post_init__(self) -> None:
        check_fields(self, "middle.")
        if not self.blocks or not all(0 <= block < _MOST_BLOCKS for block in self.blocks):
            raise MaskCLIPError(
                f"middle.blocks: expected some, counted from 0, got {brief(self.blocks)}"
            )
        _check("middle.weight", self.weight, -math.inf, math.inf)
        _check_weights("middle.kernels", self.kernels)


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """How the last block is read once more when first maps are known (ResCLIP).

    The photo refines these (PAMR), each patch gets the class of most of its pixels, and patches of
    one class attend to each other: their likeness, in [0, 1], is added to the logits.

    Attributes:
        logits: what the kernels' own logits are multiplied by.
        weight: of the likeness beside them.
        temperature: of the first maps' probabilities.
        threshold: pixels whose best probability lies below it are of no sure class.
        unsure: what these are: a class `"apart"`, or the `"first"` one, as in the published code.
        connected: whether patches count less if the line between them leaves their class, by
            exp(-distance / the grid's longer side).
        whole_lines: whether such a line is looked at as a whole; or only from its start, as far as
            its length is a share of the grid's longer side, as in the published code.
        blur: standard deviation of the Gaussian that blurs the likeness, in patches along the rows
            of the grid, one after the other.
    """

    logits: float
    weight: float
    temperature: float = 40.0
    threshold: float = 0.1
    unsure: Literal["apart", "first"] = "apart"
    connected: bool = True
    whole_lines: bool = True
    blur: float = 5.0

    def __post_init__(self) -> None:
        check_fields(self, "feedback.")
        _check("feedback.logits", self.logits, 0, math.inf)
        _check("feedback.weight", self.weight, -math.inf, math.inf)
        _check("feedback.temperature", self.temperature, 0, math.inf)
        _check("feedback.threshold", self.threshold, -1, 1)
        _check("feedback.blur", self.blur, 0, 1e3)


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How the `aligned` kernel turns keys towards queries before it compares them (PEARL).

    Attributes:
        solver: `"svd"`: the orthogonal Procrustes solution. `"newton-schulz"`: five steps towards
            it, which end far from it and act as a low-pass filter; the published code's.
        centered_keys: weight of a second term, the product of centred keys with each other.
    """

    solver: Literal["newton-schulz", "svd"] = "newton-schulz"
    centered_keys: float = 0.08

    def __post_init__(self) -> None:
        check_fields(self, "alignment.")


NEIGHBORS = 30
"""Of the local outlier factor, by which a purification may tell outliers."""


@dataclass(frozen=True, kw_only=True)
class Purification:
    """How outlier patches are repaired, and patches averaged over those like them (SC-CLIP, SFP).

    Attributes:
        outliers: what tells them: `"density"`, a local outlier factor among 30 neighbours; or
            `"class_attention"`, that the class token attends to them more than they do themselves.
        share: of the patches, those that are outliers by density.
        most: so many are outliers by the attention of the class token, those that get most of it.
        class_weight: by which that attention is multiplied before it is compared.
        similarity: the block whose output says which patches are alike on the way in, and in the
            attention.
        stages: (first, last) block of those whose outputs are summed and read once more; the
            first also says which patches are alike on the way out.
        threshold: cosine from which patches are alike.
        sharpness: of the softmax over similarities.
        cut_similarities: whether similarities under the threshold count as 0 in that softmax.
        class_token: share of the class token that is added to every patch.
    """

    outliers: Literal["density", "class_attention"]
    share: float = 0.05
    most: int = 10
    class_weight: float = 1.5
    similarity: int = 8
    stages: tuple[int, int] = (3, 9)
    threshold: float = 0.4
    sharpness: float = 3.0
    cut_similarities: bool = False
    class_token: float = 0.3

    def __post_init__(self) -> None:
        check_fields(self, "purification.")
        _check("purification.share", self.share, 0, 1)
        _check("purification.threshold", self.threshold, -1, 1)
        _check("purification.sharpness", self.sharpness, 0, math.inf)
        _check("purification.class_weight", self.class_weight, 0, math.inf)
        _check("purification.most", self.most, 0, math.inf)
        _check("purification.class_token", self.class_token, -math.inf, math.inf)
        named = (self.similarity, *self.stages)
        in_order = self.stages[0] <= self.stages[1]
        if not in_order or not all(0 <= block < _MOST_BLOCKS for block in named):
            raise MaskCLIPError(
                "purification: expected blocks counted from 0, stages first and last, got "
                f"similarity {brief(self.similarity)}, stages {brief(self.stages)}"
            )


@dataclass(frozen=True, kw_only=True)
class Method:
    """How CLIP is read as dense labels: one complete set of arithmetic choices.

    Those with a name are in `METHODS`. One of your own is one of them with other fields; values for
    `middle`, `feedback`, `alignment` and `purification` are in those that have some.

    Attributes:
        name: its name, as in `METHODS`.
        activation: activation of the image tower; `"model"` is the one it was trained with.
            The authors always use exact GELU, although OpenAI's CLIPs were trained with QuickGELU.
        layer_norm_eps: epsilon of every LayerNorm of the image tower; None is the model's own.
        temperature: probabilities are softmax(temperature x cosine); None is the model's own, of
            its training. The authors always take 100, as OpenAI's CLIPs have; a protocol may set
            another.
        mean: the mean of red, green and blue, for pixels in [0, 1]; None is the model's own. The
            authors normalise with ImageNet's.
        std: their standard deviation; as `mean`.
        position_resize: when a ViT's position table is resized. `"grid"`: when the grid differs.
            `"count"`: when the number of tokens differs, so that a 7x28 grid reads a 14x14 table
            in raster order.
        position_filter: how it is resized: `"bicubic"`, `"bilinear"`, `"antialiased"` (bicubic,
            filtered where it shrinks), or `"offset"`: bicubic at coordinates of a grid 0.1 cells
            larger, as SCLIP and the code that follows it do.
        kernels: what the last attention mixes its values by, as (name, weight): `identity` leaves
            each position its own, as MaskCLIP reads CLIP; `qk` mixes all, as CLIP itself does;
            `qq`, `kk`, `vv` by likeness of queries, keys or values; `aligned` by `alignment`;
            `similar` by likeness of an earlier block's output (`purification`); `proxy` by that
            of the patches of another network (`ModelConfig.proxy`).
        pool: what an attention pool, where the network has one, mixes its values by when it is
            read at every position: `identity`, or some of `qk`, `qq`, `kk` and `vv` among patches.
        window: standard deviation in patches of a Gaussian that is added to the logits of every
            kernel, so that a patch looks near itself; None is none.
        blocks: of how many blocks, the last ones, the attentions are summed.
        residual: whether what enters the first of them is added to what they give; None is no,
            but where `identity` reads a network whose public code does (EVA: CLIPSelf, Wu et al.,
            ICLR 2024).
        mlp: whether the MLP of each follows; None as for `residual`.
        unit_iterations: `qq`, `kk` and `vv` compare unit vectors, which before are this many times
            replaced by what they attend to (GEM); None is off.
        unit_temperature: of these comparisons; None is the mean norm of what enters the attention,
            divided by the square root of a head's width.
        middle: attention of middle blocks that is added to the last one's.
        feedback: how first maps of the classes are given back to the last attention; None reads
            it once.
        alignment: of the kernel `aligned`.
        purification: how outliers are repaired; the whole last block is read by it.
        project_keys: whether the keys of the last ViT block pass its output projection.
        pad_to_cells: whether a ResNet's input is padded to whole cells; otherwise its pools drop
            the last rows and columns.
        stretch: whether the grid's maps are stretched over the unpadded image; otherwise each
            cell keeps its true place.
        antialias: whether shrinking the input image filters out what is too fine for its new size
            (bicubic); otherwise it is resized as the authors do, by OpenCV's bilinear of bytes.
        normalize_keys: key smoothing compares keys normalised over their `"channels"` (cosine,
            as the paper writes) or each channel over all `"positions"` (as its code does).
        smoothed_probabilities: whether key smoothing averages (weights sum to one, results are
            probabilities) or only adds.
        keep_best_class: whether prompt denoising keeps the best class when all would be dropped.
        upsample: what is enlarged to the image: `"probabilities"`, the `"maps"` as they are
            (cosines, or what key smoothing made of them), or those of all `"prompts"`: then each
            prompt competes for itself, probabilities are made at the image's size, and a class has
            the best of its prompts, as SCLIP and the code that follows it do. Key smoothing and
            prompt denoising, which work on classes, turn `"prompts"` into `"maps"`.
        probability_threshold: with `"prompts"`, pixels whose best probability lies below it become
            class 0.
        area_threshold: with `"prompts"`, a class other than 0 gives up its pixels where they are
            not more than this share of those of all such classes.
        resizes: 1, from grid to image; or 2, by way of the size that the network saw.

    Raises:
        MaskCLIPError: a value is out of its range.

    Examples:
        >>> from dataclasses import replace
        >>> mine = replace(maskclip.METHODS["naclip"], name="mine", window=3.0)
        >>> segmenter = maskclip.load("emoji-vit", method=mine)
        >>> segmenter.method.name, segmenter.method.window
        ('mine', 3.0)
    """

    name: str
    activation: Literal["model", "gelu"]
    layer_norm_eps: float | None
    temperature: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    position_resize: Literal["grid", "count"]
    position_filter: Literal["bicubic", "bilinear", "antialiased", "offset"] = "bicubic"
    kernels: Weighted
    pool: Weighted = (("identity", 1.0),)
    window: float | None = None
    blocks: int = 1
    residual: bool | None
    mlp: bool | None
    unit_iterations: int | None = None
    unit_temperature: float | None = None
    middle: Middle | None = None
    feedback: Feedback | None = None
    alignment: Alignment = Alignment()
    purification: Purification | None = None
    project_keys: bool
    pad_to_cells: bool
    stretch: bool
    antialias: bool
    normalize_keys: Literal["channels", "positions"]
    smoothed_probabilities: bool
    keep_best_class: bool
    upsample: Literal["probabilities", "maps", "prompts"]
    probability_threshold: float = 0.0
    area_threshold: float = 0.0
    resizes: Literal[1, 2]

    def __post_init__(self) -> None:
        check_fields(self)
        _check_weights("kernels", self.kernels)
        _check_weights("pool", self.pool)
        for name, most in _ABOVE_ZERO.items():
            value = getattr(self, name)
            if value is not None:
                _check(name, value, 0, most)
        for part in self.std or ():
            _check("std", part, 0, math.inf)
        for name in ("probability_threshold", "area_threshold"):
            if not 0 <= getattr(self, name) < 1:
                raise MaskCLIPError(
                    f"{name}: expected a number from 0, less than 1, got "
                    f"{brief(getattr(self, name))}"
                )
        if not 1 <= self.blocks < _MOST_BLOCKS:
            raise MaskCLIPError(f"blocks: expected at least 1, got {brief(self.blocks)}")
        if self.unit_iterations is not None and not 0 <= self.unit_iterations <= _MOST_ITERATIONS:
            raise MaskCLIPError(
                f"unit_iterations: expected 0 to {_MOST_ITERATIONS}, got "
                f"{brief(self.unit_iterations)}"
            )


_MOST_BLOCKS = 1000  # no CLIP has a tenth of them
_MOST_ITERATIONS = 100
_MOST_KERNELS = 100
_ABOVE_ZERO = {
    "temperature": math.inf,
    "layer_norm_eps": math.inf,
    "unit_temperature": math.inf,
    "window": 1e4,  # patches: more than any image has
}


def _check(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside an open interval, and what is no number."""
    if not low < value < high:
        between = f"above {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise MaskCLIPError(f"{name}: expected a number {between}, got {brief(value)}")


def _check_weights(what: str, kernels: Weighted) -> None:
    weights = [weight for _, weight in kernels]
    if not any(weights) or not all(map(math.isfinite, weights)) or len(weights) > _MOST_KERNELS:
        raise MaskCLIPError(
            f"{what}: expected names with weights other than 0, at least one, got {brief(kernels)}"
        )


CLEAN = Method(
    name="clean",
    activation="model",
    layer_norm_eps=None,
    temperature=None,
    mean=None,
    std=None,
    position_resize="grid",
    kernels=(("identity", 1.0),),
    residual=None,
    mlp=None,
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
