"""What MaskCLIP+ learns from: labels that CLIP, or the student itself, gives to unlabelled pixels.

Every function is pure: a training that resumes at a step does what it would have done there.
B images, K classes, U of them unlabelled, D embedding channels, H x W pixels, h x w positions.
Labels are class ids, `ignore` (that of the vocabulary) where nothing is learnt, UNLABELED where a
label is to be assigned.
Rows are those of `Student.classifier()`, a learnable background included: one a class id, unless
`classes` says of which class each is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.model import CLIPModel
from maskclip.clip.prompts import class_rows
from maskclip.clip.proxy import Proxy, load_proxy
from maskclip.clip.weights import load_of
from maskclip.core.config import DEFAULT_OPTIONS, PREVIEWS, ModelConfig, Options
from maskclip.core.dense import Dense, Scoring, refine_large, score
from maskclip.core.device import choose_precision
from maskclip.core.method import CLEAN, PUBLISHED, Method
from maskclip.core.methods import AUTO, get_method, with_proxy
from maskclip.core.resize import fit_within
from maskclip.core.samples import UNLABELED
from maskclip.core.vocabulary import IGNORE, Vocabulary
from maskclip.data.transforms import Place
from maskclip.imagenet.classifier import DenseClassifier, ImageClassifier, load_classifier
from maskclip.imagenet.words import ids_of
from maskclip.plus.config import Supervision, SupervisionError


class Encoder(Protocol):
    """What `DenseCLIP` and `DenseClassifier` have, which see images densely."""

    method: Method
    temperature: float
    normalize: bool
    training: bool

    def encode(self, images: Tensor, *, keys: bool = False) -> Dense:
        """Encode a batch of images (B, 3, H, W)."""
        ...

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image, of so many px, in which the method cannot work."""


@dataclass
class Teacher:
    """What a student learns from: the rows of its classes, and the image encoder.

    Attributes:
        rows: (P, D) text rows; that of a learnable background is not used.
        classes: the class of each row: ascending, every class at least once.
        encoder: frozen; None where no step needs it.
        source: what it was made of, for a student that starts from it.
        why: why `auto` became its method; "" where it was named.
    """

    rows: Tensor
    classes: tuple[int, ...]
    encoder: DenseCLIP | DenseClassifier | None = None
    source: CLIPModel | ImageClassifier | None = None
    why: str = ""

    def __len__(self) -> int:
        """Return the number of classes."""
        return self.classes[-1] + 1

    def class_rows(self) -> Tensor:
        """Return one row a class, (K, D): the mean of its own, of unit length where it has several.

        A classifier of any network, which does not take the best of a class's rows.
        """
        if len(self) == len(self.rows):
            return self.rows
        total = self.rows.new_zeros(len(self), self.rows.shape[1])
        index = torch.tensor(self.classes, device=self.rows.device)
        return F.normalize(total.index_add_(0, index, F.normalize(self.rows, dim=1)), dim=1)

    def to(self, device: torch.device) -> None:
        """Move both."""
        self.rows = self.rows.to(device)
        if self.encoder is not None:
            self.encoder.to(device)


def check_words(
    config: ModelConfig, vocabulary: Vocabulary, supervision: Supervision
) -> tuple[tuple[str, ...], ...]:
    """Return the words of each class that has a text row, without loading a model.

    Raises:
        MaskCLIPError: a class has no words, or some that the teacher does not know; or the method
            has no maps that a threshold could be compared with.
    """
    prompts = vocabulary.prompts[1 if supervision.background else 0 :]
    if not all(prompts):
        raise SupervisionError(
            "a background by threshold is learnt by the supervision's background=True and "
            "`threshold`: set both, or give the background words"
        )
    by_threshold = supervision.threshold is not None and config.method != AUTO
    if by_threshold and get_method(config.method).upsample == "prompts":
        raise SupervisionError(
            "threshold: prompts compete for themselves by this method, and their probabilities "
            "are made for labels alone; take another method, or give the background words"
        )
    if config.name in PREVIEWS:
        ids_of(word for words in prompts for word in words)
    return prompts


def load_teacher(
    config: ModelConfig,
    vocabulary: Vocabulary,
    supervision: Supervision,
    *,
    device: torch.device,
) -> Teacher:
    """Load the CLIP that labels, with one text row per class; its encoder only where needed.

    Args:
        config: which CLIP, read how.
        vocabulary: the classes.
        supervision: whether class 0 is a learnable background, whose row is zero, and whether an
            encoder is needed.
        device: where the encoder and the text tower run.

    Raises:
        MaskCLIPError: the model cannot be had, or a class has no words.
    """
    prompts = check_words(config, vocabulary, supervision)
    source: CLIPModel | ImageClassifier
    if config.name in PREVIEWS:
        source = load_classifier(config.name)
        rows, classes = source.word_rows(prompts)
    else:
        read, options = config, Options(key_smoothing=supervision.key_smoothing)
        if not supervision.needs_teacher:  # its words are all that is wanted of it
            read, options = replace(config, method=CLEAN, proxy=None), DEFAULT_OPTIONS
        source = load_of(read, options)
        rows = class_rows(source, prompts, templates=config.templates, device=device)
        classes = tuple(range(len(rows)))
    if supervision.background:
        rows = torch.cat([torch.zeros_like(rows[:1]), rows])
        classes = (0, *(index + 1 for index in classes))
    teacher = Teacher(rows, classes, source=source)
    if supervision.needs_teacher:
        proxy = None if config.proxy is None else load_proxy(config.proxy)
        method = with_proxy(get_method(config.method), config.proxy)
        encoder = build_teacher(source, method=method, proxy=proxy).to(device)
        if supervision.key_smoothing is not None:
            encoder.check_keys()
        size = sum(weight.numel() for weight in encoder.parameters())
        encoder.prepare(choose_precision(config.precision, device, parameters=size))
        teacher.encoder = encoder
    return teacher


def build_teacher(
    source: CLIPModel | ImageClassifier,
    *,
    method: Method = PUBLISHED,
    proxy: Proxy | None = None,
) -> DenseCLIP | DenseClassifier:
    """Return an image tower, frozen, in eval mode, to be kept out of the student.

    A classifier has a reading of its own, whatever the method.
    """
    if isinstance(source, ImageClassifier):
        return DenseClassifier(source).requires_grad_(False)
    return DenseCLIP.of(source, method=method, proxy=proxy).requires_grad_(False)


@torch.no_grad()
def teacher_maps(
    encoder: Encoder,
    images: Tensor,
    rows: Tensor,
    config: Supervision,
    *,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """Return CLIP's refined maps of the unlabelled classes alone (published code, P7, H2, H3).

    Args:
        encoder: the teacher, in eval mode; its method is the arithmetic.
        images: (B, 3, H, W), as `DenseCLIP.encode` takes them.
        rows: (P, D).
        config: its `unlabeled`, `threshold`, `teacher_short_side`, `teacher_scale`, `refine`,
            `prompt_denoising` and `key_smoothing`.
        classes: the class of each row; None is one row a class.

    Returns:
        (B, U, h, w) in the order of `unlabeled`, spanning the images; the background's map is the
        threshold everywhere.

    Raises:
        ValueError: the encoder is in training mode.
    """
    images = _seen(images, config)
    kept, pooled = _rows_of(config.worded, range(len(rows)) if classes is None else classes)
    scoring = Scoring(
        rows=rows[kept],
        classes=pooled,
        method=encoder.method,
        temperature=encoder.temperature,
        normalize=encoder.normalize,
        refine=config.refine,
        prompt_denoising=config.prompt_denoising,
        key_smoothing=config.key_smoothing,
        threshold=config.threshold,
    )
    dense = _encode(encoder, images, keys=scoring.needs_keys)
    maps = _spanning(score(dense, scoring), dense.covered, images)
    if not scoring.by_photo:
        return maps
    photos = images.float() / 255 if images.dtype == torch.uint8 else images
    return refine_large(_resize(maps, photos.shape[-2:]), photos, scoring)


def _rows_of(wanted: Sequence[int], classes: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
    """Return which rows are of the wanted classes, class by class, and of which of them each is."""
    found = [
        (row, index)
        for index, one in enumerate(wanted)
        for row, owner in enumerate(classes)
        if owner == one
    ]
    return [row for row, _ in found], tuple(index for _, index in found)


@torch.no_grad()
def teacher_features(encoder: Encoder, images: Tensor, config: Supervision) -> Tensor:
    """Return CLIP's raw features (B, D, h, w), spanning the images (B, 3, H, W).

    Only `teacher_scale` of `config` matters.

    Raises:
        ValueError: the encoder is in training mode.
    """
    images = _seen(images, config)
    dense = _encode(encoder, images)
    return _spanning(dense.features, dense.covered, images)


def _encode(encoder: Encoder, images: Tensor, *, keys: bool = False) -> Dense:
    if encoder.training:
        raise ValueError("the teacher is in training mode: call its eval() first")
    return encoder.encode(images, keys=keys)


def _seen(images: Tensor, config: Supervision) -> Tensor:
    """Return images (B, 3, H, W) at the size at which the teacher sees them."""
    height, width = images.shape[-2:]
    side, factor = config.teacher_short_side, config.teacher_scale
    size = (round(factor * height), round(factor * width))
    if side is not None:
        size = fit_within((height, width), short=side, long=4 * side)
    if size == (height, width):
        return images
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images
    return _resize(pixels, size)


def cut_maps(maps: Tensor, place: Place, size: tuple[int, int]) -> Tensor:
    """Return the part of a photo's maps (1, K, any grid) that a crop of it sees: (1, K, h, w).

    Beyond the photo is what its border has.
    """
    middle = (place.left + place.right - 1, place.top + place.bottom - 1)
    width, height = place.right - place.left, place.bottom - place.top
    theta = maps.new_tensor(
        [[-width if place.flipped else width, 0, middle[0]], [0, height, middle[1]]]
    )
    grid = F.affine_grid(theta[None], [1, maps.shape[1], *size], align_corners=False)
    # "border" does the same, and is unknown to Apple's GPUs.
    return F.grid_sample(maps, grid, padding_mode="reflection", align_corners=False)


def _spanning(maps: Tensor, covered: tuple[int, int], images: Tensor) -> Tensor:
    """Return maps of the images alone: the grid of padded ones reaches beyond them."""
    height, width = images.shape[-2:]
    if covered == (height, width):
        return maps
    return _resize(maps, covered)[:, :, :height, :width]


def self_maps(logits: Tensor, config: Supervision) -> Tensor:
    """Return a student's maps of the unlabelled classes, without gradients (published code, P9).

    Args:
        logits: (B, K, h, w) of the forward pass that the student then learns from.
        config: its `unlabeled`.

    Returns:
        (B, U, h, w) inner products in the order of `unlabeled`.
    """
    return logits.detach()[:, list(config.unlabeled)]


def teacher_confidence(config: Supervision) -> float | tuple[float, ...] | None:
    """Return the `confidence` of CLIP's labels: a background by threshold needs none."""
    needed = config.confidence
    if config.threshold is None or needed is None:
        return needed
    others = needed[1:] if isinstance(needed, tuple) else (needed,) * max(config.unlabeled)
    return (-1.0, *others)


@torch.no_grad()
def assign_labels(
    labels: Tensor,
    maps: Tensor,
    classes: Sequence[int],
    *,
    confidence: float | Sequence[float] | None = None,
    ignore: int = IGNORE,
) -> Tensor:
    """Fill unlabelled pixels alone, with the best class of the maps (published code, P5).

    Args:
        labels: (B, H, W) int64.
        maps: (B, U, h, w), enlarged bilinearly to the labels.
        classes: the class id of each map; the first of equals wins.
        confidence: assigned pixels with a lower winning value become `ignore`; one value, or one
            for each class id.
        ignore: the label that does not count.

    Returns:
        (B, H, W) int64, without UNLABELED; the argument is not changed.

    Raises:
        ValueError: there is not one map per class.
    """
    if maps.shape[1] != len(classes):
        raise ValueError(f"expected {len(classes)} maps, one per class, got {maps.shape[1]}")
    ids = torch.tensor(classes, device=labels.device)
    needed = None if confidence is None else torch.as_tensor(confidence, device=labels.device)
    assigned = labels.clone()
    for label, image_maps in zip(assigned, maps, strict=True):  # never B x U full-size maps
        best, index = _resize(image_maps[None], label.shape)[0].max(dim=0)
        found = ids[index]
        if needed is not None:
            least = needed[found] if needed.ndim else needed
            found = found.where(best >= least, ignore)
        label.copy_(label.where(label != UNLABELED, found))
    return assigned


def check_leakage(labels: Tensor, classes: Sequence[int]) -> None:
    """Refuse labels of a class that is to be learnt without labels.

    Raises:
        SupervisionError: there is one.
    """
    wanted = torch.tensor(classes, dtype=labels.dtype, device=labels.device)
    leaked = torch.isin(labels, wanted)  # at once: a GPU waits for the answer a single time
    if bool(leaked.any()):
        found = int(labels[leaked].min())
        raise SupervisionError(
            f"label leakage: the ground truth has class {found}, which is to be learnt "
            f"without labels; make it {UNLABELED} where labels are loaded, take it out of "
            "`unlabeled`, or learn from it with keep_labels=True"
        )


def segmentation_loss(
    logits: Tensor, labels: Tensor, *, published: bool = True, ignore: int = IGNORE
) -> Tensor:
    """Return the cross entropy of logits (B, K, h, w), enlarged to labels (B, H, W); a scalar.

    `ignore` and UNLABELED do not count; where nothing else is, the loss and its gradient are 0. The
    average is over all pixels (published code, P4), or over those that count.
    """
    targets = labels.masked_fill(labels == UNLABELED, ignore)
    logits = _resize(logits, labels.shape[-2:])
    total = F.cross_entropy(logits, targets, ignore_index=ignore, reduction="sum")
    if published:
        return total / targets.numel()
    return total / (targets != ignore).sum().clamp_min(1)


def distillation_loss(
    features: Tensor, teacher: Tensor, labels: Tensor, *, ignore: int = IGNORE
) -> Tensor:
    """Return the mean L1 distance of a student's features from CLIP's of unit length; a scalar.

    As published, both are enlarged to the labels (B x D x H x W values); unlike there, the student
    learns from it (published code, P11).

    Args:
        features: (B, D, h, w) of the student, raw.
        teacher: (B, D, any grid) of CLIP, raw, spanning the same images; not tracked.
        labels: (B, H, W); pixels of `ignore` do not count, and where none counts the loss is 0.
    """
    size = labels.shape[-2:]
    target = _resize(F.normalize(teacher.detach().float(), dim=1), size)
    distance = (_resize(features.float(), size) - target).abs().mean(dim=1)
    counted = labels != ignore
    return (distance * counted).sum() / counted.sum().clamp_min(1)


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
