"""The held-out scenes of the embedded world as a data set: nothing to download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from maskclip.core.samples import Sample, Samples
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import EVALUATION_SEEDS, TRAINING_SEEDS, draw_scene, scene_name

DEFAULT_SIZE = 256

UNSEEN = tuple(range(7, 60, 7))
"""The ids of the eight classes that the zero-shot split holds back: every seventh of all 60."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EmojiScenes(Samples):
    """Scenes that are drawn when they are asked for.

    Attributes:
        size: side in px.
        seeds: one a scene.
    """

    name: str = "emoji"
    split: str = "val"
    vocabulary: Vocabulary = field(default_factory=lambda: Vocabulary.builtin("emoji"))
    official: int | None = len(EVALUATION_SEEDS)
    unseen: tuple[int, ...] = UNSEEN
    size: int = DEFAULT_SIZE
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
