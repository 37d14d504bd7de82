"""Progress and results of a labelling, on the screen."""

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
    from maskclip.tasks.label import Job, Outcome
    from maskclip.tasks.label.manifest import Counts
    from maskclip.tasks.label.pipeline import Plan

_SECONDS = 30.0  # between lines, where the output is no terminal
_LISTED = 20  # failures that are printed; the report lists more


class LabelProgress:
    """A progress bar on a terminal, a line every 30 seconds elsewhere; errors as they occur."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._started = self._printed = 0.0
        self._first = self._seen = self._failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is KeyboardInterrupt:
            console(errors=True).print("stopped: run the same command to resume")

    @property
    def done(self) -> int:
        """How many photos have been labelled so far, in this run."""
        return self._seen - self._failed

    def update(self, outcomes: Sequence[Outcome], counts: Counts) -> None:
        """Show the outcomes of some photos, and how many are done with them."""
        now = time.monotonic()
        if not self._seen:  # only now the model is loaded, and a bar may be drawn
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
            console(errors=True).print(
                f"{finished:,} of {counts.total:,} photos, {speed:.1f} per second, {left} left, "
                f"{counts.failed:,} failed"
            )

    def _begin(self, counts: Counts) -> None:
        before = counts.total - counts.left - self._first
        if before:
            console(errors=True).print(f"resuming: {before:,} of {counts.total:,} photos are done")
        if sys.stderr.isatty():
            self._bar = progress_bar(
                TextColumn("{task.fields[speed]:.1f} per second, {task.fields[failed]} failed")
            )
            self._bar.start()
            self._bar.add_task(
                "labelling", total=counts.total, completed=before, speed=0.0, failed=counts.failed
            )


def show_plan(plan: Plan, out: Path) -> None:
    """Print what a labelling would do."""
    counts, screen = plan.counts, console()
    screen.print(f"to be labelled: {counts.left:,}; already done: {counts.done:,}")
    for path in plan.first:
        screen.print(f"-> {path}", style="dim", markup=False, soft_wrap=True)
    if counts.left > len(plan.first):
        screen.print(f"   ... and report.html in {out}", style="dim", markup=False, soft_wrap=True)


def show_end(counts: Counts, done: int, job: Job) -> None:
    """Print the result of a labelling, of whose photos `done` were labelled in this run."""
    screen = console()
    earlier = f" ({counts.done - done:,} of them earlier)" if counts.done > done else ""
    screen.print(f"photos labelled: {counts.done:,}{earlier}; failed: {counts.failed:,}")
    for name in (*job.formats, "report.html"):
        screen.print(f"-> {job.out / name}", style="dim", markup=False, soft_wrap=True)
    if counts.failed:
        warning_line(
            f"{counts.failed:,} failed: see {job.out / 'report.html'}. Run the same command to try "
            "them again"
        )
