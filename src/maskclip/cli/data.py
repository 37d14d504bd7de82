"""`maskclip data` and `maskclip emoji`: prepare, check and draw data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskclip.cli import options as opt
from maskclip.cli.inputs import open_data, warn_of_unused
from maskclip.core.errors import MaskCLIPError
from maskclip.data.specs import SPECS

if TYPE_CHECKING:
    from maskclip.tasks.check_dataset import CheckReport

_MOST_PROBLEMS = 20  # printed; the report file holds all

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
emoji_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@app.callback()
def _data() -> None:
    """Prepare the masks of benchmark data sets, and check data sets for errors.

    **Examples**

    `maskclip data convert cocostuff --data ~/data`

    `maskclip data check cocostuff171 --data ~/data`
    """


@app.command()
def convert(
    dataset: Annotated[
        str, typer.Argument(help="One of: voc-aug, context, cocostuff, cocoobject, cityscapes.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="The folder that holds VOCdevkit, coco_stuff164k or cityscapes."
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where the label files are, or a JSON of COCO's instances; default: the usual "
            "folder.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Number of processes; default: one per CPU core."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Convert files again whose masks exist.")
    ] = False,
) -> None:
    """Convert the label files of a data set to the masks that evaluation and training read.

    - `voc-aug`: SBD's .mat files in VOCdevkit/VOCaug/dataset/cls to
      VOCdevkit/VOC2012/SegmentationClassAug; also the lists trainaug.txt and aug.txt.

    - `context`: Pascal Context's .mat files (or PNGs of the 459 ids) in VOCdevkit/VOC2010/trainval
      to VOCdevkit/VOC2010/SegmentationClassContext: 59 classes and background.

    - `cocostuff`: coco_stuff164k/stuffthingmaps to coco_stuff164k/annotations: 171 classes.

    - `cocoobject`: the same maps to 80 things and background; or, where there are none,
      coco_stuff164k/annotations/instances_*2017.json, smaller instances over larger ones.

    - `cityscapes`: the labelIds in cityscapes/gtFine to labelTrainIds beside them: 19 classes.

    Masks that exist are skipped, so the same command resumes a run that was stopped.

    **Examples**

    `maskclip data convert cocostuff --data ~/data`

    `maskclip data convert context --data ~/data --source ~/downloads/trainval --workers 4`

    `maskclip data convert cocoobject --data ~/data --source ~/data/instances_val2017.json`
    """
    from maskclip.cli.console import error_line, print_line, print_path, track, warning_line
    from maskclip.core.prefetch import usable_cpus
    from maskclip.tasks.convert_labels import convert_files, plan_conversion, write_split_lists

    plan = plan_conversion(dataset, data, source=source)
    total = len(plan.files)
    results = convert_files(plan, workers=workers or usable_cpus(), overwrite=overwrite)
    failed = skipped = 0
    for result in track(results, what="converting", total=total):
        skipped += result.skipped
        if result.error is not None:
            error_line(result.error)
            failed += 1
    print_line(
        f"{total - failed - skipped:,} converted, {skipped:,} skipped (mask exists) "
        f"-> {plan.targets}",
    )
    if failed:
        waiting = "; the lists are written once all succeed" if plan.conversion.lists else ""
        warning_line(f"{failed:,} of {total:,} files failed{waiting}")
        raise typer.Exit(1)
    lists = write_split_lists(plan)
    for path in lists.written:
        print_path(path)
    for note in lists.notes:
        warning_line(note)


@app.command()
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
        Path | None,
        typer.Option(metavar="FILE", help="Write a full report as JSON; default: none."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Number of threads; default: one per CPU core."),
    ] = None,
) -> None:
    """Check a data set for errors: its lists, image and mask files, and mask values.

    Prints the number of images and pixels of each class. Each problem is one line on standard
    error, and the exit code is then 1: a number of images other than the official one, duplicate
    names, missing or damaged files, masks of another size than their image, values that are no
    class. Masks are read in full, images only up to their headers.

    **Examples**

    `maskclip data check voc20 --data ~/data`

    `maskclip data check folder --images photos --masks masks --classes classes.txt`
    """
    from maskclip.cli.console import track
    from maskclip.core.prefetch import usable_cpus
    from maskclip.tasks.check_dataset import check_lists, check_samples

    opened = open_data(
        dataset,
        data=data,
        split=split,
        images=images,
        masks=masks,
        classes=classes,
        missing=True,
    )
    _check_report_file(out)
    report = check_lists(opened)
    results = check_samples(opened, workers=workers or usable_cpus())
    for result in track(results, what="checking", total=report.samples):
        report.add(result)
    report.conclude()
    _show(report, out)
    if not report.valid:
        raise typer.Exit(1)


def _check_report_file(out: Path | None) -> None:
    """Refuse a report file that cannot be written, before the data set is read."""
    from maskclip.core.files import check_writable

    if out is None:
        return
    if out.is_dir():
        raise MaskCLIPError(f"--out {out} is a folder: give the name of a file in it")
    check_writable(out.parent)


def _show(report: CheckReport, out: Path | None) -> None:
    """Print the table of classes, the verdict, and the problems last, where they stay in view."""
    from maskclip.cli.console import print_line, print_path, print_table
    from maskclip.core.files import write_json

    columns = "class", "images", "pixels", "share %"
    print_table(*columns, rows=_rows(report), right=columns[1:])
    if out is not None:
        write_json(report.to_dict(), out)
        print_path(out)
    print_line(_verdict(report), style="bold")
    _list_problems(report, out)


def _rows(report: CheckReport) -> Iterator[tuple[str, ...]]:
    columns = report.images_with.tolist(), report.pixels.tolist(), report.shares.tolist()
    for name, images, pixels, share in zip(report.dataset.vocabulary.names, *columns, strict=True):
        yield name, f"{images:,}", f"{pixels:,}", f"{share:.2f}"
    yield "ignored", f"{report.images_with_ignored:,}", f"{report.ignored:,}", ""


def _verdict(report: CheckReport) -> str:
    dataset, count = report.dataset, len(report.problems)
    name = dataset.name if dataset.name == "folder" else f"{dataset.name} {dataset.split}"
    verdict = "no problems" if report.valid else f"{count:,} problem{'s' * (count > 1)}"
    return f"{name}, {report.images:,} images: {verdict}"


def _list_problems(report: CheckReport, out: Path | None) -> None:
    """Print the first problems, the number of the others, and masks without an image."""
    from maskclip.cli.console import error_line, warning_line

    for problem in report.problems[:_MOST_PROBLEMS]:
        error_line(problem.message)
    others = Counter(problem.kind for problem in report.problems[_MOST_PROBLEMS:])
    if others:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in others.most_common())
        where = f"all are in {out}" if out is not None else "--out FILE writes all of them"
        error_line(f"and {others.total():,} more ({kinds}); {where}")
    for note in report.notes:
        warning_line(note)
    warn_of_unused(report.masks_without_image)


@emoji_app.callback()
def _emoji() -> None:
    """Drawn scenes with exact masks, to try everything offline.

    **Example**

    `maskclip emoji scenes --out scenes --count 8`
    """


@emoji_app.command()
def scenes(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the data set goes.")],
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Number of scenes.")] = 8,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Seed of the first scene.")] = 0,
    size: Annotated[
        int, typer.Option(metavar="PX", min=1, help="Side of a scene in pixels.")
    ] = 256,
) -> None:
    """Draw scenes, masks and captions as a small data set in the layout of VOC.

    **Example**

    `maskclip emoji scenes --out scenes --count 8 --seed 0`
    """
    from maskclip.cli.console import print_line, track
    from maskclip.core.files import check_writable
    from maskclip.emoji.scenes import write_scenes

    check_writable(out)
    written = write_scenes(out, count=count, seed=seed, size=size)
    for _ in track(written, what="scenes", total=count):
        pass
    print_line(f"{count} scenes -> {out}")
