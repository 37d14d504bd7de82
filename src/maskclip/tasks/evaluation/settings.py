"""What is evaluated, and by which protocol: values that are quick to import.

Scores depend on their protocol (sizes, windows and resizes), so its name is part of every result.
By `windows` methods share sizes, windows, templates and words; scales of logits and thresholds are
what SCLIP, and the code that follows it, take for each method and data set.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import CLEAN, Method
from maskclip.core.methods import METHODS, get_method
from maskclip.core.samples import Samples
from maskclip.core.vocabulary import Background, Vocabulary, builtin_names
from maskclip.data.corruptions import Corruption

PROTOCOLS = ("segment", "published", "windows")
"""How images are resized and cut:

- `segment`: as `maskclip segment` does: the model's working size and the method's own resizes;
  but no map is refined unless a refinement is given, whatever the model.
- `published`: the whole image within the data set's test size (published code, S3); maps are
  resized to that size, then to the image, as in the paper.
- `windows`: as SCLIP and later papers do: a short side of 336 px (Cityscapes 560), windows of 224
  px with stride 112 (or the whole image), the maps of all prompts averaged where they overlap, then
  resized to the image, which refines them at its own size; 80 templates and class names with their
  spellings; scales of logits and thresholds by method and data set (`windows_method`).
"""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What determines the scores of a model on a data set, apart from the machine.

    Attributes:
        dataset, split: the data set.
        model: the model. Scores are comparable only at one precision: `"float32"` by custom.
        protocol: one of `PROTOCOLS`.
        options: refinement; sizes and windows too if the protocol is `"segment"`.
        background: replaces the background rule of a vocabulary that has one.

    Raises:
        MaskCLIPError: unknown protocol.
    """

    dataset: str
    split: str = "val"
    model: ModelConfig
    protocol: str = "published"
    options: Options = field(default_factory=Options)
    background: Background | None = None

    def __post_init__(self) -> None:
        _check_protocol(self.protocol)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Which images of a data set are evaluated.

    Attributes:
        corruption: applied to every image; None leaves them as they are.
        seed: of the corruption's random numbers.
        limit: number of images, from the first; None takes all.
    """

    corruption: Corruption | None = None
    seed: int = 0
    limit: int | None = None

    def count(self, samples: Samples) -> int:
        """Return the number of images of a data set that are evaluated."""
        return len(samples) if self.limit is None else min(self.limit, len(samples))


def default_templates(protocol: str) -> str:
    """Return the name of the prompt templates that a protocol takes if none are given."""
    return TEMPLATES if protocol == "windows" else "published"


def method_under(protocol: str, method: Method, dataset: str) -> Method:
    """Return the method as it runs under a protocol: `published` and `windows` resize maps.

    Raises:
        MaskCLIPError: unknown protocol.
    """
    _check_protocol(protocol)
    if protocol == "windows":
        return windows_method(method, dataset)
    return method if protocol == "segment" else replace(method, upsample="maps", resizes=2)


def options_under(protocol: str, options: Options, samples: Samples, method: Method) -> Options:
    """Return the options with the sizes and windows of a protocol for a data set and a method.

    Raises:
        MaskCLIPError: unknown protocol, or options that the protocol sets itself.
    """
    _check_protocol(protocol)
    if protocol == "segment":
        return options
    for name in ("short_side", "long_side", "window", "stride"):
        if getattr(options, name) is not None:
            raise MaskCLIPError(
                f"the protocol {protocol!r} sets sizes and windows itself: leave {name} out, "
                "or choose the protocol 'segment'"
            )
    if protocol == "windows":
        return windows_options(options, method, samples)
    long, short = samples.scale
    return replace(options, short_side=short, long_side=long)


def vocabulary_under(
    protocol: str, samples: Samples, background: Background | None = None
) -> Vocabulary:
    """Return the classes of a data set in the words of a protocol, with another background if any.

    Raises:
        MaskCLIPError: the data set has no background that could be another.
    """
    vocabulary = windows_words(samples) if protocol == "windows" else samples.vocabulary
    if background is None:
        return vocabulary
    if not vocabulary.has_background:
        mend = "leave the background out"
        if samples.name == "folder":
            mend += ", or write it in the class file: background = 0.5, or a list of words"
        raise MaskCLIPError(f"{samples.name} has no background class: {mend}")
    return vocabulary.with_background(background)


def protocol_notes(evaluation: Evaluation) -> dict[str, Any]:
    """Return whose settings a protocol takes, and what was given that is not its own, for JSON."""
    if evaluation.protocol != "windows":
        return {}
    method = get_method(evaluation.model.method)
    return {
        "settings_of": window_settings(method, evaluation.dataset).of,
        "differs_from_protocol": differs_from_windows(
            evaluation.model,
            evaluation.options,
            background=evaluation.background is not None,
        ),
    }


def _check_protocol(name: str) -> None:
    if name not in PROTOCOLS:
        raise MaskCLIPError(f"unknown protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")


TEMPLATES = "open_clip"
"""The 80 prompt templates of the protocol `windows`."""

_WINDOW, _STRIDE = 224, 112
_LONG_SIDE = 2048  # matters only for images of extreme aspect ratios


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """What a method takes on a data set.

    Attributes:
        of: whose settings these are: a paper's, or `"common"` to methods without any.
        scale: of the similarities of all prompts, whose softmax follows.
        probability: pixels whose best probability lies below it become class 0.
        area: classes that have no larger share of all pixels but class 0's give them up.
        whole: whether the whole image is seen at once, at the same size.
    """

    of: str = "common"
    scale: float = 40.0
    probability: float = 0.0
    area: float = 0.0
    whole: bool = False


def _own(of: str, **by_dataset: tuple[float, ...]) -> dict[str, WindowSettings]:
    """Return settings by data set: scale, threshold and, where there is one, area threshold."""
    found = {
        name: WindowSettings(
            of=of, scale=scale, probability=threshold, area=area[0] if area else 0.0
        )
        for name, (scale, threshold, *area) in by_dataset.items()
    }
    return {"": WindowSettings(of=of), **found}


_COMMON = _own("common", voc21=(40, 0.1), context60=(40, 0.1), cocoobject81=(40, 0.1))
_SCLIP = _own("SCLIP", voc21=(65, 0.1, 0.1), context60=(50, 0.1), cocoobject81=(50, 0.1))
_CLEARCLIP = {
    name: replace(settings, of="ClearCLIP, its thresholds the common ones", scale=50.0)
    for name, settings in _COMMON.items()
}
_NACLIP = {name: replace(settings, of="NACLIP") for name, settings in _COMMON.items()}
_NACLIP |= {
    name: replace(_NACLIP.get(name, _NACLIP[""]), whole=True) for name in ("voc20", "voc21")
}
_SCCLIP = _own("SC-CLIP", voc21=(50, 0.15, 0.1), context60=(40, 0.15), cocoobject81=(55, 0.35))
_BY_METHOD = {
    "sclip": _SCLIP,
    "clearclip": _CLEARCLIP,
    **dict.fromkeys(("naclip", "pearl", "resclip", "resclip-rcs"), _NACLIP),
    **dict.fromkeys(("scclip", "sfp"), _SCCLIP),
}
"""Settings by method, then by data set; `""` is every other data set."""

# As its first pass's threshold, the share of middle blocks in twice the attention, and the factor
# and share of the patches of one class in the logits.
_RESCLIP = {
    "voc21": (0.5, 0.3, 2.2, 0.7),
    "context60": (0.3, 0.3, 1.8, 0.7),
    "cocoobject81": (0.11, 0.4, 1.8, 0.7),
    "voc20": (0.1, 0.6, 2.1, 0.6),
    "context59": (0.25, 0.4, 1.8, 0.7),
    "cocostuff171": (0.11, 0.4, 1.8, 0.7),
    "cityscapes19": (0.1, 0.2, 2.1, 0.6),
    "ade150": (0.25, 0.3, 2.1, 0.7),
}
"""What ResCLIP takes on a data set, beside what it shares with NACLIP."""

_PUBLISHED_WITH = {"naclip": {"pamr"}, "pearl": {"tlp"}, "surgery": {"surgery"}}
"""Refinements with which the figures of a method were published."""

# CLIP as the later papers run it: as its authors do, without the accidents of MaskCLIP's code.
_CLIP = replace(CLEAN, name="baseline", kernels=(("qk", 1.0),), residual=True, mlp=True)


def window_settings(method: Method, dataset: str) -> WindowSettings:
    """Return what a method takes on a data set; a method of one's own takes the common ones."""
    known = _BY_METHOD.get(method.name, _COMMON) if _is_known(method) else _COMMON
    return known.get(dataset, known[""])


def _is_known(method: Method) -> bool:
    return METHODS.get(method.name) == method


def windows_method(method: Method, dataset: str) -> Method:
    """Return a method as it runs under the protocol; its own scale and thresholds stay, if set.

    Positions are resized as in the code of SCLIP, for the methods whose code does so.
    """
    settings = window_settings(method, dataset)
    known = _is_known(method)
    if known and method.name == "baseline":
        method = _CLIP
    if known and method.name in ("resclip", "resclip-rcs"):
        method = _resclip(method, dataset)
    if known and (method.name in _BY_METHOD or method.name == "baseline"):
        method = replace(method, position_resize="count", position_filter="offset")
    own = not known and method.upsample == "prompts"
    keeps_scale = not known and method.temperature is not None
    return replace(
        method,
        upsample="prompts",
        resizes=2,
        temperature=method.temperature if keeps_scale else settings.scale,
        probability_threshold=method.probability_threshold if own else settings.probability,
        area_threshold=method.area_threshold if own else settings.area,
    )


def _resclip(method: Method, dataset: str) -> Method:
    """Return ResCLIP, or its first pass, as its code runs it: with its values of a data set.

    Data sets that are none of its own get the usual ones.
    """
    assert method.middle is not None
    feedback = method.feedback
    if feedback is not None:
        feedback = replace(feedback, unsure="first", whole_lines=False)
    if dataset not in _RESCLIP:
        return replace(method, feedback=feedback)
    threshold, middle, factor, share = _RESCLIP[dataset]
    if feedback is not None:
        feedback = replace(
            feedback, threshold=threshold, logits=factor * (1 - share), weight=factor * share
        )
    return replace(
        method,
        kernels=(("kk", 2 * (1 - middle)),),
        middle=replace(method.middle, weight=2 * middle),
        feedback=feedback,
    )


def windows_options(options: Options, method: Method, samples: Samples) -> Options:
    """Return options with the sizes and windows of the protocol for a method and a data set."""
    whole = window_settings(method, samples.name).whole
    by_photo = options.refine and options.refine_size is None
    return replace(
        options,
        refine_size=0 if by_photo else options.refine_size,
        short_side=samples.windows_short,
        long_side=_LONG_SIDE,
        window=None if whole else _WINDOW,
        stride=None if whole else _STRIDE,
    )


def windows_words(samples: Samples) -> Vocabulary:
    """Return the classes of a data set, prompted as in the code of SCLIP; others as they are."""
    name = f"{samples.name}-sclip"
    if name not in builtin_names() or samples.vocabulary != Vocabulary.builtin(samples.name):
        return samples.vocabulary
    return replace(samples.vocabulary, prompts=Vocabulary.builtin(name).prompts)


def differs_from_windows(
    model: ModelConfig, options: Options, *, background: bool
) -> tuple[str, ...]:
    """Return what was given that `windows`, or the published figures of a method, do not take.

    Args:
        model: its templates, proxy and method, by its name.
        options: as they were given.
        background: whether another background was given.
    """
    templates, method = model.templates, get_method(model.method)
    usual = _PUBLISHED_WITH.get(method.name, set())
    found = [
        (templates != TEMPLATES, f"templates {templates} (its own are {TEMPLATES})"),
        (model.proxy is not None, f"the proxy {model.proxy}"),
        (background, "another background"),
        (options.key_smoothing is not None, "key smoothing"),
        (options.prompt_denoising is not None, "prompt denoising"),
        *((name not in usual, f"refinement by {name}") for name in options.refine),
        (options.regions is not None, "segments that vote"),
        (options.pamr_iterations not in (None, 10), "other iterations of pamr"),
        (options.pamr_dilations not in (None, (8, 16)), "other dilations of pamr"),
        (options.refine_size not in (None, 0), "refinement at another size than the photo's own"),
    ]
    return tuple(text for differs, text in found if differs)
