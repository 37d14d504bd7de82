"""Models whose file says all about them: the tiny CLIPs that come with the package."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import resources
from pathlib import Path

from maskclip.clip.checkpoint import Checkpoint, WeightsError, fit, read_checkpoint
from maskclip.clip.light import light_tower
from maskclip.clip.model import CLIPModel, Whole

EMBEDDED = ("emoji-rn", "emoji-vit")
ALIASES = {"emoji": "emoji-rn"}
"""`emoji` is the better of the two (docs/models.md)."""


def load_embedded(name: str) -> CLIPModel:
    """Load one of `EMBEDDED`."""
    with resources.as_file(resources.files(__package__) / "pretrained") as folder:
        path = folder / f"{name}.safetensors"
        return from_checkpoint(read_checkpoint(path), path)


def describes_itself(checkpoint: Checkpoint) -> bool:
    """Whether a file carries the configuration of its model, as embedded ones do."""
    return "config" in checkpoint.metadata


def from_checkpoint(checkpoint: Checkpoint, path: Path) -> CLIPModel:
    """Build the model of a file that `describes_itself`; named after the file.

    Raises:
        WeightsError: its configuration is not one, or does not fit the weights.
    """
    state, metadata = checkpoint.state, checkpoint.metadata
    try:
        config = json.loads(metadata["config"])
        towers = {key: value for key, value in config.items() if key != "text_cfg"}
        visual = light_tower(**towers)
        short_side = int(metadata["short_side"])
        table = state["token_embedding.weight"]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: its metadata do not describe a CLIP ({error!r})") from error
    part = "visual."
    tower = {key.removeprefix(part): value for key, value in state.items() if key.startswith(part)}
    fit(visual, tower, source=path.stem)

    @cache
    def whole() -> Whole:
        from maskclip.clip.open_clip_models import build_whole  # only new words need it

        return build_whole(config, state, source=path.stem)

    return CLIPModel(
        name=path.stem,
        visual=visual,
        whole=whole,
        fingerprint=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        short_side=short_side,
        known_tokens=frozenset(table.any(dim=1).nonzero().flatten().tolist()),
    )
