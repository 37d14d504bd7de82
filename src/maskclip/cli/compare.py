"""`maskclip compare`: models, methods and refinements side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskclip.cli import options as opt
from maskclip.cli.inputs import (
    DATASETS,
    default_evaluation,
    open_samples,
    read_tokenizers,
    read_weights,
    show_notes,
    warn_of_count,
)
from maskclip.core.config import PREVIEWS
from maskclip.core.errors import MaskCLIPError, require_extra

if TYPE_CHECKING:
    from maskclip.core.samples import Samples
    from maskclip.tasks.evaluation.cells import Content
    from maskclip.tasks.evaluation.compare import Reading
    from maskclip.tasks.evaluation.settings import Evaluation, Run

_ALL = "all"
_NONE = "none"
Called = dict[str, tuple[str, str | None, str]]
"""The name of a cell -> its model, method (None: no CLIP) and refinement."""


def compare(
    dataset: Annotated[str, typer.Argument(help=f"One of: {', '.join(DATASETS)}.")],
    methods: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Methods between commas, as `maskclip segment --method` takes them, or `all` that "
            "the model can compute.",
            rich_help_panel="Compared",
        ),
    ] = _ALL,
    refine: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Refinements between commas, each `none`, a name, `slic` (superpixels vote), or "
            "several with +: tlp+pamr.",
            rich_help_panel="Compared",
        ),
    ] = _NONE,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Models between commas, as `maskclip segment --model` takes them; default: "
            "ViT-B-16:openai; for `emoji`, emoji.",
            rich_help_panel="Compared",
        ),
    ] = None,
    weights: opt.WeightsOfModels = None,
    tokenizer: opt.TokenizerOfModels = None,
    out: opt.OutFolder = Path("compared"),
    data: opt.Data = None,
    split: opt.OptionalSplit = None,
    images: opt.Images = None,
    masks: opt.Masks = None,
    classes: opt.Classes = None,
    size: opt.SceneSize = None,
    limit: opt.Limit = None,
    protocol: opt.Protocol = None,
    templates: opt.ProtocolTemplates = None,
    device: opt.Device = "auto",
    precision: opt.MeasuredPrecision = None,
) -> None:
    """Compare models, methods and refinements on the same images: quality, time and memory.

    Prints a table, and writes it as compare.md, .csv and .json, with a chart of quality against
    time. What cannot be measured is listed with its reason, and the exit code is 1 where that is a
    model that cannot be had. Each cell has a file in the folder's `cells`: the same command goes on
    where it was stopped, and one of another --limit is measured again. A photo is encoded once for
    all refinements of a method; a cell's time is that of encoding and of its own refinement. Under
    `torchrun` the processes share methods, not images.

    **Examples**

    `maskclip compare emoji --refine none,pamr --limit 50 --out runs/compared`

    `maskclip compare voc21 --data ~/data --protocol windows --methods clean,sclip,naclip`

    `maskclip compare folder --images photos --masks masks --classes classes.txt`

    `maskclip compare emoji --models emoji-rn,emoji-vit --methods clean --refine none,pamr,tlp+pamr`

    `maskclip compare voc20 --data ~/data --weights ViT-B-16:openai=ViT-B-16.pt`

    `torchrun --nproc-per-node 8 -m maskclip compare ade150 --data ~/data --protocol windows`
    """
    require_extra("eval", "matplotlib", "scipy", "torchmetrics")
    if dataset not in DATASETS:
        raise MaskCLIPError(f"unknown data set {dataset!r}: expected one of {', '.join(DATASETS)}")
    refinements = _read_refinements(refine)
    named = None if models is None else _words(models, "--models")
    previews = named if named and set(named) <= set(PREVIEWS) else [None]
    base = default_evaluation(dataset, protocol, model=previews[0])
    given = {"templates": templates, "precision": precision}
    config = replace(base.model, **{key: value for key, value in given.items() if value})
    base = replace(base, model=config, split=split or base.split)
    evaluations = _with_files(_each_evaluation(base, named, methods), weights, tokenizer)
    samples = open_samples(
        dataset, data=data, split=split, size=size, images=images, masks=masks, classes=classes
    )

    samples = _without_confidence(samples)

    from maskclip.cli import scores  # torch comes with it
    from maskclip.core.files import check_writable
    from maskclip.tasks.evaluation.evaluate import process_group
    from maskclip.tasks.evaluation.settings import Run

    run = Run(limit=limit)
    samples.check(run.count(samples))  # before a model is downloaded in vain
    show_notes(samples)
    check_writable(out)
    with process_group() as group:
        if group.is_main:
            warn_of_count(samples, run.count(samples))
        readings, called = _each_reading(evaluations, refinements, samples, run)
        cells = scores.measure_readings(readings, out / "cells", device=device, group=group)
        if group.is_main:
            _show(cells, called, readings, out)


def _without_confidence(samples: Samples) -> Samples:
    """Return the data set without the scores that its classes need, and say so."""
    from maskclip.cli.console import warning_line

    if not samples.vocabulary.confidence:
        return samples
    warning_line(
        "the scores that classes need ([confidence] of the class file) are those of one model and "
        "method: all are compared without them; `maskclip eval` measures with them"
    )
    return replace(samples, vocabulary=samples.vocabulary.with_confidence({}))


def _read_refinements(text: str) -> dict[str, tuple[str, ...]]:
    """Return the refinements of the table's columns, by how they are called."""
    from maskclip.core.config import REFINEMENTS, read_refinements
    from maskclip.core.regions import SLIC

    found = {}
    for one in text.split(","):
        if not one.strip():
            raise MaskCLIPError(f"--refine {text}: a name is missing beside a comma")
        chosen = read_refinements(one, (*REFINEMENTS, SLIC))
        found["+".join(chosen) or _NONE] = chosen
    return found


def _each_evaluation(
    base: Evaluation, models: list[str] | None, methods: str
) -> list[tuple[Evaluation, str | None]]:
    """Return the settings of each model and method, and the method's name (None: no CLIP)."""
    from maskclip.core.methods import METHODS, method_name

    names = list(METHODS) if methods.strip() == _ALL else _words(methods, "--methods")
    known = {name: method_name(name) for name in names}  # an unknown one is refused at once

    from maskclip.tasks.model_names import names_clip

    found: list[tuple[Evaluation, str | None]] = []
    for model in models or [base.model.name]:
        own = replace(base, model=replace(base.model, name=model))
        if not names_clip(model):
            found.append((own, None))
            continue
        for name, called in known.items():
            found.append((replace(own, model=replace(own.model, method=name)), called))
    return found


def _with_files(
    evaluations: Sequence[tuple[Evaluation, str | None]],
    weights: list[str] | None,
    tokenizers: list[str] | None,
) -> list[tuple[Evaluation, str | None]]:
    """Return the settings with the files that are given for some of the models."""
    names = {evaluation.model.name for evaluation, _ in evaluations}
    files, folders = read_weights(weights, names), read_tokenizers(tokenizers, names)
    found = []
    for evaluation, method in evaluations:
        name = evaluation.model.name
        model = replace(evaluation.model, weights=files.get(name), tokenizer=folders.get(name))
        found.append((replace(evaluation, model=model), method))
    return found


def _words(text: str, option: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise MaskCLIPError(f"{option} is empty: give names between commas, or leave it out")
    return words


def _each_reading(
    evaluations: Sequence[tuple[Evaluation, str | None]],
    refinements: Mapping[str, tuple[str, ...]],
    samples: Samples,
    run: Run,
) -> tuple[list[Reading], Called]:
    """Return what is measured, and how its cells are called in the table."""
    from maskclip.tasks.evaluation.compare import Reading

    readings, called = [], Called()
    for evaluation, method in evaluations:
        model = evaluation.model.name
        cells = {}
        for refinement, names in refinements.items():
            name = "_".join(
                re.sub(r"[^\w.+-]+", "-", part) for part in (model, method or "own", refinement)
            )
            if name in called:
                raise MaskCLIPError(f"two models or methods are called {name}: rename a file")
            cells[name], called[name] = names, (model, method, refinement)
        readings.append(Reading(evaluation=evaluation, samples=samples, run=run, cells=cells))
    return readings, called


def _show(
    cells: Mapping[str, Content], called: Called, readings: Sequence[Reading], out: Path
) -> None:
    """Print the table, the best cell and what could not be measured; write the files."""
    from maskclip.cli.console import print_line, print_path, print_table, warning_line
    from maskclip.tasks.evaluation import tables
    from maskclip.tasks.evaluation.compare import LACKING

    lines = tables.make_lines(cells, called, _published(readings))
    columns, rows = tables.as_text(lines)
    title = _title(readings[0])
    doubts = {doubt: None for content in cells.values() for doubt in content.get("doubts", ())}
    for doubt in doubts:
        warning_line(doubt)
    print_line(title, style="bold")
    if rows:
        print_table(*columns, rows=rows, right=tables.NUMBERS, spare=tables.SPARE)
    for what, why in tables.reasons(lines):
        print_line(f"not measured: {what}: {why}")
    best = tables.best_line(lines)
    if best is not None:
        words = (best.model, best.method, "" if best.refinement == _NONE else best.refinement)
        print_line(f"best: {' '.join(word for word in words if word)}", style="bold")
    for path in tables.write_comparison(lines, cells, out, title=title):
        print_path(path)
    if not rows:
        raise MaskCLIPError("nothing could be measured")
    if any(LACKING in content for content in cells.values()):
        raise typer.Exit(1)


def _title(reading: Reading) -> str:
    samples, evaluation = reading.samples, reading.evaluation
    count = reading.run.count(samples)
    images = "1 image" if count == 1 else f"{count:,} images"
    return (
        f"{samples.name} {samples.split}, {images}, protocol {evaluation.protocol}, "
        f"{evaluation.model.precision}"
    )


def _published(readings: Sequence[Reading]) -> dict[str, float | None]:
    """Return the published mIoU of each cell; of all images, so none where some are left out."""
    from maskclip.core.methods import AUTO
    from maskclip.recipes import published_row
    from maskclip.tasks.evaluation.compare import refined

    found: dict[str, float | None] = {}
    for reading in readings:
        complete = reading.samples.official == reading.run.count(reading.samples)
        complete = complete and reading.evaluation.model.method != AUTO
        for name, refine in reading.cells.items():
            options = refined(reading.evaluation.options, refine)
            evaluation = replace(reading.evaluation, options=options)
            row = published_row(evaluation, None) if complete else None
            found[name] = None if row is None else row.miou
    return found
