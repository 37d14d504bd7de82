"""Pictures to try a page with: drawn scenes of the embedded world, photographs of scikit-image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

from PIL import Image

from maskclip.emoji.scenes import draw_scene
from maskclip.web.answers import png

_SCENE_SIDE = 512


@dataclass(frozen=True)
class Example:
    """A picture to try a page with.

    Attributes:
        name: what requests call it.
        title: what it shows.
        words: what to look for in it, by a model that takes any.
        model: a kind of model that does not, and still labels it.
        settings: with which that does so.
    """

    name: str
    title: str
    words: str
    model: str
    settings: Mapping[str, str]


_SCENES = {
    "farm": (3, ("cow", "tree"), ("grass", "sky")),
    "street": (8, ("car", "dog"), ("road", "brick wall")),
    "meadow": (5, ("sheep", "house", "apple"), ("grass",)),
}
_PHOTOS = {
    "cat": ("chelsea", "a cat", "cat, wall"),
    "coffee": ("coffee", "a cup of coffee on a table", "cup, spoon, table"),
    "rocket": ("rocket", "a rocket on its launch pad", "rocket, sky"),
}
_PREVIEW = {"vocabulary": "photo", "background": "0.5"}  # it knows nothing of skies and walls


def examples() -> list[Example]:
    """Return the pictures that there are on this machine."""
    found = []
    for name, (_, things, grounds) in _SCENES.items():
        words = ", ".join((*things, *grounds))
        found.append(Example(f"scene-{name}", words, words, "embedded", {"words": words}))
    if find_spec("skimage") is not None:
        found += [
            Example(f"photo-{name}", title, words, "preview", _PREVIEW)
            for name, (_, title, words) in _PHOTOS.items()
        ]
    return found


@cache
def example_file(name: str) -> bytes | None:
    """Return a picture as a file of PNG; None where there is none of that name."""
    if name not in {one.name for one in examples()}:
        return None
    kind, _, which = name.partition("-")
    if kind == "scene":
        seed, things, grounds = _SCENES[which]
        scene = draw_scene(seed, size=_SCENE_SIDE, objects=things, grounds=grounds)
        return png(Image.fromarray(scene.image))
    import skimage.data

    return png(Image.fromarray(getattr(skimage.data, _PHOTOS[which][0])()))
