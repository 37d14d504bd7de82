"""`maskclip reproduce`: published rows measured here, beside their figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskclip.cli import options as opt
from maskclip.cli.inputs import open_samples, read_weights
from maskclip.core.errors import MaskCLIPError, did_you_mean, require_extra

if TYPE_CHECKING:
    from maskclip.core.samples import Samples
    from maskclip.recipes import Row
    from maskclip.tasks.evaluation.compare import Reading
    from maskclip.tasks.evaluation.reproduction import Reproduced
    from maskclip.tasks.evaluation.settings import Evaluation, Run


def reproduce(
    data: opt.Data = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Rows by name or pattern, as `voc20-*`; repeat it. Default: all that can be.",
        ),
    ] = None,
    weights: opt.WeightsOfModels = None,
    out: opt.OutFolder = Path("reproduced"),
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.zip",
            help="Also pack the table, the results, versions and the machine into one file to send "
            "back, without photos and without paths of this machine; default: none.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Use only the first N images, to try it: such figures are not compared; default: "
            "all.",
        ),
    ] = None,
    device: opt.Device = "auto",
) -> None:
    """Measure the published rows whose data and weights are here, beside their figures.

    Rows are those of `maskclip recipes`, and some of the embedded models, which need neither data
    nor downloads. Weights are downloaded where that is possible. What is not there is left out,
    with the reason. Each row has a file in the folder's `rows`: the same command goes on where it
    was stopped, and takes up what was left out. The table is printed, and written as reproduce.md
    and reproduce.json. Under `torchrun` the processes share the rows.

    **Examples**

    `maskclip reproduce --data ~/data --report mine.zip`

    `maskclip reproduce --data ~/data --rows 'voc20-*' --rows context59-vitb16`

    `maskclip reproduce --rows 'emoji-*'`

    `maskclip reproduce --data ~/data --weights RN50:openai=RN50.pt --rows '*-rn50'`

    `torchrun --nproc-per-node 8 -m maskclip reproduce --data ~/data`
    """
    require_extra("eval", "matplotlib", "scipy", "torchmetrics")
    from maskclip.recipes import REPRODUCIBLE

    chosen = _with_weights(_choose(rows, REPRODUCIBLE), weights)
    if data is not None and not data.is_dir():
        raise MaskCLIPError(f"no folder {data}: --data is the folder that holds VOCdevkit")
    if report is not None and report.suffix.lower() != ".zip":
        raise MaskCLIPError(f"--report {report}: expected a name that ends with .zip")

    from maskclip.cli import scores  # torch comes with it
    from maskclip.core.files import check_writable
    from maskclip.tasks.evaluation.evaluate import process_group

    check_writable(out)
    if report is not None:
        check_writable(report.parent)
    readings, reasons = _open(chosen, data, limit)
    with process_group() as group:
        cells = scores.measure_readings(
            readings,
            out / "rows",
            device=device,
            group=group,
            leave_out=(MaskCLIPError,),
        )
        if not group.is_main:
            return
        cells |= {name: {"reason": reason} for name, reason in reasons.items()}
        from maskclip.tasks.evaluation.reproduction import Reproduced

        found = [Reproduced.of(name, row, cells[name]) for name, row in chosen.items()]
        _show(found, out=out)
        if report is not None:
            from maskclip.cli.console import print_path
            from maskclip.tasks.evaluation.reproduction import pack

            files = [row.evaluation.model.weights for row in chosen.values()]
            named = {Path(file): None for file in files if file not in (None, "random")}
            pack(found, report, data=data, weights=list(named))
            print_path(report)


def _choose(patterns: list[str] | None, known: Mapping[str, Row]) -> dict[str, Row]:
    """Return the rows that match one of the patterns.

    Raises:
        MaskCLIPError: a pattern matches none.
    """
    if not patterns:
        return dict(known)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise MaskCLIPError(
                f"--rows {pattern}: no row is called so{did_you_mean(pattern, known)}; "
                "`maskclip recipes` lists them; its students are trained, with `maskclip train`, "
                "and are no rows here"
            )
    return {
        name: row
        for name, row in known.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _with_weights(rows: Mapping[str, Row], given: list[str] | None) -> dict[str, Row]:
    """Return the rows with local files for some of their models.

    Raises:
        MaskCLIPError: not written as MODEL=FILE, no such file, or no row has the model.
    """
    files = read_weights(given, {row.evaluation.model.name for row in rows.values()})
    found = {}
    for name, row in rows.items():
        model = row.evaluation.model
        model = replace(model, weights=files.get(model.name, model.weights))
        found[name] = replace(row, evaluation=replace(row.evaluation, model=model))
    return found


def _open(
    rows: Mapping[str, Row], data: Path | None, limit: int | None
) -> tuple[list[Reading], dict[str, str]]:
    """Return what can be measured, by the data that there is, and why the rest cannot.

    Rows that differ in their refinement alone are one reading: photos are encoded once for both.
    """
    from maskclip.tasks.evaluation.compare import Reading
    from maskclip.tasks.evaluation.settings import Run

    readings: dict[tuple[Evaluation, Run], Reading] = {}
    reasons = {}
    for name, row in rows.items():
        options = replace(row.evaluation.options, refine=(), refine_size=None)
        evaluation = replace(row.evaluation, options=options)
        run = Run(corruption=row.corruption, limit=limit)
        cells = {name: row.evaluation.options.refine}
        earlier = readings.get((evaluation, run))
        if earlier is not None:
            readings[evaluation, run] = replace(earlier, cells={**earlier.cells, **cells})
            continue
        try:
            samples = _samples_of(evaluation, data)
            samples.check(run.count(samples))
        except MaskCLIPError as error:
            reasons[name] = str(error)
            continue
        readings[evaluation, run] = Reading(
            evaluation=evaluation, samples=samples, run=run, cells=cells
        )
    return list(readings.values()), reasons


def _samples_of(evaluation: Evaluation, data: Path | None) -> Samples:
    drawn = evaluation.dataset == "emoji"
    return open_samples(
        evaluation.dataset,
        data=None if drawn else data,
        split=evaluation.split,
        size=None,
        images=None,
        masks=None,
        classes=None,
    )


def _show(found: list[Reproduced], *, out: Path) -> None:
    """Print the table and what was left out; write the files."""
    from maskclip.cli.console import note_line, print_line, print_path, print_table
    from maskclip.tasks.evaluation import reproduction

    columns, lines = reproduction.as_text(found)
    if lines:
        spare = reproduction.SPARE
        print_table(*columns, rows=lines, right=reproduction.NUMBERS, spare=spare)
    for reason, names in reproduction.left_out(found).items():
        note_line(f"left out: {', '.join(names)}: {reason}")
    print_line(f"measured {len(lines)} of {len(found)} rows", style="bold")
    for path in reproduction.write_table(found, out):
        print_path(path)
