"""`maskclip eval`: the verb, and the values that its options stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskclip.cli import options as opt
from maskclip.cli.inputs import (
    DATASETS,
    default_evaluation,
    open_samples,
    show_notes,
    warn_of_count,
)
from maskclip.core.class_lists import read_background
from maskclip.core.errors import MaskCLIPError, require_extra

if TYPE_CHECKING:
    from maskclip.core.config import Options
    from maskclip.core.samples import Samples
    from maskclip.core.vocabulary import Background
    from maskclip.recipes import Row
    from maskclip.tasks.evaluation.predictors import Predictor
    from maskclip.tasks.evaluation.settings import Evaluation, Run

_ALL = "all"  # the corruption that stands for a sweep of all of them
_FAR = 1.5  # times: sizes at which a student sees things otherwise than in its training


def evaluate(
    dataset: Annotated[
        str | None, typer.Argument(help=f"One of: {', '.join(DATASETS)}. Not needed with --recipe.")
    ] = None,
    data: opt.Data = None,
    split: opt.OptionalSplit = None,
    images: opt.Images = None,
    masks: opt.Masks = None,
    classes: opt.Classes = None,
    size: opt.SceneSize = None,
    limit: opt.Limit = None,
    corruption: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:SEVERITY",
            help="Corrupt the images, for example speckle_noise:1 (default: none). `all` "
            "evaluates 8 corruptions at severities 1 to 5, and resumes such a sweep if it was "
            "stopped.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="S", min=0, help="Random seed of the corruption.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for result.json and charts; default: none, they are printed alone.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Settings of a published result: see `maskclip recipes`.",
            rich_help_panel="Model",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Score a folder of label PNGs, named by image id, without a model."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="As in `maskclip segment`. Default: ViT-B-16:openai; for `emoji`, emoji.",
            rich_help_panel="Model",
        ),
    ] = None,
    weights: opt.Weights = None,
    method: opt.MethodOfRecipe = None,
    proxy: opt.Proxy = None,
    protocol: opt.Protocol = None,
    templates: opt.ProtocolTemplates = None,
    tokenizer: opt.Tokenizer = None,
    language: opt.Language = None,
    background: Annotated[
        str | None,
        typer.Option(
            help="Another rule for the background class of a data set: words, or a threshold; "
            "default: its own.",
            rich_help_panel="Model",
        ),
    ] = None,
    key_smoothing: opt.KeySmoothing = None,
    prompt_denoising: opt.PromptDenoising = None,
    refine: opt.RefineMeasured = "",
    refine_size: opt.RefineSize = None,
    pamr_iterations: opt.PamrIterations = None,
    pamr_dilations: opt.PamrDilations = None,
    regions: opt.Regions = None,
    short_side: opt.ShortSide = None,
    window: opt.Window = None,
    stride: opt.Stride = None,
    device: opt.Device = "auto",
    precision: opt.MeasuredPrecision = None,
    runtime: opt.Runtime = "torch",
) -> None:
    """Evaluate a model, a published recipe or a folder of predictions on a data set.

    Prints IoU and accuracy of each class, mean IoU, pixel accuracy and frequency-weighted IoU, and
    the published mIoU if there is one. `--out` also writes result.json, the confusion matrix, a
    chart of IoU, and the best and worst images. `emoji` needs no data: it is 300 drawn scenes that
    the embedded models were not trained on. Under `torchrun` the processes share the images.

    **Examples**

    `maskclip eval voc20 --data ~/data --model RN50 --method published`

    `maskclip eval --recipe context59-vitb16 --data ~/data --key-smoothing 1 --prompt-denoising 0.5`

    `maskclip eval cocostuff171 --data ~/data --model ViT-B-16 --protocol windows --out runs/b16`

    `maskclip eval emoji --regions slic`

    `maskclip eval voc21 --data ~/data --predictions my_labels/`

    `maskclip eval folder --images photos --masks masks --classes classes.txt --model ViT-L-14`

    `maskclip eval emoji --corruption all --out runs/sweep`

    `torchrun --nproc-per-node 2 -m maskclip eval emoji`
    """
    from maskclip.core.config import DEFAULT_OPTIONS
    from maskclip.recipes import get_recipe

    require_extra("eval", "matplotlib", "scipy", "torchmetrics")
    row = None if recipe is None else get_recipe(recipe)
    name = _dataset_name(dataset, row)
    options = opt.read_options(
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
    )
    of_models = [weights, method, proxy, protocol, templates, background, precision, corruption]
    of_models += [tokenizer, language]
    _check_sources(
        model,
        recipe,
        predictions,
        of_models=any(of_models) or options != DEFAULT_OPTIONS or runtime != "torch",
    )
    samples = open_samples(
        name, data=data, split=split, size=size, images=images, masks=masks, classes=classes
    )
    run = _read_run(row, corruption, seed=seed, limit=limit)
    samples.check(run.count(samples))  # before a model is downloaded in vain
    show_notes(samples)
    sweep = corruption == _ALL
    if sweep and out is None:
        raise MaskCLIPError("--corruption all needs --out DIR for the results")
    evaluation = None
    if predictions is None:
        evaluation = _read_evaluation(
            row,
            name,
            model={
                "name": model,
                "weights": weights,
                "method": method,
                "templates": templates,
                "precision": precision,
                "proxy": proxy,
                "tokenizer": tokenizer,
                "language": language,
            },
            split=split,
            protocol=protocol,
            options=options
            if row is None
            else _with_options(row.evaluation.options, options, refine=refine),
            background=_read_background(background),
        )

    from maskclip.cli import scores  # torch comes with these
    from maskclip.core.files import check_writable
    from maskclip.tasks.evaluation.evaluate import process_group
    from maskclip.tasks.runtimes import placed

    if out is not None:
        check_writable(out)
    with process_group() as group:
        if evaluation is not None:
            placed(evaluation.model, device, runtime)  # refuses before weights are read
        evaluation, why = _settle_method(evaluation, samples, says=group.is_main)
        on = {"device": device, "runtime": runtime}
        predictor = _load_predictor(evaluation, predictions, samples, run, why, **on)
        if group.is_main:
            _say_runtime(predictor)
        if group.is_main:
            _warn_of_differences(row, evaluation, predictor, samples, run)
            if name == "folder" and evaluation is not None and not refine:
                _warn_of_own_refinement(evaluation.model.name)
        if sweep:
            assert out is not None
            scores.run_sweep(evaluation, predictor, samples, run, out=out, group=group)
        else:
            scores.run_once(evaluation, predictor, samples, run, out=out, group=group)


def _dataset_name(dataset: str | None, row: Row | None) -> str:
    """Return the data set that was given, or that of the recipe."""
    if row is None:
        if dataset not in DATASETS:
            what = "no data set given" if dataset is None else f"unknown data set {dataset!r}"
            raise MaskCLIPError(f"{what}: expected one of {', '.join(DATASETS)}, or --recipe NAME")
        return dataset
    if dataset not in (None, row.evaluation.dataset):
        raise MaskCLIPError(f"the recipe {row.name} is for {row.evaluation.dataset}, not {dataset}")
    return row.evaluation.dataset


def _check_sources(
    model: str | None, recipe: str | None, predictions: Path | None, *, of_models: bool
) -> None:
    """Refuse two sources of predictions, and options of models together with a folder."""
    if sum(source is not None for source in (model, recipe, predictions)) > 1:
        raise MaskCLIPError("give one of --model, --recipe and --predictions")
    if predictions is not None and of_models:
        raise MaskCLIPError(
            "--predictions does not go with --corruption and options of models (--method, "
            "--protocol, --key-smoothing ...): leave these out"
        )


def _read_run(row: Row | None, corruption: str | None, *, seed: int, limit: int | None) -> Run:
    """Return which images are evaluated, under which corruption; none for a sweep."""
    from maskclip.data.corruptions import Corruption
    from maskclip.tasks.evaluation.settings import Run

    if corruption is None:
        return Run(corruption=None if row is None else row.corruption, seed=seed, limit=limit)
    parsed = None if corruption == _ALL else Corruption.parse(corruption)
    return Run(corruption=parsed, seed=seed, limit=limit)


def _read_background(text: str | None) -> Background | None:
    """Read `--background`; None if it was not given."""
    if text is not None and text.strip().lower() == "none":
        raise MaskCLIPError(
            "--background none cannot be evaluated: a data set with background scores it, and "
            "needs a rule: words or a threshold"
        )
    return read_background(text)


def _read_evaluation(
    row: Row | None, dataset: str, *, model: dict[str, str | None], **given: Any
) -> Evaluation:
    """Return the settings of the recipe, or the defaults, replaced by the options given."""
    from dataclasses import replace

    from maskclip.tasks.evaluation.settings import default_templates

    base = row.evaluation if row else default_evaluation(dataset, model=model["name"])
    templates = default_templates(given["protocol"] or base.protocol)
    config = replace(base.model, **{"templates": templates, **_without_none(model)})
    return replace(base, model=config, **_without_none(given))


def _with_options(base: Options, options: Options, *, refine: str) -> Options:
    """Return the options of a recipe, replaced by those that were given."""
    from dataclasses import fields, replace

    from maskclip.core.config import DEFAULT_OPTIONS

    given = {
        field.name: getattr(options, field.name)
        for field in fields(options)
        if getattr(options, field.name) != getattr(DEFAULT_OPTIONS, field.name)
    }
    if refine:  # `none` too
        given["refine"] = options.refine
    return replace(base, **given)


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}


def _settle_method(
    evaluation: Evaluation | None, samples: Samples, *, says: bool
) -> tuple[Evaluation | None, str]:
    """Return the evaluation with the method that `auto` stands for, and why; say so."""
    from maskclip.cli.console import print_choice
    from maskclip.tasks.evaluation.predictors import settle_method

    if evaluation is None:
        return None, ""
    evaluation, why = settle_method(evaluation, samples)
    if says:
        print_choice(evaluation.model.method, why)
    return evaluation, why


def _load_predictor(
    evaluation: Evaluation | None,
    predictions: Path | None,
    samples: Samples,
    run: Run,
    why: str,
    **on: str,
) -> Predictor:
    """Load what predicts; `on` is the device and the runtime."""
    from maskclip.cli.console import working
    from maskclip.tasks.evaluation.predictors import PredictedFolder, count_prompts, load_predictor

    if evaluation is not None:
        words, prompts = count_prompts(evaluation, samples)
        cost = f" ({words:,} words x {prompts} prompts)" if words else ""
        what = f"encoding {len(samples.vocabulary)} classes{cost}"
        with working(f"loading {evaluation.model.name} and {what}") as progress:
            return load_predictor(
                evaluation,
                samples,
                **on,
                why=why,
                count=run.count(samples),
                on_word=lambda done, total: progress(f"encoding: {done:,} of {total:,} words"),
            )
    assert predictions is not None
    return PredictedFolder.open(predictions, samples, run.count(samples))


def _say_runtime(predictor: Predictor) -> None:
    """Say which runtime `--runtime auto` is here."""
    from maskclip.cli.console import print_choice
    from maskclip.tasks.evaluation.predictors import ModelPredictor

    if isinstance(predictor, ModelPredictor):
        segmenter = predictor.segmenter
        print_choice(segmenter.runtime, segmenter.runtime_why, what="runtime")


def _warn_of_own_refinement(model: str) -> None:
    """Warn that labels of one's own photos are not measured as `label` makes them."""
    from maskclip.cli.console import warning_line
    from maskclip.core.config import own_refinement

    names = ",".join(own_refinement(model))
    if names:
        warning_line(
            f"`maskclip label` refines the maps of {model} by {names}, and these are measured as "
            f"they are: --refine {names} measures its labels, --refine none says that this is meant"
        )


def _warn_of_differences(
    row: Row | None, evaluation: Evaluation | None, predictor: Predictor, samples: Samples, run: Run
) -> None:
    """Warn of an incomplete data set, and of settings that are not a protocol's or a recipe's."""
    from maskclip.cli.console import warning_line
    from maskclip.recipes import published_row

    warn_of_count(samples, run.count(samples))
    settings = predictor.metadata()
    differs = settings.get("differs_from_protocol")
    if differs:
        warning_line(
            f"the protocol {settings['protocol']} has other settings: {'; '.join(differs)}"
        )
    trained, shown = settings.get("trained_at"), settings.get("options", {}).get("short_side")
    if trained and shown and max(trained, shown) > _FAR * min(trained, shown):
        warning_line(
            f"the student was trained at a short side of about {trained} px, and the protocol "
            f"{settings['protocol']} shows it images of {shown} px: --protocol segment takes its "
            "own size, or --short-side"
        )
    if row is not None and evaluation is not None and not published_row(evaluation, run.corruption):
        warning_line(
            f"these are not the settings of {row.name}: its published mIoU is not comparable"
        )
