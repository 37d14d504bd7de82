"""The ways in which the field looks at an image when it measures: sizes, windows, resizes.

A figure means nothing without its protocol, so its name travels with every result.
"""

from __future__ import annotations

from dataclasses import replace

from maskclip.core.config import Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import Method
from maskclip.core.samples import Samples

PROTOCOLS = {
    "segment": "as `maskclip segment` does: the model's working size, the method's own resizes",
    "published": "the whole image within the data set's test size; maps are resized to that, then "
    "to the image (the paper)",
    "windows": "windows of 224 px, stride 112; maps are averaged over overlaps, then resized to "
    "the image (SCLIP and those after it)",
}
"""How a network looks at images, by name; sizes of `published` are reference fact S3."""

_WINDOW, _STRIDE = 224, 112
_WINDOWS_LONG = 2048  # bounds images of extreme shapes alone


def check_protocol(name: str) -> None:
    """Refuse an unknown protocol.

    Raises:
        MaskCLIPError: names those that there are.
    """
    if name not in PROTOCOLS:
        raise MaskCLIPError(f"unknown protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")


def method_under(protocol: str, method: Method) -> Method:
    """Return the method with what a protocol decides: maps are enlarged, and in two resizes.

    Raises:
        MaskCLIPError: an unknown protocol.
    """
    check_protocol(protocol)
    return method if protocol == "segment" else replace(method, upsample="maps", resizes=2)


def options_under(protocol: str, options: Options, samples: Samples) -> Options:
    """Return the options with the sizes and windows that a protocol sets for a data set.

    Raises:
        MaskCLIPError: an unknown protocol, or options that it decides itself.
    """
    check_protocol(protocol)
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
    return replace(
        options,
        short_side=samples.windows_short,
        long_side=_WINDOWS_LONG,
        window=_WINDOW,
        stride=_STRIDE,
    )
