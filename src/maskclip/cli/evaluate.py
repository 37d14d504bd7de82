"""`maskclip eval`: how good is it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskclip.cli import options as opt
from maskclip.core.errors import MaskCLIPError

DATASETS = ("emoji",)


def evaluate(
    dataset: Annotated[str, typer.Argument(help=f"One of: {', '.join(DATASETS)}.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write result.json there.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The first N images only.")
    ] = None,
    model: opt.ModelName = "emoji",
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
) -> None:
    """Score a model: mean IoU and pixel accuracy over a data set, all classes as candidates.

    `emoji` needs no data: 300 drawn scenes that the embedded models never saw.

    **Examples**

    `maskclip eval emoji`

    `maskclip eval emoji --model emoji-vit --key-smoothing 1 --out runs/emoji-vit-ks`
    """
    from maskclip.cli.show import console, print_table, track
    from maskclip.tasks.batch import check_writable
    from maskclip.tasks.evaluate import evaluate_emoji, write_result
    from maskclip.tasks.options import Options
    from maskclip.tasks.segment import load

    if dataset not in DATASETS:
        raise MaskCLIPError(f"unknown data set {dataset!r}: expected {', '.join(DATASETS)}")
    options = Options(
        key_smoothing=key_smoothing,
        prompt_denoising=prompt_denoising,
        short_side=short_side,
        window=window,
        stride=stride,
    )
    if out is not None:
        check_writable(out)
    segmenter = load(
        model,
        weights=weights,
        method=method,
        device=device,
        precision=precision,
        templates=templates,
    )
    result = evaluate_emoji(
        segmenter,
        limit=limit,
        options=options,
        progress=lambda seeds: track(seeds, what="scenes", total=len(seeds)),
    )
    screen = console()
    ranked = sorted(
        ((name, iou) for name, iou in result["iou"].items() if iou is not None),
        key=lambda pair: -pair[1],
    )
    rows = [(name, f"{iou:.1f}") for name, iou in ranked]
    print_table("class", "IoU %", rows=rows, right=("IoU %",))
    screen.print(
        f"{result['model']} on {dataset} ({result['scenes']['count']} scenes, method "
        f"{result['method']}): mIoU {result['miou']:.2f} %, pixel accuracy "
        f"{result['pixel_accuracy']:.2f} %",
        style="bold",
        soft_wrap=True,
    )
    if out is not None:
        screen.print(f"-> {write_result(result, out)}", style="dim", soft_wrap=True)
