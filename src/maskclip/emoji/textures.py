"""The grounds of the embedded world: procedural textures, drawn from a seeded generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Texture = Callable[[np.random.Generator, int, int, float], Array]


def texture(
    name: str, generator: np.random.Generator, *, height: int, width: int, scale: float = 1.0
) -> Array:
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
    tinted: Array = (pixels * tint.astype(np.float32)).clip(0, 255)
    return tinted


def texture_names() -> tuple[str, ...]:
    """Return the names of all textures."""
    return tuple(_TEXTURES)


def noise(
    generator: np.random.Generator, height: int, width: int, *, cell: tuple[float, float]
) -> Array:
    """Smooth noise, (height, width) float32 in 0..1; `cell` is the (y, x) size of its lumps."""
    cell_y, cell_x = max(cell[0], 1.0), max(cell[1], 1.0)
    grid = generator.random((int(height / cell_y) + 3, int(width / cell_x) + 3), dtype=np.float32)
    start_y, start_x = generator.random(2)
    y, x = np.arange(height) / cell_y + start_y, np.arange(width) / cell_x + start_x
    row, column = y.astype(np.intp), x.astype(np.intp)
    down = (y - row).astype(np.float32)[:, None]
    across = (x - column).astype(np.float32)
    stripes = grid[:, column] * (1 - across) + grid[:, column + 1] * across
    lumps: Array = stripes[row] * (1 - down) + stripes[row + 1] * down
    return lumps


def _blend(amount: Array, low: tuple[int, int, int], high: tuple[int, int, int]) -> Array:
    a, b = np.array(low, np.float32), np.array(high, np.float32)
    return a + amount[..., None] * (b - a)


def _grass(generator: np.random.Generator, height: int, width: int, scale: float) -> Array:
    blades = noise(generator, height, width, cell=(9 * scale, 1.6 * scale))
    patches = noise(generator, height, width, cell=(30 * scale, 30 * scale))
    return _blend(0.75 * blades + 0.25 * patches, (22, 92, 18), (130, 200, 70))


def _water(generator: np.random.Generator, height: int, width: int, scale: float) -> Array:
    wobble = noise(generator, height, width, cell=(8 * scale, 26 * scale))
    y = np.arange(height, dtype=np.float32)[:, None]
    waves = 0.5 + 0.5 * np.sin(y * np.float32(0.75 / scale) + 9 * wobble)
    return _blend(waves**3, (14, 84, 140), (110, 196, 214))


def _sand(generator: np.random.Generator, height: int, width: int, scale: float) -> Array:
    grain = noise(generator, height, width, cell=(1.2 * scale, 1.2 * scale))
    dunes = noise(generator, height, width, cell=(18 * scale, 60 * scale))
    return _blend(0.6 * grain + 0.4 * dunes, (186, 146, 92), (244, 218, 164))


def _snow(generator: np.random.Generator, height: int, width: int, scale: float) -> Array:
    drifts = noise(generator, height, width, cell=(24 * scale, 40 * scale))
    sparkle = noise(generator, height, width, cell=(1.5 * scale, 1.5 * scale)) ** 4
    return _blend(np.clip(drifts + 0.4 * sparkle, 0, 1), (204, 216, 236), (254, 254, 255))


def _brick_wall(generator: np.random.Generator, height: int, width: int, scale: float) -> Array:
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


def _sky(generator: np.random.Generator, height: int, width: int, scale: float) -> Array:
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
    blue = _blend(depth, (70, 140, 230), (170, 212, 250))
    clouds = 0.6 * noise(generator, height, width, cell=(26 * scale, 60 * scale))
    clouds += 0.4 * noise(generator, height, width, cell=(9 * scale, 18 * scale))
    cover = np.clip((clouds - generator.uniform(0.5, 0.65)) * 6, 0, 1)[..., None]
    sky: Array = blue * (1 - cover) + 250 * cover
    return sky


def _wood(generator: np.random.Generator, height: int, width: int, scale: float) -> Array:
    plank = 30 * scale
    x = np.arange(width) + generator.uniform(0, plank)
    board = (x // plank).astype(np.intp)
    tones = generator.random(board.max() + 1, dtype=np.float32)[board]
    grain = noise(generator, height, width, cell=(40 * scale, 2.5 * scale))
    wood = _blend(0.65 * grain + 0.35 * tones, (104, 60, 24), (206, 150, 90))
    wood[:, x % plank < 1.8 * scale] *= 0.45
    return wood


def _road(generator: np.random.Generator, height: int, width: int, scale: float) -> Array:
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
