"""What changes from step to step of a training: who labels, and the learning rate."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from maskclip.plus.config import Supervision, within

Phase = Literal["clip-guided", "self-training", "none"]


def phase_at(config: Supervision, step: int) -> Phase:
    """Return what labels the pixels at a step of the training, counted from 1."""
    if within(step, config.clip_guided):
        return "clip-guided"
    return "self-training" if within(step, config.self_training) else "none"


def rescale_phases(config: Supervision, *, steps: int, to: int) -> Supervision:
    """Return the phases of a training of `steps` for one of another length, in proportion."""
    guided, own = config.clip_guided, config.self_training
    if guided is not None and guided[1] is not None:
        guided = guided[0], max(guided[0], guided[1] * to // steps)
    if own is not None:
        first = max(own[0] * to // steps, 1 if guided is None else (guided[1] or 0) + 1)
        own = first, None if own[1] is None else max(first, own[1] * to // steps)
    return replace(config, clip_guided=guided, self_training=own)


def poly_lr(step: int, *, steps: int, lr: float, min_lr: float, power: float = 0.9) -> float:
    """Return the learning rate after some steps: `lr` after none, `min_lr` after all of them."""
    return (lr - min_lr) * math.pow(max(0.0, 1 - step / steps), power) + min_lr
