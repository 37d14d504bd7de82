"""The training of a student, as a whole job: from words and images to a run folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from maskclip.core.device import Processes, choose_device, is_out_of_memory
from maskclip.core.errors import MaskCLIPWarning
from maskclip.core.files import check_writable, write_text
from maskclip.core.methods import get_method
from maskclip.core.samples import Samples
from maskclip.core.text import printable
from maskclip.core.vocabulary import Vocabulary
from maskclip.plus.balance import read_classes, shown_classes, write_classes
from maskclip.plus.config import (
    LIGHTNING_PRECISIONS,
    RANDOM,
    TEACHER,
    Machine,
    Training,
    TrainingError,
    parse_student,
)
from maskclip.plus.dataset import (
    TrainingDataset,
    check_readable,
    training_loader,
    validation_loader,
)
from maskclip.plus.files import StudentMetadata, clip_name, read_student, save_student, take_weights
from maskclip.plus.from_teacher import config_from, start_from
from maskclip.plus.module import LAST, MaskCLIPPlus, freeze_norms
from maskclip.plus.networks import check_network
from maskclip.plus.student import Student, build_student, try_step
from maskclip.plus.supervision import Teacher, check_words, load_teacher
from maskclip.tasks.callbacks import (
    BEST,
    AtomicCheckpoints,
    CountSkipped,
    StopBetweenSteps,
    SyncNorms,
    checkpoint_callbacks,
    find_checkpoint,
    quiet,
    steps_done,
)
from maskclip.tasks.overlays import DrawOverlays
from maskclip.tasks.run_folder import (
    FINISHED,
    Places,
    begin,
    compare,
    holds_training,
    locked,
    run_config,
    settle_teacher,
)

LOGS, OVERLAYS, SKIPPED, SHOWN = "logs", "overlays", "skipped.txt", "classes.json"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A training that is finished.

    Attributes:
        student: the file of the student.
        steps: that it was trained for.
        already: whether it was finished before.
        loss: of the last step; None if no step was taken.
        chosen_step: the step of the student: the best in validation, or the last.
        miou: of that step in validation, in percent; None without one.
        skipped: the images that could not be read, by name, and why.
    """

    student: Path
    steps: int
    already: bool = False
    loss: float | None = None
    chosen_step: int | None = None
    miou: float | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)


def train(
    training: Training,
    samples: Samples,
    out: Path,
    *,
    validation: Samples | None = None,
    machine: Machine | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Trained:
    """Train a student, or resume its training.

    Under `torchrun`, every process calls this; they share each batch.

    Args:
        training: what is trained, and how.
        samples: what it learns from.
        out: the run folder, as `run_folder` describes it.
        validation: images with labels, by which the best checkpoint is chosen.
        machine: where and how often.
        resume: continue from the last checkpoint where there is one.
        callbacks: further callbacks of Lightning.

    Raises:
        MaskCLIPError: something does not fit, or cannot be read or written; two trainings want one
            folder; many images cannot be read.
    """
    machine, processes = machine or Machine(), Processes.from_environment()
    batch_size = training.optimization.batch_size
    if batch_size % processes.world_size:
        raise TrainingError(
            f"`batch_size`: {batch_size} images cannot be shared among {processes.world_size} "
            "processes"
        )
    fresh = not holds_training(out)
    if fresh:
        check_words(training.teacher, samples.vocabulary, training.supervision)
        if training.student != TEACHER:
            student = parse_student(training.student, embed_dim=1)
            check_network(student, weights=_first_weights(training))
        for found in (samples, validation):
            if found is not None:
                found.check(len(found))
        check_readable(samples)
    if processes.rank != 0:
        check_writable(out)
    with locked(out) if processes.rank == 0 else nullcontext():
        training, why = settle_teacher(training, out)
        config = run_config(training, samples, why=why)
        places = Places(range(len(samples)))
        if not fresh:
            places = compare(out, config, samples)
            finished = _finished(training, out, resume=resume)
            if finished is not None:
                return finished
            if places.changes and processes.rank == 0:
                warnings.warn(places.changes, MaskCLIPWarning, stacklevel=2)
        device = processes.device_of(choose_device(machine.device))
        # Weights that a checkpoint holds need not be found again.
        start = training if fresh else replace(training, student_weights=RANDOM, initial=None)
        module = build(start, samples.vocabulary, device=device)
        module.teacher.why = why
        strategy = _choose_strategy(module.student, training, processes, device)
        checkpoint = None if fresh else find_checkpoint(out, module.state_dict())
        shown = None
        if training.optimization.balance:
            path, begun = out / SHOWN, None if fresh else len(places.indices)
            shown = _shown_classes(path, module.to(device), samples, training, begun=begun)
        if fresh and processes.rank == 0:
            begin(out, config, samples)  # after all that can be refused
            if shown is not None:
                write_classes(shown, out / SHOWN)
        dataset = TrainingDataset(samples, training, places=places.indices, classes=shown)
        job = _Job(training, dataset, validation, machine, processes, device, strategy, out)
        return _fit(job, module, checkpoint=checkpoint, callbacks=callbacks)


def _shown_classes(
    path: Path, module: MaskCLIPPlus, samples: Samples, training: Training, *, begun: int | None
) -> list[list[int]]:
    """Return the classes that each image shows; of a training of so many that has begun, as then.

    Raises:
        TrainingError: the file of that training cannot be used.
    """
    if begun is not None:
        return read_classes(path, images=begun, classes=len(samples.vocabulary))
    module.teacher.to(module.device)
    return shown_classes(samples, module.complete, short_side=training.short_side)


def _finished(training: Training, out: Path, *, resume: bool) -> Trained | None:
    """Return the student of a training that is finished, None where there are steps left.

    Raises:
        TrainingError: `resume` does not allow to go on.
    """
    steps, file = training.optimization.steps, out / FINISHED
    done = file.exists() and steps_done(out) == steps
    if resume:
        return Trained(student=file, steps=steps, already=True) if done else None
    if done:
        raise TrainingError(
            f"{out} holds this training, already finished: {file}. To train it further, choose "
            f"another `out` with `initial={file}`"
        )
    raise TrainingError(
        f"{out} holds this training already: continue it with `resume=True`, or choose another "
        "`out`"
    )


class _Job(NamedTuple):
    """What a training is put together from."""

    training: Training
    dataset: TrainingDataset
    validation: Samples | None
    machine: Machine
    processes: Processes
    device: torch.device
    strategy: str
    out: Path


def _fit(
    job: _Job,
    module: MaskCLIPPlus,
    *,
    checkpoint: Path | None,
    callbacks: Sequence[Callback],
) -> Trained:
    training, dataset, validation, machine, processes, device, _, out = job
    samples = dataset.samples
    steps = training.optimization.steps
    best_and_last = checkpoint_callbacks(
        out, machine, steps=steps, validated=validation is not None
    )
    counting = CountSkipped(len(samples), 0 if validation is None else len(validation))
    drawing = DrawOverlays(
        validation or samples,
        count=machine.overlays,
        every=min(machine.validate_every, training.optimization.steps),
        folder=out / OVERLAYS,
        short_side=training.short_side,
    )
    with quiet():
        trainer = _trainer(job, callbacks=[*best_and_last, counting, drawing, *callbacks])
        share = {"rank": processes.rank, "world_size": processes.world_size}
        loader = training_loader(
            dataset,
            **share,
            workers=machine.workers,
            pin_memory=device.type == "cuda",
            steps_done=lambda: trainer.global_step,
        )
        truth = None
        if validation is not None:
            scale = training.augmentation.scale
            truth = validation_loader(validation, scale, most=machine.validate_on, **share)
        try:
            trainer.fit(module, loader, truth, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:
            if trainer.interrupted:  # which Lightning turns into an exit
                raise KeyboardInterrupt from None
            raise
        except RuntimeError as error:
            raise _explained(error) from error
        trainer.save_checkpoint(out / LAST)
    chosen = out / (BEST if validation is not None else LAST)
    best = best_and_last[-1].best_model_score if validation is not None else None
    step = None
    if trainer.is_global_zero:
        student = read_student(chosen)
        step = student.step
        save_student(student, out / FINISHED)
        if counting.skipped:
            listed = sorted(counting.skipped.items())
            lines = [printable(f"{name}: {reason}") for name, reason in listed]
            write_text("\n".join([*lines, ""]), out / SKIPPED)
    loss = trainer.callback_metrics.get("loss")
    return Trained(
        student=out / FINISHED,
        steps=training.optimization.steps,
        already=loss is None,
        loss=None if loss is None else float(loss),
        chosen_step=step,
        miou=None if best is None else float(best),
        skipped=counting.skipped,
    )


def _explained(error: RuntimeError) -> Exception:
    """Return what a user can do about an error of PyTorch's, or the error itself."""
    text = str(error)
    if "DataLoader worker" in text:
        return TrainingError(
            "a process that loads images ended by itself, as where memory runs out: take fewer "
            "`workers` (0 loads in the training process), and go on with `resume=True`"
        )
    if is_out_of_memory(error):
        return TrainingError(
            "the memory of the device is not enough: take a smaller `batch_size` or `crop`, "
            "another `out`, and `initial` to start from a checkpoint of this training"
        )
    return error


def build(training: Training, vocabulary: Vocabulary, *, device: torch.device) -> MaskCLIPPlus:
    """Return the student and its teacher, ready to be trained.

    Raises:
        MaskCLIPError: a model cannot be had, or does not fit.
    """
    supervision = training.supervision
    teacher = load_teacher(training.teacher, vocabulary, supervision, device=device)
    if teacher.encoder is not None:
        side, factor = supervision.teacher_short_side, supervision.teacher_scale
        seen = training.augmentation.crop if side is None else (side, side)
        teacher.encoder.check_size(*(round(factor * side) for side in seen))
    torch.manual_seed(training.optimization.seed)
    student = start_student(training, teacher)
    metadata = StudentMetadata(
        config=student.config,
        vocabulary=vocabulary,
        short_side=training.short_side,
        clip=clip_name(training.teacher.name),
        templates=training.teacher.templates,
        language=training.teacher.language,
    )
    return MaskCLIPPlus(student, teacher, supervision, training.optimization, metadata=metadata)


def start_student(training: Training, teacher: Teacher) -> Student:
    """Build the student for the rows of its teacher's classes, with its first weights.

    Raises:
        MaskCLIPError: there is no such student, or its first weights cannot be had or do not fit.
    """
    background = training.supervision.background
    if training.student == TEACHER:
        assert teacher.source is not None
        method, first = get_method(training.teacher.method), int(background)
        rows, classes = teacher.rows[first:], [index - first for index in teacher.classes[first:]]
        config = config_from(
            teacher.source, method, classes, embed_dim=rows.shape[1], background=background
        )
        student = build_student(config, rows)
        start_from(student.backbone, teacher.source, method)
    else:
        rows = teacher.class_rows()[1 if background else 0 :]
        config = parse_student(training.student, embed_dim=rows.shape[1], background=background)
        student = build_student(config, rows, weights=_first_weights(training))
    if training.initial is not None:
        take_weights(student, Path(training.initial))
    return student


def _first_weights(training: Training) -> str:
    """Return where the backbone's first weights come from: nowhere, where all are given."""
    return RANDOM if training.initial is not None else training.student_weights


def _trainer(job: _Job, *, callbacks: Sequence[Callback]) -> L.Trainer:
    training, machine, processes, device, out = (
        job.training, job.machine, job.processes, job.device, job.out,
    )  # fmt: skip
    steps, logs = training.optimization.steps, str(out / LOGS)
    validated = job.validation is not None
    alone, local = processes.world_size == 1, processes.local_world_size
    synchronized = not alone and device.type == "cuda"
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index] if device.index is not None and alone else local,
        num_nodes=processes.world_size // local,
        strategy=job.strategy,
        precision=LIGHTNING_PRECISIONS[machine.precision],  # type: ignore[arg-type]
        max_steps=steps,
        val_check_interval=min(machine.validate_every, steps) if validated else None,
        check_val_every_n_epoch=None if validated else 1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=min(10, steps),
        logger=[CSVLogger(logs, name="csv"), TensorBoardLogger(logs, name="tensorboard")],
        callbacks=[*callbacks, *([StopBetweenSteps(out / LAST)] if alone else [])],
        plugins=[AtomicCheckpoints(), *([SyncNorms()] if synchronized else [])],
        default_root_dir=out,
        enable_progress_bar=False,  # callbacks show the progress
        enable_model_summary=False,
    )


def _choose_strategy(
    student: Student, training: Training, processes: Processes, device: torch.device
) -> str:
    """Return Lightning's strategy; weights that nothing depends on are not trained any more.

    Raises:
        TrainingError: the student cannot learn from so few images at once.
    """
    alone = processes.world_size == 1
    if training.optimization.frozen_norms:
        freeze_norms(student)
    together = alone or device.type == "cuda"  # elsewhere BatchNorms are not synchronised
    images = training.optimization.batch_size // (1 if together else processes.world_size)
    trial = try_step(student, images=images, crop=training.augmentation.crop)
    for name, weight in student.named_parameters():
        if name in trial.unused:
            weight.requires_grad_(False)
    if alone:
        return "auto"
    return "ddp" if trial.known else "ddp_find_unused_parameters_true"
