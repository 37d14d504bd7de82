"""The progress of a training, on the screen."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.progress import Progress, TextColumn

from maskclip.cli.console import (
    is_terminal,
    print_choice,
    print_line,
    print_path,
    progress_bar,
    warning_line,
)
from maskclip.plus.module import MIOU, MaskCLIPPlus

if TYPE_CHECKING:
    from maskclip.tasks.train import Trained

_LISTED = 10  # images that could not be read
_LINES = 20  # per training, where the output is no terminal


class TrainProgress(Callback):
    """A progress bar on a terminal, lines elsewhere; scores of validation; warnings.

    Args:
        names: of the classes.
        on_start: called when the first step is about to be taken.

    Attributes:
        prints: whether this is the process that prints.
    """

    def __init__(self, names: Sequence[str], on_start: Callable[[], None]) -> None:
        self.names = names
        self._on_start = on_start
        self.prints = True
        self._bar: Progress | None = None
        self._began = (0.0, 0)

    @property
    def seconds(self) -> float:
        """The time since the training began or was resumed."""
        return time.monotonic() - self._began[0]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock and the bar, also in the middle of a resumed training."""
        self._on_start()
        self.prints = trainer.is_global_zero
        self._began = (time.monotonic(), trainer.global_step)
        if not self.prints:
            return
        assert isinstance(pl_module, MaskCLIPPlus)
        teacher = pl_module.teacher
        if teacher.encoder is not None:
            print_choice(teacher.encoder.method, teacher.why)
        if trainer.global_step:
            print_line(f"resumed after step {trainer.global_step:,}", errors=True)
        if trainer.world_size > 1 and pl_module.device.type != "cuda":
            warning_line(
                "BatchNorm is synchronised on GPUs only: each process normalises its own images"
            )
        if is_terminal(sys.stderr):
            self._bar = progress_bar(TextColumn("loss {task.fields[loss]:.3f}"))
            self._bar.start()
            self._bar.add_task(
                "training", total=trainer.max_steps, completed=trainer.global_step, loss=0.0
            )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the step, and warn of labels that teach nothing."""
        if not self.prints:
            return
        step, loss = trainer.global_step, float(trainer.callback_metrics.get("loss", 0.0))
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, loss=loss)
        elif step % max(1, trainer.max_steps // _LINES) == 0 or step == trainer.max_steps:
            self._line(step, trainer.max_steps, loss)
        assert isinstance(pl_module, MaskCLIPPlus)
        if pl_module.no_labels:
            pl_module.no_labels = False
            warning_line(
                f"step {step:,}: no pixel was given a label, so nothing is learnt: lower "
                "--confidence"
            )
        if pl_module.collapsed is not None:
            index, share = pl_module.collapsed
            pl_module.collapsed = None
            warning_line(
                f"step {step:,}: {share:.0%} of the labels are {self.names[index]!r}, and the "
                "student learns little else: see what `maskclip segment` makes of your images"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the score."""
        miou = trainer.callback_metrics.get(MIOU)
        if self.prints and miou is not None and not trainer.sanity_checking:
            assert isinstance(pl_module, MaskCLIPPlus)
            seen, count = pl_module.validated, len(self.names)
            some = f" ({seen:,} of {count:,} classes have pixels)" if seen < count else ""
            step = trainer.global_step
            print_line(f"step {step:,}: mIoU {float(miou):.1f} % in validation{some}", errors=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the bar, however the training ended."""
        if self._bar is not None:
            self._bar.stop()

    def _line(self, step: int, steps: int, loss: float) -> None:
        began, first = self._began
        each = (time.monotonic() - began) / max(1, step - first)
        left = timedelta(seconds=round(each * (steps - step)))
        print_line(
            f"step {step:,} of {steps:,}: loss {loss:.4f}, {each:.2f} s a step, {left} left",
            errors=True,
        )


def print_trained(trained: Trained, *, seconds: float) -> None:
    """Say what was reached, where it is, and what to type next."""
    if trained.already:
        print_line(f"already finished, after {trained.steps:,} steps: nothing was left to do")
    else:
        loss = "" if trained.loss is None else f", loss {trained.loss:.4f}"
        steps = f"{trained.steps:,} step{'s' * (trained.steps != 1)}"
        print_line(f"trained {steps}, in {timedelta(seconds=round(seconds))}{loss}")
    if trained.miou is not None:
        print_line(
            f"the student is that of step {trained.chosen_step:,}, the best in validation: mIoU "
            f"{trained.miou:.1f} %"
        )
    if trained.skipped:
        names = list(trained.skipped.items())
        listed = "; ".join(f"{name} ({reason})" for name, reason in names[:_LISTED])
        more = f"; and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
        warning_line(
            f"{len(names):,} image{'s' * (len(names) != 1)} could not be read, and others were "
            f"learnt from instead: {listed}{more} (all in {trained.student.parent / 'skipped.txt'})"
        )
    pictures = trained.student.parent / "overlays"
    if pictures.is_dir():
        print_line(f"what it makes of a few images is in {pictures}")
    print_path(trained.student)
    print_line(
        f"next: maskclip segment PHOTO --model {shlex.quote(str(trained.student))}", style="dim"
    )
