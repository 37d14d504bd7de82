"""A loaded CLIP: its image tower and what it says of itself, and its text tower for new words."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from maskclip.core.errors import MaskCLIPError

Tokenizer = Callable[[list[str]], Tensor]
"""Texts -> token ids (n, context_length)."""
Statistics = tuple[float, float, float]

OPENAI_MEAN: Statistics = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Statistics = (0.26862954, 0.26130258, 0.27577711)
DEFAULT_SHORT_SIDE = 512
"""Working size of models that declare none: the published test size (published code, S3)."""
DEFAULT_TEMPERATURE = 100.0
"""That of towers that come without one: where training caps it, and OpenAI's CLIPs ended."""

Module = TypeVar("Module", bound=nn.Module)


class OpenCLIP(NamedTuple):
    """open_clip's model, in eval mode and float32, and its tokenizer."""

    model: nn.Module
    tokenizer: Tokenizer


@dataclass(frozen=True, kw_only=True)
class CLIPModel:
    """A loaded CLIP. Nothing that uses it changes it: encoders take `shared_copy` of its towers.

    Attributes:
        name: `ARCHITECTURE:TAG`, or what stands for it.
        visual: the image tower, in eval mode, float32, on the CPU.
        load_text: open_clip's model and tokenizer, built at the first call where they are not yet:
            images and words that were used before need neither.
        fingerprint: a hash of the weights; 16 hex digits.
        mean, std: RGB statistics of its training, for pixels in [0, 1].
        temperature: exp(logit_scale): its training compares by softmax(temperature x cosine).
        bias: logit_bias, of models trained by a sigmoid: "this word" is
            sigmoid(temperature x cosine + bias). Among words it cancels. None for others.
        context_length: tokens that its text tower reads, start and end among them.
        tokenizer_identity: a hash of the tokenizer and the language of its words; "" is CLIP's own.
        language: of its words, where the tokenizer writes it before them and it is not English.
        short_side: the working size: images are resized so that their short side is this many px.
        refine: names of `core.config.REFINEMENTS`, done by `segment` where none are named.
        known_tokens: the token ids it was trained on; None for models of the open world.
        tower: how its image tower is built, in plain values, as `clip.weights.build_tower` takes
            them; None where they would not say all of it.
    """

    name: str
    visual: nn.Module
    load_text: Callable[[], OpenCLIP]
    fingerprint: str
    mean: Statistics = OPENAI_MEAN
    std: Statistics = OPENAI_STD
    temperature: float = DEFAULT_TEMPERATURE
    bias: float | None = None
    context_length: int = 77
    tokenizer_identity: Callable[[], str] = str
    language: str | None = None
    short_side: int = DEFAULT_SHORT_SIDE
    refine: tuple[str, ...] = ()
    known_tokens: frozenset[int] | None = None
    tower: Mapping[str, Any] | None = None

    @property
    def model(self) -> nn.Module:
        """open_clip's model."""
        return self.load_text().model

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its text tower."""
        return self.load_text().tokenizer


def temperature_of(logit_scale: Tensor, *, source: str) -> float:
    """Return exp(logit_scale), which softmax takes times the cosine.

    Raises:
        MaskCLIPError: it is not one positive number; `source` says whose.
    """
    found = float(logit_scale.exp()) if logit_scale.numel() == 1 else math.nan
    if not 0 < found < math.inf:
        raise MaskCLIPError(f"{source}: logit_scale: its exponential is no temperature: {found:g}")
    return found


def shared_copy(module: Module, *, leave_out: nn.Module | None = None) -> Module:
    """Return a copy of a module's structure whose weights lie where the module's do.

    Other activations, another dtype or another device of the copy do not reach the module, and
    take memory only for what they change. Buffers, which are small, are copied.

    Args:
        module: what is copied; it must not be trained while the copy is used.
        leave_out: a part that the copy has only an empty module for.
    """
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
        for weight in module.parameters()
    }
    if leave_out is not None:
        memo[id(leave_out)] = nn.Identity()
    return copy.deepcopy(module, memo)


def fingerprint(model: nn.Module) -> str:
    """Return 16 hex digits of a model's structure, its weights' shapes and a sample of values."""
    # The repr has what the weights do not show: activations, epsilons.
    digest = hashlib.sha256(repr(model).encode())
    for key, value in model.state_dict().items():
        flat = value.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 1024)].float().contiguous()
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
