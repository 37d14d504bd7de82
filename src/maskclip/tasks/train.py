"""The training of a student, as a whole job: from words and images to a run folder.

A run folder holds config.json (all that decides the weights), last.ckpt and best.ckpt, logs/ (CSV
and TensorBoard), overlays/ (what the student makes of a few images), and in the end
student.safetensors.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from maskclip.core.device import choose_device
from maskclip.core.errors import MaskCLIPError, differences, list_differences
from maskclip.core.files import check_writable, file_fingerprint, write_json
from maskclip.core.samples import Samples
from maskclip.core.text import read_json
from maskclip.core.vocabulary import Vocabulary
from maskclip.plus.config import (
    LIGHTNING_PRECISIONS,
    Machine,
    Training,
    TrainingError,
    parse_student,
)
from maskclip.plus.dataset import training_loader, validation_loader
from maskclip.plus.files import StudentMetadata, read_student, save_student, take_weights
from maskclip.plus.module import LAST, MaskCLIPPlus
from maskclip.plus.student import Student, build_student
from maskclip.plus.supervision import load_teacher
from maskclip.tasks.callbacks import (
    BEST,
    AtomicCheckpoints,
    DrawOverlays,
    StopBetweenSteps,
    checkpoint_callbacks,
)

CONFIG, FINISHED = "config.json", "student.safetensors"
LOGS, OVERLAYS = "logs", "overlays"


class Processes(NamedTuple):
    """The processes that train together, as `torchrun` describes them; alone without it."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @classmethod
    def from_environment(cls) -> Processes:
        """Read the variables that `torchrun` sets."""
        values = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        return cls(*(int(os.environ.get(name, value)) for name, value in values.items()))


def train(
    training: Training,
    samples: Samples,
    out: Path,
    *,
    validation: Samples | None = None,
    machine: Machine | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Train a student, or resume its training.

    Under `torchrun`, every process calls this; they share each batch.

    Args:
        training: what is trained, and how.
        samples: what it learns from.
        out: the run folder.
        validation: images with labels, by which the best checkpoint is chosen.
        machine: where and how often.
        resume: continue from last.ckpt where there is one.
        callbacks: further callbacks of Lightning.

    Returns:
        The file of the finished student.

    Raises:
        MaskCLIPError: something does not fit, or cannot be read or written.
    """
    machine, processes = machine or Machine(), Processes.from_environment()
    _check_batch_size(training.optimization.batch_size, processes)
    config = run_config(training, samples)
    checkpoint = find_checkpoint(out, config, resume=resume)
    check_writable(out)
    device = _device_of(processes, choose_device(machine.device))
    module = build(training, samples.vocabulary, device=device)
    write_json(config, out / CONFIG)  # after all that can be refused
    validated = validation is not None
    drawing = DrawOverlays(
        validation or samples,
        count=machine.overlays,
        every=min(machine.validate_every, training.optimization.steps),
        folder=out / OVERLAYS,
        short_side=training.short_side,
    )
    callbacks = [*checkpoint_callbacks(out, machine, validated=validated), drawing, *callbacks]
    with _quiet():
        trainer = _trainer(
            training, machine, out, device, processes, callbacks=callbacks, validated=validated
        )
        loader = training_loader(
            samples,
            training,
            rank=processes.rank,
            world_size=processes.world_size,
            workers=machine.workers,
            pin_memory=device.type == "cuda",
            steps_done=lambda: trainer.global_step,
        )
        truth = None
        if validation is not None:
            truth = validation_loader(
                validation,
                training.augmentation.scale,
                most=machine.validate_on,
                rank=processes.rank,
                world_size=processes.world_size,
            )
        try:
            trainer.fit(module, loader, truth, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:
            if trainer.interrupted:  # which Lightning turns into an exit
                raise KeyboardInterrupt from None
            raise
        trainer.save_checkpoint(out / LAST)
    if trainer.is_global_zero:
        chosen = out / (BEST if validated else LAST)
        save_student(read_student(chosen), out / FINISHED)
    return out / FINISHED


def build(training: Training, vocabulary: Vocabulary, *, device: torch.device) -> MaskCLIPPlus:
    """Return the student and its teacher, ready to be trained.

    Raises:
        MaskCLIPError: a model cannot be had, or does not fit.
    """
    supervision = training.supervision
    teacher = load_teacher(training.teacher, vocabulary, supervision, device=device)
    torch.manual_seed(training.optimization.seed)
    student = start_student(training, teacher.rows[1 if supervision.background else 0 :])
    metadata = StudentMetadata(
        config=student.config, vocabulary=vocabulary, short_side=training.short_side
    )
    return MaskCLIPPlus(student, teacher, supervision, training.optimization, metadata=metadata)


def start_student(training: Training, rows: Tensor) -> Student:
    """Build the student for the text rows (C, D) of its classes, with its first weights.

    Raises:
        MaskCLIPError: there is no such student, or its first weights cannot be had or do not fit.
    """
    background = training.supervision.background
    config = parse_student(training.student, embed_dim=rows.shape[1], background=background)
    pretrained = training.pretrained and training.initial is None
    student = build_student(config, rows, pretrained=pretrained)
    if training.initial is not None:
        take_weights(student, Path(training.initial))
    return student


def run_config(training: Training, samples: Samples) -> dict[str, Any]:
    """Return what config.json holds: all that decides the weights, files by their content."""
    teacher = training.teacher
    named = (teacher.name, teacher.weights, training.initial)
    files = [Path(name) for name in named if name is not None]
    content = {
        **asdict(training),
        "files": {str(file): file_fingerprint(file) for file in files if file.is_file()},
        "samples": samples.metadata(),
        "classes": list(samples.vocabulary.names),
    }
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def find_checkpoint(out: Path, config: dict[str, Any], *, resume: bool) -> Path | None:
    """Return the checkpoint of a run folder to resume from, or None where there is none yet.

    Raises:
        TrainingError: the folder holds another training, or one that `resume` does not allow.
    """
    last, path = out / LAST, out / CONFIG
    if not last.exists():
        return None
    try:
        saved = read_json(path, "the settings of a training")
    except (OSError, MaskCLIPError) as error:
        raise TrainingError(f"{path}: not readable ({error}); choose another --out") from error
    changes = differences(saved, config)
    if changes:
        raise TrainingError(
            f"{out} holds another training: {list_differences(changes)}. Choose another --out"
        )
    if not resume:
        raise TrainingError(
            f"{out} holds this training already: continue it with --resume, or choose another --out"
        )
    return last


def _trainer(
    training: Training,
    machine: Machine,
    out: Path,
    device: torch.device,
    processes: Processes,
    *,
    callbacks: Sequence[Callback],
    validated: bool,
) -> L.Trainer:
    steps, logs = training.optimization.steps, str(out / LOGS)
    alone, local = processes.world_size == 1, processes.local_world_size
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index] if device.index is not None and alone else local,
        num_nodes=processes.world_size // local,
        strategy="auto" if alone else "ddp",
        sync_batchnorm=not alone and device.type == "cuda",
        precision=LIGHTNING_PRECISIONS[machine.precision],  # type: ignore[arg-type]
        max_steps=steps,
        val_check_interval=min(machine.validate_every, steps) if validated else None,
        check_val_every_n_epoch=None if validated else 1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=min(10, steps),
        logger=[CSVLogger(logs, name="csv"), TensorBoardLogger(logs, name="tensorboard")],
        callbacks=[*callbacks, *([StopBetweenSteps(out / LAST)] if alone else [])],
        plugins=[AtomicCheckpoints()],
        default_root_dir=out,
        enable_progress_bar=False,  # callbacks show the progress
        enable_model_summary=False,
    )


def _device_of(processes: Processes, device: torch.device) -> torch.device:
    """Return the GPU of this process, where a launcher started one for each."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", processes.local_rank % torch.cuda.device_count())


def _check_batch_size(batch_size: int, processes: Processes) -> None:
    if batch_size % processes.world_size:
        raise TrainingError(
            f"batch_size: {batch_size} images cannot be shared among {processes.world_size} "
            "processes"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Lightning's remarks: callers report what users need."""
    names = ("lightning.pytorch", "lightning.fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
