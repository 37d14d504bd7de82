"""Students by name: the published ones with their scores, and those that this project measured.

`maskclip train NAME` trains one. Published are `<dataset>-{annofree,zeroshot}-<teacher>`, with mIoU
in percent from the authors' repository and the paper; those of drawn scenes (`emoji-...`) and of
small photos (`photo-...`) are ours, for one core of a processor, and measured in docs/results.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from maskclip.core.config import Augmentation, ModelConfig
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import CLEAN
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.specs import SPECS
from maskclip.emoji.scenes import UNSEEN
from maskclip.plus.config import RANDOM, TEACHER, Optimization, Supervision, Training
from maskclip.recipes import TEACHERS


@dataclass(frozen=True)
class TrainingRow:
    """A student that can be trained by name, and its published scores.

    Attributes:
        name: what users type.
        training: what is trained, and how.
        miou: in percent, in the authors' table; None where the student is not theirs.
        unseen: mean IoU of the unseen classes, in percent, in the paper; None without any.
        harmonic: mean of the IoU of seen and unseen classes, in percent, in the paper.
        measured: mIoU in percent that this project measured (docs/results.md); None where it did
            not.
    """

    name: str
    training: Training
    miou: float | None = None
    unseen: float | None = None
    harmonic: float | None = None
    measured: float | None = None

    @property
    def scores(self) -> tuple[float | None, ...]:
        """mIoU of all classes, of the unseen ones, and the harmonic mean."""
        return self.miou, self.unseen, self.harmonic


_TRAINED_ON = {"voc20": "trainaug"}  # the other data sets' split is called train
_CROPS = {"voc20": 512, "context59": 480, "context60": 480, "cocostuff171": 512}


def _training(
    dataset: str, teacher: str, supervision: Supervision, optimization: Optimization
) -> Training:
    crop = _CROPS[dataset]
    augmentation = Augmentation(scale=SPECS[dataset].scale, crop=(crop, crop))
    return Training(
        dataset=dataset,
        split=_TRAINED_ON.get(dataset, "train"),
        teacher=ModelConfig(name=TEACHERS[teacher], method="published"),
        supervision=supervision,
        augmentation=augmentation,
        optimization=optimization,
    )


def _annotation_free(dataset: str, teacher: str, steps: int, miou: float) -> TrainingRow:
    """CLIP labels all pixels, in every step."""
    supervision = Supervision(unlabeled=_all_classes(dataset), clip_guided=(1, None))
    training = _training(dataset, teacher, supervision, Optimization(steps=steps))
    return TrainingRow(f"{dataset}-annofree-{teacher}", training, miou)


def _zero_shot(
    dataset: str, steps: int, miou: float, *, unseen: float, harmonic: float
) -> TrainingRow:
    """CLIP labels the unseen classes in the first tenth of the steps, the student afterwards."""
    last = steps // 10 - 1
    supervision = Supervision(
        unlabeled=SPECS[dataset].unseen, clip_guided=(1, last), self_training=(last + 1, None)
    )
    training = _training(dataset, "rn50", supervision, Optimization(steps=steps))
    return TrainingRow(f"{dataset}-zeroshot-rn50", training, miou, unseen, harmonic)


def _all_classes(dataset: str) -> tuple[int, ...]:
    return tuple(range(len(Vocabulary.builtin(dataset))))


def _with_background(row: TrainingRow) -> TrainingRow:
    """DeepLabv3+ with a learnable background and a lower learning rate: published for Context."""
    training = row.training
    changed = replace(
        training,
        student="deeplabv3plus-r101",
        supervision=replace(training.supervision, background=True),
        optimization=replace(training.optimization, lr=0.004, weight_decay=1e-4),
    )
    return replace(row, training=changed)


_TRAINING_ROWS = (
    _annotation_free("voc20", "rn50", 2000, 58.0),
    _annotation_free("voc20", "rn50x16", 2000, 67.5),
    _annotation_free("context59", "rn50", 4000, 23.9),
    _annotation_free("context59", "rn50x16", 4000, 25.2),
    _annotation_free("context59", "vitb16", 4000, 31.1),
    _annotation_free("cocostuff171", "rn50", 8000, 13.8),
    _annotation_free("cocostuff171", "rn50x16", 8000, 17.3),
    _annotation_free("cocostuff171", "vitb16", 8000, 18.0),
    _zero_shot("voc20", 20_000, 87.8, unseen=86.1, harmonic=87.4),
    _with_background(_zero_shot("context60", 40_000, 48.4, unseen=66.7, harmonic=53.3)),
    _zero_shot("cocostuff171", 80_000, 39.7, unseen=54.7, harmonic=45.0),
)


def own_training(dataset: str, teacher: str, *, classes: int) -> Training:
    """Return the published annotation-free training for images and words of one's own.

    CLIP labels by the clean method, and the loss is averaged over the pixels that count.
    """
    supervision = Supervision(
        unlabeled=tuple(range(classes)), clip_guided=(1, None), published_loss=False
    )
    return Training(
        dataset=dataset, split="all", teacher=ModelConfig(name=teacher), supervision=supervision
    )


FROM_TEACHER = Optimization(
    optimizer="adamw", lr=1e-4, head_lr_mult=10, min_lr=1e-6, weight_decay=0.01
)
"""How a student that starts from its teacher learns: its tower slowly, what is added at once."""


# At this temperature the confidence below was chosen and the students were measured; the embedded
# CLIPs' own are 23 and 30, at which fewer labels are so sure.
_EMOJI_METHOD = replace(CLEAN, temperature=100.0)


def _emoji(
    name: str,
    teacher: str,
    supervision: Supervision,
    *,
    steps: int,
    measured: float,
    batch_size: int = 16,
) -> TrainingRow:
    """A student for a CPU: small, on drawn scenes, which its teacher sees twice as large."""
    training = replace(
        own_training("emoji", teacher, classes=len(Vocabulary.builtin("emoji"))),
        split="train",
        teacher=ModelConfig(name=teacher, method=_EMOJI_METHOD),
        student="deeplabv3plus:resnet10t",
        student_weights=RANDOM,
        supervision=replace(supervision, teacher_scale=2.0, published_loss=False),
        augmentation=Augmentation(
            scale=(128, 128), ratio=(0.9, 1.4), crop=(128, 128), distort=False
        ),
        optimization=Optimization(
            optimizer="adamw", lr=0.003, weight_decay=0.01, steps=steps, batch_size=batch_size
        ),
    )
    return TrainingRow(name, training, measured=measured)


def _emoji_free(teacher: str, *, steps: int, measured: float) -> TrainingRow:
    supervision = Supervision(
        unlabeled=_all_classes("emoji"), clip_guided=(1, None), confidence=0.9
    )
    name = f"emoji-annofree-{teacher}"
    return _emoji(
        name, f"emoji-{teacher}", supervision, steps=steps, measured=measured, batch_size=8
    )


def _emoji_from_teacher(teacher: str, *, steps: int, measured: float) -> TrainingRow:
    """A student that starts as its teacher, at its size, and learns where its borders are.

    Labels are refined by the edges of drawn things, and most of them are sure then.
    """
    training = replace(
        own_training("emoji", teacher, classes=len(Vocabulary.builtin("emoji"))),
        split="train",
        student=TEACHER,
        supervision=Supervision(
            unlabeled=_all_classes("emoji"),
            clip_guided=(1, None),
            refine=("pamr",),
            confidence=0.9,
            published_loss=False,
        ),
        augmentation=Augmentation(
            scale=(416, 416), ratio=(0.9, 1.4), crop=(256, 256), distort=False
        ),
        optimization=replace(FROM_TEACHER, steps=steps, batch_size=8),
    )
    return TrainingRow(teacher.replace("-", "-teacher-"), training, measured=measured)


# A student from scratch is able to teach itself later than one from ImageNet.
_EMOJI_ZERO_SHOT = Supervision(unlabeled=UNSEEN, clip_guided=(1, 800), self_training=(801, None))
_EMBEDDED_ROWS = (
    _emoji_free("rn", steps=6000, measured=67.0),
    _emoji_free("vit", steps=5000, measured=57.9),
    _emoji_from_teacher("emoji-rn", steps=400, measured=74.4),
    _emoji("emoji-zeroshot-rn", "emoji-rn", _EMOJI_ZERO_SHOT, steps=1600, measured=78.6),
)


def _photo(
    name: str, supervision: Supervision, *, steps: int, measured: float | None = None
) -> TrainingRow:
    """A student of the preview, that starts from it: for a CPU, on VOC photos of 240 px.

    The preview sees them at its working size. Its labels are refined, for those of single
    positions are right too seldom to learn from (docs/results.md).
    """
    training = Training(
        dataset="voc20",
        split=_TRAINED_ON["voc20"],
        teacher=ModelConfig(name="photo"),
        student=TEACHER,
        supervision=replace(
            supervision,
            teacher_short_side=320,
            refine=("dominant",),
            key_smoothing=1.0,
            confidence=0.4,
            published_loss=False,
        ),
        augmentation=Augmentation(
            scale=(960, 240), ratio=(0.75, 1.5), crop=(224, 224), distort=False
        ),
        optimization=replace(FROM_TEACHER, steps=steps, batch_size=8),
    )
    return TrainingRow(name, training, measured=measured)


_PHOTO_STEPS = 400
_PHOTO_ROWS = (
    _photo(
        "photo-annofree",
        Supervision(unlabeled=_all_classes("voc20"), clip_guided=(1, None)),
        steps=_PHOTO_STEPS,
        measured=57.8,
    ),
    _photo(
        "photo-zeroshot",
        Supervision(
            unlabeled=SPECS["voc20"].unseen,
            clip_guided=(1, _PHOTO_STEPS // 10),
            self_training=(_PHOTO_STEPS // 10 + 1, None),
        ),
        steps=_PHOTO_STEPS,
        measured=61.6,
    ),
)

TRAININGS = {row.name: row for row in (*_TRAINING_ROWS, *_EMBEDDED_ROWS, *_PHOTO_ROWS)}
"""The students that are trained by name: the published, those of drawn scenes, and of photos."""


def get_training(name: str) -> TrainingRow:
    """Return the recipe of a student.

    Raises:
        MaskCLIPError: names those that there are.
    """
    if name not in TRAININGS:
        raise MaskCLIPError(
            f"unknown recipe {name!r}: expected one of {', '.join(TRAININGS)} (`maskclip recipes`)"
        )
    return TRAININGS[name]
