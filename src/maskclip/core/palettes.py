"""Colours for classes: by what their names mean, any number of distinct ones, a benchmark's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Color = tuple[int, int, int]  # red, green, blue in 0..255
_Floats = npt.NDArray[np.floating[Any]]

BLACK: Color = (0, 0, 0)
IGNORED_COLOR: Color = (224, 224, 192)  # VOC's colour of index 255
_BACKGROUND = "background"

# Colour words say more than things: a black dog is black, and a green car is no car's colour.
_COLOR_WORDS = {
    "#d8262c": "red crimson scarlet", "#2fa84f": "green", "#2a63d8": "blue navy",
    "#f6d51f": "yellow golden gold", "#f58a1f": "orange", "#8a4fc0": "purple violet",
    "#f07fb0": "pink", "#8b5a2b": "brown", "#41415a": "black dark", "#f3efd9": "white",
    "#8f949b": "grey gray silver", "#1fb5b0": "turquoise cyan teal", "#dcc9a3": "beige",
}  # fmt: skip
_THINGS = {
    "#7cbf3f": "grass lawn meadow field pasture moss turf",
    "#2a7d35": "tree plant bush shrub forest woods leaf leave foliage vegetation hedge palm "
    "jungle cactus branch",
    "#86cdf5": "sky",
    "#1f70d2": "water sea ocean river lake pool pond waterfall wave stream",
    "#e8cb6b": "sand beach desert dune",
    "#727c93": "road street asphalt highway runway tarmac",
    "#bba6c4": "sidewalk pavement concrete",
    "#96826a": "rock stone mountain cliff gravel",
    "#d6ecff": "snow ice",
    "#ccd6e4": "cloud fog smoke",
    "#9a6a3c": "soil dirt ground mud earth path trunk wood",
    "#b5533c": "brick roof",
    "#e2407a": "person people human pedestrian rider man men woman women child children boy girl "
    "baby",
    "#ff6a13": "fire flame lava carrot pumpkin fox",
    "#ffd83d": "sun banana lemon sunflower",
    "#cf1f36": "tomato strawberry cherry rose blood",
    "#f29bb5": "pig flamingo",
    "#7a4bb0": "grape eggplant lavender",
}  # fmt: skip
_FREQUENT = ("grass", "tree", "sky", "water", "sand", "road", "rock", "snow", "soil", "person")

_APART = (0.07, 0.045, 0.03)
"""Distances in OKLab of a colour that is meant from all others: the first that leaves one near."""
_NEAR = 0.16
_FAR = (0.16, 0.13, 0.1, 0.07, 0.05, 0.03, 0.0)
"""The same of other colours: the first that leaves one."""
_OF_ONE_HUE = 28.0  # degrees: a second green is a green
_GREY = 0.035  # chroma below which a colour has no hue

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
_LMS_TO_LAB, _RGB_TO_LMS = np.linalg.inv(_LAB_TO_LMS), np.linalg.inv(_LMS_TO_RGB)


def voc_colors(count: int) -> tuple[Color, ...]:
    """Return the first `count` colours of Pascal VOC's colour map, of which the first is black."""
    return tuple(_voc_color(index) for index in range(count))


def _voc_color(index: int) -> Color:
    """Deal the bits of `index` out to red, green and blue in turn, lowest bit to highest place."""
    channels = [0, 0, 0]
    for bit in range(24):
        channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]


def class_colors(names: Sequence[str]) -> tuple[Color, ...]:
    """Return a colour for each class: the everyday one of what its name means, or one far from all.

    A word counts whole, also in the plural ("palm trees" are green); a colour's own word before
    others ("red car"), and of others the last ("grass field"). Where two classes mean one colour,
    the second gets another shade of it. Each colour hangs on the names before it alone: a class
    that is added at the end changes none. "background" alone is black; no two are equal.

    Args:
        names: at most 65,535.
    """
    chosen = _Chosen()
    for name in names[:_FARTHEST]:
        wish = _everyday_color(name)
        chosen.add((wish and chosen.shade(wish)) or chosen.far_color())
    used = dict.fromkeys(chosen.colors)
    for color in _golden_colors(2 * len(names)) if len(names) > _FARTHEST else ():
        if len(used) == len(names):
            break
        used.setdefault(color)
    return tuple(used)


class _Chosen:
    """Colours of classes, and how far all others are from them."""

    def __init__(self) -> None:
        self.colors: list[Color] = []
        self._shade_gaps = np.full(len(_shades()), np.inf)
        self._far_gaps = _gaps_to_frequent()

    def add(self, color: Color) -> None:
        """Take a colour."""
        self.colors.append(color)
        lab = _to_oklab(color)
        self._shade_gaps = np.minimum(self._shade_gaps, _distances(_shades(), lab))
        self._far_gaps = np.minimum(self._far_gaps, _distances(_far_labs(), lab))

    def shade(self, wish: Color) -> Color | None:
        """Return a colour itself, or the nearest of its hue that is apart from those taken."""
        lab = _to_oklab(wish)
        gap = min((_distances(_to_oklab(c)[None], lab)[0] for c in self.colors), default=np.inf)
        away = _distances(_shades(), lab)
        like = _of_one_hue(_shades(), lab) & (away <= _NEAR)
        for enough in _APART:
            if gap >= enough:
                return wish
            fitting = np.flatnonzero(like & (self._shade_gaps >= enough))
            if len(fitting):
                return _colors(_shades()[fitting[[away[fitting].argmin()]]])[0]
        return None

    def far_color(self) -> Color:
        """Return a colour that is far from those taken, and from those that classes often mean."""
        known = set(self.colors)
        for enough in _FAR:
            for color, gap in zip(_far_colors(), self._far_gaps.tolist(), strict=True):
                if gap >= enough and color not in known:
                    return color
        return next(color for color in _golden_colors(4 * _FARTHEST) if color not in known)


def _of_one_hue(labs: _Floats, lab: _Floats) -> npt.NDArray[np.bool_]:
    """Return which of (N, 3) have the hue of (3,); greys have that of greys."""
    chroma, own = np.hypot(labs[:, 1], labs[:, 2]), float(np.hypot(lab[1], lab[2]))
    if own < _GREY:
        return chroma < _GREY
    turn = np.degrees(np.arctan2(labs[:, 2], labs[:, 1]) - np.arctan2(lab[2], lab[1]))
    near: npt.NDArray[np.bool_] = abs((turn + 180) % 360 - 180) <= _OF_ONE_HUE
    return near & (chroma >= own / 2)


def _distances(labs: _Floats, lab: _Floats) -> _Floats:
    """Return the distances of (N, 3) from (3,), rounded: the same choices on every machine."""
    found: _Floats = np.linalg.norm(labs - lab, axis=1).round(6)
    return found


def _everyday_color(name: str) -> Color | None:
    """Return the colour that the words of a name have for everybody, if they have one."""
    if name.casefold() == _BACKGROUND:
        return BLACK
    words = re.findall(r"[^\W\d_]+", name.casefold())
    colors, things = _tables()
    for table, order in ((colors, words), (things, reversed(words))):
        for word in order:
            for form in _singulars(word):
                if form in table:
                    return table[form]
    return None


@lru_cache(maxsize=1)
def _tables() -> tuple[dict[str, Color], dict[str, Color]]:
    colors, things = (
        {word: _from_hex(color) for color, words in table.items() for word in words.split()}
        for table in (_COLOR_WORDS, _THINGS)
    )
    return colors, things


def _from_hex(text: str) -> Color:
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def _singulars(word: str) -> Iterator[str]:
    yield word
    for ending, instead in (("ies", "y"), ("es", ""), ("s", "")):
        if word.endswith(ending):
            yield word.removesuffix(ending) + instead


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
    warm_red = _oklab(np.array([0.64]), np.array([0.18]), np.array([24.0]))
    lab = _vivid()
    first = lab[[_distances(lab, warm_red[0]).argmin()]]
    return _colors(np.concatenate([first, _farthest(first, _FARTHEST - 1)]))


@lru_cache(maxsize=1)
def _far_labs() -> _Floats:
    """Return colours, each the farthest from all before it and from those of frequent things."""
    return _farthest(_frequent_labs(), _FARTHEST)


@lru_cache(maxsize=1)
def _gaps_to_frequent() -> _Floats:
    """Return how far each of `_far_labs` is from the colours of frequent things."""
    gaps: _Floats = np.min([_distances(_far_labs(), lab) for lab in _frequent_labs()], axis=0)
    return gaps


def _frequent_labs() -> _Floats:
    return np.array([_to_oklab(_tables()[1][word]) for word in _FREQUENT])


@lru_cache(maxsize=1)
def _far_colors() -> tuple[Color, ...]:
    return _colors(_far_labs())


def _farthest(start: _Floats, count: int) -> _Floats:
    """Return `count` vivid colours, each the farthest from (N, 3) and from those before it."""
    lab, nearest = _vivid(), np.full(len(_vivid()), np.inf)
    for one in start:
        nearest = np.minimum(nearest, _distances(lab, one))
    picked: list[int] = []
    for _ in range(count):
        picked.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(lab, lab[picked[-1]]))
    return lab[picked]


@lru_cache(maxsize=1)
def _vivid() -> _Floats:
    return _displayable(np.linspace(0.50, 0.86, 9), (0.09, 0.12, 0.15, 0.18))


@lru_cache(maxsize=1)
def _shades() -> _Floats:
    """Return all colours among which shades are looked for, greys among them."""
    return _displayable(np.linspace(0.38, 0.94, 15), (0.0, 0.02, 0.06, 0.1, 0.14, 0.18, 0.22))


def _displayable(lightness: npt.ArrayLike, chroma: npt.ArrayLike) -> _Floats:
    """Return OKLab coordinates (N, 3) of every lightness, chroma and hue that a screen shows."""
    grid = np.meshgrid(lightness, chroma, np.arange(0.0, 360.0, 6.0))
    lab = _oklab(*(each.ravel() for each in grid))
    shown: _Floats = lab[((_linear_rgb(lab) >= 0) & (_linear_rgb(lab) <= 1)).all(axis=1)]
    return shown


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


def _to_oklab(color: Color) -> _Floats:
    """8-bit sRGB -> OKLab (3,)."""
    encoded = np.array(color) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lab: _Floats = _RGB_TO_LMS @ linear
    return _LMS_TO_LAB @ np.cbrt(lab)


def _colors(lab: _Floats) -> tuple[Color, ...]:
    """OKLab (N, 3) -> the nearest 8-bit sRGB colours."""
    linear = _linear_rgb(lab).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return tuple(
        (red, green, blue) for red, green, blue in (255 * encoded).round().astype(int).tolist()
    )
