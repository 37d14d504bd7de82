"""Pictures of what a student learns: the photo, the labels that teach it, and its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw

from maskclip.core.draw import (
    class_pixels,
    display_factor,
    overlay,
    shortened,
    sized_font,
    with_legend,
)
from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import atomic_path
from maskclip.core.method import CLEAN
from maskclip.core.resize import fit_within
from maskclip.core.samples import Ids, Sample, Samples
from maskclip.core.vocabulary import WIDE_IGNORE, Vocabulary
from maskclip.plus.files import TrainedStudent
from maskclip.plus.module import MaskCLIPPlus
from maskclip.tasks.without_clip import StudentSegmenter

_GAP = 8  # px between panels


class DrawOverlays(Callback):
    """Draw the first images of a data set with the labels that teach the student, and its own.

    They are written as `STEP_NAME.jpg`, so that a viewer flips through the training, and shown in
    TensorBoard. Images that cannot be read are left out.

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
        self.count = count
        self.every = every
        self.folder = folder
        self.short_side = short_side
        self._taught: dict[str, Ids | None] = {}  # by the teacher, which stays as it is

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
        for sample in self._first():
            try:
                picture = self._draw(sample, pl_module, segmenter, step)
            except MaskCLIPError:  # values that are not finite, on which the next step will stop
                continue
            name = sample.name.replace("/", "_").replace(".", "_")  # photos' names have suffixes
            with atomic_path(self.folder / f"{step:06}_{name}.jpg") as temporary:
                picture.save(temporary, format="JPEG", quality=90)
            _show(picture, sample.name, step, trainer.loggers)
        pl_module.student.train()

    def _first(self) -> Iterator[Sample]:
        """Yield the first samples that can be read."""
        drawn = 0
        for index in range(min(10 * self.count, len(self.samples))):
            if drawn == self.count:
                return
            try:
                sample = self.samples[index]
            except (MaskCLIPError, OSError):
                continue
            drawn += 1
            yield sample

    def _draw(
        self, sample: Sample, module: MaskCLIPPlus, segmenter: StudentSegmenter, step: int
    ) -> Image.Image:
        height, width = fit_within(
            (sample.image.height, sample.image.width),
            short=self.short_side,
            long=4 * self.short_side,
        )
        photo = sample.image.resize((width, height), Image.Resampling.BICUBIC)
        if sample.name not in self._taught:
            given = torch.from_numpy(_resized(sample.labels, height, width).astype(np.int64))
            pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
            found = module.taught(pixels[None], given[None])
            self._taught[sample.name] = None if found is None else found[0].numpy()
        taught = self._taught[sample.name]
        own = _resized(segmenter.segment(sample.image).labels, height, width)
        panels: list[tuple[str, Ids | None]] = [("photo", None), (f"student, step {step:,}", own)]
        if taught is not None:
            config = module.supervision
            free = len(config.unlabeled) == len(self.samples.vocabulary) and not config.keep_labels
            panels.insert(1, ("teacher's labels" if free else "true labels and teacher's", taught))
        return side_by_side(photo, panels, self.samples.vocabulary)


def side_by_side(
    photo: Image.Image, panels: Sequence[tuple[str, Ids | None]], vocabulary: Vocabulary
) -> Image.Image:
    """Return a photo with each of several labels over it, titled, above one legend.

    Args:
        photo: RGB, W x H.
        panels: a title and class ids (H, W) each; None is the photo alone. Other values than ids
            show the photo. The legend's shares are those of the last.
        vocabulary: the classes.
    """
    factor = display_factor(*photo.size)
    photo = photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.BOX)
    size = max(12, round(0.04 * min(photo.size)))
    font, strip = sized_font(size), round(1.8 * size)
    width = len(panels) * (photo.width + _GAP) - _GAP
    sheet = Image.new("RGB", (width, strip + photo.height), (255, 255, 255))
    drawing = ImageDraw.Draw(sheet)
    shares: dict[int, float] = {}
    for number, (title, labels) in enumerate(panels):
        left = number * (photo.width + _GAP)
        text = shortened(title, font, limit=photo.width)
        drawing.text((left, strip // 2), text, fill=(32, 33, 36), font=font, anchor="lm")
        picture = photo
        if labels is not None:
            known = (labels >= 0) & (labels < len(vocabulary))
            wide = np.where(known, labels, np.uint16(WIDE_IGNORE)).astype(np.uint16)
            found = class_pixels(wide, len(vocabulary))
            shares = {
                **dict.fromkeys(shares, 0.0),
                **{label: pixels / wide.size for label, pixels in found},
            }
            wide = wide.repeat(factor, axis=0).repeat(factor, axis=1)
            picture = overlay(photo, wide, vocabulary.colors)
        sheet.paste(picture, (left, strip))
    order = sorted(shares, key=lambda label: -shares[label])
    entries = [(vocabulary.names[i], vocabulary.colors[i], shares[i]) for i in order]
    return with_legend(sheet, entries)


def _resized(labels: Ids, height: int, width: int) -> Ids:
    """Return labels of another size: of each pixel the nearest."""
    rows = (np.arange(height) * 2 + 1) * labels.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * labels.shape[1] // (2 * width)
    return np.asarray(labels[np.ix_(rows, columns)])


def _show(picture: Image.Image, name: str, step: int, loggers: Sequence[object]) -> None:
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
