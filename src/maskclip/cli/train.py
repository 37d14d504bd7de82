"""`maskclip train`: a network of your own from free labels."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskclip.cli import options as opt
from maskclip.cli.train_inputs import (
    checked_scores,
    least_scores,
    open_inputs,
    read_student_weights,
    say_if_small,
)
from maskclip.core.errors import MaskCLIPError, require_extra

if TYPE_CHECKING:
    from maskclip.core.method import Method
    from maskclip.core.samples import Samples
    from maskclip.plus.config import Machine, Training

_of_photos = partial(typer.Option, rich_help_panel="Own photos")
_of_supervision = partial(typer.Option, rich_help_panel="Supervision")


def train(
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder.")],
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A student of `maskclip recipes`; those of the embedded world need no data.",
        ),
    ] = None,
    data: opt.Data = None,
    images: Annotated[Path | None, _of_photos(metavar="DIR", help="Your own photos.")] = None,
    class_names: opt.ClassNames = None,
    classes: opt.ClassFile = None,
    vocabulary: opt.ClassSet = None,
    background: opt.BackgroundRule = None,
    labels: Annotated[
        Path | None,
        _of_photos(
            metavar="DIR",
            help="True labels of some photos, such as corrected ones: masks, an export of CVAT, "
            "Label Studio or COCO, or the folder of `label`. What they leave open, the teacher "
            "labels.",
        ),
    ] = None,
    validate: Annotated[
        float | None,
        _of_photos(
            metavar="SHARE",
            help="Keep this share of the labelled photos to validate on, such as 0.1, and take the "
            "best checkpoint (default: none).",
        ),
    ] = None,
    short_side: Annotated[
        int | None,
        _of_photos(
            metavar="PX",
            min=1,
            help="Photos are resized to about this short side, and the student works at it "
            "(default: 512). Sets --crop too.",
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="`deeplabv2-r101` (default); a decoder and a backbone, such as "
            "`unet:mobilenetv4_conv_small` or `deeplabv2:tf_efficientnet_lite0`; or `teacher`: it "
            "starts as the teacher itself, and learns by adamw, --lr 0.0001, --head-lr-mult 10."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The teacher: the CLIP that labels, or the preview `photo` (default: the "
            "recipe's, or ViT-B-16:openai)."
        ),
    ] = None,
    weights: opt.Weights = None,
    method: opt.MethodOfRecipe = None,
    proxy: opt.Proxy = None,
    tokenizer: opt.Tokenizer = None,
    language: opt.Language = None,
    student_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="From which the backbone starts: `imagenet`, downloaded; a .safetensors or .pth "
            "file of timm's weights for it; `photo`, offline with the extra `photo`, for "
            "tf_efficientnet_lite0; or `random` (default: the recipe's, or imagenet).",
        ),
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            "--init",
            metavar="FILE",
            help="Start from the weights of a student's file or run folder, to train it further or "
            "for other classes.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Training steps; the phases are scaled with them (default: the recipe's, or "
            "2000).",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Images per step, of all processes (default: the recipe's, or 16).",
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="`sgd` (published), or `adamw`: best from random weights, with --lr 0.002 "
            "(default: the recipe's, or sgd)."
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Learning rate at the first step (default: the recipe's, or 0.01)."
        ),
    ] = None,
    min_lr: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Learning rate after the last step (default: the recipe's, or 0.0001).",
        ),
    ] = None,
    head_lr_mult: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="By how much the learning rate of the decoder is larger than that of a backbone "
            "with weights, such as 10 (default: 1, as published).",
        ),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            min=1,
            help="Side of the training crops (default: the recipe's, or --short-side).",
        ),
    ] = None,
    refine: Annotated[
        str | None,
        _of_supervision(
            metavar="LIST",
            help="Refine the teacher's maps: some of `dominant` (half of its mean is added to each "
            "class's map), `tlp` and `pamr` (by the photo's edges), with `+`; or `none` (default: "
            "the recipe's, or none).",
        ),
    ] = None,
    key_smoothing: opt.KeySmoothing = None,
    prompt_denoising: opt.PromptDenoising = None,
    confidence: Annotated[
        float | None,
        _of_supervision(
            metavar="T",
            help="Ignore labels that the teacher is less sure of than T, such as 0.9: mostly "
            "borders between classes (default: the recipe's, or off).",
        ),
    ] = None,
    teacher_short_side: Annotated[
        int | None,
        _of_supervision(
            metavar="PX",
            min=1,
            help="The teacher sees whole photos at this short side, and not the student's crops: "
            "better labels, as `label` makes them (default: the recipe's, or the crops).",
        ),
    ] = None,
    teacher_scale: Annotated[
        float | None,
        _of_supervision(
            metavar="X",
            help="The teacher sees the crops enlarged by X: for students of small images "
            "(default: the recipe's, or 1).",
        ),
    ] = None,
    distillation: Annotated[
        float | None,
        _of_supervision(
            metavar="W",
            help="Learn CLIP's features instead of its labels, with loss weight W (paper: 1; "
            "default: off).",
        ),
    ] = None,
    balance: Annotated[
        bool,
        typer.Option(
            "--balance",
            help="Draw photos so that the classes come up evenly: by their labels, or by what the "
            "teacher sees in each, which takes a look at all of them before the first step.",
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(metavar="S", min=0, help="Seed of all random numbers (default: 0)."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from RUN/last.ckpt where there is one.")
    ] = False,
    save_every: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Write last.ckpt every N steps (default: 200, or a tenth of --steps if that is "
            "fewer).",
        ),
    ] = None,
    keep_every: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Also keep a checkpoint every N steps (default: none)."
        ),
    ] = None,
    validate_every: Annotated[
        int, typer.Option(metavar="N", min=1, help="Validate every N steps.")
    ] = 500,
    validate_on: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images per validation (default: all).")
    ] = None,
    overlays: Annotated[
        int, typer.Option(metavar="N", min=0, help="Images drawn at every validation.")
    ] = 4,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Processes that load and augment images.")
    ] = 2,
    device: opt.Device = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="Of the student: `float32`, or mixed with `bfloat16` or `float16`.",
            rich_help_panel="Machine",
        ),
    ] = "float32",
) -> None:
    """Train a segmentation network on the free labels of a teacher, such as CLIP (MaskCLIP+).

    RUN gets config.json, samples.json, last.ckpt and previous.ckpt (the one before), best.ckpt
    where there is a validation set, logs/ (CSV and TensorBoard), overlays/ (some images with the
    labels that teach the student, and its own) and student.safetensors. With --resume a stopped
    training continues, to the same weights as an unbroken one; images that are gone or cannot be
    read are left out, and listed. Under `torchrun` the processes share each batch.

    **Examples**

    `maskclip train voc20-annofree-rn50 --data ~/data --out runs/voc20`

    `maskclip train --images photos --classes classes.txt --out runs/mine`

    `maskclip train --images photos --classes classes.txt --student unet:mobilenetv4_conv_small
    --steps 4000 --out runs/fast`

    `maskclip train --images photos --classes classes.txt --labels corrected --validate 0.1
    --out runs/mine`

    `maskclip train emoji-annofree-rn --out runs/emoji`

    `maskclip segment photo.jpg --model runs/mine`
    """
    from dataclasses import replace

    from maskclip.clip.hub import names_folder
    from maskclip.core.config import read_refinements
    from maskclip.core.files import refuse_missing_model
    from maskclip.plus.config import TEACHER, Machine
    from maskclip.plus.files import student_file
    from maskclip.plus.schedule import rescale_phases
    from maskclip.trainings import FROM_TEACHER

    require_extra("train", "lightning", "tensorboard", "torchmetrics")
    if model is not None and not names_folder(model):
        refuse_missing_model(model)  # before photos are read
    machine = Machine(
        device=device,
        workers=workers,
        precision=precision,
        save_every=save_every,
        keep_every=keep_every,
        validate_every=validate_every,
        validate_on=validate_on,
        overlays=overlays,
    )
    training, samples, validation = open_inputs(
        recipe,
        data,
        images,
        (class_names or [], classes, vocabulary, background),
        labels=labels,
        validate=validate,
        seed=seed or 0,
        out=out,
    )
    if short_side is not None:
        if images is None:
            raise MaskCLIPError("--short-side belongs to --images; a recipe has its own")
        crop = crop or short_side
    elif images is not None and not resume:
        say_if_small(samples, training)
    supervision = training.supervision
    if distillation is not None:
        supervision = replace(supervision, clip_guided=None)
    if steps is not None:
        supervision = rescale_phases(supervision, steps=training.optimization.steps, to=steps)
    optimization = training.optimization
    if student == TEACHER != training.student:
        sizes = {name: getattr(optimization, name) for name in ("steps", "batch_size", "seed")}
        optimization = replace(FROM_TEACHER, **sizes)
    training = _override(
        training,
        student=student,
        teacher=_override(
            training.teacher,
            name=model,
            weights=weights,
            method=_read_method(method),
            proxy=proxy,
            tokenizer=tokenizer,
            language=language,
        ),
        student_weights=read_student_weights(student_weights, student, initial),
        initial=None if initial is None else str(student_file(initial)),
        supervision=_override(
            supervision,
            refine=None if refine is None else read_refinements(refine),
            key_smoothing=key_smoothing,
            prompt_denoising=prompt_denoising,
            confidence=least_scores(confidence, training.supervision.confidence),
            teacher_short_side=teacher_short_side,
            teacher_scale=teacher_scale,
            distillation=distillation,
        ),
        optimization=_override(
            optimization,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            min_lr=min_lr,
            head_lr_mult=head_lr_mult,
            optimizer=optimizer,
            balance=balance or None,
            seed=seed,
        ),
        augmentation=_override(
            training.augmentation,
            scale=None if short_side is None else (4 * short_side, short_side),
            crop=None if crop is None else (crop, crop),
        ),
    )
    training = checked_scores(training, samples, given=confidence)
    _run(training, samples, out, validation=validation, machine=machine, resume=resume)


def _run(
    training: Training,
    samples: Samples,
    out: Path,
    *,
    validation: Samples | None,
    machine: Machine,
    resume: bool,
) -> None:
    from maskclip.cli.console import say_how_to_resume, working
    from maskclip.cli.train_progress import TrainProgress, print_trained

    with working("loading Lightning"):
        from maskclip.tasks.train import train as run
    classes = f"{len(samples.vocabulary):,} classes"
    with ExitStack() as beginning:
        beginning.enter_context(working(f"looking at the images and encoding {classes}"))
        progress = TrainProgress(samples.vocabulary.names, beginning.close)
        try:
            trained = run(
                training,
                samples,
                out,
                validation=validation,
                machine=machine,
                resume=resume,
                callbacks=[progress],
            )
        except KeyboardInterrupt:
            say_how_to_resume("continue with the same command and --resume")
            raise
    if progress.prints:
        print_trained(trained, seconds=progress.seconds)


def _read_method(name: str | None) -> str | Method | None:
    """Return the content of a file, which the run folder keeps; names stay names."""
    from maskclip.core.methods import AUTO, METHODS, get_method

    return name if name is None or name in (AUTO, *METHODS) else get_method(name)


def _override(value: Any, **given: Any) -> Any:
    """Return a dataclass with those values changed that are given."""
    from dataclasses import replace

    return replace(value, **{name: v for name, v in given.items() if v is not None})
