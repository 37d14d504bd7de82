"""`maskclip eval`: how good is it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskclip.cli import asked
from maskclip.cli import options as opt
from maskclip.core.errors import MaskCLIPError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maskclip.core.samples import Sample, Samples
    from maskclip.recipes import Row
    from maskclip.tasks.evaluation.evaluate import Report
    from maskclip.tasks.evaluation.predictors import MeasuredPredictor
    from maskclip.tasks.evaluation.processes import Processes
    from maskclip.tasks.evaluation.settings import Evaluation, Run


def evaluate(
    dataset: Annotated[
        str | None,
        typer.Argument(help=f"One of: {', '.join(asked.DATASETS)}. A recipe brings its own."),
    ] = None,
    data: opt.Data = None,
    split: Annotated[
        str | None,
        typer.Option(help="val (default), train; voc also aug, trainaug.", rich_help_panel="Data"),
    ] = None,
    images: opt.Images = None,
    masks: opt.Masks = None,
    classes: opt.Classes = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="PX", min=1, help="Side of the scenes of `emoji`: 256 px."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The first N images only.")
    ] = None,
    corruption: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:SEVERITY",
            help="Corrupt the images, such as speckle_noise:1; `all` is a sweep of 8 kinds at "
            "severities 1 to 5, and goes on where a stopped one left off.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="S", min=0, help="Of the corruption's random numbers.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write result.json and pictures there.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A published row: see `maskclip recipes`.",
            rich_help_panel="Model",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Score label PNGs named by image id, instead of a model."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="As `maskclip segment` takes it; ViT-B-16:openai, for `emoji` emoji.",
            rich_help_panel="Model",
        ),
    ] = None,
    weights: opt.Weights = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="`clean` (default), `published`, or `baseline` (ordinary attention).",
            rich_help_panel="Model",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="`published` (whole image, two resizes; default), `windows` (224 px, stride 112) "
            "or `segment` (as that command does; default of emoji and folder).",
            rich_help_panel="Model",
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            help="Prompt templates: `published` (85; default), `open_clip` (80) or `plain` (1).",
            rich_help_panel="Model",
        ),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(
            help="Another rule for a data set with background: words, or a threshold.",
            rich_help_panel="Model",
        ),
    ] = None,
    key_smoothing: opt.KeySmoothing = None,
    prompt_denoising: opt.PromptDenoising = None,
    short_side: opt.ShortSide = None,
    window: opt.Window = None,
    stride: opt.Stride = None,
    device: opt.Device = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="`float32` (default), `bfloat16`, `float16` or `auto`.",
            rich_help_panel="Machine",
        ),
    ] = None,
) -> None:
    """Score a model, a published recipe or a folder of predictions on a data set.

    Prints IoU and accuracy of each class, mean IoU, pixel accuracy and frequency-weighted IoU, with
    the published figure beside them where there is one. `--out` adds result.json, the confusion
    matrix, a chart of IoU, and the best and worst images. `emoji` needs no data: 300 drawn scenes
    that the embedded models never saw. Under `torchrun` the images are shared out.

    **Examples**

    `maskclip eval voc20 --data ~/data --model RN50 --method published`

    `maskclip eval --recipe context59-vitb16 --data ~/data --key-smoothing 1 --prompt-denoising 0.5`

    `maskclip eval cocostuff171 --data ~/data --model ViT-B-16 --protocol windows --out runs/b16`

    `maskclip eval voc21 --data ~/data --predictions my_labels/`

    `maskclip eval folder --images photos --masks masks --classes classes.txt --model ViT-L-14`

    `maskclip eval emoji --corruption all --out runs/sweep`

    `torchrun --nproc-per-node 2 -m maskclip eval emoji`
    """
    from maskclip.core.config import DEFAULT_OPTIONS, Options
    from maskclip.recipes import get_recipe

    row = None if recipe is None else get_recipe(recipe)
    name = asked.dataset_name(dataset, row)
    options = Options(
        key_smoothing=key_smoothing,
        prompt_denoising=prompt_denoising,
        short_side=short_side,
        window=window,
        stride=stride,
    )
    of_models = [weights, method, protocol, templates, background, precision, corruption]
    asked.check_sources(
        model, recipe, predictions, of_models=any(of_models) or options != DEFAULT_OPTIONS
    )
    samples = asked.open_samples(
        name, data=data, split=split, size=size, images=images, masks=masks, classes=classes
    )
    run = asked.read_run(row, corruption, seed=seed, limit=limit)
    samples.check(run.count(samples))  # before a model is fetched for nothing
    if corruption == asked.ALL and out is None:
        raise MaskCLIPError("--corruption all needs --out DIR, where each result is kept")
    evaluation = None
    if predictions is None:
        evaluation = asked.read_evaluation(
            row,
            name,
            split=split,
            model=model,
            weights=weights,
            method=method,
            protocol=protocol,
            templates=templates,
            options=options,
            background=asked.background_rule(background),
            precision=precision,
        )

    from maskclip.core.files import check_writable  # torch comes with these
    from maskclip.tasks.evaluation.processes import join_processes

    if out is not None:
        check_writable(out)
    with join_processes() as processes:
        predictor = _predictor(evaluation, predictions, samples, run, device)
        if processes.first:
            _warn_of_size(samples)
            _warn_of_changes(row, evaluation, run)
        if corruption == asked.ALL:
            assert out is not None
            _sweep(evaluation, predictor, samples, run, out, processes)
        else:
            _single(evaluation, predictor, samples, run, out, processes)


def _predictor(
    evaluation: Evaluation | None,
    predictions: Path | None,
    samples: Samples,
    run: Run,
    device: str,
) -> MeasuredPredictor:
    from maskclip.cli.console import working
    from maskclip.tasks.evaluation.evaluate import load_predictor
    from maskclip.tasks.evaluation.predictors import PredictedFolder

    if evaluation is not None:
        classes = len(samples.vocabulary)
        with working(f"loading {evaluation.model}, which then reads {classes} classes"):
            return load_predictor(evaluation, samples, device=device)
    assert predictions is not None
    folder = PredictedFolder(predictions, samples.vocabulary)
    folder.check(samples, run.count(samples))
    return folder


def _warn_of_size(samples: Samples) -> None:
    from maskclip.cli.console import warning_line

    if samples.official not in (None, len(samples)):
        warning_line(
            f"{len(samples):,} images, where {samples.name} {samples.split} officially has "
            f"{samples.official:,}: see `maskclip data check`"
        )


def _warn_of_changes(row: Row | None, evaluation: Evaluation | None, run: Run) -> None:
    from maskclip.cli.console import warning_line
    from maskclip.recipes import published_row

    if row is None or evaluation is None or published_row(evaluation, run.corruption):
        return
    warning_line(f"these are not the settings of {row.name}: its published figure is not of them")


def _single(
    evaluation: Evaluation | None,
    predictor: MeasuredPredictor,
    samples: Samples,
    run: Run,
    out: Path | None,
    processes: Processes,
) -> None:
    from maskclip.cli.console import console
    from maskclip.cli.results import show_result
    from maskclip.tasks.evaluation import evaluate as task
    from maskclip.tasks.evaluation.report import write_report

    report = task.evaluate(
        predictor, samples, run, processes=processes, progress=_progress(processes)
    )
    if not processes.first:
        return
    result = _with_published(evaluation, report, run)
    show_result(result)
    if out is not None:
        for path in write_report(report, result, out):
            console().print(f"-> {path}", style="dim", markup=False, soft_wrap=True)


def _with_published(evaluation: Evaluation | None, report: Report, run: Run) -> dict[str, Any]:
    """Return what a result file holds: the figures, and the published one of the same."""
    from maskclip.recipes import published_row

    row = None if evaluation is None else published_row(evaluation, run.corruption)
    published = None if row is None else {"miou": row.miou, "source": row.source}
    return {**report.to_dict(), "published": published}


def _sweep(
    evaluation: Evaluation | None,
    predictor: MeasuredPredictor,
    samples: Samples,
    run: Run,
    out: Path,
    processes: Processes,
) -> None:
    from functools import partial

    from maskclip.cli.console import console
    from maskclip.cli.results import beside, figure, show_sweep
    from maskclip.tasks.evaluation.sweep import measure_cells, write_sweep

    screen, cells = console(), {}
    measured = measure_cells(
        predictor,
        samples,
        run,
        out,
        processes=processes,
        progress=_progress(processes),
        to_result=partial(_with_published, evaluation),
    )
    for cell in measured:
        cells[cell.name] = cell.result
        if processes.first:
            note = f"{beside(cell.result)}{' (kept)' if cell.kept else ''}"
            screen.print(f"{cell.name}: mIoU {figure(cell.result['miou'])} %{note}", soft_wrap=True)
    if processes.first:
        show_sweep(cells)
        for path in write_sweep(cells, out):
            screen.print(f"-> {path}", style="dim", markup=False, soft_wrap=True)


def _progress(processes: Processes) -> Any:
    from maskclip.cli.console import track

    def pass_on(samples: Iterable[Sample], total: int) -> Iterable[Sample]:
        return track(samples, what="images", total=total) if processes.first else samples

    return pass_on
