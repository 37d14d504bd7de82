"""`maskclip segment`: label every pixel of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskclip.cli import options as opt
from maskclip.cli.inputs import check_photos, read_words
from maskclip.core.errors import MaskCLIPError, read_choices

if TYPE_CHECKING:
    from maskclip.tasks.label import Outcome
    from maskclip.tasks.label.worker import Worker

_SHOWN = 12  # classes listed for each image; the files hold them all


def segment(
    images: Annotated[
        list[str], typer.Argument(help="Images, folders or glob patterns.", metavar="IMAGE")
    ],
    names: opt.ClassNames = None,
    classes: opt.ClassFile = None,
    vocabulary: opt.ClassSet = None,
    background: opt.BackgroundRule = None,
    out: opt.OutFolder = Path("segmented"),
    save: Annotated[
        str,
        typer.Option(metavar="LIST", help="The files to write: overlay, labels, scores, json."),
    ] = "overlay,labels",
    model: opt.ModelName = "ViT-B-16:openai",
    weights: opt.Weights = None,
    method: opt.MethodName = "clean",
    proxy: opt.Proxy = None,
    templates: opt.Templates = "published",
    tokenizer: opt.Tokenizer = None,
    language: opt.Language = None,
    key_smoothing: opt.KeySmoothing = None,
    prompt_denoising: opt.PromptDenoising = None,
    refine: opt.Refine = "",
    refine_size: opt.RefineSize = None,
    pamr_iterations: opt.PamrIterations = None,
    pamr_dilations: opt.PamrDilations = None,
    regions: opt.Regions = None,
    short_side: opt.ShortSide = None,
    window: opt.Window = None,
    stride: opt.Stride = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    runtime: opt.Runtime = "torch",
    max_pixels: opt.MaxPixels = None,
) -> None:
    """Label every pixel of images with the words you give.

    Writes NAME_overlay.png (to look at) and NAME_labels.png (a palette image of class indices) for
    each image, and prints how much of the image each class covers.

    **Examples**

    `maskclip segment photo.jpg -c dog -c "red car" -c grass`

    `maskclip segment photos/ --vocabulary voc21 --out labels --save labels,json`

    `maskclip segment photo.jpg -c dog -c grass --key-smoothing 1 --prompt-denoising 0.5`

    `maskclip segment photo.jpg -c dog -c grass --proxy vit_small_patch14_dinov2:dinov2.pth`

    `maskclip segment photo.jpg -c dog -c grass --model ViT-B-16-SigLIP2:webli --tokenizer siglip2/`

    `maskclip segment photos/ --vocabulary voc21 --regions slic` (superpixels vote; `--regions DIR`:
    segments of any tool)

    `maskclip segment photos/ --model student.safetensors` (a trained student has its own classes;
    with -c it takes some of them, and others by the text tower of its CLIP)
    """
    from maskclip.cli.console import error_line, print_choice, track, warning_line, working
    from maskclip.core.config import ModelConfig
    from maskclip.core.files import check_writable
    from maskclip.data.formats import FLAT_FORMATS
    from maskclip.data.images import MAX_PIXELS
    from maskclip.data.sources import find_sources
    from maskclip.tasks.label import Job
    from maskclip.tasks.voting import Voting

    job = Job(
        model=ModelConfig(
            name=model,
            weights=weights,
            method=method,
            templates=templates,
            precision=precision,
            proxy=proxy,
            tokenizer=tokenizer,
            language=language,
        ),
        vocabulary=read_words(names, classes, vocabulary, background, model=model),
        out=out,
        options=opt.read_options(
            key_smoothing=key_smoothing,
            prompt_denoising=prompt_denoising,
            refine=refine,
            refine_size=refine_size,
            pamr_iterations=pamr_iterations,
            pamr_dilations=pamr_dilations,
            regions=regions,
            short_side=short_side,
            window=window,
            stride=stride,
            model=model,
        ),
        formats=read_choices(save, FLAT_FORMATS, to="save"),
        flat=True,
        max_pixels=max_pixels or MAX_PIXELS,
        runtime=runtime,
    )
    check_photos(images, names)
    sources = find_sources(images, outside=out)  # whose overlays are no photos
    if not any(source.path.exists() for source in sources):
        raise MaskCLIPError(f"{sources[0].path}: no such file")  # before a model is downloaded
    voting = Voting.of(job.options)
    if voting is not None:
        voting.check([source.relative_path for source in sources])
    check_writable(out)
    with working("loading PyTorch"):  # after all that can be refused without it
        from maskclip.tasks.label.worker import Worker, segment_files
    count = "" if job.vocabulary is None else f" and encoding {len(job.vocabulary)} classes"
    with working(f"loading {model}{count}"):
        worker = Worker(job, device)
    print_choice(worker.job.model.method, worker.why)
    print_choice(worker.job.runtime, worker.runtime_why, what="runtime")
    failed = 0
    for outcome in track(segment_files(worker, sources), what="segmenting", total=len(sources)):
        if outcome.error is not None:
            error_line(outcome.error)
            failed += 1
        else:
            _show(outcome, worker)
    if failed:
        rest = "the others are done" if failed < len(sources) else "nothing was done"
        warning_line(f"{failed} of {len(sources)} images failed; {rest}")
        raise typer.Exit(1)


def _show(outcome: Outcome, worker: Worker) -> None:
    """Print the classes of an image, the largest first, and its files."""
    from maskclip.cli.console import print_line, print_path, print_table

    size, names = outcome.width * outcome.height, worker.vocabulary.names
    classes = sorted(outcome.classes, key=lambda stats: (-stats.pixels, stats.label))
    rows = [
        (names[stats.label], f"{stats.pixels / size:.1%}", f"{stats.score:.2f}")
        for stats in classes[:_SHOWN]
    ]
    if len(classes) > _SHOWN:
        rest = sum(stats.pixels / size for stats in classes[_SHOWN:])
        rows.append((f"+ {len(classes) - _SHOWN} more", f"{rest:.1%}", ""))
    task = outcome.task
    title = f"{task.path} ({outcome.width}x{outcome.height})"
    print_line(title, style="bold")
    print_table("class", "coverage", "score", rows=rows, right=("coverage", "score"))
    for written in worker.formats:
        for path in written.files(task.name):
            print_path(path)
