"""`maskclip export`: a model and its words as a file that needs no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskclip.cli import options as opt
from maskclip.cli.inputs import read_words
from maskclip.core.errors import MaskCLIPError

if TYPE_CHECKING:
    from maskclip.tasks.export import Exported


def export(
    out: Annotated[Path, typer.Argument(help="The file to write: .onnx, or .pt2 (torch.export).")],
    names: opt.ClassNames = None,
    classes: opt.ClassFile = None,
    vocabulary: opt.ClassSet = None,
    background: opt.BackgroundRule = None,
    model: opt.ModelName = "ViT-B-16:openai",
    weights: opt.Weights = None,
    tokenizer: opt.Tokenizer = None,
    language: opt.Language = None,
    method: opt.MethodName = "clean",
    proxy: opt.Proxy = None,
    templates: opt.Templates = "published",
    key_smoothing: opt.KeySmoothing = None,
    prompt_denoising: opt.PromptDenoising = None,
    refine: opt.Refine = "",
    short_side: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            min=1,
            help="The size to which runners shall resize photos. Default: the model's own.",
            rich_help_panel="Refinement and resolution",
        ),
    ] = None,
    pixels: Annotated[
        str,
        typer.Option(
            metavar="TYPE", help="What the input is: `uint8` (0 to 255) or `float32` (0 to 1)."
        ),
    ] = "uint8",
    precision: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="In what weights are stored: `fp32`, or `fp16`, half as large; computed in "
            "float32 by both.",
        ),
    ] = "fp32",
    license_name: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="NAME",
            help="The licence of the weights, for the file's metadata. Default: unknown.",
        ),
    ] = None,
    no_verify: Annotated[
        bool,
        typer.Option(
            "--no-verify", help="Do not compare the file's labels with PyTorch's, on drawings."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a model with its words frozen in as one file of ONNX, which runs without PyTorch.

    Its input are images (B, 3, H, W) of any size, its outputs labels and scores of that size and
    the maps of the grid. The file is kept only if its labels are PyTorch's. See docs/export.md.

    **Examples**

    `maskclip export animals.onnx -c dog -c cat -c grass --model ViT-B-16:openai`

    `maskclip export voc.onnx --vocabulary voc21 --method naclip --precision fp16`

    `maskclip export student.onnx --model student.safetensors` (with the words that it has learnt)

    `maskclip export student.pt2 --model runs/a` (a program of torch.export)

    `maskclip segment photo.jpg --model animals.onnx`
    """
    from maskclip.cli.console import print_path, working
    from maskclip.core.config import ModelConfig
    from maskclip.tasks.export import Export
    from maskclip.tasks.export import export as run_export

    if out.exists() and not force:
        raise MaskCLIPError(f"{out} is there already: choose another name, or add --force")
    what = Export(
        model=ModelConfig(
            name=model,
            weights=weights,
            tokenizer=tokenizer,
            language=language,
            method=method,
            templates=templates,
            proxy=proxy,
        ),
        vocabulary=read_words(names, classes, vocabulary, background, model=model),
        out=out,
        options=opt.read_options(
            key_smoothing=key_smoothing,
            prompt_denoising=prompt_denoising,
            refine=refine,
            refine_size=None,
            pamr_iterations=None,
            pamr_dilations=None,
            regions=None,
            short_side=short_side,
            window=None,
            stride=None,
            model=model,
        ),
        pixels=pixels,
        precision=precision,
        license=license_name,
    )
    with working(f"exporting {model}") as progress:
        done = run_export(what, no_verify=no_verify, on_step=lambda at: progress(f"{model}: {at}"))
    _show(done)
    print_path(out)


def _show(done: Exported) -> None:
    """Print what is in the file, and how its labels agree."""
    from maskclip.cli.console import print_line, warning_line
    from maskclip.core.text import counted

    found = done.description
    print_line(
        f"{counted(len(found.vocabulary), 'class', 'classes')}, method {found.method}, working "
        f"size {found.short_side} px, licence of the weights: {found.license}"
    )
    for one in done.agreements:
        height, width = one.size
        print_line(f"labels are PyTorch's on {one.share:.3%} of pixels, at {width}x{height} px")
    if not done.agreements:
        warning_line("its labels were not compared with PyTorch's")
    if found.refine:
        names = ",".join(found.refine)
        warning_line(
            f"{names} is done by the photo, outside the graph: `maskclip segment` does it, and the "
            "graph's own labels are without it"
        )
