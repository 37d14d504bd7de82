"""A scene as a list of layers, bottom first, and how layers become pixels.

This file knows nothing of captions, labels or training: `examples` and `scenes` both build on it,
and only `scenes` paints labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskclip.emoji.sprites import sprite
from maskclip.emoji.textures import noise, texture

Generator = np.random.Generator
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A thing placed in a frame, already cut to it.

    `rgb` (h, w, 3) in 0..255 and `alpha` (h, w) in 0..1 cover the rows from `top` and the columns
    from `left`; `opacity` is the whole thing's sum of alpha, the part outside the frame included.
    """

    name: str
    words: str
    rgb: Floats
    alpha: Floats
    top: int
    left: int
    opacity: float

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the frame that the layer covers."""
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def paint(layers: Sequence[Layer], *, height: int, width: int) -> tuple[NDArray[np.uint8], Floats]:
    """Composite layers: the image (height, width, 3), and how many pixels of each layer one sees.

    Front to back, so that the light which is left says how much of a layer shows.
    """
    image = np.zeros((height, width, 3), np.float32)
    light = np.ones((height, width), np.float32)
    visible = np.zeros(len(layers), np.float32)
    for position in reversed(range(len(layers))):
        layer = layers[position]
        shown = light[layer.window] * layer.alpha
        image[layer.window] += shown[..., None] * layer.rgb
        light[layer.window] -= shown
        visible[position] = shown.sum()
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), visible


def place_textures(
    names: Sequence[str], generator: Generator, *, height: int, width: int, scale: float
) -> list[Layer]:
    """Fill a frame with one texture, or with several divided by wavy borders."""
    layers = []
    for position, name in enumerate(names):
        rgb = texture(name, generator, height=height, width=width, scale=scale)
        alpha = np.ones((height, width), np.float32)
        if position:
            alpha = _beyond_border(generator, height, width)
        layers.append(Layer(name, name, rgb, alpha, 0, 0, float(alpha.sum())))
    return layers


def _beyond_border(generator: Generator, height: int, width: int) -> Floats:
    upright = generator.random() < 0.4
    length, depth = (height, width) if upright else (width, height)
    waves = noise(generator, 1, length, cell=(1, length / 3))[0]
    border = depth * (generator.uniform(0.3, 0.7) + 0.16 * (waves - 0.5))
    part = np.clip(np.arange(depth, dtype=np.float32)[:, None] - border + 0.5, 0, 1)
    return np.ascontiguousarray(part.T if upright else part, dtype=np.float32)


def place_object(
    name: str,
    color: str | None,
    generator: Generator,
    *,
    frame: tuple[int, int],
    side: float,
    inside: bool,
) -> Layer | None:
    """Place an object at random in a frame (height, width); None when it falls outside.

    `side` is its longer side in pixels. When `inside`, all of it is in the frame where it fits;
    else its centre is in the frame or a little beyond.
    """
    cutout = _pose(sprite(name, color), generator, side=side)
    height, width = cutout.height, cutout.width
    if inside:
        top = int(generator.integers(0, max(frame[0] - height, 0) + 1))
        left = int(generator.integers(0, max(frame[1] - width, 0) + 1))
    else:
        top = int(generator.uniform(-0.1, 1.1) * frame[0] - height / 2)
        left = int(generator.uniform(-0.1, 1.1) * frame[1] - width / 2)
    pixels: Floats = np.asarray(cutout, np.float32)
    opacity = float(pixels[..., 3].sum() / 255)
    rows = slice(max(-top, 0), max(frame[0] - top, 0))
    pixels = pixels[rows, max(-left, 0) : max(frame[1] - left, 0)]
    if pixels.size == 0:
        return None
    gain = generator.uniform(0.8, 1.1) * generator.uniform(0.96, 1.04, size=3).astype(np.float32)
    words = name if color is None else f"{color} {name}"
    rgb = np.clip(pixels[..., :3] * gain, 0, 255, dtype=np.float32)
    alpha: Floats = pixels[..., 3] / np.float32(255)
    return Layer(name, words, rgb, alpha, max(top, 0), max(left, 0), opacity)


def _pose(cutout: Image.Image, generator: Generator, *, side: float) -> Image.Image:
    if generator.random() < 0.5:
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    factor = side / max(cutout.size)
    size = (max(round(cutout.width * factor), 1), max(round(cutout.height * factor), 1))
    cutout = cutout.resize(size, Image.Resampling.BICUBIC)
    if generator.random() < 0.5 and min(size) > 8:
        angle = float(generator.normal(0, 8))
        cutout = cutout.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    return cutout
