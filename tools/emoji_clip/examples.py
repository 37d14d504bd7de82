"""What the tiny CLIPs are trained on: images with captions, and never a mask.

Nothing here makes or knows labels. Training draws from its own branch of random numbers
(`NAMESPACE`), so no training example has the numbers of any evaluation scene.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskclip.emoji.captions import trained_pairs, write_caption
from maskclip.emoji.layers import Layer, paint, place_object, place_textures, texture_names
from maskclip.emoji.sprites import index, object_names

NAMESPACE = 1  # scenes draw from 2
LEAST_OF_FRAME = 0.008  # an object is named when this share of the frame shows it,
LEAST_OF_OBJECT = 0.3  # and this share of the object is seen
CLOSE_UP = 0.15  # or when this share of the frame shows it, however little of it that is
LEAST_GROUND = 0.06  # a texture is named when this share of the frame shows it


def draw_example(seed: int, *, size: int = 128) -> tuple[NDArray[np.uint8], str]:
    """Draw a training example: an image (size, size, 3), and a caption of what one sees in it.

    Zoom is random: an object's longer side is 0.2 to 1.5 of the frame. Some examples are drawn
    smaller and enlarged, as a scene is when it is resized to a model's working size. The same seed
    gives the same example.
    """
    generator = np.random.default_rng([NAMESPACE, seed])
    enlarged = generator.uniform(1.0, 2.2) if generator.random() < 0.7 else 1.0
    side = max(round(size / enlarged), 1)
    layers = _compose(generator, side)
    image, visible = paint(layers, height=side, width=side)
    if side != size:
        image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    named = [
        layer
        for layer, pixels in zip(layers, visible.tolist(), strict=True)
        if _is_named(layer, pixels, side * side)
    ]
    textures = texture_names()
    objects = dict.fromkeys(layer.words for layer in named if layer.name not in textures)
    grounds = dict.fromkeys(layer.words for layer in named if layer.name in textures)
    return image, write_caption(list(objects), list(grounds), generator)


def _compose(generator: np.random.Generator, side: int) -> list[Layer]:
    count = int(generator.choice(2, p=[0.65, 0.35])) + 1
    grounds = [str(name) for name in generator.choice(texture_names(), count, replace=False)]
    layers = place_textures(
        grounds, generator, height=side, width=side, scale=float(np.exp(generator.normal(0, 0.35)))
    )
    for _ in range(int(generator.choice(4, p=[0.06, 0.34, 0.34, 0.26]))):
        name = str(generator.choice(object_names()))
        zoom = np.exp(generator.uniform(np.log(0.2), np.log(1.5)))
        layer = place_object(
            name,
            _color(name, generator),
            generator,
            frame=(side, side),
            side=zoom * side,
            inside=bool(generator.random() < 0.5),
        )
        if layer is not None:
            layers.append(layer)
    return layers


def _color(name: str, generator: np.random.Generator) -> str | None:
    if index()[name].hue is None or generator.random() < 0.15:
        return None
    colors = [color for color, thing in trained_pairs() if thing == name]
    return colors[int(generator.integers(len(colors)))]


def _is_named(layer: Layer, pixels: float, area: int) -> bool:
    if layer.name in texture_names():
        return pixels >= LEAST_GROUND * area
    whole = pixels >= LEAST_OF_OBJECT * layer.opacity and pixels >= LEAST_OF_FRAME * area
    return whole or pixels >= CLOSE_UP * area
