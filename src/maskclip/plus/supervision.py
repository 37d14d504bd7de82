"""What MaskCLIP+ learns from: labels that CLIP, or the student itself, gives to unlabelled pixels.

Every function is pure: a training that resumes at a step does what it would have done there.
B images, K classes, U of them unlabelled, D embedding channels, H x W pixels, h x w positions.
Labels are class ids, `ignore` (that of the vocabulary) where nothing is learnt, UNLABELED where a
label is to be assigned.
Rows have one row per class id: those of `Student.classifier()`, a learnable background included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.model import CLIPModel
from maskclip.clip.prompts import class_rows
from maskclip.clip.proxy import Proxy, load_proxy
from maskclip.clip.weights import load_clip
from maskclip.core.config import PREVIEWS, ModelConfig
from maskclip.core.dense import Dense, Scoring, score, similarity
from maskclip.core.device import choose_precision
from maskclip.core.method import PUBLISHED, Method
from maskclip.core.methods import get_method, with_proxy
from maskclip.core.samples import UNLABELED
from maskclip.core.vocabulary import IGNORE, Vocabulary
from maskclip.plus.config import Supervision, SupervisionError


@dataclass
class Teacher:
    """The CLIP that a student learns from: the text rows of its classes, and its image encoder.

    Attributes:
        rows: (K, D) unit text rows, one per class id; that of a learnable background is not used.
        encoder: of `build_teacher`; None where no step needs it.
        why: why `auto` became its method; "" where it was named.
    """

    rows: Tensor
    encoder: DenseCLIP | None = None
    why: str = ""

    def to(self, device: torch.device) -> None:
        """Move both."""
        self.rows = self.rows.to(device)
        if self.encoder is not None:
            self.encoder.to(device)


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
    if config.name in PREVIEWS:
        raise SupervisionError(f"{config.name} is a preview without CLIP: a CLIP has to teach")
    clip = load_clip(config.name, weights=config.weights)
    prompts = vocabulary.prompts[1 if supervision.background else 0 :]
    if not all(prompts):
        raise SupervisionError("a background by threshold cannot be learnt: give it words")
    rows = class_rows(clip, prompts, templates=config.templates, device=device)
    if supervision.background:
        rows = torch.cat([torch.zeros_like(rows[:1]), rows])
    if not supervision.needs_teacher:
        return Teacher(rows)
    proxy = None if config.proxy is None else load_proxy(config.proxy)
    method = with_proxy(get_method(config.method), config.proxy)
    encoder = build_teacher(clip, method=method, proxy=proxy).to(device)
    if supervision.key_smoothing is not None:
        encoder.check_keys()
    size = sum(weight.numel() for weight in encoder.parameters())
    encoder.prepare(choose_precision(config.precision, device, parameters=size))
    return Teacher(rows, encoder)


def build_teacher(
    clip: CLIPModel, *, method: Method = PUBLISHED, proxy: Proxy | None = None
) -> DenseCLIP:
    """Return a CLIP's image tower, frozen, in eval mode, to be kept out of the student."""
    return DenseCLIP.of(clip, method=method, proxy=proxy).requires_grad_(False)


@torch.no_grad()
def teacher_maps(encoder: DenseCLIP, images: Tensor, rows: Tensor, config: Supervision) -> Tensor:
    """Return CLIP's refined maps of the unlabelled classes alone (published code, P7, H2, H3).

    Args:
        encoder: the teacher, in eval mode; its method is the arithmetic.
        images: (B, 3, H, W), as `DenseCLIP.encode` takes them.
        rows: (K, D), unit length.
        config: its `unlabeled`, `teacher_scale`, `prompt_denoising` and `key_smoothing`.

    Returns:
        (B, U, h, w) in the order of `unlabeled`, spanning the images.

    Raises:
        ValueError: the encoder is in training mode.
    """
    images = _enlarged(images, config.teacher_scale)
    scoring = Scoring(
        rows=rows[list(config.unlabeled)],
        classes=tuple(range(len(config.unlabeled))),
        method=encoder.method,
        temperature=encoder.temperature,
        prompt_denoising=config.prompt_denoising,
        key_smoothing=config.key_smoothing,
    )
    dense = _encode(encoder, images, keys=scoring.needs_keys)
    return _spanning(score(dense, scoring), dense.covered, images)


@torch.no_grad()
def teacher_features(encoder: DenseCLIP, images: Tensor, config: Supervision) -> Tensor:
    """Return CLIP's raw features (B, D, h, w), spanning the images (B, 3, H, W).

    Only `teacher_scale` of `config` matters.

    Raises:
        ValueError: the encoder is in training mode.
    """
    images = _enlarged(images, config.teacher_scale)
    dense = _encode(encoder, images)
    return _spanning(dense.features, dense.covered, images)


def _encode(encoder: DenseCLIP, images: Tensor, *, keys: bool = False) -> Dense:
    if encoder.training:
        raise ValueError("the teacher is in training mode: call its eval() first")
    return encoder.encode(images, keys=keys)


def _enlarged(images: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return images
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images
    return _resize(pixels, [round(factor * side) for side in images.shape[-2:]])


def _spanning(maps: Tensor, covered: tuple[int, int], images: Tensor) -> Tensor:
    """Return maps of the images alone: the grid of padded ones reaches beyond them."""
    height, width = images.shape[-2:]
    if covered == (height, width):
        return maps
    return _resize(maps, covered)[:, :, :height, :width]


@torch.no_grad()
def self_maps(features: Tensor, rows: Tensor, config: Supervision) -> Tensor:
    """Return a student's maps of the unlabelled classes, without gradients (published code, P9).

    Args:
        features: (B, D, h, w) of the forward pass that the student then learns from.
        rows: (K, D).
        config: its `unlabeled`.

    Returns:
        (B, U, h, w) inner products in the order of `unlabeled`.
    """
    return similarity(features, rows[list(config.unlabeled)], normalize=False)


@torch.no_grad()
def assign_labels(
    labels: Tensor,
    maps: Tensor,
    classes: Sequence[int],
    *,
    confidence: float | None = None,
    ignore: int = IGNORE,
) -> Tensor:
    """Fill unlabelled pixels alone, with the best class of the maps (published code, P5).

    Args:
        labels: (B, H, W) int64.
        maps: (B, U, h, w), enlarged bilinearly to the labels.
        classes: the class id of each map; the first of equals wins.
        confidence: assigned pixels with a lower winning value become `ignore`.
        ignore: the label that does not count.

    Returns:
        (B, H, W) int64, without UNLABELED; the argument is not changed.

    Raises:
        ValueError: there is not one map per class.
    """
    if maps.shape[1] != len(classes):
        raise ValueError(f"expected {len(classes)} maps, one per class, got {maps.shape[1]}")
    ids = torch.tensor(classes, device=labels.device)
    assigned = labels.clone()
    for label, image_maps in zip(assigned, maps, strict=True):  # never B x U full-size maps
        best, index = _resize(image_maps[None], label.shape)[0].max(dim=0)
        found = ids[index]
        if confidence is not None:
            found = found.where(best >= confidence, ignore)
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
