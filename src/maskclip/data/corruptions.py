"""The eight image corruptions of MaskCLIP's robustness experiments, at five severities.

The arithmetic is that of ImageNet-C (Hendrycks and Dietterich, 2019), for RGB images of any size:
pixel values are scaled to [0, 1], the result is clipped to that range and truncated (not rounded)
to uint8. Sizes of blurs and drops are in pixels, so a severity is milder on a larger image.
"""

from __future__ import annotations

import difflib
import io
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from maskclip.core.errors import MaskCLIPError

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Floats = npt.NDArray[np.floating[Any]]

_WATER = np.array((175, 238, 238), np.float32) / 255  # pale turquoise
_MUD = np.array((63, 42, 20)) / 255  # brown
_EMBOSS = np.array(((-2, -1, 0), (-1, 1, 1), (0, 1, 2)))


def _gaussian_noise(pixels: Pixels, generator: np.random.Generator, *, deviation: float) -> Pixels:
    clean = pixels / 255
    return _to_uint8(clean + generator.normal(scale=deviation, size=clean.shape))


def _shot_noise(pixels: Pixels, generator: np.random.Generator, *, photons: int) -> Pixels:
    """Draw Poisson noise; a white pixel has `photons` counts on average."""
    return _to_uint8(generator.poisson(pixels / 255 * photons) / photons)


def _impulse_noise(pixels: Pixels, generator: np.random.Generator, *, share: float) -> Pixels:
    """Set a share of the values, independently in each channel, to 0 or 255."""
    hit = generator.random(pixels.shape) <= share
    white = generator.random(pixels.shape) <= 0.5
    return np.where(hit, np.where(white, 255, 0), pixels).astype(np.uint8)


def _speckle_noise(pixels: Pixels, generator: np.random.Generator, *, deviation: float) -> Pixels:
    """Add noise in proportion to the pixel values."""
    clean = pixels / 255
    return _to_uint8(clean + clean * generator.normal(scale=deviation, size=clean.shape))


def _gaussian_blur(pixels: Pixels, _: np.random.Generator, *, sigma: float) -> Pixels:
    return _to_uint8(_smooth(pixels / 255, sigma))


def _defocus_blur(
    pixels: Pixels, _: np.random.Generator, *, radius: int, softness: float
) -> Pixels:
    """Convolve with a disc whose edge is blurred by a sigma of `softness` pixels."""
    reach, rim = (8, 3) if radius <= 8 else (radius, 5)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = (x**2 + y**2 <= radius**2).astype(np.float32)
    disc = cv2.GaussianBlur(disc / disc.sum(), (rim, rim), sigmaX=softness)
    return _to_uint8(np.asarray(cv2.filter2D(pixels / 255, -1, disc), np.float64))


def _spatter(
    pixels: Pixels,
    generator: np.random.Generator,
    *,
    wetness: float,
    deviation: float,
    sigma: float,
    threshold: float,
    opacity: float | None,
) -> Pixels:
    """Add drops of water of an opacity, or of mud if the opacity is None.

    Drops are where noise of mean `wetness`, smoothed by `sigma` pixels, reaches a threshold.
    """
    noise = generator.normal(loc=wetness, scale=deviation, size=pixels.shape[:2])
    liquid = _smooth(noise, sigma)
    liquid[liquid < threshold] = 0
    clean = pixels.astype(np.float32) / 255
    if opacity is None:
        mud = _smooth((liquid > threshold).astype(np.float32), 1.5)
        mud[mud < 0.8] = 0
        return _to_uint8(clean * (1 - mud[..., None]) + _MUD * mud[..., None])
    return _to_uint8(clean + _shine(liquid) * opacity * _WATER)


def _shine(liquid: Floats) -> Floats:
    """Return the brightness of drops at each pixel, (H, W, 1) float32 with maximum 1.

    All zero for an image without drops, such as a small one.
    """
    depth = (liquid.clip(0, 1) * 255).astype(np.uint8)
    to_edge = cv2.distanceTransform(255 - cv2.Canny(depth, 50, 150), cv2.DIST_L2, 5)
    slope = cv2.equalizeHist(cv2.blur(np.minimum(to_edge, 20), (3, 3)).astype(np.uint8))
    relief = cv2.blur(cv2.filter2D(slope, cv2.CV_8U, _EMBOSS), (3, 3))
    shine = depth.astype(np.float32) * relief.astype(np.float32)
    shine /= max(shine.max(), 1)
    return shine[..., None]


def _jpeg_compression(pixels: Pixels, _: np.random.Generator, *, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def _smooth(values: Floats, sigma: float) -> Floats:
    """Blur (H, W) or (H, W, channels) with a Gaussian; borders are padded by their edge pixels."""
    from scipy import ndimage  # type: ignore[import-untyped]  # slow to import; not a base package

    blurred: Floats = ndimage.gaussian_filter(values, sigma, axes=(0, 1), mode="nearest")
    return blurred


def _to_uint8(values: Floats) -> Pixels:
    return (values.clip(0, 1) * 255).astype(np.uint8)


# Each corruption, and its parameters at the severities 1 to 5.
_TABLE: dict[str, tuple[Callable[..., Pixels], dict[str, tuple[Any, ...]]]] = {
    "gaussian_noise": (_gaussian_noise, {"deviation": (0.08, 0.12, 0.18, 0.26, 0.38)}),
    "shot_noise": (_shot_noise, {"photons": (60, 25, 12, 5, 3)}),
    "impulse_noise": (_impulse_noise, {"share": (0.03, 0.06, 0.09, 0.17, 0.27)}),
    "speckle_noise": (_speckle_noise, {"deviation": (0.15, 0.2, 0.35, 0.45, 0.6)}),
    "gaussian_blur": (_gaussian_blur, {"sigma": (1, 2, 3, 4, 6)}),
    "defocus_blur": (
        _defocus_blur,
        {"radius": (3, 4, 6, 8, 10), "softness": (0.1, 0.5, 0.5, 0.5, 0.5)},
    ),
    "spatter": (
        _spatter,
        {
            "wetness": (0.65, 0.65, 0.65, 0.65, 0.67),
            "deviation": (0.3, 0.3, 0.3, 0.3, 0.4),
            "sigma": (4, 3, 2, 1, 1),
            "threshold": (0.69, 0.68, 0.68, 0.65, 0.65),
            "opacity": (0.6, 0.6, 0.5, None, None),
        },
    ),
    "jpeg_compression": (_jpeg_compression, {"quality": (25, 18, 15, 10, 7)}),
}

CORRUPTIONS: tuple[str, ...] = tuple(_TABLE)
SEVERITIES = range(1, 6)


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity; written `speckle_noise:1`.

    Attributes:
        name: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5.

    Raises:
        MaskCLIPError: unknown corruption (names similar ones and all of them) or severity.
    """

    name: str
    severity: int

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            near = difflib.get_close_matches(str(self.name).lower(), CORRUPTIONS, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else "."
            raise MaskCLIPError(
                f"unknown corruption {self.name!r}{hint} There are: {', '.join(CORRUPTIONS)}"
            )
        if type(self.severity) is not int or self.severity not in SEVERITIES:
            raise MaskCLIPError(
                f"severity of {self.name}: expected an integer from 1 to 5, got {self.severity!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Corruption:
        """Parse `NAME:SEVERITY`, such as `speckle_noise:1`.

        Raises:
            MaskCLIPError: the text has another form, or names no corruption.
        """
        match = re.fullmatch("(.+):([1-5])", text)
        if match is None:
            raise MaskCLIPError(
                "expected a corruption as NAME:SEVERITY with a severity from 1 to 5, such as "
                f"speckle_noise:1, got {text!r}"
            )
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        return f"{self.name}:{self.severity}"


def all_corruptions() -> tuple[Corruption, ...]:
    """Return all 40 corruptions, by name and then from mild to severe."""
    return tuple(Corruption(name, severity) for name in CORRUPTIONS for severity in SEVERITIES)


def corrupt(image: Image.Image, corruption: Corruption, *, seed: int, name: str) -> Image.Image:
    """Return a corrupted copy of an image.

    The random numbers depend only on the seed, the image's name and the kind of corruption: not on
    the order of images, nor on the severity, so severities differ only in strength.

    Args:
        image: RGB, of any size (JPEG compression: no side over 65,500 pixels); left as it is.
        corruption: kind and severity.
        seed: 0 or more.
        name: the image's id in its data set.
    """
    words = (name, corruption.name)
    # File names may hold bytes that are not UTF-8, which strict encoding would refuse.
    checksums = [zlib.crc32(word.encode(errors="surrogateescape")) for word in words]
    generator = np.random.default_rng([seed, *checksums])
    function, settings = _TABLE[corruption.name]
    setting = {key: values[corruption.severity - 1] for key, values in settings.items()}
    return Image.fromarray(function(np.asarray(image), generator, **setting))
