"""Pack a checkpoint into the file that is shipped: `python -m tools.emoji_clip.package`.

The file holds open_clip's state dict in half precision; of the token table only the rows of known
words (`token_embedding.ids`, `token_embedding.rows`). Its metadata say how to build the model.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from maskclip.core.files import atomic_path
from tools.emoji_clip.models import CONFIGS, VOCABULARY, token_ids

FORMAT = "maskclip-embedded-1"
TABLE = "token_embedding.weight"
CARD = (
    "A tiny CLIP for demonstrations and tests: it knows the objects and textures of the embedded "
    "world (vocabulary `emoji`), some in colours, and nothing else. Trained on drawn images and "
    "their captions alone, without masks, by CLIP's contrastive loss and two losses that tie the "
    "dense features to the names in the caption; see docs/models.md."
)


def package(checkpoint: Path, out: Path, *, model: str, short_side: int) -> None:
    """Write the weights of a checkpoint of `tools.emoji_clip.train` as a shipped model.

    Args:
        checkpoint: `last.pt` of a run.
        out: a `.safetensors` file.
        model: the name of its shape in `models.CONFIGS`.
        short_side: the working size that the model declares, in pixels.

    Raises:
        OSError: a file cannot be read or written.
    """
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["model"]
    tensors = {name: _half(value) for name, value in state.items() if name != TABLE}
    tensors["token_embedding.ids"] = torch.tensor(token_ids(), dtype=torch.int32)
    tensors["token_embedding.rows"] = _half(state[TABLE])
    config = CONFIGS[model]
    config = {**config, "text_cfg": {**config["text_cfg"], "vocab_size": VOCABULARY}}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(config),
        "short_side": str(short_side),
        "vocabulary": "emoji",
        "card": CARD,
    }
    with atomic_path(out) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def _half(value: Tensor) -> Tensor:
    return value.half().contiguous() if value.is_floating_point() else value


def main() -> None:
    """Read the command line and pack."""
    parser = argparse.ArgumentParser(description="Pack a checkpoint into a shipped model file.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=sorted(CONFIGS), required=True)
    parser.add_argument("--short-side", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    package(
        arguments.checkpoint,
        arguments.out,
        model=arguments.model,
        short_side=arguments.short_side,
    )
    logging.info("%s: %d bytes", arguments.out, arguments.out.stat().st_size)


if __name__ == "__main__":
    main()
