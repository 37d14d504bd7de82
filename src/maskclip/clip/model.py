"""A loaded CLIP: its image tower, and its text tower for when words are new."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

Tokenizer = Callable[[list[str]], Tensor]
"""Texts -> token ids (n, context_length)."""
Statistics = tuple[float, float, float]

OPENAI_MEAN: Statistics = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Statistics = (0.26862954, 0.26130258, 0.27577711)
DEFAULT_SHORT_SIDE = 512
"""Working size of models that declare none: the published test scale (reference fact S3)."""


class Whole(NamedTuple):
    """open_clip's model, in eval mode and float32, and its tokenizer."""

    model: nn.Module
    tokenizer: Tokenizer


@dataclass(frozen=True)
class CLIPModel:
    """A loaded CLIP.

    Attributes:
        name: `ARCHITECTURE:TAG`, or what stands for it.
        visual: the image tower, in eval mode, float32, on the CPU.
        whole: open_clip's model and tokenizer, built at the first call where they are not yet:
            images and words that were used before need neither.
        fingerprint: a hash of the weights; 16 hex digits.
        mean, std: RGB statistics of its training, for pixels in [0, 1].
        short_side: the working size: images are resized so that their short side is this many px.
        known_tokens: the token ids it was trained on; None for models of the open world.
    """

    name: str
    visual: nn.Module
    whole: Callable[[], Whole]
    fingerprint: str
    mean: Statistics = OPENAI_MEAN
    std: Statistics = OPENAI_STD
    short_side: int = DEFAULT_SHORT_SIDE
    known_tokens: frozenset[int] | None = None

    @property
    def model(self) -> nn.Module:
        """open_clip's model."""
        return self.whole().model

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its text tower."""
        return self.whole().tokenizer


def fingerprint(model: nn.Module) -> str:
    """Return 16 hex digits of a model's structure, its weights' shapes and a sample of values."""
    # The repr has what the weights do not tell: activations, epsilons.
    digest = hashlib.sha256(repr(model).encode())
    for key, value in model.state_dict().items():
        flat = value.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 1024)].float().contiguous()
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
