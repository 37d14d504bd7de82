"""What Lightning trains with: checkpoints, written and read; stops between steps; lost images."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import LayerSync
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning, quiet_loggers
from maskclip.core.files import atomic_path
from maskclip.plus.config import Machine, TrainingError
from maskclip.plus.dataset import Batch
from maskclip.plus.module import LAST, MIOU

BEST = "best.ckpt"
"""The checkpoint in the run folder of the highest mIoU in validation."""

PREVIOUS = "previous.ckpt"
"""The checkpoint in the run folder before the last one, should that be damaged."""

_TOLERATED = 3  # images that cannot be read, of however few
_SHARE = 0.1  # of all images that may be unreadable
_MOST = 1000
_SAVED_EVERY = 200  # steps, of long trainings

_NEEDED = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step")
_UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError,
    pickle.UnpicklingError, zipfile.BadZipFile, MaskCLIPError,
)  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Lightning's remarks: callers report what users need."""
    with warnings.catch_warnings(), quiet_loggers("lightning.pytorch", "lightning.fabric"):
        warnings.filterwarnings("ignore", module="lightning")
        yield


def checkpoint_callbacks(
    out: Path, machine: Machine, *, steps: int, validated: bool
) -> list[ModelCheckpoint]:
    """Return what writes last.ckpt, step=N.ckpt if wanted, and best.ckpt where validated.

    `steps` are those of the whole training, of which one that is killed loses a tenth at most.
    """
    latest = _Checkpoint(
        out,
        filename=Path(LAST).stem,
        every_n_train_steps=machine.save_every or min(_SAVED_EVERY, max(1, steps // 10)),
        enable_version_counter=False,
    )
    found: list[ModelCheckpoint] = [latest]
    if machine.keep_every is not None:
        every = machine.keep_every
        found.append(_Checkpoint(out, filename="{step}", every_n_train_steps=every, save_top_k=-1))
    if validated:
        best = _Checkpoint(
            out,
            filename=Path(BEST).stem,
            monitor=MIOU,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        found.append(best)
    return found


class _Checkpoint(ModelCheckpoint):
    """Identified by its file name: Lightning's own key is the same for equal intervals."""

    @property
    def state_key(self) -> str:
        """The key of its state in a checkpoint."""
        return f"{type(self).__name__}:{self.filename}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the run folder is now, which may have been moved or copied."""
        here = str(self.dirpath)

        def moved(path: str) -> str:
            return str(Path(here) / Path(path).name) if path else ""

        state = {
            **state_dict,
            "dirpath": here,
            "best_k_models": {moved(k): v for k, v in state_dict["best_k_models"].items()},
            **{
                key: moved(state_dict[key])
                for key in ("best_model_path", "kth_best_model_path", "last_model_path")
            },
        }
        super().load_state_dict(state)


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are written whole or not at all, and read without running code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            TrainingError: the file cannot be written, as on a full disk; the one before is kept.
        """
        try:
            with atomic_path(path) as temporary:
                torch.save(checkpoint, temporary)
                with temporary.open("rb+") as file:
                    os.fsync(file)  # else a power cut can leave an empty file of the new name
                _keep_previous(Path(path))
        except (OSError, RuntimeError) as error:  # torch reports a full disk by the second
            reason = (str(error).splitlines() or ["unknown"])[0]
            before = Path(path).is_file()
            kept = "the one before is kept" if before else "it was the first: nothing is kept"
            again = "run the same again with `resume=True`" if before else "start again"
            raise TrainingError(
                f"{path}: the checkpoint cannot be written ({reason}); {kept}. Make room "
                f"and {again}"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values alone."""
        content: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only=True)
        return content


def _keep_previous(path: Path) -> None:
    """Let the last checkpoint be the previous one too, before another takes its name."""
    if path.name != LAST or not path.exists():
        return
    try:
        with atomic_path(path.with_name(PREVIOUS)) as temporary:
            temporary.unlink()
            os.link(path, temporary)
    except OSError:  # a file system without hard links
        path.replace(path.with_name(PREVIOUS))


class SyncNorms(LayerSync):
    """BatchNorms over the images of all processes.

    PyTorch's own conversion would lose the activations that timm's BatchNorms apply.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the model with its BatchNorms replaced, under the same names."""
        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """Return the model as it is: nothing uses it after the training."""
        return model


class CountSkipped(Callback):
    """Count the images that could not be read, and stop a training that misses many.

    Args:
        images: of the training.
        validated: images of the validation.

    Attributes:
        skipped: the names of such images, and why each could not be read.
    """

    def __init__(self, images: int, validated: int) -> None:
        self.skipped: dict[str, str] = {}
        self._missed: dict[str, set[str]] = {"training": set(), "validation": set()}
        self._counts = {"training": images, "validation": validated}

    def state_dict(self) -> dict[str, Any]:
        """Return what is known, for the checkpoint."""
        return {"skipped": dict(self.skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; what can be read again is not held against the training."""
        self.skipped.update(state_dict["skipped"])

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, *_: Any) -> None:
        """Count those of a step."""
        self._count("training", batch)

    def on_validation_batch_start(
        self, trainer: L.Trainer, module: Any, batch: Batch, *_: Any
    ) -> None:
        """Count those of a validation."""
        self._count("validation", batch)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        """Add those of the other processes."""
        if trainer.world_size > 1:
            parts: list[dict[str, str]] = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, self.skipped)
            for part in parts:
                self.skipped.update(part)

    def _count(self, what: str, batch: Batch) -> None:
        if not batch.skipped:
            return
        missed, count = self._missed[what], self._counts[what]
        for name, reason in batch.skipped:
            self.skipped[name] = reason
            missed.add(name)
        most = min(max(_TOLERATED, int(_SHARE * count)), _MOST, count - 1)
        if len(missed) > most:
            name, reason = batch.skipped[-1]
            raise TrainingError(
                f"{len(missed):,} of the {count:,} images of the {what} cannot be read, {name} the "
                f"last ({reason}): see to them, then go on with `resume=True`"
            )


class StopBetweenSteps(Callback):
    """On Ctrl-C, finish the step, write a checkpoint, then stop; a second Ctrl-C stops at once.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._interrupted = False
        self._previous: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the signal handler, which only the main thread may do."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop here after an interrupt."""
        if self._interrupted:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the previous signal handler."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


def steps_done(out: Path) -> int | None:
    """Return how many steps the last checkpoint holds, None where it cannot be read."""
    try:
        return int(_load(out / LAST)["global_step"])
    except _UNREADABLE:
        return None


def find_checkpoint(out: Path, weights: Mapping[str, Tensor]) -> Path:
    """Return the last checkpoint that is sound, and warn if it is not the last.

    Args:
        out: the run folder.
        weights: of the training, whose names and shapes a checkpoint has to have.

    Raises:
        TrainingError: none is; the message says what is wrong with the last and what to do.
    """
    problems: list[str] = []
    for name in (LAST, PREVIOUS):
        path = out / name
        if not os.path.lexists(path):
            continue
        problem = _problem(path, weights)
        if problem is None:
            if problems:
                warnings.warn(
                    f"{problems[0]}: the training goes on from {name}",
                    MaskCLIPWarning,
                    stacklevel=2,
                )
            return path
        problems.append(f"{path} {problem}")
    raise TrainingError(
        f"{' and '.join(problems)}: begin anew with another `out`, or put a copy of a checkpoint "
        f"of this training there as {LAST}"
    )


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content


def _problem(path: Path, weights: Mapping[str, Tensor]) -> str | None:
    """Return what is wrong with a checkpoint, None if nothing is."""
    if not path.is_file():
        return "is not a file"
    if not path.stat().st_size:
        return "is empty"
    try:
        with zipfile.ZipFile(path) as archive:
            foreign = any(e.compress_type != zipfile.ZIP_STORED for e in archive.infolist())
            damaged = "of another program" if foreign else archive.testzip()
        if damaged is not None:
            return "is damaged"
        content = _load(path)
        missing = [key for key in _NEEDED if key not in content]
        state = dict(content["state_dict"])
        shapes = {key: value.shape for key, value in state.items()}
        finite = all(bool(value.isfinite().all()) for value in state.values())
        sound = not missing and _fits_a_training(content, set(shapes.values()))
    except zipfile.BadZipFile:
        return "is damaged or cut short"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except _UNREADABLE:
        return "is damaged, or no checkpoint of a training"
    if not sound or shapes != {key: value.shape for key, value in weights.items()}:
        return "is not a checkpoint of this training"
    return None if finite else "holds weights that are not finite"


def _fits_a_training(content: Mapping[str, Any], shapes: set[torch.Size]) -> bool:
    """Return whether the state beside the weights is of the kinds that a training takes up."""
    optimizers, schedulers = content["optimizer_states"], content["lr_schedulers"]
    loops, callbacks = content["loops"], content.get("callbacks", {})
    if type(content["global_step"]) is not int or content["global_step"] < 0:
        return False
    parts = (optimizers, schedulers)
    if not all(isinstance(part, list) and all(isinstance(o, dict) for o in part) for part in parts):
        return False
    if len(optimizers) != 1 or not all(
        isinstance(part, dict) and all(isinstance(value, dict) for value in part.values())
        for part in (loops, callbacks)
    ):
        return False
    known = shapes | {torch.Size()}
    return all(
        value.shape in known
        for state in optimizers[0]["state"].values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
