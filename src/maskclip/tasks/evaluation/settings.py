"""What is evaluated, and by which protocol: values that are quick to import.

Scores depend on their protocol (sizes, windows and resizes), so its name is part of every result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import Method
from maskclip.core.methods import get_method
from maskclip.core.samples import Samples
from maskclip.core.vocabulary import Background, Vocabulary
from maskclip.data.corruptions import Corruption
from maskclip.tasks.evaluation.windows import (
    TEMPLATES,
    differences,
    window_settings,
    windows_method,
    windows_options,
    windows_words,
)

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
        raise MaskCLIPError(f"{samples.name} has no background class: leave the background out")
    return vocabulary.with_background(background)


def protocol_notes(evaluation: Evaluation) -> dict[str, Any]:
    """Return whose settings a protocol takes, and what was given that is not its own, for JSON."""
    if evaluation.protocol != "windows":
        return {}
    method = get_method(evaluation.model.method)
    return {
        "settings_of": window_settings(method, evaluation.dataset).of,
        "differs_from_protocol": differences(
            evaluation.model,
            evaluation.options,
            background=evaluation.background is not None,
        ),
    }


def _check_protocol(name: str) -> None:
    if name not in PROTOCOLS:
        raise MaskCLIPError(f"unknown protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")
