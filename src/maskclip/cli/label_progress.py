"""How far a labelling is, and what it came to, on the screen."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.progress import Progress, TextColumn

from maskclip.cli.console import console, error_line, progress_bar, warning_line

if TYPE_CHECKING:
    from maskclip.tasks.label.manifest import Counts, Outcome
    from maskclip.tasks.label.pipeline import Plan
    from maskclip.tasks.label.worker import Job

_SECONDS = 30.0  # between lines, where the output is no terminal
_LISTED = 20  # failures that are printed; the report has all


class LabelLines:
    """A bar on a terminal, a line now and then elsewhere; failures as they come."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._began = self._said = 0.0
        self._first = self._seen = self._failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is KeyboardInterrupt:
            console(errors=True).print("stopped: the same command goes on")

    @property
    def done(self) -> int:
        """How many photos have been labelled so far."""
        return self._seen - self._failed

    def watch(self, outcomes: Sequence[Outcome], counts: Counts) -> None:
        """Show what became of some photos, and how far the work is with them."""
        now = time.monotonic()
        if not self._seen:  # the model is loaded, and a bar may stand on the screen
            self._began, self._said, self._first = now, now, len(outcomes)
            self._begin(counts)
        self._seen += len(outcomes)
        for outcome in outcomes:
            if outcome.error is not None:
                self._failed += 1
                if self._failed <= _LISTED:
                    error_line(outcome.error)
                elif self._failed == _LISTED + 1:
                    warning_line("more failures are in report.html")
        speed = (self._seen - self._first) / max(1e-6, now - self._began)
        finished = counts.total - counts.left
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=finished, speed=speed, failed=counts.failed
            )
        elif now - self._said >= _SECONDS:  # so that some have come since the first
            self._said = now
            left = timedelta(seconds=round(counts.left / speed))
            console(errors=True).print(
                f"{finished:,} of {counts.total:,} photos, {speed:.1f} a second, {left} left, "
                f"{counts.failed:,} failed"
            )

    def _begin(self, counts: Counts) -> None:
        before = counts.total - counts.left - self._first
        if before:
            console(errors=True).print(f"going on: {before:,} of {counts.total:,} photos are done")
        if sys.stderr.isatty():
            self._bar = progress_bar(
                TextColumn("{task.fields[speed]:.1f} a second, {task.fields[failed]} failed")
            )
            self._bar.start()
            self._bar.add_task(
                "labelling", total=counts.total, completed=before, speed=0.0, failed=counts.failed
            )


def show_plan(plan: Plan, out: Path) -> None:
    """Print what a labelling would do."""
    counts, screen = plan.counts, console()
    screen.print(f"to be labelled: {counts.left:,}; done already: {counts.done:,}")
    for path in plan.first:
        screen.print(f"-> {path}", style="dim", markup=False, soft_wrap=True)
    if counts.left > len(plan.first):
        screen.print(f"   ... and report.html in {out}", style="dim", markup=False, soft_wrap=True)


def show_end(counts: Counts, done: int, job: Job) -> None:
    """Print what a labelling came to: all its photos, `done` of which were labelled just now."""
    screen = console()
    earlier = f" ({counts.done - done:,} of them earlier)" if counts.done > done else ""
    screen.print(f"photos labelled: {counts.done:,}{earlier}; failed: {counts.failed:,}")
    for name in (*job.formats, "report.html"):
        screen.print(f"-> {job.out / name}", style="dim", markup=False, soft_wrap=True)
    if counts.failed:
        warning_line(
            f"{counts.failed:,} without labels: {job.out / 'report.html'} says why. The same "
            "command tries them again"
        )
