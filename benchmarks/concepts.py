"""Scenes that ask for fine distinctions: look-alikes, and colours of one thing.

A scene shows one of the concepts, each in turn, and all of them are candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from maskclip.core.samples import Sample, Samples
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.captions import class_names
from maskclip.emoji.layers import texture_names
from maskclip.emoji.scenes import draw_scene, scene_name
from maskclip.emoji.sprites import COLORS

FIRST_SEED = 2_000_000  # far from the seeds of the evaluation and of `tools.emoji_clip.measure`

LOOK_ALIKES = (
    ("dog", "wolf", "fox"),
    ("lion", "tiger", "leopard"),
    ("horse", "zebra", "cow"),
    ("bus", "truck", "tractor"),
)
"""Things that look much the same, group by group."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ConceptScenes(Samples):
    """Scenes of a single concept on a texture.

    Attributes:
        concepts: words as captions have them: `"wolf"`, `"purple car"`.
        seeds: one a scene; scene i shows concept i modulo their number.
        size: side in px.
    """

    concepts: tuple[str, ...]
    seeds: range
    size: int = 256

    def metadata(self) -> dict[str, Any]:
        """Return which scenes these are, ready for JSON."""
        return {**super().metadata(), "size": self.size, "first_seed": self.seeds.start}

    @property
    def names(self) -> Sequence[str]:
        """The ids of the scenes."""
        return [scene_name(seed) for seed in self.seeds]

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        """Draw a scene; ids count through the concepts, then through the textures."""
        seed, shown = self.seeds[index], index % len(self.concepts)
        scene = draw_scene(seed, size=self.size, objects=[self.concepts[shown]])
        ids = np.full(len(class_names()), shown, np.uint8)  # the one object there is
        for place, texture in enumerate(texture_names(), start=len(self.concepts)):
            ids[class_names().index(texture)] = place
        return Sample(scene_name(seed), Image.fromarray(scene.image), ids[scene.labels])


def concept_scenes(concepts: Sequence[str], *, each: int) -> ConceptScenes:
    """Return `each` scenes of every concept; the textures are candidates too."""
    return ConceptScenes(
        name="emoji concepts",
        split=", ".join(concepts),
        vocabulary=Vocabulary.parse([*concepts, *texture_names()]),
        concepts=tuple(concepts),
        seeds=range(FIRST_SEED, FIRST_SEED + each * len(concepts)),
    )


def colors_of(thing: str) -> tuple[str, ...]:
    """Return a thing in all its colours: `red car`, `yellow car` ..."""
    return tuple(f"{color} {thing}" for color in COLORS)
