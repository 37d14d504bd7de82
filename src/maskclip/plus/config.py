"""The configuration of MaskCLIP+: the student, its supervision, its optimisation, the machine.

Quick to import, without torch, so that mistakes are reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maskclip.core.config import (
    PREVIEWS,
    SHORT_SIDES,
    Augmentation,
    ModelConfig,
    read_refinements,
)
from maskclip.core.errors import MaskCLIPError, did_you_mean
from maskclip.core.methods import METHODS
from maskclip.core.text import brief

PUBLISHED_DECODERS = ("deeplabv2", "deeplabv3plus")
TEACHER = "teacher"
"""The student that starts from its teacher: its tower and rows, and a decoder that adds to them."""
IMAGENET, RANDOM = "imagenet", "random"
FIRST_WEIGHTS = (IMAGENET, RANDOM, *PREVIEWS)
"""The names of weights from which a backbone starts; anything else is a file of some."""
DEPTHS = (50, 101)
PUBLISHED_NAMES = tuple(f"{decoder}-r{depth}" for decoder in PUBLISHED_DECODERS for depth in DEPTHS)
OPTIMIZERS = ("sgd", "adamw")
LIGHTNING_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
"""The precisions that a student can be trained in, as Lightning names them."""

Steps = tuple[int, int | None]
"""The first and the last step, counted from 1; None is no end."""


class StudentError(MaskCLIPError):
    """A student that cannot be built."""


class SupervisionError(MaskCLIPError):
    """A supervision that is impossible, or that the labels of a data set contradict."""


class TrainingError(MaskCLIPError):
    """A training that cannot start or go on."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The architecture of a student, in plain values that fit into JSON.

    The defaults are those published with RN50 as the teacher. With ViT-B/16 the authors' students
    have depth 50, though their recipes are named after 101.

    Attributes:
        decoder: "deeplabv2" or "deeplabv3plus" as published; with a backbone, "deeplabv2" or any
            decoder of segmentation-models-pytorch in lower case, checked when the student is built.
        backbone: any backbone of timm, checked when the student is built; None is the published
            ResNet-v1c.
        depth: layers of the ResNet-v1c, 50 or 101; not used with another backbone.
        width: channels after its stem, even; stage i has 4 x width x 2^(i - 1). Not used with
            another backbone.
        skip: channels to which the published DeepLabv3+ reduces stage 1; no other uses it.
        embed_dim: channels D of text rows and features: 1024 for RN50, 768 RN50x16, 512 ViT-B/16.
        background: whether a learnable background is class 0, before those of the text rows.
        tower: with the decoder "teacher", how the image tower that it starts from is built:
            `CLIPModel.tower` or `ImageClassifier.tower`.
        method: with it, how that tower is read: the name of a built-in method.
        counts: how many rows each class has, of which the best counts; () is one.
        trained_rows: whether the rows are trained too; those of a text tower are not.
    """

    decoder: str = "deeplabv2"
    backbone: str | None = None
    depth: int = 101
    width: int = 64
    skip: int = 48
    embed_dim: int = 1024
    background: bool = False
    tower: Mapping[str, Any] | None = None
    method: str = "clean"
    counts: tuple[int, ...] = ()
    trained_rows: bool = False

    def __post_init__(self) -> None:
        if (self.decoder == TEACHER) != (self.tower is not None):
            raise StudentError(
                f"decoder, tower: the decoder {TEACHER!r} goes with the tower that it starts from, "
                f"got {self.decoder!r} {'with' if self.tower else 'without'} one"
            )
        if self.method not in METHODS:
            raise StudentError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if any(type(count) is not int or count < 1 for count in self.counts):
            raise StudentError(f"counts: expected whole numbers from 1, got {brief(self.counts)}")
        if self.tower is not None:
            return
        if self.backbone is None and self.decoder not in PUBLISHED_DECODERS:
            raise StudentError(
                f"decoder: expected {' or '.join(PUBLISHED_DECODERS)}, got {self.decoder!r}; any "
                "other needs a backbone, as unet:mobilenetv4_conv_small has"
            )
        if self.depth not in DEPTHS:
            raise StudentError(f"depth: expected {' or '.join(map(str, DEPTHS))}, got {self.depth}")
        if self.width < 2 or self.width % 2:
            raise StudentError(f"width: expected an even number from 2, got {self.width}")
        _check_counts(self, "skip", "embed_dim", error=StudentError)


def parse_student(name: str, *, embed_dim: int, background: bool = False) -> StudentConfig:
    """Return the configuration of a student's name: "deeplabv2-r101", or "decoder:backbone".

    Args:
        name: one of `PUBLISHED_NAMES`, or a decoder (deeplabv2, or one of
            segmentation-models-pytorch) and a backbone of timm, such as
            "unet:mobilenetv4_conv_small"; whether they exist is checked when the student is built.
        embed_dim: channels D of the text rows.
        background: whether a learnable background is class 0.

    Raises:
        StudentError: the name is neither.
    """
    decoder, colon, backbone = name.partition(":")
    if colon and decoder and backbone:
        return StudentConfig(
            decoder=decoder, backbone=backbone, embed_dim=embed_dim, background=background
        )
    if name not in PUBLISHED_NAMES:
        raise StudentError(
            f"`student`: no {name!r}{did_you_mean(name, PUBLISHED_NAMES)}; published are "
            f"{', '.join(PUBLISHED_NAMES)}, and others are decoder:backbone, such as "
            "unet:mobilenetv4_conv_small"
        )
    decoder, _, depth = name.partition("-r")
    return StudentConfig(
        decoder=decoder, depth=int(depth), embed_dim=embed_dim, background=background
    )


def _check_counts(
    config: object, *names: str, least: int = 1, error: type[MaskCLIPError] = TrainingError
) -> None:
    """Refuse counts below the least; None is no count."""
    for name in names:
        if (value := getattr(config, name)) is not None and value < least:
            raise error(f"`{name}`: expected at least {least}, got {value}")


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """Where the labels of unlabelled pixels come from, and how they are learnt.

    The defaults are the published arithmetic, without labels for unlabelled pixels.

    Attributes:
        unlabeled: the ids of the classes without labels; only these are ever assigned.
        keep_labels: whether true labels of `unlabeled` classes are learnt from where the samples
            have some, as with corrected labels; otherwise they are hidden.
        clip_guided: the steps in which the frozen CLIP labels.
        self_training: the steps in which the student's own features label.
        teacher_short_side: CLIP sees the whole photo at this short side in px, and not the crop of
            it that the student sees; None is the crop.
        teacher_scale: CLIP sees the student's crops enlarged by this factor: a small student can
            learn from a CLIP at its best size.
        refine: of CLIP's maps, in order: some of `"dominant"`, `"tlp"`, `"pamr"`; () for none.
        prompt_denoising, key_smoothing: thresholds for CLIP's maps, in [0, 1]; None is off.
        distillation: weight of the distance between the student's features and CLIP's, in every
            step (`distillation_loss`); learnt instead of CLIP's labels; None is off.
        confidence: assigned labels of a lower map value are ignored, in the maps' unit (CLIP's: see
            `refine`; the student's: inner products); one, or one a class id (0: none); None is off.
        background: whether class 0 is the student's learnable background, for which CLIP has no
            words: it labels none, or by the threshold.
        threshold: pixels with no map of CLIP's of this value become class 0, the background, which
            comes first in `unlabeled`; as a vocabulary's, in the unit of `confidence`; None is off.
        published_loss: whether cross entropy is averaged over all pixels, ignored ones included
            (published code, P4), or over those that count.

    Raises:
        SupervisionError: a value is out of its range, or two contradict each other.
    """

    unlabeled: tuple[int, ...] = ()
    keep_labels: bool = False
    clip_guided: Steps | None = None
    self_training: Steps | None = None
    teacher_short_side: int | None = None
    teacher_scale: float = 1.0
    refine: tuple[str, ...] = ()
    prompt_denoising: float | None = None
    key_smoothing: float | None = None
    distillation: float | None = None
    confidence: float | tuple[float, ...] | None = None
    background: bool = False
    threshold: float | None = None
    published_loss: bool = True

    def __post_init__(self) -> None:
        self._check_phases()
        object.__setattr__(self, "refine", read_refinements(self.refine))
        if "surgery" in self.refine:
            raise SupervisionError(
                "`refine`: surgery goes by the embedding of a whole photo, and a training may see "
                "crops: take some of dominant, tlp and pamr, or () for nothing"
            )
        for name in ("prompt_denoising", "key_smoothing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SupervisionError(
                    f"`{name}`: expected a threshold in [0, 1], or None for none, got {value}"
                )
        self._check_view()
        for name in ("confidence", "distillation"):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(0 <= v < math.inf for v in values) or value == 0:
                raise SupervisionError(
                    f"`{name}`: expected a value above 0, or None for none, got {value}"
                )
        if self.distillation is not None and self.clip_guided is not None:
            raise SupervisionError(
                "CLIP teaches by labels (`clip_guided`) or by features (`distillation`), not by "
                "both: leave one of them out"
            )
        self._check_background()

    def _check_background(self) -> None:
        if self.threshold is None:
            if self.background and self.clip_guided is not None and 0 in self.unlabeled:
                raise SupervisionError(
                    "class 0 is the learnable background, which CLIP has no words for; take it out "
                    "of `unlabeled`, or set background=False"
                )
            return
        if self.distillation is not None:
            raise SupervisionError(
                "`distillation`: the teacher's features have no background by threshold, its "
                "labels alone have one; give the background words, or leave `distillation` out"
            )
        if not -1 < self.threshold < 1 or not self.background or self.unlabeled[:1] != (0,):
            raise SupervisionError(
                "threshold: expected a value in (-1, 1), background=True, and class 0 as the first "
                f"of `unlabeled`, got {self.threshold}, {self.background} and {self.unlabeled[:3]}"
            )

    def _check_view(self) -> None:
        if not 0 < self.teacher_scale <= 8:
            raise SupervisionError(
                f"`teacher_scale`: expected a factor above 0, at most 8, got {self.teacher_scale}: "
                "the teacher sees crops that many times as large, in memory"
            )
        _check_counts(self, "teacher_short_side", error=SupervisionError)
        if (side := self.teacher_short_side or 0) > 4096:
            raise SupervisionError(f"`teacher_short_side`: expected at most 4096 px, got {side}")
        if side and (self.teacher_scale != 1 or self.distillation is not None):
            other = "distillation" if self.teacher_scale == 1 else "teacher_scale"
            raise SupervisionError(
                f"`teacher_short_side`: the teacher sees whole photos by it, crops by `{other}`: "
                "leave one of them out"
            )

    @property
    def worded(self) -> tuple[int, ...]:
        """The classes without labels that CLIP has words for."""
        return self.unlabeled if self.threshold is None else self.unlabeled[1:]

    @property
    def needs_teacher(self) -> bool:
        """Whether CLIP takes part in any step."""
        return self.clip_guided is not None or self.distillation is not None

    def _check_phases(self) -> None:
        ids, guided, own = self.unlabeled, self.clip_guided, self.self_training
        if len(set(ids)) < len(ids) or any(index < 0 for index in ids):
            raise SupervisionError(f"unlabeled: expected distinct class ids from 0, got {ids}")
        for name, steps in (("clip_guided", guided), ("self_training", own)):
            if steps is not None and (steps[0] < 1 or not within(steps[0], steps)):
                raise SupervisionError(
                    f"`{name}`: expected (first, last) steps from 1, None for no last one, got "
                    f"{steps}; None instead of both switches it off"
                )
            if steps is not None and not ids:
                raise SupervisionError(f"{name}: set `unlabeled` to the classes it is to label")
        if guided and own and (within(guided[0], own) or within(own[0], guided)):
            raise SupervisionError(
                f"clip_guided {guided} and self_training {own} share steps; end one before the "
                "other"
            )


def within(step: int, steps: Steps | None) -> bool:
    """Return whether a step is one of some; None is no steps."""
    return steps is not None and steps[0] <= step and (steps[1] is None or step <= steps[1])


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How weights are updated; the defaults are those published (published code, P15).

    Attributes:
        steps: of the whole training.
        batch_size: images per step, of all processes together.
        lr, min_lr: learning rate at the first and after the last step.
        head_lr_mult: by how much the learning rate of what starts from nothing is larger: of the
            decoder and of a learnable background.
        power: of the polynomial between them.
        optimizer: `"sgd"`, or `"adamw"` for students from scratch and transformers, with a
            learning rate near 0.002.
        momentum: of SGD; the first beta of AdamW.
        weight_decay: applies to every trained weight.
        balance: draw images so that the classes they show come up evenly, not each once an epoch.
        frozen_norms: keep the statistics of BatchNorms as they start, as small batches need.
        seed: of the weights that are not loaded, the order of images, and augmentation.

    Raises:
        TrainingError: a value is out of its range.
    """

    steps: int = 2000
    batch_size: int = 16
    lr: float = 0.01
    min_lr: float = 1e-4
    head_lr_mult: float = 1.0
    power: float = 0.9
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    balance: bool = False
    frozen_norms: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_counts(self, "steps", "batch_size")
        if not 0 < self.min_lr <= self.lr or not math.isfinite(self.lr):
            raise TrainingError(
                f"`min_lr`: expected a rate above 0, at most that of `lr`, got {self.min_lr:g} and "
                f"{self.lr:g}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise TrainingError(
                f"`optimizer`: expected one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}"
            )
        for name, fits, expected in (
            ("head_lr_mult", 0 < self.head_lr_mult <= 1000, "a factor above 0, at most 1000"),
            ("momentum", 0 <= self.momentum < 1, "[0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a number from 0"),
            ("power", 0 <= self.power < math.inf, "a number from 0"),
        ):
            if not fits:
                raise TrainingError(f"`{name}`: expected {expected}, got {getattr(self, name):g}")
        if self.seed < 0:
            raise TrainingError(f"`seed`: expected a whole number from 0, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that decides the weights of a student; which machine trains it does not.

    Attributes:
        dataset, split: what it learns from.
        teacher: the CLIP that labels: which, read how.
        student: a name, as `parse_student` takes it.
        student_weights: from which its backbone starts: of `FIRST_WEIGHTS`, or a file; not used by
            a student that starts from its teacher or from `initial`.
        initial: the file of a student of the same architecture, whose weights this one starts
            from; its classes may be others.
        supervision, augmentation, optimization: how it learns.
    """

    dataset: str
    split: str = "train"
    teacher: ModelConfig
    student: str = "deeplabv2-r101"
    student_weights: str = IMAGENET
    initial: str | None = None
    supervision: Supervision = field(default_factory=Supervision)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimization: Optimization = field(default_factory=Optimization)

    @property
    def short_side(self) -> int:
        """The student's working size in px: the geometric middle of its training sizes, bounded."""
        low, high = self.augmentation.ratio
        middle = round(min(self.augmentation.scale) * math.sqrt(low * high))
        return min(max(middle, SHORT_SIDES[0]), SHORT_SIDES[1])


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What does not change the weights, or only by rounding.

    Attributes:
        device: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:N"` or `"mps"`.
        workers: processes that load and augment images; 0 does it in the training process.
        precision: of the student: `"float32"`, `"bfloat16"` or `"float16"`.
        save_every: steps between two writings of last.ckpt; None is 200, or a tenth of all steps if
            that is fewer.
        keep_every: steps between two checkpoints that are never overwritten; None keeps none.
        validate_every: steps between two validations.
        validate_on: images per validation; None takes all.
        overlays: images that are drawn at every validation; 0 draws none.

    Raises:
        TrainingError: a value is out of its range.
    """

    device: str = "auto"
    workers: int = 2
    precision: str = "float32"
    save_every: int | None = None
    keep_every: int | None = None
    validate_every: int = 500
    validate_on: int | None = None
    overlays: int = 4

    def __post_init__(self) -> None:
        if self.precision not in LIGHTNING_PRECISIONS:
            raise TrainingError(
                f"`precision`: expected one of {', '.join(LIGHTNING_PRECISIONS)}, got "
                f"{self.precision!r}"
            )
        _check_counts(self, "save_every", "validate_every", "keep_every", "validate_on")
        _check_counts(self, "workers", "overlays", least=0)
