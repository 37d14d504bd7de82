"""The ideas of the paper, one by one (docs/how-it-works.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import maskclip
from maskclip.core.config import Options
from maskclip.core.dense import similarity
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from tools.pictures.models import photo_file
from tools.pictures.scenes import compared, labelled, plain, scene, segment, truth
from tools.pictures.sheets import Panel, sheet

SEED, NAMES = 3, ("train", "truck", "sand", "sky")
STUDENT = Path(__file__).resolve().parents[2] / "runs" / "emoji"
"""The run folder of a student of emoji-rn."""


def reading() -> Image.Image:
    """Return a CLIP read by its own attention, as MaskCLIP reads it, and refined by the photo."""
    vit = {"model": "emoji-vit", "refine": "none"}
    return sheet(
        plain(SEED),
        labelled(SEED, "CLIP's own attention", NAMES, method="baseline", **vit),
        labelled(SEED, "MaskCLIP", NAMES, **vit),
        labelled(SEED, "MaskCLIP, refined by the photo", NAMES, **{**vit, "refine": "pamr"}),
    )


def maps() -> Image.Image:
    """Return the cosines of every position with every word, and which word wins."""
    segmenter, words = maskclip.load("emoji-vit"), Vocabulary.parse(NAMES)
    encoded = segmenter.encode(scene(SEED).image)
    rows = segmenter.scoring(segmenter.prepare(words), Options()).rows
    with torch.inference_mode():
        cosines = similarity(encoded.dense.features, rows)[0].float().numpy()
    low, high = cosines.min(), cosines.max()
    grey = np.round(255 * (cosines - low) / (high - low)).astype(np.uint8)
    heat = [
        Panel(Image.fromarray(one).resize((320, 320), Image.Resampling.NEAREST), name)
        for one, name in zip(grey, NAMES, strict=True)
    ]
    best = labelled(SEED, "the word that wins", NAMES, model="emoji-vit", refine="none")
    return sheet(plain(SEED), *heat, best, columns=3, side=200)


def refined() -> Image.Image:
    """Return a photo among many words, and what the two refinements of the paper do to it."""
    segmenter, words = maskclip.load("photo"), Vocabulary.builtin("photo")
    photo = photo_file("chelsea.png")
    ways: dict[str, Any] = {
        "as it is": {},
        "--prompt-denoising 0.5": {"prompt_denoising": 0.5},
        "--key-smoothing 1": {"key_smoothing": 1.0},
    }
    panels = [Panel(photo, "the photo")]
    for name, options in ways.items():
        found = segmenter.segment(photo, words, refine="none", **options)
        count = len(found.coverage())
        text = f"{name}: {count} word{'s' * (count > 1)}"
        panels.append(Panel(found.overlay(legend=False), text))
    return sheet(*panels, height=160)


def student() -> Image.Image:
    """Return a teacher's labels, those it teaches by, and those of its student."""
    if not STUDENT.exists():
        raise MaskCLIPError(
            f"no run folder {STUDENT}: train it with `maskclip train emoji-teacher-rn "
            "--out runs/emoji --precision bfloat16`"
        )
    seed, words = 5, Vocabulary.builtin("emoji")
    right = truth(seed, words)
    learnt = maskclip.load(str(STUDENT)).segment(scene(seed).image, refine="none")
    return sheet(
        plain(seed),
        compared(segment(seed, words, refine="none"), right, "teacher"),
        compared(segment(seed, words, refine="pamr"), right, "its labels"),
        compared(learnt, right, "student"),
    )
