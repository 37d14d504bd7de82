"""How a student is taught, in values: quick to import, so that mistakes are told at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import IGNORE

Phase = Literal["clip-guided", "self-training", "none"]
Steps = tuple[int, int | None]
"""The first and the last step, counted from 1; None is no end."""


class SupervisionError(MaskCLIPError):
    """Labels cannot be found as asked."""


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """Where the labels of unlabelled pixels come from, and how they are learnt.

    The defaults are the published arithmetic, without labels for unlabelled pixels.

    Attributes:
        unlabeled: the ids of the classes without labels; only these are ever assigned.
        clip_guided: the steps in which the frozen CLIP labels.
        self_training: the steps in which the student's own features label.
        teacher_scale: CLIP sees the student's images enlarged by this factor: a small student can
            learn from a CLIP at its best size.
        prompt_denoising, key_smoothing: thresholds for CLIP's maps, in [0, 1]; None is off.
        distillation: weight of the distance between the student's features and CLIP's, in every
            step (`distillation_loss`); learnt instead of CLIP's labels; None is off.
        confidence: assigned labels whose winning map value lies under it are not learnt, in the
            unit of the maps (CLIP's: see `refine`; the student's: inner products); None is off.
        background: whether class 0 is the student's learnable background, which CLIP cannot label.
        published_loss: whether cross entropy is averaged over all pixels, ignored ones included
            (reference fact P4), or over those that count.
    """

    unlabeled: tuple[int, ...] = ()
    clip_guided: Steps | None = None
    self_training: Steps | None = None
    teacher_scale: float = 1.0
    prompt_denoising: float | None = None
    key_smoothing: float | None = None
    distillation: float | None = None
    confidence: float | None = None
    background: bool = False
    published_loss: bool = True

    def __post_init__(self) -> None:
        ids = self.unlabeled
        if len(set(ids)) < len(ids) or any(index < 0 or index == IGNORE for index in ids):
            raise SupervisionError(
                f"unlabelled: expected distinct class ids from 0 without {IGNORE}, got {ids}"
            )
        one, other = self.clip_guided, self.self_training
        for name, steps in {"clip_guided": one, "self_training": other}.items():
            self._check_steps(name, steps)
        if one is not None and other is not None and (_in(one[0], other) or _in(other[0], one)):
            raise SupervisionError(
                f"clip_guided {one} and self_training {other} share steps; end one before the other"
            )
        for name in ("prompt_denoising", "key_smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SupervisionError(
                    f"{name}: expected a threshold in [0, 1], or None for none, got {value}"
                )
        if not 0 < self.teacher_scale < math.inf:
            raise SupervisionError(
                f"teacher_scale: expected a factor above 0, got {self.teacher_scale}"
            )
        for name in ("confidence", "distillation"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SupervisionError(
                    f"{name}: expected a value above 0, or None for none, got {value}"
                )
        if self.distillation is not None and one is not None:
            raise SupervisionError(
                "CLIP teaches by labels (clip_guided) or by features (distillation), not by both; "
                "set one of them to None"
            )
        if self.background and self.clip_guided is not None and 0 in ids:
            raise SupervisionError(
                "class 0 is the learnable background, which CLIP has no words for; take it out of "
                "`unlabeled`, or set background=False"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether CLIP takes part in any step."""
        return self.clip_guided is not None or self.distillation is not None

    def _check_steps(self, name: str, steps: Steps | None) -> None:
        if steps is not None and (steps[0] < 1 or not _in(steps[0], steps)):
            raise SupervisionError(
                f"{name}: expected (first, last) steps from 1, None for no last one, got {steps}; "
                "None instead of both switches it off"
            )
        if steps is not None and not self.unlabeled:
            raise SupervisionError(f"{name}: set `unlabeled` to the classes it is to label")


def _in(step: int, steps: Steps | None) -> bool:
    return steps is not None and steps[0] <= step and (steps[1] is None or step <= steps[1])


def phase_at(config: Supervision, step: int) -> Phase:
    """Return who labels at a step of the whole training, counted from 1."""
    if _in(step, config.clip_guided):
        return "clip-guided"
    return "self-training" if _in(step, config.self_training) else "none"


def stretched(config: Supervision, *, steps: int, to: int) -> Supervision:
    """Return the phases of a training of `steps` for one of another length, in proportion."""
    guided, own = config.clip_guided, config.self_training
    if guided is not None and guided[1] is not None:
        guided = guided[0], max(guided[0], guided[1] * to // steps)
    if own is not None:
        first = max(own[0] * to // steps, 1 if guided is None else (guided[1] or 0) + 1)
        own = first, None if own[1] is None else max(first, own[1] * to // steps)
    return replace(config, clip_guided=guided, self_training=own)


def poly_lr(step: int, *, steps: int, base: float, floor: float, power: float = 0.9) -> float:
    """Return the learning rate after so many steps: `base` at 0, `floor` from `steps` on."""
    return (base - floor) * math.pow(max(0.0, 1 - step / steps), power) + floor


OPTIMIZERS = ("sgd", "adamw")


class TrainingError(MaskCLIPError):
    """A training that cannot start or go on."""


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How weights are changed; the defaults are those published (reference fact P15).

    Attributes:
        steps: of the whole training.
        batch: images a step, of all processes together.
        rate, floor: learning rate at the first and after the last step.
        power: of the polynomial between them.
        optimizer: `"sgd"`, or `"adamw"` for students from scratch and transformers, with a rate
            near 0.002.
        momentum: of SGD; the first beta of AdamW.
        weight_decay: holds for every trained weight.
        frozen_norms: keep the statistics of BatchNorms as they start, as small batches need.
        seed: of the weights that are not loaded, the order of images, and augmentation.
    """

    steps: int = 2000
    batch: int = 16
    rate: float = 0.01
    floor: float = 1e-4
    power: float = 0.9
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    frozen_norms: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.floor <= self.rate or not math.isfinite(self.rate):
            raise TrainingError(
                f"rate, floor: expected 0 < floor <= rate, got rate {self.rate:g} and floor "
                f"{self.floor:g}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise TrainingError(
                f"optimiser: expected one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}"
            )
        if not 0 <= self.momentum < 1:
            raise TrainingError(f"momentum: expected [0, 1), got {self.momentum:g}")
        if self.weight_decay < 0:
            raise TrainingError(f"weight_decay: expected at least 0, got {self.weight_decay:g}")
        if self.seed < 0:
            raise TrainingError(f"seed: expected a whole number from 0, got {self.seed}")
