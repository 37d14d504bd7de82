"""A model's name -> a loaded CLIP.

Names are `ARCHITECTURE:TAG` (any of open_clip's), an architecture with a local file or `random`,
a file alone, or one of the embedded models. open_clip is imported for what needs it: its import
takes longer than labelling a few small images.
"""

from __future__ import annotations

import os
from pathlib import Path

from maskclip.clip.checkpoint import WeightsError, one_line, read_checkpoint
from maskclip.clip.embedded import (
    ALIASES,
    EMBEDDED,
    describes_itself,
    from_checkpoint,
    load_embedded,
)
from maskclip.clip.model import CLIPModel
from maskclip.core.config import DEFAULT_MODEL

_WEIGHT_SUFFIXES = {".pt", ".pth", ".bin", ".safetensors"}


def load_clip(name: str = DEFAULT_MODEL, *, weights: str | None = None) -> CLIPModel:
    """Load a CLIP by name.

    Args:
        name: `ViT-B-16:openai`, `RN50` (its only or its `openai` tag), `emoji-rn`, or a file.
        weights: a local file for the architecture `name`, or `"random"` for seeded random ones.
            A tag beside a file (`ViT-B-16:openai`) says how its weights were trained.

    Raises:
        WeightsError: unknown name or tag, weights not to be had, or not fitting.
        UnsupportedTowerError: the image tower has no dense reading.
    """
    name = ALIASES.get(name, name)
    if name in EMBEDDED:
        if weights is not None:
            raise WeightsError(f"{name} brings its own weights: leave `weights` out")
        return load_embedded(name)
    if os.sep in name and Path(name).is_dir():
        raise WeightsError(f"{name} is a folder: expected the name of a CLIP, or a file of weights")
    if weights is None and (Path(name).is_file() or Path(name).suffix in _WEIGHT_SUFFIXES):
        path = Path(name)
        checkpoint = read_checkpoint(path)
        if describes_itself(checkpoint):
            return from_checkpoint(checkpoint, path)
        from maskclip.clip.open_clip_models import load_file

        with one_line(path):
            return load_file(checkpoint, path)
    from maskclip.clip.open_clip_models import load_pretrained

    return load_pretrained(name, weights=weights, other_names=(*EMBEDDED, *ALIASES))
