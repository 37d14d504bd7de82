"""`maskclip segment`: label every pixel of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskclip.cli import options as opt
from maskclip.core.errors import MaskCLIPError

if TYPE_CHECKING:
    from maskclip.tasks.batch import FileResult

_SHOWN = 12  # classes listed per image; the files hold them all


def segment(
    images: Annotated[
        list[str], typer.Argument(help="Images, folders or glob patterns.", metavar="IMAGE")
    ],
    names: opt.ClassNames = None,
    classes: opt.ClassFile = None,
    vocabulary: opt.ClassSet = None,
    background: opt.BackgroundRule = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where files go.")] = Path("segmented"),
    save: Annotated[
        str, typer.Option(metavar="KINDS", help="Which files: of overlay, labels, scores, json.")
    ] = "overlay,labels",
    model: opt.ModelName = "ViT-B-16:openai",
    weights: opt.Weights = None,
    method: opt.MethodName = "clean",
    templates: opt.Templates = "published",
    key_smoothing: opt.KeySmoothing = None,
    prompt_denoising: opt.PromptDenoising = None,
    short_side: opt.ShortSide = None,
    window: opt.Window = None,
    stride: opt.Stride = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    max_pixels: opt.MaxPixels = None,
) -> None:
    """Label every pixel of images with the words you give.

    Writes NAME_overlay.png (to look at) and NAME_labels.png (a palette image of class indices) per
    image, and prints how much of each image every class covers.

    **Examples**

    `maskclip segment photo.jpg -c dog -c "red car" -c grass`

    `maskclip segment photos/ --vocabulary voc21 --out labels --save labels,json`

    `maskclip segment photo.jpg -c dog -c grass --key-smoothing 1 --prompt-denoising 0.5`

    `maskclip segment photos/ --model student.safetensors` (a trained student has its own classes)
    """
    from maskclip.cli.console import error_line, track, warning_line, working
    from maskclip.core.config import Options
    from maskclip.core.files import check_writable
    from maskclip.data.images import MAX_PIXELS
    from maskclip.data.sources import find_images
    from maskclip.tasks.batch import read_kinds, segment_files
    from maskclip.tasks.segmenter import load

    words, rule = opt.read_words(names, classes, vocabulary, background, model=model)
    kinds = read_kinds(save)
    options = Options(
        key_smoothing=key_smoothing,
        prompt_denoising=prompt_denoising,
        short_side=short_side,
        window=window,
        stride=stride,
    )
    paths = find_images(images)
    if not any(path.exists() for path in paths):
        raise MaskCLIPError(f"{paths[0]}: no such file")  # before a model is fetched for nothing
    check_writable(out)
    reads = "" if words is None else f", which then reads {len(words)} classes"
    with working(f"loading {model}{reads}"):
        segmenter = load(
            model,
            weights=weights,
            method=method,
            device=device,
            precision=precision,
            templates=templates,
        )
        words = segmenter.prepare(words, background=rule, options=options)
    results = segment_files(
        segmenter,
        paths,
        words,
        out=out,
        kinds=kinds,
        options=options,
        max_pixels=max_pixels or MAX_PIXELS,
    )
    failed = 0
    for result in track(results, what="segmenting", total=len(paths)):
        if result.error is not None:
            error_line(result.error)
            failed += 1
        else:
            _show(result)
    if failed:
        rest = "the others are done" if failed < len(paths) else "nothing was done"
        warning_line(f"{failed} of {len(paths)} images failed; {rest}")
        raise typer.Exit(1)


def _show(result: FileResult) -> None:
    from maskclip.cli.console import console, print_table

    classes = result.summary["classes"]
    rows = [
        (found["name"], f"{found['coverage']:.1%}", f"{found['score']:.2f}")
        for found in classes[:_SHOWN]
    ]
    if len(classes) > _SHOWN:
        rest = sum(found["coverage"] for found in classes[_SHOWN:])
        rows.append((f"+ {len(classes) - _SHOWN} more", f"{rest:.1%}", ""))
    screen = console()
    size = f"{result.summary['width']}x{result.summary['height']}"
    screen.print(f"{result.source} ({size})", style="bold", markup=False, soft_wrap=True)
    print_table("class", "coverage", "score", rows=rows, right=("coverage", "score"))
    for path in result.written:
        screen.print(f"-> {path}", style="dim", markup=False, soft_wrap=True)
