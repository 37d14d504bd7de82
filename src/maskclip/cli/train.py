"""`maskclip train`: a network of your own from free labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskclip.cli import options as opt
from maskclip.core.errors import MaskCLIPError, require_extra

if TYPE_CHECKING:
    from maskclip.core.samples import Samples
    from maskclip.core.vocabulary import Vocabulary
    from maskclip.plus.config import Machine, Training


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
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Your own unlabelled photos.", rich_help_panel="Own photos"
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Classes of your photos: text, one a line, or TOML.",
            rich_help_panel="Own photos",
        ),
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Or a built-in class set.", rich_help_panel="Own photos"),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="`deeplabv2-r101` (default), or a decoder and a backbone, such as "
            "`unet:mobilenetv4_conv_small`."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The CLIP that labels; ViT-B-16:openai for your own photos."),
    ] = None,
    weights: opt.Weights = None,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Start from random weights, not from ImageNet's.")
    ] = False,
    initial: Annotated[
        Path | None,
        typer.Option(
            "--init",
            metavar="FILE",
            help="Start from the weights of a student's file, to train it further or for other "
            "classes.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Training steps; the phases are scaled with them."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images per step, of all processes.")
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="`sgd` (published), or `adamw`: best with --scratch and --lr 0.002."),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(metavar="X", help="Learning rate at the first step.")
    ] = None,
    min_lr: Annotated[
        float | None, typer.Option(metavar="X", help="Learning rate after the last step.")
    ] = None,
    crop: Annotated[
        int | None, typer.Option(metavar="PX", min=1, help="Side of the training crops.")
    ] = None,
    key_smoothing: opt.KeySmoothing = None,
    prompt_denoising: opt.PromptDenoising = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            help="Ignore labels that CLIP is less sure of than T, such as 0.9: mostly borders "
            "between classes.",
            rich_help_panel="Supervision",
        ),
    ] = None,
    teacher_scale: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="CLIP sees the crops enlarged by X: for students of small images.",
            rich_help_panel="Supervision",
        ),
    ] = None,
    distillation: Annotated[
        float | None,
        typer.Option(
            metavar="W",
            help="Learn CLIP's features instead of its labels, with loss weight W (paper: 1).",
            rich_help_panel="Supervision",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", min=0, help="Seed of all random numbers.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from RUN/last.ckpt where there is one.")
    ] = False,
    save_every: Annotated[
        int, typer.Option(metavar="N", min=1, help="Write last.ckpt every N steps.")
    ] = 200,
    keep_every: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Also keep a checkpoint every N steps.")
    ] = None,
    validate_every: Annotated[
        int, typer.Option(metavar="N", min=1, help="Validate every N steps.")
    ] = 500,
    validate_on: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images per validation; all by default.")
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
    """Train a segmentation network on the labels that CLIP gives for free (MaskCLIP+).

    RUN gets config.json, last.ckpt, best.ckpt where there is a validation set, logs/ (CSV and
    TensorBoard), overlays/ (the student's labels of some images) and student.safetensors. With
    --resume a stopped training continues, to the same weights as an unbroken one. Under `torchrun`
    the processes share each batch.

    **Examples**

    `maskclip train voc20-annofree-rn50 --data ~/data --out runs/voc20`

    `maskclip train --images photos --classes classes.txt --out runs/mine`

    `maskclip train --images photos --classes classes.txt --student unet:mobilenetv4_conv_small
    --steps 4000 --out runs/fast`

    `maskclip train emoji-annofree-rn --out runs/emoji`

    `maskclip segment photo.jpg --model runs/mine/student.safetensors`
    """
    from dataclasses import replace

    from maskclip.plus.config import Machine, rescale_phases

    require_extra("train", "lightning", "tensorboard", "torchmetrics")
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
    training, samples, validation = _open_inputs(recipe, data, images, classes, vocabulary)
    supervision = training.supervision
    if distillation is not None:
        supervision = replace(supervision, clip_guided=None)
    if steps is not None:
        supervision = rescale_phases(supervision, steps=training.optimization.steps, to=steps)
    training = _override(
        training,
        student=student,
        teacher=_override(training.teacher, name=model, weights=weights),
        pretrained=False if scratch else None,
        initial=None if initial is None else str(initial),
        supervision=_override(
            supervision,
            key_smoothing=key_smoothing,
            prompt_denoising=prompt_denoising,
            confidence=confidence,
            teacher_scale=teacher_scale,
            distillation=distillation,
        ),
        optimization=_override(
            training.optimization,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            min_lr=min_lr,
            optimizer=optimizer,
            seed=seed,
        ),
        augmentation=_override(training.augmentation, crop=None if crop is None else (crop, crop)),
    )
    samples.check(len(samples))
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
    from maskclip.cli.console import print_line, print_path, working
    from maskclip.cli.train_progress import TrainProgress

    with working("loading Lightning"):
        from maskclip.tasks.train import train as run
    progress = TrainProgress(samples.vocabulary.names)
    try:
        finished = run(
            training,
            samples,
            out,
            validation=validation,
            machine=machine,
            resume=resume,
            callbacks=[progress],
        )
    except KeyboardInterrupt:
        print_line("stopped: continue with the same command and --resume", errors=True)
        raise
    if progress.prints:
        print_path(finished)


def _override(value: Any, **given: Any) -> Any:
    """Return a dataclass with those values changed that are given."""
    from dataclasses import replace

    return replace(value, **{name: v for name, v in given.items() if v is not None})


def _open_inputs(
    recipe: str | None,
    data: Path | None,
    images: Path | None,
    classes: Path | None,
    vocabulary: str | None,
) -> tuple[Training, Samples, Samples | None]:
    """Return what is trained, what it learns from, and the validation set."""
    if (recipe is None) == (images is None):
        what = "nothing to train on" if recipe is None else "a recipe has its own images"
        raise MaskCLIPError(f"{what}: give a RECIPE (`maskclip recipes`), or --images DIR")
    if images is not None:
        if data is not None:
            raise MaskCLIPError("--data belongs to recipes; your own photos are --images")
        return _own_photos(images, opt.read_vocabulary([], classes, vocabulary))
    if classes is not None or vocabulary is not None:
        raise MaskCLIPError("--classes and --vocabulary belong to --images; a recipe has its own")
    from maskclip.recipes import get_training

    assert recipe is not None
    training = get_training(recipe).training
    if training.dataset == "emoji":
        if data is not None:
            raise MaskCLIPError("emoji is drawn: leave out --data")
        from maskclip.emoji.scenes import EmojiScenes, training_scenes

        return training, training_scenes(), EmojiScenes()
    samples = _published(training.dataset, data, training.split)
    validation = _published(training.dataset, data, "val")
    validation.check(len(validation))
    return training, samples, validation


def _published(name: str, data: Path | None, split: str) -> Samples:
    return opt.open_data(name, data=data, split=split, images=None, masks=None, classes=None)


def _own_photos(images: Path, words: Vocabulary) -> tuple[Training, Samples, None]:
    from maskclip.core.config import DEFAULT_MODEL
    from maskclip.data.datasets import open_photos
    from maskclip.recipes import own_training

    training = own_training("photos", DEFAULT_MODEL, classes=len(words))
    return training, open_photos(images, words), None
