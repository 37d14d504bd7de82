"""What is to be trained, in values: quick to import, so that mistakes are told at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from maskclip.data.augmentation import Augmentation
from maskclip.plus.settings import Optimization, Supervision, TrainingError

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that decides the weights of a student; which machine trains it does not.

    Attributes:
        dataset, split: what it learns from.
        teacher: the CLIP that labels, as `maskclip.load` takes it.
        weights: of the teacher: a local file, or `"random"`; None is its own.
        method, templates: the teacher's arithmetic and its prompts.
        student: a name, as `plus.config.parse_student` takes it.
        pretrained: whether the student's backbone starts from ImageNet.
        initial: the file of a student of the same architecture, whose weights this one starts
            from; its classes may be others.
        supervision, augmentation, optimization: how it learns.
    """

    dataset: str
    split: str = "train"
    teacher: str
    weights: str | None = None
    method: str = "published"
    templates: str = "published"
    student: str = "deeplabv2-r101"
    pretrained: bool = True
    initial: str | None = None
    supervision: Supervision = field(default_factory=Supervision)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimization: Optimization = field(default_factory=Optimization)

    @property
    def short_side(self) -> int:
        """Of images in use, px: the middle of the sizes that it has in training, as a ratio."""
        low, high = self.augmentation.ratio
        return round(min(self.augmentation.scale) * math.sqrt(low * high))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What does not change the result, or only in rounding.

    Attributes:
        device: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:N"` or `"mps"`.
        workers: processes that read and augment; 0 does it in the training process.
        precision: of the student: `"float32"`, `"bfloat16"` or `"float16"`.
        save_every: steps between two writings of last.ckpt.
        keep_every: steps between two checkpoints that are kept for good; None keeps none.
        validate_every: steps between two validations.
        validate_on: images a validation; None takes all.
        overlays: images that are drawn as often as it is validated; 0 draws none.
    """

    device: str = "auto"
    workers: int = 2
    precision: str = "float32"
    save_every: int = 200
    keep_every: int | None = None
    validate_every: int = 500
    validate_on: int | None = None
    overlays: int = 4

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise TrainingError(
                f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        for name in ("save_every", "validate_every", "keep_every", "validate_on"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name}: expected at least 1, got {value}")
        for name in ("workers", "overlays"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name}: expected at least 0, got {getattr(self, name)}")
