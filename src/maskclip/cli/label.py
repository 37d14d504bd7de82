"""`maskclip label`: label whole folders."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.progress import Progress, TextColumn

from maskclip.cli import options as opt
from maskclip.cli.console import (
    error_line,
    is_terminal,
    note_line,
    print_choice,
    print_line,
    print_path,
    progress_bar,
    say_how_to_resume,
    warning_line,
    working,
)
from maskclip.cli.inputs import check_photos, find_photos, read_words
from maskclip.core.errors import MaskCLIPError, read_choices

if TYPE_CHECKING:
    from maskclip.tasks.label import Job, Outcome
    from maskclip.tasks.label.manifest import Counts
    from maskclip.tasks.label.pipeline import Backend, Plan

_cleaning = partial(typer.Option, rich_help_panel="Cleaning")
_of_format = partial(typer.Option, rich_help_panel="For other tools")
_machine = partial(typer.Option, rich_help_panel="Machine")

_SECONDS = 30.0  # between lines, where the output is no terminal
_LISTED = 20  # failures that are printed; the report lists more


def label(
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, glob patterns or images; `-` reads a list from standard input.",
            metavar="PHOTOS",
        ),
    ] = None,
    listed: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="A file that lists photos, one per line."),
    ] = None,
    out: opt.OutFolder = Path("labels"),
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="LIST",
            help="The files to write: png, coco, cvat, label-studio, yolo, probabilities, overlay, "
            "scores, json.",
        ),
    ] = "png",
    names: opt.ClassNames = None,
    classes: opt.ClassFile = None,
    vocabulary: opt.ClassSet = None,
    background: opt.BackgroundRule = None,
    confidence: Annotated[
        float, _cleaning(metavar="T", help="Drop pixels whose score is below T.")
    ] = 0.0,
    class_confidence: Annotated[
        list[str] | None,
        _cleaning(
            metavar="NAME=T",
            help="The same for one class, instead of --confidence (its default). Repeat it.",
        ),
    ] = None,
    min_region: Annotated[
        int, _cleaning(metavar="N", help="Drop regions of fewer than N pixels.")
    ] = 0,
    things: Annotated[
        str,
        _of_format(
            metavar="LIST",
            help="coco: the classes that are things, default: none; the others are stuff.",
        ),
    ] = "",
    url_prefix: Annotated[
        str | None,
        _of_format(
            metavar="URL",
            help="label-studio: where the folder of the photos is on the web; default: Label "
            "Studio serves it from its disk.",
        ),
    ] = None,
    link: Annotated[
        bool, _of_format("--link", help="yolo: put links to the photos beside their labels.")
    ] = False,
    validate: Annotated[
        float, _of_format(metavar="SHARE", help="yolo: the share of photos in val.txt.")
    ] = 0.1,
    seed: Annotated[int, _of_format(metavar="N", help="yolo: of the choice of these photos.")] = 0,
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
    device: Annotated[
        str,
        _machine(
            metavar="LIST",
            help="`auto` (all GPUs, or the CPU), `cpu`, `cuda:N` or `mps`; several between commas "
            "have a worker process each: `cuda:0,cuda:2`, `cpu,cpu`.",
        ),
    ] = "auto",
    ray: Annotated[
        bool,
        _machine(
            "--ray",
            help="Work on a Ray cluster, whose machines have the photos and DIR under the same "
            "paths; needs the extra `ray`, which `maskclip doctor` says how to install.",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        _machine(
            metavar="N",
            help="With --ray: number of workers; default: one for each GPU, or for each machine.",
            min=1,
        ),
    ] = None,
    precision: opt.Precision = "auto",
    runtime: opt.Runtime = "torch",
    max_pixels: opt.MaxPixels = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, without doing it.")
    ] = False,
) -> None:
    """Label whole folders of photos, in the formats that other tools import.

    Writes DIR/FORMAT/ with the tree of your folder, DIR/report.html and DIR/report.json. Run the
    same command again after an interruption, a crash or a full disk, or when there are new photos:
    photos that are done are skipped. A photo that cannot be read is reported, and the others are
    labelled.

    **Examples**

    `maskclip label photos/ --classes classes.txt --out labels`

    `maskclip label photos/ -c dog -c grass --format coco,yolo --confidence 0.5 --min-region 100`

    `maskclip label photos/ --classes classes.txt --regions segments/ --out labels`

    `find /data -name "*.jpg" | maskclip label - --vocabulary voc21 --background 0.3 --out labels`

    `maskclip label photos/ --model student.safetensors --device cuda:0,cuda:1`
    """
    from maskclip.core.cleaning import Cleaning
    from maskclip.core.config import ModelConfig
    from maskclip.data.formats import FORMATS, FormatOptions
    from maskclip.data.images import MAX_PIXELS
    from maskclip.tasks.label import Job

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
        cleaning=Cleaning(
            confidence=confidence, by_class=_by_class(class_confidence or []), min_region=min_region
        ),
        formats=read_choices(formats, FORMATS, to="write"),
        format_options=FormatOptions(
            things=tuple(" ".join(name.split()) for name in things.split(",") if name.strip()),
            url_prefix=url_prefix,
            link=link,
            validate=validate,
            seed=seed,
        ),
        max_pixels=max_pixels or MAX_PIXELS,
        runtime=runtime,
    )
    _check_tools(job)
    if workers is not None and not ray:
        raise MaskCLIPError("--workers belongs to --ray; on this machine, --device has the workers")
    check_photos(photos or [], names)
    with working("looking for photos"):
        sources = find_photos(photos or [], listed, out=out)
    with working("loading PyTorch"):  # after all that can be refused without it
        from maskclip.tasks.label.pipeline import label_photos, plan_labels
    devices = _devices(device)
    if dry_run:
        _show_plan(plan_labels(job, sources), out)
        return
    notes: list[str] = []
    count = "" if job.vocabulary is None else f" and encoding {len(job.vocabulary)} classes"
    with _Progress(f"loading {model}{count}") as progress:
        counts = label_photos(
            job,
            sources,
            device=devices[0],
            backend=_backend(devices, ray=ray, workers=workers),
            on_progress=progress.update,
            on_note=notes.append,
            on_choice=progress.choice,
        )
    _show_end(counts, progress.done, job)
    for note in notes:
        note_line(note)
    if counts.failed:
        raise typer.Exit(1)


def _check_tools(job: Job) -> None:
    """Refuse options of formats that are not written."""
    options = job.format_options
    for flag, value, owner in (
        ("--things", options.things, "coco"),
        ("--url-prefix", options.url_prefix, "label-studio"),
        ("--link", options.link, "yolo"),
    ):
        if value and owner not in job.formats:
            raise MaskCLIPError(f"{flag} belongs to --format {owner}")


def _by_class(texts: list[str]) -> dict[str, float]:
    """Read `dog=0.6`."""
    found = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            found[" ".join(name.split())] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise MaskCLIPError(f"--class-confidence is NAME=T, such as dog=0.6, got {text!r}")
    return found


def _devices(text: str) -> list[str]:
    import torch

    from maskclip.core.device import choose_device

    if text == "auto" and torch.cuda.device_count() > 1:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        choose_device(name)  # refuses unknown ones
    return names


def _backend(devices: list[str], *, ray: bool, workers: int | None) -> Backend | None:
    """Return what labels elsewhere; None is this process."""
    if not ray and len(devices) == 1:
        return None
    from maskclip.tasks.label.backends import label_in_pool, label_on_ray

    if ray:
        return partial(label_on_ray, workers=workers)
    return partial(label_in_pool, devices=devices)


class _Progress:
    """A progress bar on a terminal, a line every 30 seconds elsewhere; errors as they occur.

    Args:
        beginning: what takes its time before the first photo.
    """

    def __init__(self, beginning: str) -> None:
        self._beginning = ExitStack()
        self._beginning.enter_context(working(beginning))
        self._bar: Progress | None = None
        self._started = self._printed = 0.0
        self._first = self._seen = self._failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._beginning.close()
        if self._bar is not None:
            self._bar.stop()
        if kind is KeyboardInterrupt:
            say_how_to_resume("run the same command to resume")

    @property
    def done(self) -> int:
        """How many photos have been labelled so far, in this run."""
        return self._seen - self._failed

    def choice(self, what: str, chosen: str, why: str) -> None:
        """Say what `auto` is of an option, before the first photo."""
        self._beginning.close()
        print_choice(chosen, why, what=what)

    def update(self, outcomes: Sequence[Outcome], counts: Counts) -> None:
        """Show the outcomes of some photos, and how many are done with them."""
        now = time.monotonic()
        if not self._seen:  # only now the model is loaded, and a bar may be drawn
            self._beginning.close()
            self._started, self._printed, self._first = now, now, len(outcomes)
            self._begin(counts)
        self._seen += len(outcomes)
        for outcome in outcomes:
            if outcome.error is not None:
                self._failed += 1
                if self._failed <= _LISTED:
                    error_line(outcome.error)
                elif self._failed == _LISTED + 1:
                    warning_line("more failures are listed in report.html")
        speed = (self._seen - self._first) / max(1e-6, now - self._started)
        finished = counts.total - counts.left
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=finished, speed=speed, failed=counts.failed
            )
        elif now - self._printed >= _SECONDS:  # so that some have come since the first
            self._printed = now
            left = timedelta(seconds=round(counts.left / speed))
            print_line(
                f"{finished:,} of {counts.total:,} photos, {speed:.1f} per second, {left} left, "
                f"{counts.failed:,} failed",
                errors=True,
            )

    def _begin(self, counts: Counts) -> None:
        before = counts.total - counts.left - self._first
        if before:
            print_line(f"resuming: {before:,} of {counts.total:,} photos are done", errors=True)
        if is_terminal(sys.stderr):
            self._bar = progress_bar(
                TextColumn("{task.fields[speed]:.1f} per second, {task.fields[failed]} failed")
            )
            self._bar.start()
            self._bar.add_task(
                "labelling", total=counts.total, completed=before, speed=0.0, failed=counts.failed
            )


def _show_plan(plan: Plan, out: Path) -> None:
    """Print what a labelling would do."""
    counts = plan.counts
    print_line(f"to be labelled: {counts.left:,}; already done: {counts.done:,}")
    for path in plan.first:
        print_path(path)
    if counts.left > len(plan.first):
        print_line(f"   ... and report.html in {out}", style="dim")


def _show_end(counts: Counts, done: int, job: Job) -> None:
    """Print the result of a labelling, of whose photos `done` were labelled in this run."""
    earlier = f" ({counts.done - done:,} of them earlier)" if counts.done > done else ""
    print_line(f"photos labelled: {counts.done:,}{earlier}; failed: {counts.failed:,}")
    for name in (*job.formats, "report.html"):
        print_path(job.out / name)
    if counts.failed:
        warning_line(
            f"{counts.failed:,} failed: see {job.out / 'report.html'}. Run the same command to try "
            "them again"
        )
