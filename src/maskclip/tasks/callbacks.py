"""When a training keeps what it has reached: every so many steps, and when it is interrupted."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint


class Checkpoints(ModelCheckpoint):
    """Told apart by their file names: Lightning's own mark is the same for equal intervals."""

    @property
    def state_key(self) -> str:
        """What its state is kept under."""
        return f"{type(self).__name__}:{self.filename}"


class StopBetweenSteps(Callback):
    """An interrupt from the keyboard ends the step at work and keeps it; a second one does not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._asked = False
        self._before: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen; only the main thread of a program may."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop here if that was asked for."""
        if self._asked:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the key to who had it."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
