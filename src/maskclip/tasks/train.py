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
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maskclip.clip.prompts import text_rows
from maskclip.clip.weights import load_clip
from maskclip.core.device import choose_device, choose_precision
from maskclip.core.errors import differences, list_differences
from maskclip.core.files import check_writable, write_json
from maskclip.core.method import get_method
from maskclip.core.samples import Samples
from maskclip.core.vocabulary import Vocabulary
from maskclip.core.windows import fit_within
from maskclip.plus.config import parse_student
from maskclip.plus.dataset import Stream, StreamSampler, suppress
from maskclip.plus.files import (
    TrainedStudent,
    file_fingerprint,
    read_student,
    save_student,
    student_metadata,
)
from maskclip.plus.module import LAST, MIOU, AtomicCheckpoints, MaskCLIPPlus
from maskclip.plus.settings import TrainingError
from maskclip.plus.student import Student, build_student
from maskclip.plus.supervision import build_teacher
from maskclip.plus.training_config import PRECISIONS, Machine, Training
from maskclip.tasks.callbacks import Checkpoints, StopBetweenSteps
from maskclip.tasks.overlays import Overlays

CONFIG, BEST, FINISHED = "config.json", "best.ckpt", "student.safetensors"
LOGS, OVERLAYS = "logs", "overlays"


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
    """Train a student, or go on with its training.

    Under `torchrun`, every process calls this; they share each batch.

    Args:
        training: what is trained, and how.
        samples: what it learns from.
        out: the run folder.
        validation: images with truth, by which the best checkpoint is chosen.
        machine: where and how often.
        resume: go on from last.ckpt where there is one.
        callbacks: see the training pass, as those of Lightning do.

    Returns:
        The file of the finished student.

    Raises:
        MaskCLIPError: something does not fit, or cannot be read or written.
    """
    machine = machine or Machine()
    rank, world = (
        int(os.environ.get(name, value)) for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"))
    )
    _check_batch(training.optimization.batch, world)
    resolved = config_of(training, samples)
    checkpoint = checkpoint_in(out, resolved, resume=resume)
    check_writable(out)
    device = _own_device(choose_device(machine.device))
    module = build(training, samples.vocabulary, device=device)
    write_json(resolved, out / CONFIG)  # after all that can be refused
    config = training.optimization
    drawing = Overlays(
        validation or samples,
        count=machine.overlays,
        every=min(machine.validate_every, config.steps),
        folder=out / OVERLAYS,
        short_side=training.short_side,
    )
    callbacks = [drawing, *callbacks, *([StopBetweenSteps(out / LAST)] if world == 1 else [])]
    with _quiet():
        trainer = _trainer(training, machine, out, device, world, callbacks, validation is not None)
        sampler = StreamSampler(
            steps=config.steps,
            batch=config.batch,
            rank=rank,
            world=world,
            reached=lambda: trainer.global_step,
        )
        loader = DataLoader(
            stream_of(training, samples),
            batch_size=config.batch // world,
            sampler=sampler,
            num_workers=machine.workers,
            pin_memory=device.type == "cuda",
        )
        proving = (
            None if validation is None else _proving(training, validation, machine, rank, world)
        )
        try:
            trainer.fit(module, loader, proving, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:
            if trainer.interrupted:  # of which Lightning makes an exit
                raise KeyboardInterrupt from None
            raise
        trainer.save_checkpoint(out / LAST)
    if trainer.is_global_zero:
        best = out / BEST
        finished = read_student(best) if validation is not None else None
        student = module.student.eval() if finished is None else finished.student
        step = config.steps if finished is None else finished.step
        trained = TrainedStudent(student.cpu(), samples.vocabulary, step, training.short_side)
        save_student(trained, out / FINISHED)
    return out / FINISHED


def build(training: Training, vocabulary: Vocabulary, *, device: torch.device) -> MaskCLIPPlus:
    """Return the student, its teacher and their text rows, ready to be trained.

    Raises:
        MaskCLIPError: a model cannot be had, or does not fit.
    """
    clip = load_clip(training.teacher, weights=training.weights)
    clip.visual.to(device)  # its text tower follows
    supervision = training.supervision
    background = supervision.background
    rows = class_rows(clip, vocabulary, templates=training.templates, background=background)
    torch.manual_seed(training.optimization.seed)
    architecture = parse_student(training.student, embed_dim=rows.shape[1], background=background)
    own = rows[1:] if background else rows
    from_imagenet = training.pretrained and training.initial is None
    student = build_student(architecture, own, pretrained=from_imagenet)
    if training.initial is not None:
        _start_from(student, Path(training.initial))
    teacher = None
    if supervision.needs_teacher:
        teacher = build_teacher(clip, method=get_method(training.method))
        size = sum(weight.numel() for weight in teacher.parameters())
        teacher.prepare(choose_precision("auto", device, parameters=size))
    metadata = student_metadata(TrainedStudent(student, vocabulary, short_side=training.short_side))
    return MaskCLIPPlus(
        student, teacher, rows, supervision, training.optimization, metadata=metadata
    )


def _start_from(student: Student, path: Path) -> None:
    """Take over the weights of a student's file, but not what it classifies by."""
    given = read_student(path).student
    if given.config != student.config:
        raise TrainingError(
            f"{path}: another student than is asked for: "
            f"{list_differences(differences(asdict(given.config), asdict(student.config)))}"
        )
    weights = {key: value for key, value in given.state_dict().items() if key != "rows"}
    student.load_state_dict(weights, strict=False)  # the rows are its own


def class_rows(clip: Any, vocabulary: Vocabulary, *, templates: str, background: bool) -> Tensor:
    """Return one unit row a class (K, D): the mean of those of its prompts.

    Args:
        clip: the teacher.
        vocabulary: the classes.
        templates: prompt templates.
        background: class 0 is the student's own; its row is zero and never read.
    """
    named = vocabulary.prompts[1 if background else 0 :]
    if not all(named):
        raise TrainingError("a background by threshold cannot be learnt: give it words")
    flat = [prompt for prompts in named for prompt in prompts]
    found = iter(text_rows(clip, flat, templates=templates).rows)
    means = [torch.stack([next(found) for _ in prompts]).mean(dim=0) for prompts in named]
    rows = torch.nn.functional.normalize(torch.stack(means), dim=1)
    return torch.cat([torch.zeros_like(rows[:1]), rows]) if background else rows


def stream_of(training: Training, samples: Samples) -> Stream:
    """Return what a training sees, position by position."""
    config = training.optimization
    return Stream(
        samples,
        training.augmentation,
        unlabeled=training.supervision.unlabeled,
        seed=config.seed,
        length=config.steps * config.batch,
    )


def config_of(training: Training, samples: Samples) -> dict[str, Any]:
    """Return what config.json holds: all that decides the weights, files by their content."""
    named = (training.teacher, training.weights, training.initial)
    files = [Path(name) for name in named if name is not None]
    content = {
        **asdict(training),
        "files": {str(file): file_fingerprint(file) for file in files if file.is_file()},
        "samples": samples.metadata(),
        "classes": list(samples.vocabulary.names),
    }
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def checkpoint_in(out: Path, config: dict[str, Any], *, resume: bool) -> Path | None:
    """Return the checkpoint of a run folder to go on from, or None where nothing was trained yet.

    Raises:
        TrainingError: it holds another training, or a training that was not asked to go on.
    """
    last, path = out / LAST, out / CONFIG
    if not last.exists():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: not readable ({error}); choose another --out") from error
    changes = differences(kept, config)
    if changes:
        raise TrainingError(
            f"{out} holds another training: {list_differences(changes)}. Choose another --out"
        )
    if not resume:
        raise TrainingError(
            f"{out} holds this training already: go on with --resume, or choose another --out"
        )
    return last


class _Proof(Dataset[tuple[Tensor, Tensor]]):
    """Validation images at the published test size, with their truth at their own."""

    def __init__(self, samples: Samples, indices: range, scale: tuple[int, int]) -> None:
        self.samples, self.indices = samples, indices
        self.long, self.short = scale

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        sample = self.samples[self.indices[number]]
        size = (sample.image.height, sample.image.width)
        height, width = fit_within(size, short=self.short, long=self.long)
        image = sample.image.resize((width, height), Image.Resampling.BICUBIC)
        truth = suppress(sample.labels, (), ignore=self.samples.vocabulary.ignore)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None], torch.from_numpy(truth)


def _proving(
    training: Training, validation: Samples, machine: Machine, rank: int, world: int
) -> Any:
    count = (
        len(validation)
        if machine.validate_on is None
        else min(machine.validate_on, len(validation))
    )
    proof = _Proof(validation, range(rank, count, world), training.augmentation.scale)
    return DataLoader(proof, batch_size=None, num_workers=0)


def _trainer(
    training: Training,
    machine: Machine,
    out: Path,
    device: torch.device,
    world: int,
    callbacks: Sequence[Callback],
    validated: bool,
) -> L.Trainer:
    steps = training.optimization.steps
    saving: list[Callback] = [
        Checkpoints(
            out,
            filename="last",
            every_n_train_steps=machine.save_every,
            enable_version_counter=False,
        )
    ]
    if machine.keep_every is not None:
        saving.append(
            Checkpoints(
                out, filename="{step}", every_n_train_steps=machine.keep_every, save_top_k=-1
            )
        )
    if validated:
        saving.append(
            Checkpoints(
                out,
                filename="best",
                monitor=MIOU,
                mode="max",
                enable_version_counter=False,
                save_on_train_epoch_end=False,
            )
        )
    logs = str(out / LOGS)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    devices = [device.index] if device.index is not None and world == 1 else local
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=devices,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        sync_batchnorm=world > 1 and device.type == "cuda",
        precision=PRECISIONS[machine.precision],  # type: ignore[arg-type]
        max_steps=steps,
        val_check_interval=min(machine.validate_every, steps) if validated else None,
        check_val_every_n_epoch=None if validated else 1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=min(10, steps),
        logger=[CSVLogger(logs, name="csv"), TensorBoardLogger(logs, name="tensorboard")],
        callbacks=[*saving, *callbacks],
        plugins=[AtomicCheckpoints()],
        default_root_dir=out,
        enable_progress_bar=False,  # callbacks show what there is to see
        enable_model_summary=False,
    )


def _own_device(device: torch.device) -> torch.device:
    """Return the GPU of this process, where a launcher started one for each."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _check_batch(batch: int, world: int) -> None:
    if batch % world:
        raise TrainingError(f"batch: {batch} images cannot be shared among {world} processes")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the engine's remarks to itself: what users need is told by those who call."""
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
