"""Scenes with exact labels and captions, for demonstrations, tests and evaluation.

The tiny CLIPs never see one: scenes draw from their own branch of random numbers (`NAMESPACE`;
training examples draw from another), and only this file paints labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskclip.core.files import atomic_path
from maskclip.core.palettes import voc_colors
from maskclip.core.samples import Sample, Samples
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.captions import class_names, write_caption
from maskclip.emoji.layers import Layer, paint, place_object, place_textures, texture_names
from maskclip.emoji.sprites import COLORS, index, object_names

NAMESPACE = 2  # training examples draw from 1
EVALUATION_SEEDS = range(300)
"""The scenes on which the embedded models are measured."""
TRAINING_SEEDS = range(10_000, 12_000)
"""The scenes from which students learn."""
SCENE_SIZE = 256  # side of a scene in px
UNSEEN = tuple(range(7, 60, 7))
"""The ids of the eight classes that the zero-shot split holds back: every seventh of all 60."""
TRIES = 30  # places tried for an object before it is left out


@dataclass(frozen=True)
class Scene:
    """An image (H, W, 3) uint8, the class id of every pixel (H, W) uint8, and a caption.

    Ids count through the vocabulary `emoji`: objects first, then textures.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    caption: str


def draw_scene(
    seed: int,
    *,
    size: int | tuple[int, int] = SCENE_SIZE,
    objects: Sequence[str] | None = None,
    grounds: Sequence[str] | None = None,
) -> Scene:
    """Draw one to three objects on one or two textures; the same arguments give the same scene.

    `size` is a side or (height, width), in pixels. `objects` ("dog", "blue car") and `grounds`
    ("grass") ask for certain things. Objects are 0.25 to 0.6 of the shorter side and hardly
    overlap; one that finds no room is left out. The caption names exactly what the labels show.

    Raises:
        ValueError: a side is below one pixel, or a thing is unknown.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"expected a size of at least 1 x 1 px, got {height} x {width}")
    generator = np.random.default_rng([NAMESPACE, seed])
    if grounds is None:
        count = 1 if generator.random() < 0.7 else 2
        grounds = [str(name) for name in generator.choice(texture_names(), count, replace=False)]
    if objects is None:
        count = int(generator.integers(1, 4))
        chosen = generator.choice(object_names(), count, replace=False)
        objects = [_any_color(str(name), generator) for name in chosen]
    scale = min(height, width) / 256 * float(np.exp(generator.normal(0, 0.2)))
    layers = place_textures(grounds, generator, height=height, width=width, scale=scale)
    for words in objects:
        layers += _place_apart(words, layers[len(grounds) :], generator, height, width)
    image, _ = paint(layers, height=height, width=width)
    labels = paint_labels(layers, height=height, width=width)
    seen = {class_names()[label] for label in np.unique(labels)}
    caption = write_caption(
        [layer.words for layer in layers[len(grounds) :] if layer.name in seen],
        [layer.words for layer in layers[: len(grounds)] if layer.name in seen],
        generator,
    )
    return Scene(image, labels, caption)


def paint_labels(layers: Sequence[Layer], *, height: int, width: int) -> NDArray[np.uint8]:
    """Paint the class id of the topmost layer with alpha above one half: (height, width) uint8."""
    labels = np.zeros((height, width), np.uint8)
    for layer in layers:
        labels[layer.window][layer.alpha > 0.5] = class_names().index(layer.name)
    return labels


def scene_name(seed: int) -> str:
    """Return what the scene of a seed is called, in files and in reports."""
    return f"scene_{seed:06d}"


@dataclass(frozen=True, eq=False, kw_only=True)
class EmojiScenes(Samples):
    """Scenes, each drawn when it is read.

    Attributes:
        size: side in px.
        seeds: one a scene.
    """

    name: str = "emoji"
    split: str = "val"
    vocabulary: Vocabulary = field(default_factory=lambda: Vocabulary.builtin("emoji"))
    official: int | None = len(EVALUATION_SEEDS)
    unseen: tuple[int, ...] = UNSEEN
    size: int = SCENE_SIZE
    seeds: range = EVALUATION_SEEDS

    @property
    def names(self) -> Sequence[str]:
        """The ids of the scenes, those of the files that `maskclip emoji scenes` writes."""
        return [scene_name(seed) for seed in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        """Draw a scene."""
        seed = self.seeds[index]
        scene = draw_scene(seed, size=self.size)
        return Sample(scene_name(seed), Image.fromarray(scene.image), scene.labels)

    def metadata(self) -> dict[str, Any]:
        """Return which scenes these are, ready for JSON."""
        return {**super().metadata(), "size": self.size, "first_seed": self.seeds.start}


def training_scenes() -> EmojiScenes:
    """Return the scenes from which students learn."""
    return EmojiScenes(split="train", seeds=TRAINING_SEEDS, official=len(TRAINING_SEEDS))


def write_scenes(
    out: Path, *, count: int, seed: int = 0, size: int | tuple[int, int] = SCENE_SIZE
) -> Iterator[Path]:
    """Write the scenes of seeds `seed`, `seed` + 1, ... as a small dataset in the layout of VOC.

    Yields each image's path when it and its mask are written; the lists that make the folder a
    dataset (`ImageSets/Segmentation/val.txt`, `captions.json`, `classes.txt`) come last, so do
    exhaust the iterator. Masks are palette PNGs of class ids, without an ignored id.

    Raises:
        OSError: the folder cannot be written.
    """
    captions = {}
    for number in range(seed, seed + count):
        scene = draw_scene(number, size=size)
        name = scene_name(number)
        image = out / "JPEGImages" / f"{name}.jpg"
        with atomic_path(image) as temporary:
            Image.fromarray(scene.image).save(temporary, quality=95, subsampling=0)
        with atomic_path(out / "SegmentationClass" / f"{name}.png") as temporary:
            mask = Image.fromarray(scene.labels)
            mask.putpalette(_palette())
            mask.save(temporary)
        captions[name] = scene.caption
        yield image
    lists = {
        "ImageSets/Segmentation/val.txt": "".join(f"{name}\n" for name in captions),
        "captions.json": json.dumps(captions, indent=1) + "\n",
        "classes.txt": "".join(f"{name}\n" for name in class_names()),
    }
    for file, text in lists.items():
        with atomic_path(out / file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _any_color(name: str, generator: np.random.Generator) -> str:
    if index()[name].hue is None or generator.random() < 0.15:
        return name
    return f"{generator.choice(list(COLORS))} {name}"


def _place_apart(
    words: str, others: Sequence[Layer], generator: np.random.Generator, height: int, width: int
) -> list[Layer]:
    color, _, name = words.rpartition(" ")
    for _ in range(TRIES):
        layer = place_object(
            name,
            color or None,
            generator,
            frame=(height, width),
            side=generator.uniform(0.25, 0.6) * min(height, width),
            inside=True,
        )
        if layer is not None and all(_overlap(layer, other) < 0.15 for other in others):
            return [layer]
    return []


def _overlap(one: Layer, other: Layer) -> float:
    shared = 1.0
    for a, b in zip(one.window, other.window, strict=True):
        shared *= max(min(a.stop, b.stop) - max(a.start, b.start), 0)
    return shared / min(one.alpha.size, other.alpha.size)


def _palette() -> list[int]:
    return [channel for color in voc_colors(256) for channel in color]
