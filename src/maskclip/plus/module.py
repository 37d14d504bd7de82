"""The training of a student, as a module of Lightning: one step, its optimiser, its validation.

B images, K classes, D embedding channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn

from maskclip.clip.encoder import DenseCLIP
from maskclip.core.files import atomic_path
from maskclip.core.metrics import ConfusionMatrix
from maskclip.core.resize import Geometry, label
from maskclip.core.samples import UNLABELED
from maskclip.core.vocabulary import IGNORE
from maskclip.core.windows import cut
from maskclip.plus.recognize import METADATA_KEY
from maskclip.plus.settings import Optimization, Supervision, TrainingError, phase_at, poly_lr
from maskclip.plus.student import Student
from maskclip.plus.supervision import (
    assign_labels,
    check_leakage,
    distillation_loss,
    segmentation_loss,
    self_maps,
    teacher_features,
    teacher_maps,
)

LAST = "last.ckpt"
"""The checkpoint in the run folder from which a training goes on."""

MIOU = "miou"
"""The figure, in percent, by which the best checkpoint is chosen."""

COLLAPSED = 0.95  # of the assigned pixels in one class: the labels say next to nothing
_WATCHED = 50  # steps over which assigned classes are counted
_FIRST_LOOK = 10  # of these counts


class MaskCLIPPlus(L.LightningModule):
    """A student that learns from a frozen CLIP, from true labels, and from itself.

    Args:
        student: what is trained; alone in the checkpoints.
        teacher: of `build_teacher`; kept out of the module, so that it is neither saved nor moved
            into mixed precision. None where it has no part.
        rows: (K, D) text rows of the teacher, one a class id; a background's row is not read.
        supervision: where labels come from.
        optimization: how weights are changed.
        metadata: of `student_metadata`; put into every checkpoint.
    """

    def __init__(
        self,
        student: Student,
        teacher: DenseCLIP | None,
        rows: Tensor,
        supervision: Supervision,
        optimization: Optimization,
        *,
        metadata: Mapping[str, Any],
    ) -> None:
        super().__init__()
        if teacher is None and supervision.needs_teacher:
            raise TrainingError("clip-guided steps and distillation need a teacher")
        self.student = student
        self.supervision = supervision
        self.optimization = optimization
        self.metadata = dict(metadata)
        self._outside = {"teacher": teacher, "rows": rows}  # a dict hides them from nn.Module
        self._assigned = torch.zeros(len(rows), dtype=torch.int64)
        self._unlabeled = 0
        self.collapsed: tuple[int, float] | None = None
        self.unlearnt = False
        self.confusion = ConfusionMatrix(len(rows), ignore=IGNORE)

    def on_fit_start(self) -> None:
        """Move the teacher to where the student is."""
        teacher = cast(DenseCLIP | None, self._outside["teacher"])
        if teacher is not None:
            teacher.to(self.device)
        self._outside["rows"] = cast(Tensor, self._outside["rows"]).to(self.device)
        self._assigned = self._assigned.to(self.device)

    def configure_optimizers(self) -> Any:
        """Return SGD or AdamW with the polynomial rate, which changes every step."""
        config = self.optimization
        trained = [weight for weight in self.student.parameters() if weight.requires_grad]
        shared: dict[str, Any] = {"lr": config.rate, "weight_decay": config.weight_decay}
        optimizer: torch.optim.Optimizer
        if config.optimizer == "adamw":
            optimizer = torch.optim.AdamW(trained, betas=(config.momentum, 0.999), **shared)
        else:
            optimizer = torch.optim.SGD(trained, momentum=config.momentum, **shared)

        def factor(step: int) -> float:
            rate = poly_lr(
                step,
                steps=config.steps,
                base=config.rate,
                floor=config.floor,
                power=config.power,
            )
            return rate / config.rate

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make every step's random numbers those of the step, whatever came before."""
        place = (self.optimization.seed, self.global_step, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        if self.optimization.frozen_norms:
            freeze_norms(self.student)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of images (B, 3, H, W) uint8 and their labels (B, H, W) int64.

        Raises:
            TrainingError: it is not finite; the checkpoint of the last good step is written first.
            SupervisionError: labels hold a class that is to be learnt without.
        """
        images, given = batch
        features = self.student.features(images)
        labels = self.find_labels(images, given, features)
        loss = segmentation_loss(
            self.student.logits(features), labels, published=self.supervision.published_loss
        )
        loss = loss + self._distance(images, given, features)
        self._stop_unless_finite(loss)
        self._watch(given, labels)
        self.log("loss", loss.detach(), prog_bar=True)
        self.log("rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return loss

    def find_labels(self, images: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        """Return labels (B, H, W) int64 in which unlabelled pixels have those of this step."""
        config, rows = self.supervision, cast(Tensor, self._outside["rows"])
        phase = phase_at(config, self.global_step + 1)
        if phase == "none":
            check_leakage(labels, config.unlabeled)
            return labels
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            if phase == "clip-guided":
                teacher = cast(DenseCLIP, self._outside["teacher"])
                maps = teacher_maps(teacher, images, rows, config).float()
            else:
                maps = self_maps(features.float(), self.student.classifier(), config)
            return assign_labels(labels, maps, config.unlabeled, confidence=config.confidence)

    def _distance(self, images: Tensor, labels: Tensor, features: Tensor) -> Tensor | float:
        weight = self.supervision.distillation
        if weight is None:
            return 0.0
        teacher = cast(DenseCLIP, self._outside["teacher"])
        with torch.autocast(images.device.type, enabled=False):
            distance = distillation_loss(
                features, teacher_features(teacher, images, self.supervision), labels
            )
        self.log("distance", distance.detach())
        return weight * distance

    def _stop_unless_finite(self, loss: Tensor) -> None:
        finite = bool(loss.detach().isfinite())
        if self.trainer.world_size > 1:
            finite = self.trainer.strategy.reduce_boolean_decision(finite, all=True)
        if finite:
            return
        path = Path(self.trainer.default_root_dir) / LAST
        self.trainer.save_checkpoint(path)
        raise TrainingError(
            f"the loss of step {self.global_step + 1} is {float(loss.detach())}: training stopped; "
            f"{path} holds the step before. Lower the learning rate, or train in float32"
        )

    def _watch(self, given: Tensor, labels: Tensor) -> None:
        """Count what was assigned; note when that is nothing, or nearly all of it one class."""
        self._unlabeled += int((given == UNLABELED).sum())
        found = labels[(given == UNLABELED) & (labels >= 0) & (labels < len(self._assigned))]
        self._assigned += torch.bincount(found, minlength=len(self._assigned))
        step = self.global_step + 1
        if step != _FIRST_LOOK and step % _WATCHED:
            return
        total = int(self._assigned.sum())
        needed = phase_at(self.supervision, step) != "none"
        self.unlearnt = needed and self._unlabeled > 0 and total == 0
        self._unlabeled = 0
        share, index = (self._assigned / max(total, 1)).max(dim=0)
        if total and len(self.supervision.unlabeled) > 1 and float(share) > COLLAPSED:
            self.collapsed = (int(index), float(share))
        self._assigned.zero_()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Compare the labels of an image (1, 3, h, w) uint8 with their truth (H, W) int64."""
        image, truth = batch
        found, _ = predict(self.student, image, size=(truth.shape[0], truth.shape[1]))
        self.confusion.update(found, truth)

    def on_validation_epoch_end(self) -> None:
        """Log the mean IoU of all images, of all processes together."""
        miou = self.confusion.compute().miou
        self.confusion.reset()
        self.log(MIOU, 0.0 if math.isnan(miou) else 100 * miou, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put in what the student is."""
        checkpoint[METADATA_KEY] = self.metadata


def freeze_norms(module: nn.Module) -> None:
    """Put all BatchNorms of a module into eval mode."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()


@torch.no_grad()
def predict(student: Student, images: Tensor, *, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Label one image (1, 3, h, w) at another size (H, W): -> labels and scores (H, W)."""
    logits = student(images)
    shape = (images.shape[2], images.shape[3])
    windows = cut(shape, window=None, stride=None)
    return label(F.softmax(logits, dim=1), Geometry(windows, shape, shape, size, 1))


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are written whole or not at all, and read without running code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            TrainingError: the file cannot be written, as on a full disk; the one before is kept.
        """
        try:
            with atomic_path(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by the second
            reason = (str(error).splitlines() or ["unknown"])[0]
            raise TrainingError(
                f"{path}: the checkpoint cannot be written ({reason}); the one before is kept. "
                "Make room and run the same command with --resume"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values alone."""
        content: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only=True)
        return content
