"""What users choose, in values that are quick to import: a model, and what is done to images."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypedDict, get_type_hints

from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.method import Method
from maskclip.core.methods import AUTO, get_method, with_proxy
from maskclip.core.text import brief, check_kind

DEFAULT_MODEL = "ViT-B-16:openai"

EMBEDDED = ("emoji-rn", "emoji-vit")
"""The CLIPs that come with the package (`clip.embedded`)."""
ALIASES = {"emoji": "emoji-rn"}
"""Other names of theirs; `emoji` is the better of the two (docs/models.md)."""
PREVIEWS = ("photo",)
"""The previews without CLIP, by name: classifiers of photographs (`maskclip.imagenet`)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it is read; `load` takes the fields as keyword arguments.

    A trained student has a method and templates of its own.

    Attributes:
        name: `ViT-B-16:openai`, any other architecture and tag of `maskclip models`, an embedded
            model (`emoji`), `hf-hub:org/name` (with its `@revision`), a folder as open_clip writes
            it, a weights file, or the file of a student. Files may be paths here and below, and
            become text.
        weights: a local file for the architecture `name`, or `"random"`; None is the model's own.
            Of a student, the CLIP that gave its text rows, by name or file, for other words than
            it was trained on; None is the one that its file names.
        method: a name of `maskclip methods`, such as `"clean"`; `"auto"`, which published figures
            choose by the model and how it sees images; a file; or a `Method` of your own.
        templates: prompt templates: `"published"` (85), `"open_clip"` (80), `"plain"` (1), or
            `"word"`, the word alone, for words that are not English.
        precision: of the image tower: `"auto"`, `"float32"`, `"bfloat16"` or `"float16"`.
        proxy: a ViT of timm, whose patches' likeness becomes the attention of CLIP's last block:
            its name, with timm's weights, or `NAME:FILE` with those of a file (ProxyCLIP).
        tokenizer: a folder of the files of a tokenizer of transformers, of models that have one
            (SigLIP, CLIPA, NLLB-CLIP ...); None is the hub's, from its cache or downloaded. Of a
            student, that of its CLIP.
        language: the language of the words, such as `"deu_Latn"`, of models whose tokenizer
            writes it before them (NLLB-CLIP); None is English.

    Raises:
        MaskCLIPError: a value is of another type, no method has that name, or it does not go with
            a proxy.

    Examples:
        `load` takes its fields one by one as well:

        >>> config = maskclip.ModelConfig(name="emoji", precision="float32")
        >>> maskclip.load(config).precision
        torch.float32
        >>> maskclip.load("emoji", precision="float32").precision
        torch.float32
    """

    name: str = DEFAULT_MODEL
    weights: str | None = None
    method: str | Method = "clean"
    templates: str = "published"
    precision: str = "auto"
    proxy: str | None = None
    tokenizer: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        for name, expected in _TEXTS.items():
            value = getattr(self, name)
            if value is not None or name not in _MAY_BE_NONE:
                argument = "model" if name == "name" else name
                object.__setattr__(self, name, _text(value, f"`{argument}`: expected {expected}"))
        if not isinstance(self.method, Method):
            method = _text(self.method, f"`method`: expected {_A_METHOD}")
            object.__setattr__(self, "method", method)
        if self.method != AUTO:
            with_proxy(get_method(self.method), self.proxy)
        elif self.proxy is not None:
            raise MaskCLIPError("a proxy gives CLIP its attention: leave `method=auto` out")


_TEXTS = {
    "name": f"the name of a model, such as {DEFAULT_MODEL}, or a file",
    "weights": "a file, or random",
    "templates": "the name of a set of templates, such as published",
    "precision": "auto, or the name of a precision, such as float32",
    "proxy": "the name of a ViT of timm, such as vit_small_patch14_dinov2",
    "tokenizer": "a folder with the files of a tokenizer",
    "language": "the code of a language, such as deu_Latn",
}
_MAY_BE_NONE = ("weights", "proxy", "tokenizer", "language")
_A_METHOD = "a name of `maskclip methods`, a file of TOML or a Method"


def _text(value: object, expected: str) -> str:
    """Return a text that is not empty, or a path as text."""
    found = os.fsdecode(value) if isinstance(value, str | os.PathLike) else ""
    if not found:
        raise MaskCLIPError(f"{expected}, got {brief(value)}")
    return found


RUNTIMES = ("torch", "onnx", "openvino", AUTO)
"""What runs an image network; `auto` is the fastest of those that are installed, by a probe."""


def check_runtime(runtime: object) -> None:
    """Refuse what is none of `RUNTIMES`.

    Raises:
        MaskCLIPError: names them.
    """
    if runtime not in RUNTIMES:
        raise MaskCLIPError(
            f"`runtime`: expected one of {', '.join(RUNTIMES)}, got {brief(runtime)}"
        )


REFINEMENTS = {
    "surgery": "take away what all classes share, by how much the image is of each (CLIP Surgery)",
    "dominant": "add half of its mean to each class's map: what the photo is of wins more of it",
    "tlp": "smooth where the photo is smooth and the classes are sure (PEARL)",
    "pamr": "let pixels take on what similar pixels near them have (PAMR)",
}
"""What refines maps, beside key smoothing and prompt denoising: by name, in words."""

BY_PHOTO = ("tlp", "pamr")
"""Those that the photo does, on maps as large as it: they take most of the time of other words."""

NO_REFINEMENT = "none"
"""What switches off the refinements that a model has of its own."""

# What measures best on drawn scenes, and on photographs (docs/methods.md, docs/models.md).
_OWN_REFINEMENTS = {
    **dict.fromkeys(("emoji", "emoji-rn"), ("tlp", "pamr")),
    "emoji-vit": ("pamr",),
    "photo": ("dominant", "pamr"),
}


def own_refinement(model: str) -> tuple[str, ...]:
    """Return the refinements of a model's maps where none are named: () for nearly all."""
    return _OWN_REFINEMENTS.get(model, ())


SHORT_SIDES = (1, 2048)
"""The working sizes that the file of a model may name, in px; people may choose larger ones."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How photos are cut, and their maps refined; `segment` takes the fields as keyword arguments.

    Attributes:
        key_smoothing: positions whose best probability is below this threshold, in [0, 1], take on
            what positions with similar keys have; None is off.
        prompt_denoising: classes whose probability is below this threshold, in [0, 1], everywhere
            in the photo are dropped; None is off.
        refine: `"surgery"`, `"dominant"`, `"tlp"` and `"pamr"`, done in this order, the latter two
            after the others; a list or text, such as `"tlp+pamr"`. `"none"` is the same as ().
        refine_size: short side in px at which the photo refines the maps; None is the size that the
            network sees, 0 the image's own size.
        pamr_iterations: of `pamr`; None is 10, as published.
        pamr_dilations: distances in px at which `pamr` looks for similar pixels, some numbers or
            text with commas; None is 8 and 16, as published.
        regions: segments whose pixels vote on their class: `"slic"`, superpixels of the photo as
            the network sees it; or a folder of label maps, found by the photos' names.
        short_side: images are resized so that their short side is this many px, if their long side
            allows it; None is the model's working size, 0 the image's own size.
        long_side: the most px their long side may get; None is four times the short side.
        window: side of sliding windows, in px of the resized image; None is the whole image at
            once.
        stride: step of the windows, in px; None is half a window.

    Raises:
        MaskCLIPError: a value is out of its range.

    Examples:
        `segment` takes the fields one by one; `load` chooses a method by all of them:

        >>> windows = maskclip.Options(short_side=336, window=224)
        >>> segmenter = maskclip.load("emoji-vit", method="auto", options=windows)
        >>> words = ["dog", "grass"]
        >>> found = segmenter.segment("photo.jpg", words, short_side=336, window=224)
        >>> found.labels.shape
        (256, 256)
    """

    key_smoothing: float | None = None
    prompt_denoising: float | None = None
    refine: tuple[str, ...] = ()
    refine_size: int | None = None
    pamr_iterations: int | None = None
    pamr_dilations: tuple[int, ...] | None = None
    regions: str | None = None
    short_side: int | None = None
    long_side: int | None = None
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        for name in ("key_smoothing", "prompt_denoising"):
            value = getattr(self, name)
            if value is not None and not (_is(value, Real) and 0 <= float(value) <= 1):
                raise MaskCLIPError(f"`{name}` is a threshold in [0, 1], got {brief(value)}")
        object.__setattr__(self, "refine", read_refinements(self.refine))
        if self.refine_size is not None and not self.refine:
            raise MaskCLIPError("`refine_size` needs `refine=pamr` or `refine=tlp`")
        self._check_pamr()
        if self.regions is not None:
            object.__setattr__(self, "regions", _regions(self.regions))
        for name in ("refine_size", "short_side", "long_side", "window", "stride"):
            value = getattr(self, name)
            if value is not None and not _is(value, Integral):
                raise MaskCLIPError(f"`{name}` is a whole number of pixels, got {brief(value)}")
        for name in ("refine_size", "short_side"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise MaskCLIPError(f"`{name}` is a number of pixels or 0, got {value}")
        if self.long_side is not None:
            if not self.short_side:
                raise MaskCLIPError("`long_side` needs `short_side`")
            if self.long_side < 1:
                raise MaskCLIPError(
                    f"`long_side` is a number of pixels from 1, got {self.long_side}"
                )
        if self.window is not None and self.window < 1:
            raise MaskCLIPError(f"`window` is a number of pixels from 1, got {self.window}")
        if self.stride is not None:
            if self.window is None:
                raise MaskCLIPError("`stride` needs `window`")
            if not 1 <= self.stride <= self.window:
                raise MaskCLIPError(
                    f"`stride` is from 1 to the window, {self.window} px, got {self.stride}"
                )

    def _check_pamr(self) -> None:
        iterations, dilations = self.pamr_iterations, self.pamr_dilations
        for name, value in (("pamr_iterations", iterations), ("pamr_dilations", dilations)):
            if value is not None and "pamr" not in self.refine:
                raise MaskCLIPError(f"`{name}` needs `refine=pamr`")
        if iterations is not None and not (
            _is(iterations, Integral) and 1 <= iterations <= _MOST_ITERATIONS
        ):
            raise MaskCLIPError(
                f"`pamr_iterations` is a whole number from 1 to {_MOST_ITERATIONS}, got "
                f"{brief(iterations)}"
            )
        if dilations is not None:
            object.__setattr__(self, "pamr_dilations", _dilations(dilations))


_MOST_ITERATIONS = 1000
_MOST_DILATIONS = 8  # each holds 8 numbers a pixel
_LARGEST_DILATION = 1000


def _dilations(values: object) -> tuple[int, ...]:
    """Return distances in px: of numbers, or of text with commas between them."""
    parts = values.split(",") if isinstance(values, str) else values
    if isinstance(parts, list | tuple) and 1 <= len(parts) <= _MOST_DILATIONS:
        numbers = [_whole(part) for part in parts]
        if all(1 <= number <= _LARGEST_DILATION for number in numbers):
            return tuple(numbers)
    raise MaskCLIPError(
        f"`pamr_dilations` are 1 to {_MOST_DILATIONS} numbers of pixels from 1 to "
        f"{_LARGEST_DILATION}, as 8,16, got {brief(values)}"
    )


def _whole(value: object) -> int:
    """Return a whole number, or one in ASCII digits, as it is; 0 for anything else."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value.strip()) if len(value) < 10 else 0
    return int(value) if isinstance(value, Integral) and _is(value, Integral) else 0


def _is(value: object, kind: type) -> bool:
    """Return whether a value is a number of a kind; True and False are none here."""
    return isinstance(value, kind) and not isinstance(value, bool)


def read_refinements(names: object, known: Collection[str] = tuple(REFINEMENTS)) -> tuple[str, ...]:
    """Return the names of refinements: of text such as `tlp+pamr` or `tlp,pamr`, or of a list.

    Raises:
        MaskCLIPError: a name is not of those that are known.
    """
    several = names.replace("+", ",").split(",") if isinstance(names, str) else names
    if not isinstance(several, list | tuple) or not all(isinstance(n, str) for n in several):
        raise MaskCLIPError(f"`refine` is a list of names, got {brief(names)}")
    found = tuple(dict.fromkeys(name.strip() for name in several if name.strip()))
    if found == (NO_REFINEMENT,):
        return ()
    expected = f"expected some of {', '.join(known)}, or {NO_REFINEMENT}"
    if names and not found:
        raise MaskCLIPError(f"no refinement in {brief(names)}: {expected}")
    if NO_REFINEMENT in found:
        raise MaskCLIPError(
            f"`refine`: {NO_REFINEMENT} stands alone, got {brief(','.join(found))}: leave out "
            f"{NO_REFINEMENT}, or the rest"
        )
    for name in found:
        if name not in known:
            raise MaskCLIPError(
                f"unknown refinement {brief(name)}{did_you_mean(name, known)}: {expected}"
            )
    return found


def _regions(place: object) -> str:
    if not isinstance(place, str | os.PathLike) or not os.fspath(place):
        raise MaskCLIPError(
            f"`regions`: expected slic, or a folder of label maps, got {brief(place)}"
        )
    return os.fsdecode(place)


DEFAULT_OPTIONS = Options()
"""The whole image at the model's working size, no refinement."""


def check_options(options: object) -> None:
    """Refuse what is no `Options`.

    Raises:
        MaskCLIPError: says what came.
    """
    check_kind(options, Options, "`options`: expected Options")


def check_keywords(given: Mapping[str, Any], kind: type, *, others: Iterable[str] = ()) -> None:
    """Refuse keyword arguments that a function does not have, with the nearest name.

    Args:
        given: the keyword arguments.
        kind: the TypedDict of those that it has.
        others: arguments that the function has besides.

    Raises:
        MaskCLIPError: one is unknown.
    """
    known = [*others, *get_type_hints(kind)]
    for name in given:
        if name not in known:
            raise MaskCLIPError(
                f"unknown argument {brief(name)}{did_you_mean(name, known)}: there are "
                f"{', '.join(known)}"
            )


class ModelSettings(TypedDict, total=False):
    """The fields of `ModelConfig` but its name, for keyword arguments."""

    weights: str | os.PathLike[str] | None
    method: str | os.PathLike[str] | Method
    templates: str
    precision: str
    proxy: str | None
    tokenizer: str | os.PathLike[str] | None
    language: str | None


class ViewValues(TypedDict, total=False):
    """The fields of `Options` that say how an image is cut, for keyword arguments."""

    short_side: int | None
    long_side: int | None
    window: int | None
    stride: int | None


class RefinementValues(TypedDict, total=False):
    """The fields of `Options` that say how maps are refined, for keyword arguments."""

    key_smoothing: float | None
    prompt_denoising: float | None
    refine: Sequence[str]
    refine_size: int | None
    pamr_iterations: int | None
    pamr_dilations: Sequence[int] | None
    regions: str | None


class OptionValues(ViewValues, RefinementValues, total=False):
    """The fields of `Options`, for keyword arguments."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How much images change; the defaults are the published ones of PASCAL VOC and COCO-Stuff.

    Attributes:
        scale: (long, short) side in px that an image is resized to fit into at a ratio of 1, with
            its aspect ratio; Pascal Context has (520, 520), Cityscapes (2048, 1024).
        ratio: (lowest, highest) factor on `scale`.
        crop: (h, w) of what comes out; Pascal Context has (480, 480), Cityscapes (512, 1024).
        max_share: crops of which one class fills this share or more are drawn again, up to 10
            times; 1 takes the first one.
        flip: how probable a horizontal flip is.
        distort: whether colours change.
    """

    scale: tuple[int, int] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    crop: tuple[int, int] = (512, 512)
    max_share: float = 0.75
    flip: float = 0.5
    distort: bool = True

    def __post_init__(self) -> None:
        long, short = self.scale
        if not long >= short >= 1:
            raise MaskCLIPError(f"`scale`: expected (long, short) side in px, got {self.scale}")
        low, high = self.ratio
        if not 0 < low <= high < float("inf"):
            raise MaskCLIPError(
                f"`ratio`: expected (lowest, highest) factor above 0, got {self.ratio}"
            )
        if min(self.crop) < 1:
            raise MaskCLIPError(f"`crop`: expected (height, width) in px, got {self.crop}")
        if not 0 < self.max_share <= 1:
            raise MaskCLIPError(
                f"`max_share`: expected a share above 0, 1 to take any crop, got {self.max_share}"
            )
        if not 0 <= self.flip <= 1:
            raise MaskCLIPError(
                f"`flip`: expected a probability in [0, 1], 0 for no flips, got {self.flip}"
            )
