"""What is evaluated, and by which protocol: values that are quick to import.

Scores depend on their protocol (sizes, windows and resizes), so its name is part of every result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import Method
from maskclip.core.samples import Samples
from maskclip.core.vocabulary import Background
from maskclip.data.corruptions import Corruption

PROTOCOLS = ("segment", "published", "windows")
"""How images are resized and cut:

- `segment`: as `maskclip segment` does: the model's working size and the method's own resizes.
- `published`: the whole image within the data set's test size (published code, S3); maps are
  resized to that size, then to the image, as in the paper.
- `windows`: windows of 224 px with stride 112; maps are averaged where they overlap, then resized
  to the image, as in SCLIP and later papers; the photo refines them there, at its own size.
"""

_WINDOW, _STRIDE = 224, 112
_WINDOWS_LONG_SIDE = 2048  # matters only for images of extreme aspect ratios


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


def method_under(protocol: str, method: Method) -> Method:
    """Return the method with the upsampling of a protocol: `published` and `windows` resize maps.

    Raises:
        MaskCLIPError: unknown protocol.
    """
    _check_protocol(protocol)
    return method if protocol == "segment" else replace(method, upsample="maps", resizes=2)


def options_under(protocol: str, options: Options, samples: Samples) -> Options:
    """Return the options with the sizes and windows of a protocol for a data set.

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
    if protocol == "published":
        long, short = samples.scale
        return replace(options, short_side=short, long_side=long)
    by_image = options.refine and options.refine_size is None
    return replace(
        options,
        refine_size=0 if by_image else options.refine_size,
        short_side=samples.windows_short,
        long_side=_WINDOWS_LONG_SIDE,
        window=_WINDOW,
        stride=_STRIDE,
    )


def _check_protocol(name: str) -> None:
    if name not in PROTOCOLS:
        raise MaskCLIPError(f"unknown protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")
