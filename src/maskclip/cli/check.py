"""`maskclip data check`: is a data set whole, and what do its masks hold?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskclip.cli import options as opt
from maskclip.core.errors import MaskCLIPError
from maskclip.data.specs import SPECS

if TYPE_CHECKING:
    from maskclip.tasks.check import CheckReport

_MOST_LINES = 20
_MOST_NAMES = 3


def check(
    dataset: Annotated[
        str,
        typer.Argument(help=f"One of: {', '.join(SPECS)}; `folder` for your own."),
    ],
    data: opt.Data = None,
    split: opt.Split = "val",
    images: opt.Images = None,
    masks: opt.Masks = None,
    classes: opt.Classes = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all that is found as JSON.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads; by default one a CPU.")
    ] = None,
) -> None:
    """Check that a data set is whole: its lists, its pairs of files, the values of its masks.

    Prints how many images and pixels each class has. What is wrong is a line each on standard
    error, and the exit code 1: a number of images other than the official one, names listed
    twice, missing or damaged files, masks of another size than their image, values that are no
    class. Masks are read in full; of images only the headers.

    **Examples**

    `maskclip data check voc20 --data ~/data`

    `maskclip data check folder --images photos --masks masks --classes classes.txt`
    """
    from maskclip.cli.console import track
    from maskclip.tasks.check import check_samples, start_report
    from maskclip.tasks.convert import usable_cpus

    opened = opt.open_data(
        dataset, data=data, split=split, images=images, masks=masks, classes=classes
    )
    _refuse_useless(out)
    report = start_report(opened)
    results = check_samples(opened, workers=workers or usable_cpus())
    for checked in track(results, what="checking", total=report.samples):
        report.add(checked)
    _show(report, out)
    if not report.whole:
        raise typer.Exit(1)


def _refuse_useless(out: Path | None) -> None:
    """Refuse a report file that cannot be written, before any work is done for it."""
    from maskclip.core.files import check_writable

    if out is None:
        return
    if out.is_dir():
        raise MaskCLIPError(f"--out {out} is a folder: name a file in it")
    check_writable(out.parent)


def _show(report: CheckReport, out: Path | None) -> None:
    """Print the table, the verdict and the problems, which stay in sight as the last."""
    from maskclip.cli.console import console, print_table
    from maskclip.core.files import write_json

    columns = "class", "images", "pixels", "share %"
    print_table(*columns, rows=_rows(report), right=columns[1:])
    if out is not None:
        write_json(report.to_dict(), out)
        console().print(f"-> {out}", style="dim", markup=False, soft_wrap=True)
    console().print(_verdict(report), style="bold", markup=False, soft_wrap=True)
    _list_problems(report, out)


def _rows(report: CheckReport) -> Iterator[tuple[str, ...]]:
    columns = report.images_with.tolist(), report.pixels.tolist(), report.shares.tolist()
    for name, images, pixels, share in zip(report.dataset.vocabulary.names, *columns, strict=True):
        yield name, f"{images:,}", f"{pixels:,}", f"{share:.2f}"
    yield "ignored", f"{report.images_with_ignored:,}", f"{report.ignored:,}", ""


def _verdict(report: CheckReport) -> str:
    dataset, count = report.dataset, len(report.problems)
    name = dataset.name if dataset.name == "folder" else f"{dataset.name} {dataset.split}"
    verdict = "whole" if report.whole else f"{count:,} problem{'s' * (count > 1)}"
    return f"{name}, {report.images:,} images: {verdict}"


def _list_problems(report: CheckReport, out: Path | None) -> None:
    """Print what is wrong, and what is only odd; of very much the first lines."""
    from maskclip.cli.console import error_line, warning_line

    for problem in report.problems[:_MOST_LINES]:
        error_line(problem.message)
    others = Counter(problem.kind for problem in report.problems[_MOST_LINES:])
    if others:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in others.most_common())
        where = f"all are in {out}" if out is not None else "--out FILE writes them all"
        error_line(f"and {others.total():,} more ({kinds}); {where}")
    spare = report.spare_masks
    if spare:
        some = ", ".join(map(str, spare[:_MOST_NAMES]))
        dots = ", ..." if len(spare) > _MOST_NAMES else ""
        warning_line(f"masks without an image: {len(spare):,} ({some}{dots})")
