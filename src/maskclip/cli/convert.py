"""`maskclip data convert`: masks of benchmarks in the form that evaluation and training read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    dataset: Annotated[
        str, typer.Argument(help="One of: voc-aug, context, cocostuff, cityscapes.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="The folder that holds VOCdevkit, coco_stuff164k or cityscapes."
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the label files are, if not in the usual folder."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes; by default one a CPU.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make again the masks that are there already.")
    ] = False,
) -> None:
    """Make the masks that evaluation and training read from the label files of a data set.

    - `voc-aug`: SBD's .mat files in VOCdevkit/VOCaug/dataset/cls to
      VOCdevkit/VOC2012/SegmentationClassAug; also the lists trainaug.txt and aug.txt.

    - `context`: Pascal Context's .mat files (or PNGs of the 459 ids) in VOCdevkit/VOC2010/trainval
      to VOCdevkit/VOC2010/SegmentationClassContext: 59 classes and background.

    - `cocostuff`: coco_stuff164k/stuffthingmaps to coco_stuff164k/annotations: 171 classes.

    - `cityscapes`: the labelIds in cityscapes/gtFine to labelTrainIds beside them: 19 classes.

    What is there already is kept, so a stopped run goes on with the same command.

    **Examples**

    `maskclip data convert cocostuff --data ~/data`

    `maskclip data convert context --data ~/data --source ~/downloads/trainval --workers 4`
    """
    from maskclip.cli.console import console, error_line, track, warning_line
    from maskclip.tasks.convert import complete_lists, convert_files, plan_conversion, usable_cpus

    plan = plan_conversion(dataset, data, source=source)
    total = len(plan.files)
    results = convert_files(plan, workers=workers or usable_cpus(), overwrite=overwrite)
    failed = skipped = 0
    for result in track(results, what="converting", total=total):
        skipped += result.skipped
        if result.error is not None:
            error_line(result.error)
            failed += 1
    screen = console()
    screen.print(
        f"{total - failed - skipped:,} converted, {skipped:,} there already -> {plan.targets}",
        markup=False,
        soft_wrap=True,
    )
    if failed:
        waiting = "; lists wait for them" if plan.conversion.lists else ""
        warning_line(f"{failed:,} of {total:,} files failed{waiting}")
        raise typer.Exit(1)
    lists = complete_lists(plan)
    for path in lists.written:
        screen.print(f"-> {path}", style="dim", markup=False, soft_wrap=True)
    for note in lists.notes:
        warning_line(note)
