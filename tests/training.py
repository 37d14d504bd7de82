"""A training that takes a second, on drawn scenes; run as a file, it trains into a folder.

`python tests/training.py RUN TINY [WORKERS]`: to be killed, or to be run by several processes.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from maskclip.core.config import Augmentation, ModelConfig
from maskclip.emoji.scenes import EmojiScenes
from maskclip.plus.config import Machine, Optimization, Supervision, Training
from maskclip.tasks import train as task

MACHINE = Machine(device="cpu", workers=0, save_every=2, keep_every=2, validate_every=3)
SCENES = EmojiScenes(split="train", size=64, seeds=range(10_000, 10_006), official=6)
CLASSES = len(SCENES.vocabulary)
TINY = Training(
    dataset="emoji",
    teacher=ModelConfig(name="emoji", templates="plain"),
    student="fpn:mobilenetv3_small_050",
    student_weights="random",
    supervision=Supervision(
        unlabeled=tuple(range(CLASSES)),
        clip_guided=(1, 3),
        self_training=(4, None),
        published_loss=False,
    ),
    augmentation=Augmentation(scale=(64, 64), crop=(64, 64)),
    optimization=Optimization(steps=6, batch_size=2, lr=0.01),
)


FROZEN = replace(
    TINY,
    student="dpt:vit_tiny_patch16_224",  # without dropout, and with weights that nothing uses
    supervision=replace(TINY.supervision, published_loss=True),
    optimization=replace(TINY.optimization, frozen_norms=True, steps=2, lr=1e-4, min_lr=1e-5),
)
"""A training that does not hang on which images share a batch."""

ONE = replace(SCENES, split="val", seeds=range(1))
"""A validation set of fewer images than processes."""

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class StoppedError(Exception):
    pass


class StopAt(task.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_args) -> None:
        if trainer.global_step == self.step:
            raise StoppedError


if __name__ == "__main__":
    run, name, *workers = sys.argv[1:]
    machine = replace(MACHINE, workers=int(workers[0])) if workers else MACHINE
    validation = ONE if name == "FROZEN" else None
    task.train(
        globals()[name], SCENES, Path(run), validation=validation, machine=machine, resume=True
    )
