"""Colours for classes: the palette of a benchmark, and one for any number of classes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Color = tuple[int, int, int]  # red, green, blue in 0..255
_Floats = npt.NDArray[np.floating[Any]]

BLACK: Color = (0, 0, 0)

# Up to here each colour is the one farthest from all before it; a longer list goes on with hues a
# golden angle apart: nobody tells 300 colours apart, and the search grows with their number.
_FARTHEST = 256

# OKLab (Björn Ottosson, 2020): equal steps look about equally large.
_LAB_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def voc_colors(count: int) -> tuple[Color, ...]:
    """Return the first `count` colours of Pascal VOC's colour map, of which the first is black."""
    return tuple(_voc_color(index) for index in range(count))


def _voc_color(index: int) -> Color:
    """Deal the bits of `index` out to red, green and blue in turn, lowest bit to highest place."""
    channels = [0, 0, 0]
    for bit in range(24):
        channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Return `count` colours (at most 65,535) that are easy to tell apart; none equal, none black.

    A shorter list is the beginning of every longer one.
    """
    if count <= _FARTHEST:
        return _farthest_colors()[:count]
    colors = dict.fromkeys(_farthest_colors())
    for color in _golden_colors(2 * count):
        if len(colors) == count:
            break
        colors.setdefault(color)
    return tuple(colors)


@lru_cache(maxsize=1)
def _farthest_colors() -> tuple[Color, ...]:
    """Start with a warm red and add, one by one, the colour farthest from all before it."""
    lightness, chroma, hue = np.meshgrid(
        np.linspace(0.50, 0.86, 9), (0.09, 0.12, 0.15, 0.18), np.arange(0.0, 360.0, 6.0)
    )
    lab = _oklab(lightness.ravel(), chroma.ravel(), hue.ravel())
    lab = lab[((_linear_rgb(lab) >= 0) & (_linear_rgb(lab) <= 1)).all(axis=1)]
    warm_red = _oklab(np.array([0.64]), np.array([0.18]), np.array([24.0]))
    picked = [int(np.linalg.norm(lab - warm_red, axis=1).argmin())]
    nearest = np.full(len(lab), np.inf)
    for _ in range(_FARTHEST - 1):
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[picked[-1]], axis=1))
        picked.append(int(nearest.round(6).argmax()))  # rounded: the same choice on every machine
    return _colors(lab[picked])


def _golden_colors(count: int) -> tuple[Color, ...]:
    """Return `count` colours on a spiral of hues; a few may be equal."""
    index = np.arange(count)
    lightness = 0.50 + 0.36 * (index * 0.754877666 % 1)  # the plastic number's sequence: even cover
    chroma = 0.06 + 0.12 * (index * 0.569840291 % 1)
    return _colors(_oklab(lightness, chroma, index * 137.50776405 % 360))


def _oklab(lightness: _Floats, chroma: _Floats, hue: _Floats) -> _Floats:
    """Three (N,) arrays, hue in degrees -> OKLab coordinates (N, 3)."""
    angle = np.radians(hue)
    return np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=1)


def _linear_rgb(lab: _Floats) -> _Floats:
    """OKLab (N, 3) -> linear sRGB (N, 3), outside 0..1 where no screen shows the colour."""
    linear: _Floats = (lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T
    return linear


def _colors(lab: _Floats) -> tuple[Color, ...]:
    """OKLab (N, 3) -> the nearest 8-bit sRGB colours."""
    linear = _linear_rgb(lab).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return tuple(
        (red, green, blue) for red, green, blue in (255 * encoded).round().astype(int).tolist()
    )
