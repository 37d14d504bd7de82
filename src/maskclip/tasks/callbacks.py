"""Callbacks of a training: checkpoints, stopping between steps, overlays of what is learnt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from maskclip.core.files import atomic_path
from maskclip.core.method import CLEAN
from maskclip.core.samples import Samples
from maskclip.plus.config import Machine, TrainingError
from maskclip.plus.files import TrainedStudent
from maskclip.plus.module import LAST, MIOU, MaskCLIPPlus
from maskclip.tasks.segmenter import StudentSegmenter

BEST = "best.ckpt"
"""The checkpoint in the run folder of the highest mIoU in validation."""


def checkpoint_callbacks(out: Path, machine: Machine, *, validated: bool) -> list[Callback]:
    """Return what writes last.ckpt, step=N.ckpt where asked for, and best.ckpt where validated."""
    latest = _Checkpoint(
        out,
        filename=Path(LAST).stem,
        every_n_train_steps=machine.save_every,
        enable_version_counter=False,
    )
    found: list[Callback] = [latest]
    if machine.keep_every is not None:
        every = machine.keep_every
        found.append(_Checkpoint(out, filename="{step}", every_n_train_steps=every, save_top_k=-1))
    if validated:
        best = _Checkpoint(
            out,
            filename=Path(BEST).stem,
            monitor=MIOU,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        found.append(best)
    return found


class _Checkpoint(ModelCheckpoint):
    """Identified by its file name: Lightning's own key is the same for equal intervals."""

    @property
    def state_key(self) -> str:
        """The key of its state in a checkpoint."""
        return f"{type(self).__name__}:{self.filename}"


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
        except (OSError, RuntimeError) as error:  # torch reports a full disk by the second
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


class StopBetweenSteps(Callback):
    """On Ctrl-C, finish the step, write a checkpoint, then stop; a second Ctrl-C stops at once.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._interrupted = False
        self._previous: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the signal handler, which only the main thread may do."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop here after an interrupt."""
        if self._interrupted:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the previous signal handler."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


class DrawOverlays(Callback):
    """Draw the first images of a data set with the student's labels, as `segment` would.

    They are written as `STEP_NAME.jpg`, so that a viewer flips through the training, and shown in
    TensorBoard.

    Args:
        samples: the data set.
        count: of its images.
        every: steps between two drawings; the last step is drawn too.
        folder: where pictures are written.
        short_side: working size in px.
    """

    def __init__(
        self, samples: Samples, *, count: int, every: int, folder: Path, short_side: int
    ) -> None:
        self.samples = samples
        self.indices = range(min(count, len(samples)))
        self.every = every
        self.folder = folder
        self.short_side = short_side

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Draw every so many steps."""
        step = trainer.global_step
        if not trainer.is_global_zero or (step % self.every and step != trainer.max_steps):
            return
        assert isinstance(pl_module, MaskCLIPPlus)
        segmenter = StudentSegmenter(
            TrainedStudent(pl_module.student, self.samples.vocabulary, step, self.short_side),
            name="the student",
            fingerprint="",
            method=CLEAN,
            device=pl_module.device,
            precision="float32",
        )
        for index in self.indices:
            sample = self.samples[index]
            picture = segmenter.segment(sample.image).overlay()
            name = sample.name.replace("/", "_").replace(".", "_")  # photos' names have suffixes
            path = self.folder / f"{step:06}_{name}.jpg"
            with atomic_path(path) as temporary:
                picture.save(temporary, format="JPEG", quality=90)
            _show(picture, sample.name, step, trainer.loggers)
        pl_module.student.train()


def _show(picture: Image.Image, name: str, step: int, loggers: Sequence[object]) -> None:
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
