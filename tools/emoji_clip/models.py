"""The tiny CLIPs: their shapes, the few words they know, one pass for image and dense features.

They are open_clip's own `CLIP` with nothing changed. While one trains, its token table has a row
for each word of the embedded world alone; the shipped file names the rows (see `package`).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from maskclip.emoji.captions import every_word

CONTEXT = 32
VOCABULARY = 49408  # rows of open_clip's token table
TEXT = {"context_length": CONTEXT, "width": 128, "heads": 4, "layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "emoji-rn": {
        "embed_dim": 192,
        "vision_cfg": {"image_size": 128, "layers": [1, 1, 2, 1], "width": 20, "head_width": 64},
        "text_cfg": TEXT,
    },
    "emoji-vit": {
        "embed_dim": 192,
        "vision_cfg": {
            "image_size": 128,
            "layers": 3,
            "width": 256,
            "head_width": 64,
            "patch_size": 16,
        },
        "text_cfg": TEXT,
    },
}


@functools.cache
def token_ids() -> tuple[int, ...]:
    """Return all token ids of the embedded world, ascending: padding first, the end last."""
    tokens = SimpleTokenizer(context_length=77)(list(every_word()))
    return tuple(int(token) for token in tokens.unique())


def tokenize(texts: list[str]) -> Tensor:
    """Turn texts into (N, 32) int64 positions in `token_ids`.

    Raises:
        KeyError: a text holds a word outside the embedded world.
    """
    position = {token: row for row, token in enumerate(token_ids())}
    tokens = _tokenizer()(texts)
    return torch.tensor([[position[int(token)] for token in row] for row in tokens])


@functools.cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=CONTEXT)


def build(name: str) -> CLIP:
    """Build a tiny CLIP with random weights and a token table of the words it will know."""
    config = CONFIGS[name]
    text = {**config["text_cfg"], "vocab_size": len(token_ids())}
    return CLIP(config["embed_dim"], config["vision_cfg"], text)


def image_and_dense(visual: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image embedding (B, D) and dense features (B, D, h, w) from one pass of a tower.

    `images` are normalised and of the tower's native size. The dense features are those that
    `maskclip.clip.towers` reads with the method CLEAN.
    """
    if hasattr(visual, "attnpool"):
        return _resnet(visual, images)
    return _vit(visual, images)


def _resnet(visual: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    x = images
    for stage in (visual.stem, visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = stage(x)
    positions = x.permute(0, 2, 3, 1)
    dense = visual.attnpool.c_proj(visual.attnpool.v_proj(positions))
    return visual.attnpool(x), dense.permute(0, 3, 1, 2)


def _vit(visual: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    x = visual._embeds(images)
    blocks = visual.transformer.resblocks
    for block in blocks[:-1]:
        x = block(x)
    last = blocks[-1]
    weight, bias = last.attn.in_proj_weight.chunk(3)[2], last.attn.in_proj_bias.chunk(3)[2]
    value = last.attn.out_proj(F.linear(last.ln_1(x[:, 1:]), weight, bias))
    dense = visual.ln_post(value) @ visual.proj
    pooled = visual.ln_post(last(x)[:, 0]) @ visual.proj
    return pooled, dense.transpose(1, 2).unflatten(2, visual.grid_size)
