"""MaskCLIP+ as a LightningModule: the training step, the optimiser, validation.

B images, K classes, D embedding channels, H x W pixels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskclip.clip.encoder import DenseCLIP
from maskclip.core.metrics import ConfusionMatrix
from maskclip.core.resize import Geometry, cut, label
from maskclip.core.samples import UNLABELED
from maskclip.core.vocabulary import IGNORE
from maskclip.imagenet.classifier import DenseClassifier
from maskclip.plus.config import Optimization, Supervision, TrainingError
from maskclip.plus.dataset import Batch
from maskclip.plus.files import METADATA_KEY, StudentMetadata
from maskclip.plus.schedule import phase_at, poly_lr
from maskclip.plus.student import Student
from maskclip.plus.supervision import (
    Teacher,
    assign_labels,
    check_leakage,
    cut_maps,
    distillation_loss,
    segmentation_loss,
    self_maps,
    teacher_confidence,
    teacher_features,
    teacher_maps,
)

LAST = "last.ckpt"
"""The checkpoint in the run folder that a training is resumed from."""

MIOU = "miou"
"""The logged metric, in percent, by which the best checkpoint is chosen."""

COLLAPSED = 0.95  # share of the labels in one class: such labels teach next to nothing
_MAPS_STRIDE = 4  # px of an image for each position of the maps that are cut out of its photo's
_CHECK_EVERY = 50  # steps over which labels are counted
_FIRST_CHECK = 10


class MaskCLIPPlus(L.LightningModule):
    """A student that learns from a frozen CLIP, from true labels, and from itself.

    Args:
        student: what is trained, and all that checkpoints hold.
        teacher: of the same classes; it is no submodule, so that it is neither saved nor moved
            into mixed precision.
        supervision: where labels come from.
        optimization: how weights are updated.
        metadata: written into every checkpoint.

    Attributes:
        no_labels: set when no pixel was given a label for many steps; readers reset it.
        validated: how many classes had a pixel in the last validation.
        collapsed: the class that nearly all labels have, and its share; readers reset it to None.

    Raises:
        TrainingError: the supervision needs a teacher that has no image encoder, or labels a class
            that there is not.
    """

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        supervision: Supervision,
        optimization: Optimization,
        *,
        metadata: StudentMetadata,
    ) -> None:
        super().__init__()
        if teacher.encoder is None and supervision.needs_teacher:
            raise TrainingError("clip-guided steps and distillation need a teacher")
        classes = len(teacher)
        if supervision.unlabeled and max(supervision.unlabeled) >= classes:
            raise TrainingError(
                f"unlabeled: there is no class {max(supervision.unlabeled)}; the {classes} classes "
                "are counted from 0"
            )
        self.student = student
        self.teacher = teacher
        self.supervision = supervision
        self.optimization = optimization
        self.metadata = metadata
        self.ignore = IGNORE if metadata.vocabulary is None else metadata.vocabulary.ignore
        self.confusion = ConfusionMatrix(classes, ignore=self.ignore)
        self.no_labels = False
        self.validated = 0
        self.collapsed: tuple[int, float] | None = None
        self._learnt = torch.zeros(classes, dtype=torch.int64)
        self._unlabeled = self._assigned = 0
        self._norms: list[tuple[Tensor, Tensor]] | None = None

    def on_fit_start(self) -> None:
        """Move the teacher to the student's device."""
        self.teacher.to(self.device)
        self._learnt = self._learnt.to(self.device)

    def configure_optimizers(self) -> Any:
        """Return SGD or AdamW, with a polynomial learning rate that changes every step."""
        config = self.optimization
        trained = parameter_groups(self.student, config)
        shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
        optimizer: torch.optim.Optimizer
        if config.optimizer == "adamw":
            optimizer = torch.optim.AdamW(trained, betas=(config.momentum, 0.999), **shared)
        else:
            optimizer = torch.optim.SGD(trained, momentum=config.momentum, **shared)

        def factor(step: int) -> float:
            lr = poly_lr(
                step, steps=config.steps, lr=config.lr, min_lr=config.min_lr, power=config.power
            )
            return lr / config.lr

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step by its number, so that a resumed training draws what it would have."""
        key = (self.optimization.seed, self.global_step, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        if self.optimization.frozen_norms:
            freeze_norms(self.student)
        else:
            self._remember_norms()

    def _remember_norms(self) -> None:
        """Copy the statistics of BatchNorms, which the forward pass changes."""
        if self._norms is None:
            norms = (m for m in self.student.modules() if isinstance(m, _BatchNorm))
            buffers = [buffer for norm in norms for buffer in norm.buffers()]
            self._norms = [(buffer, buffer.clone()) for buffer in buffers]
        if self._norms:
            now, before = zip(*self._norms, strict=True)
            torch._foreach_copy_(before, now)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch.

        Raises:
            TrainingError: it is not finite; a checkpoint of the step before is written first.
            SupervisionError: the labels hold a class that is to be learnt without labels.
        """
        images, given = batch.images, batch.labels
        features = None
        if self.supervision.distillation is None:
            logits = self.student(images)
        else:
            features = self.student.features(images)
            logits = self.student.logits(features)
        labels = self.find_labels(batch, logits)
        loss = segmentation_loss(
            logits,
            labels,
            published=self.supervision.published_loss,
            ignore=self.ignore,
        )
        if features is not None:
            loss = loss + self._distillation(images, given, features)
        self._stop_unless_finite(loss, "loss")
        self._count_learnt(given, labels)
        self.log("loss", loss.detach(), prog_bar=True)
        groups = self.optimizers().param_groups  # type: ignore[union-attr]
        for name, group in zip(("lr", "head_lr"), groups, strict=False):
            self.log(name, group["lr"])
        return loss

    def find_labels(self, batch: Batch, logits: Tensor) -> Tensor:
        """Return labels (B, H, W) int64 in which unlabelled pixels are given those of this step."""
        config, labels = self.supervision, batch.labels
        if not config.keep_labels:
            check_leakage(labels, config.unlabeled)
        phase = phase_at(config, self.global_step + 1)
        if phase == "none":
            return labels
        with torch.no_grad(), torch.autocast(labels.device.type, enabled=False):
            if phase == "self-training":
                maps, needed = self_maps(logits, config), config.confidence
            else:
                maps, needed = self._clip_maps(batch), teacher_confidence(config)
            return assign_labels(
                labels, maps, config.unlabeled, confidence=needed, ignore=self.ignore
            )

    def taught(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """Return the labels that CLIP completes for images (B, 3, H, W) uint8; to be looked at.

        Args:
            images: the images.
            labels: (B, H, W) int64 of the samples; those of classes to be learnt without are
                hidden here.

        Returns:
            (B, H, W) int64 on the CPU; None where CLIP labels nothing.
        """
        return self.complete(images, labels)[1]

    @torch.no_grad()
    def complete(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what is learnt from of the samples' labels, and `taught`; on the CPU."""
        config = self.supervision
        if not config.keep_labels:
            hidden = torch.tensor(config.unlabeled, dtype=labels.dtype, device=labels.device)
            labels = labels.masked_fill(torch.isin(labels, hidden), UNLABELED)
        if self.teacher.encoder is None or not config.unlabeled:
            return labels.cpu(), None
        images, labels = images.to(self.device), labels.to(self.device)
        with torch.autocast(images.device.type, enabled=False):
            maps = self._teacher_maps(images)
        taught = assign_labels(
            labels,
            maps,
            config.unlabeled,
            confidence=teacher_confidence(config),
            ignore=self.ignore,
        )
        return labels.cpu(), taught.cpu()

    def _teacher_maps(self, images: Tensor) -> Tensor:
        teacher = self.teacher
        return teacher_maps(
            self._encoder, images, teacher.rows, self.supervision, classes=teacher.classes
        ).float()

    def _clip_maps(self, batch: Batch) -> Tensor:
        """Return the teacher's maps: of whole photos, where the images lie in them, or of these."""
        if not batch.photos:
            return self._teacher_maps(batch.images)
        size = tuple(-(-side // _MAPS_STRIDE) for side in batch.images.shape[-2:])
        found = [
            cut_maps(self._teacher_maps(photo[None]), place, (size[0], size[1]))
            for photo, place in zip(batch.photos, batch.places, strict=True)
        ]
        return torch.cat(found)

    @property
    def _encoder(self) -> DenseCLIP | DenseClassifier:
        assert self.teacher.encoder is not None  # the constructor refuses such supervision
        return self.teacher.encoder

    def _distillation(self, images: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """Return how far the features are from CLIP's, weighted."""
        weight = self.supervision.distillation
        assert weight is not None
        with torch.autocast(images.device.type, enabled=False):
            target = teacher_features(self._encoder, images, self.supervision)
            distance = distillation_loss(features, target, labels, ignore=self.ignore)
        self.log("distance", distance.detach())
        return weight * distance

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop before gradients that are not finite become weights.

        Raises:
            TrainingError: they are not; a checkpoint of the step before is written first.
        """
        if self.trainer.precision == "16-mixed":  # its scaler leaves such steps out
            return
        weights = self.student.parameters()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        self._stop_unless_finite(torch.nn.utils.get_total_norm(gradients), "gradient")

    def _stop_unless_finite(self, value: Tensor, what: str) -> None:
        finite = bool(value.detach().isfinite())
        if self.trainer.world_size > 1:
            finite = self.trainer.strategy.reduce_boolean_decision(finite, all=True)
        if finite:
            return
        for buffer, copy in self._norms or ():
            buffer.copy_(copy)
        path = Path(self.trainer.default_root_dir) / LAST
        self.trainer.save_checkpoint(path)
        config = self.optimization
        precise = "" if self.trainer.precision == "32-true" else ", or train in float32"
        faster = config.head_lr_mult != 1
        head = f" or a smaller `head_lr_mult` than {config.head_lr_mult:g}" if faster else ""
        raise TrainingError(
            f"the {what} of step {self.global_step + 1} is not finite: training stopped; {path} "
            f"holds the step before. Start from it with a lower learning rate (`initial={path}`, "
            f"`lr={config.lr / 2:g}`{head}, and another `out`){precise}"
        )

    def _count_learnt(self, given: Tensor, labels: Tensor) -> None:
        """Count the labels that are learnt; from time to time see whether they teach anything."""
        classes = len(self._learnt)
        valid = (labels >= 0) & (labels < classes) & (labels != self.ignore)
        unlabeled = given == UNLABELED
        self._unlabeled += int(unlabeled.sum())
        self._assigned += int((valid & unlabeled).sum())
        self._learnt += torch.bincount(labels[valid], minlength=classes)
        step = self.global_step + 1
        if step not in (_FIRST_CHECK, self.optimization.steps) and step % _CHECK_EVERY:
            return
        needed = phase_at(self.supervision, step) != "none"
        self.no_labels = needed and self._unlabeled > 0 and not self._assigned
        share, index = (self._learnt / self._learnt.sum().clamp_min(1)).max(dim=0)
        if self._assigned and len(self.supervision.unlabeled) > 1 and float(share) > COLLAPSED:
            self.collapsed = (int(index), float(share))
        self._unlabeled = self._assigned = 0
        self._learnt.zero_()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare the labels of an image (1, 3, h, w) uint8 with their truth (H, W) int64."""
        image, truth = batch.images, batch.labels
        found, _ = predict(self.student, image, size=(truth.shape[0], truth.shape[1]))
        self.confusion.update(found, truth)

    def on_validation_epoch_end(self) -> None:
        """Log the mean IoU of all images, of all processes together."""
        scores = self.confusion.compute()
        miou, self.validated = scores.miou, scores.classes
        self.confusion.reset()
        self.log(MIOU, 0.0 if math.isnan(miou) else 100 * miou, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the student's metadata.

        Raises:
            TrainingError: weights or statistics are not finite: the checkpoint before is kept.
        """
        broken = [k for k, v in checkpoint["state_dict"].items() if not bool(v.isfinite().all())]
        if broken:
            raise TrainingError(
                f"the weights after step {self.global_step} are not finite ({broken[0]}): training "
                "stopped, and the checkpoint before is kept. Start from it with `initial`, a lower "
                "`lr` and another `out`"
            )
        checkpoint[METADATA_KEY] = self.metadata.to_dict()


def parameter_groups(student: Student, config: Optimization) -> list[dict[str, Any]]:
    """Return the trained weights as optimisers take them: one group, or the head apart.

    The head is what starts from nothing; text rows, where they are trained, do not.
    """
    trained = {n: weight for n, weight in student.named_parameters() if weight.requires_grad}
    if config.head_lr_mult == 1:
        return [{"params": [*trained.values()]}]
    head = {name for name in trained if name.startswith(("decoder.", "background"))}
    others = [weight for name, weight in trained.items() if name not in head]
    lr = config.lr * config.head_lr_mult
    return [{"params": others}, {"params": [trained[n] for n in trained if n in head], "lr": lr}]


def freeze_norms(module: nn.Module) -> None:
    """Put all BatchNorms of a module into eval mode."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()


@torch.no_grad()
def predict(student: Student, images: Tensor, *, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Label one image (1, 3, h, w) at another size (H, W): -> labels and scores (H, W)."""
    logits = student(images)
    shape = (images.shape[2], images.shape[3])
    windows = cut(shape, window=None, stride=None)
    return label(F.softmax(logits, dim=1), Geometry(windows, shape, shape, size, 1))
