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
from torch.utils.data import DataLoader

from maskclip.clip.model import CLIPModel
from maskclip.clip.prompts import text_rows
from maskclip.clip.weights import load_clip
from maskclip.core.device import choose_device, choose_precision
from maskclip.core.errors import differences, list_differences
from maskclip.core.files import check_writable, write_json
from maskclip.core.method import get_method
from maskclip.core.samples import Samples
from maskclip.core.vocabulary import Vocabulary
from maskclip.plus.config import (
    LIGHTNING_PRECISIONS,
    Machine,
    Training,
    TrainingError,
    parse_student,
)
from maskclip.plus.dataset import TrainingDataset, TrainingSampler, ValidationDataset
from maskclip.plus.files import (
    TrainedStudent,
    file_fingerprint,
    read_student,
    save_student,
    student_metadata,
)
from maskclip.plus.module import LAST, MaskCLIPPlus
from maskclip.plus.student import Student, build_student
from maskclip.plus.supervision import Teacher, build_teacher
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
        loader = _training_loader(training, samples, machine, processes, trainer=trainer)
        truth = _validation_loader(training, validation, machine, processes) if validation else None
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
    teacher = load_teacher(training, vocabulary, device=device)
    student = start_student(training, teacher.rows)
    metadata = student_metadata(TrainedStudent(student, vocabulary, short_side=training.short_side))
    return MaskCLIPPlus(
        student, teacher, training.supervision, training.optimization, metadata=metadata
    )


def load_teacher(training: Training, vocabulary: Vocabulary, *, device: torch.device) -> Teacher:
    """Load the CLIP that labels, with one text row per class; its encoder only where needed.

    Raises:
        MaskCLIPError: the model cannot be had, or a class has no words.
    """
    config, supervision = training.teacher, training.supervision
    clip = load_clip(config.name, weights=config.weights)
    clip.visual.to(device)  # its text tower follows
    rows = class_rows(
        clip, vocabulary, templates=config.templates, background=supervision.background
    )
    if not supervision.needs_teacher:
        return Teacher(rows)
    encoder = build_teacher(clip, method=get_method(config.method))
    size = sum(weight.numel() for weight in encoder.parameters())
    encoder.prepare(choose_precision(config.precision, device, parameters=size))
    return Teacher(rows, encoder)


def class_rows(
    clip: CLIPModel, vocabulary: Vocabulary, *, templates: str, background: bool
) -> Tensor:
    """Return one unit row per class (K, D): the mean of those of its prompts.

    Args:
        clip: the teacher.
        vocabulary: the classes.
        templates: prompt templates.
        background: class 0 is learnt by the student; its row is zero and never used.

    Raises:
        TrainingError: a class has no words.
    """
    named = vocabulary.prompts[1 if background else 0 :]
    if not all(named):
        raise TrainingError("a background by threshold cannot be learnt: give it words")
    flat = [prompt for prompts in named for prompt in prompts]
    found = iter(text_rows(clip, flat, templates=templates).rows)
    means = [torch.stack([next(found) for _ in prompts]).mean(dim=0) for prompts in named]
    rows = torch.nn.functional.normalize(torch.stack(means), dim=1)
    return torch.cat([torch.zeros_like(rows[:1]), rows]) if background else rows


def start_student(training: Training, rows: Tensor) -> Student:
    """Build the student for the text rows (K, D) of its classes, with its first weights.

    Raises:
        MaskCLIPError: there is no such student, or its first weights cannot be had or do not fit.
    """
    torch.manual_seed(training.optimization.seed)
    background = training.supervision.background
    config = parse_student(training.student, embed_dim=rows.shape[1], background=background)
    own = rows[1:] if background else rows
    pretrained = training.pretrained and training.initial is None
    student = build_student(config, own, pretrained=pretrained)
    if training.initial is not None:
        _take_weights(student, Path(training.initial))
    return student


def _take_weights(student: Student, path: Path) -> None:
    """Copy the weights of a student's file, but not the classes that it knows."""
    given = read_student(path).student
    if given.config != student.config:
        raise TrainingError(
            f"{path}: another student than is asked for: "
            f"{list_differences(differences(asdict(given.config), asdict(student.config)))}"
        )
    weights = {key: value for key, value in given.state_dict().items() if key != "rows"}
    student.load_state_dict(weights, strict=False)  # all but the rows


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
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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


def _training_loader(
    training: Training,
    samples: Samples,
    machine: Machine,
    processes: Processes,
    *,
    trainer: L.Trainer,
) -> Any:
    optimization = training.optimization
    sampler = TrainingSampler(
        optimization,
        rank=processes.rank,
        world_size=processes.world_size,
        steps_done=lambda: trainer.global_step,
    )
    return DataLoader(
        TrainingDataset(samples, training),
        batch_size=optimization.batch_size // processes.world_size,
        sampler=sampler,
        num_workers=machine.workers,
        pin_memory=trainer.strategy.root_device.type == "cuda",
    )


def _validation_loader(
    training: Training, validation: Samples, machine: Machine, processes: Processes
) -> Any:
    wanted = len(validation) if machine.validate_on is None else machine.validate_on
    indices = range(processes.rank, min(wanted, len(validation)), processes.world_size)
    dataset = ValidationDataset(validation, indices, training.augmentation.scale)
    return DataLoader(dataset, batch_size=None, num_workers=0)


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
