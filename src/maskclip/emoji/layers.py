"""A scene as a list of layers, bottom first, and how layers become pixels.

The grounds are procedural textures, drawn from a seeded generator. This file knows nothing of
captions, labels or training: `examples` and `scenes` both build on it, and only `scenes` paints
labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskclip.emoji.sprites import sprite

Generator = np.random.Generator
Floats = NDArray[np.float32]
Texture = Callable[[Generator, int, int, float], Floats]


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


def texture(
    name: str, generator: Generator, *, height: int, width: int, scale: float = 1.0
) -> Floats:
    """Draw a texture: (height, width, 3) float32 in 0..255.

    `scale` is the size of the pattern: at 1 a brick is about 26 x 13 px, as fits a 256 px scene.

    Raises:
        ValueError: there is no such texture, or a side is below one pixel.
    """
    if name not in _TEXTURES:
        raise ValueError(f"unknown texture {name!r}: expected one of {', '.join(_TEXTURES)}")
    if height < 1 or width < 1:
        raise ValueError(f"expected a size of at least 1 x 1 px, got {height} x {width}")
    pixels = _TEXTURES[name](generator, height, width, scale)
    tint = generator.uniform(0.94, 1.06, size=3) * generator.uniform(0.88, 1.1)
    tinted: Floats = (pixels * tint.astype(np.float32)).clip(0, 255)
    return tinted


def texture_names() -> tuple[str, ...]:
    """Return the names of all textures."""
    return tuple(_TEXTURES)


def noise(generator: Generator, height: int, width: int, *, cell: tuple[float, float]) -> Floats:
    """Smooth noise, (height, width) float32 in 0..1; `cell` is the (y, x) size of its lumps."""
    cell_y, cell_x = max(cell[0], 1.0), max(cell[1], 1.0)
    grid = generator.random((int(height / cell_y) + 3, int(width / cell_x) + 3), dtype=np.float32)
    start_y, start_x = generator.random(2)
    y, x = np.arange(height) / cell_y + start_y, np.arange(width) / cell_x + start_x
    row, column = y.astype(np.intp), x.astype(np.intp)
    down = (y - row).astype(np.float32)[:, None]
    across = (x - column).astype(np.float32)
    stripes = grid[:, column] * (1 - across) + grid[:, column + 1] * across
    lumps: Floats = stripes[row] * (1 - down) + stripes[row + 1] * down
    return lumps


def _blend(amount: Floats, low: tuple[int, int, int], high: tuple[int, int, int]) -> Floats:
    a, b = np.array(low, np.float32), np.array(high, np.float32)
    return a + amount[..., None] * (b - a)


def _grass(generator: Generator, height: int, width: int, scale: float) -> Floats:
    blades = noise(generator, height, width, cell=(9 * scale, 1.6 * scale))
    patches = noise(generator, height, width, cell=(30 * scale, 30 * scale))
    return _blend(0.75 * blades + 0.25 * patches, (22, 92, 18), (130, 200, 70))


def _water(generator: Generator, height: int, width: int, scale: float) -> Floats:
    wobble = noise(generator, height, width, cell=(8 * scale, 26 * scale))
    y = np.arange(height, dtype=np.float32)[:, None]
    waves = 0.5 + 0.5 * np.sin(y * np.float32(0.75 / scale) + 9 * wobble)
    return _blend(waves**3, (14, 84, 140), (110, 196, 214))


def _sand(generator: Generator, height: int, width: int, scale: float) -> Floats:
    grain = noise(generator, height, width, cell=(1.2 * scale, 1.2 * scale))
    dunes = noise(generator, height, width, cell=(18 * scale, 60 * scale))
    return _blend(0.6 * grain + 0.4 * dunes, (186, 146, 92), (244, 218, 164))


def _snow(generator: Generator, height: int, width: int, scale: float) -> Floats:
    drifts = noise(generator, height, width, cell=(24 * scale, 40 * scale))
    sparkle = noise(generator, height, width, cell=(1.5 * scale, 1.5 * scale)) ** 4
    return _blend(np.clip(drifts + 0.4 * sparkle, 0, 1), (204, 216, 236), (254, 254, 255))


def _brick_wall(generator: Generator, height: int, width: int, scale: float) -> Floats:
    brick_y, brick_x = 13 * scale, 26 * scale
    y = np.arange(height) + generator.uniform(0, brick_y)
    row = (y // brick_y).astype(np.intp)
    x = np.arange(width)[None, :] + (row % 2)[:, None] * brick_x / 2
    column = (x // brick_x).astype(np.intp)
    tones = generator.random((row.max() + 1, column.max() + 1), dtype=np.float32)
    wall = _blend(tones[row[:, None], column], (132, 48, 34), (196, 92, 66))
    mortar = (x % brick_x < 2.2 * scale) | (y % brick_y < 2.2 * scale)[:, None]
    wall[mortar] = (196, 188, 178)
    return wall * (
        0.85 + 0.3 * noise(generator, height, width, cell=(2 * scale, 2 * scale))[..., None]
    )


def _sky(generator: Generator, height: int, width: int, scale: float) -> Floats:
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
    blue = _blend(depth, (70, 140, 230), (170, 212, 250))
    clouds = 0.6 * noise(generator, height, width, cell=(26 * scale, 60 * scale))
    clouds += 0.4 * noise(generator, height, width, cell=(9 * scale, 18 * scale))
    cover = np.clip((clouds - generator.uniform(0.5, 0.65)) * 6, 0, 1)[..., None]
    sky: Floats = blue * (1 - cover) + 250 * cover
    return sky


def _wood(generator: Generator, height: int, width: int, scale: float) -> Floats:
    plank = 30 * scale
    x = np.arange(width) + generator.uniform(0, plank)
    board = (x // plank).astype(np.intp)
    tones = generator.random(board.max() + 1, dtype=np.float32)[board]
    grain = noise(generator, height, width, cell=(40 * scale, 2.5 * scale))
    wood = _blend(0.65 * grain + 0.35 * tones, (104, 60, 24), (206, 150, 90))
    wood[:, x % plank < 1.8 * scale] *= 0.45
    return wood


def _road(generator: Generator, height: int, width: int, scale: float) -> Floats:
    grain = noise(generator, height, width, cell=(1.3 * scale, 1.3 * scale))
    patches = noise(generator, height, width, cell=(30 * scale, 30 * scale))
    road = _blend(0.7 * grain + 0.3 * patches, (46, 46, 50), (116, 116, 120))
    spacing = 90 * scale
    y = (np.arange(height) + generator.uniform(0, spacing)) % spacing
    x = (np.arange(width) + generator.uniform(0, spacing)) % (50 * scale)
    line = (y < 6 * scale)[:, None] & (x < 30 * scale)
    road[line] = (226, 222, 206)
    return road


_TEXTURES: dict[str, Texture] = {
    "grass": _grass,
    "water": _water,
    "sand": _sand,
    "snow": _snow,
    "brick wall": _brick_wall,
    "sky": _sky,
    "wood": _wood,
    "road": _road,
}
