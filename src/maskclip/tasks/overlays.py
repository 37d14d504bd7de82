"""What a student makes of a few images while it learns, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from maskclip.core.files import atomic_path
from maskclip.core.method import CLEAN
from maskclip.core.samples import Samples
from maskclip.plus.files import TrainedStudent
from maskclip.plus.module import MaskCLIPPlus
from maskclip.tasks.student_segmenter import StudentSegmenter


class Overlays(Callback):
    """Draws the first images of a data set with the student's labels, as `segment` would.

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
        """Draw where it is time to."""
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
