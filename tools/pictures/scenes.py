"""Drawn scenes, and the labels that the embedded models give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

import maskclip
from maskclip.core.method import Method
from maskclip.core.segmentation import Segmentation
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.captions import class_names
from maskclip.emoji.scenes import Scene, draw_scene
from tools.pictures.sheets import Panel

OPACITY = 0.75  # of labels: what shines through makes files large
COLORS = [(230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (240, 228, 66)]


def scene(seed: int) -> Scene:
    """Return a drawn scene."""
    return draw_scene(seed, size=(320, 320))


def plain(seed: int) -> Panel:
    """Return a drawn scene."""
    return Panel(Image.fromarray(scene(seed).image), "the scene")


def vocabulary(names: Sequence[str]) -> Vocabulary:
    """Return words in colours that all readers can tell apart."""
    return Vocabulary.parse(names, colors=COLORS[: len(names)])


def segment(
    seed: int,
    words: Vocabulary,
    *,
    model: str = "emoji",
    method: str | Method = "clean",
    **options: Any,
) -> Segmentation:
    """Return the labels that an embedded model gives a drawn scene."""
    return maskclip.load(model, method=method).segment(scene(seed).image, words, **options)


def labelled(seed: int, text: str, names: Sequence[str], **options: Any) -> Panel:
    """Return a drawn scene with such labels over it."""
    return Panel(
        segment(seed, vocabulary(names), **options).overlay(legend=False, opacity=OPACITY), text
    )


def truth(seed: int, words: Vocabulary) -> Segmentation:
    """Return a scene's exact labels, by words of which each is a class of the embedded world."""
    drawn = scene(seed)
    ids = np.array([class_names().index(name) for name in words.names])
    assert np.isin(drawn.labels, ids).all(), "a class of the scene is not among the words"
    labels = np.zeros(drawn.labels.shape, np.uint8)
    for label, id in enumerate(ids):
        labels[drawn.labels == id] = label
    scores = np.ones(labels.shape, np.float32)
    return Segmentation(labels, scores, words, Image.fromarray(drawn.image))


def compared(found: Segmentation, right: Segmentation, name: str) -> Panel:
    """Return labels, and of how many pixels they are right."""
    share = (found.labels == right.labels).mean()
    return Panel(found.overlay(legend=False, opacity=OPACITY), f"{name}: {share:.0%} right")
