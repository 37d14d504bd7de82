"""A step of MaskCLIP+ beside a step with given labels, and what feeds it: `benchmarks/train.py`.

Three ways run in turn in one process (A B C A B C ...) on one student, all with random weights:

    bare    the limit: a plain step with given labels; forward, loss, backward, SGD
    ours    the training's own step on images without labels: CLIP finds them first
    labels  the finding alone, CLIP's forward pass included

They run under Lightning's Fabric, so that its loop and hooks are left out of both. The teacher runs
in the precision that a training would choose (`auto`), and in the student's.

Then the images alone, as a training reads them: JPEGs from disk through the published augmentation.
By the clock `cpu`, workers are taken to have a core each. Options, memory and kept cells are as in
`segment.py`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from measuring import Rows, apart, in_turn, kept, machine, peak_mib, ratios, show, spans
from PIL import Image
from three_ways import pixels_of, smooth_photo
from torch import Tensor

from maskclip.core.config import ModelConfig
from maskclip.core.device import PRECISIONS
from maskclip.core.samples import UNLABELED, Samples
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.photos import open_folder, open_photos
from maskclip.plus.config import LIGHTNING_PRECISIONS, Optimization, Supervision, Training
from maskclip.plus.dataset import TrainingDataset, training_loader
from maskclip.tasks.train import build

WAYS = ("bare", "ours", "labels")
LISTS: dict[str, list[Any]] = {
    "teachers": ["RN50", "ViT-B-16"],
    "teacher-precisions": ["auto", "float32"],
    "students": ["deeplabv2-r101"],
    "classes": [171],
}
HEAD = "student, teacher|bare, s|ours / bare|labels / bare|MiB: bare|ours"
PHOTO = (375, 500)  # height x width, px, of most photos in PASCAL VOC
PHOTOS = 32  # drawn when none are given


@dataclass(frozen=True)
class Cell:
    """What is measured: one line of a table."""

    student: str
    precision: str
    teacher: str
    teacher_precision: str
    classes: int
    crop: int
    batch: int
    device: str

    def __str__(self) -> str:
        size = f"{self.crop}x{self.crop} K{self.classes} B{self.batch}"
        student, teacher = f"{self.student} {self.precision}", f"{self.teacher}"
        return f"{student}, {teacher} {self.teacher_precision}, {size} {self.device}"


def words(count: int) -> Vocabulary:
    return Vocabulary.parse([f"class {index}" for index in range(count)])


def training_of(cell: Cell, *, steps: int = 2000) -> Training:
    """Return the published annotation-free training, with random weights."""
    supervision = Supervision(unlabeled=tuple(range(cell.classes)), clip_guided=(1, None))
    return Training(
        dataset="drawn",
        teacher=ModelConfig(
            name=cell.teacher, weights="random", method="published", templates="plain"
        ),
        student=cell.student,
        student_weights="random",
        supervision=supervision,
        optimization=Optimization(steps=steps, batch_size=cell.batch),
    )


class Contest:
    """The ways on one student and one batch."""

    def __init__(self, cell: Cell) -> None:
        device = torch.device(cell.device)
        accelerator = "gpu" if device.type == "cuda" else device.type
        self.fabric = Fabric(
            accelerator=accelerator,
            devices=1,
            precision=cast(Any, LIGHTNING_PRECISIONS[cell.precision]),
        )
        module = build(training_of(cell), words(cell.classes), device=device)
        if cell.teacher_precision != "auto":
            cast(Any, module.teacher.encoder).prepare(PRECISIONS[cell.teacher_precision])
        (optimizer,), _ = module.configure_optimizers()
        self.module, self.student = module, module.student
        self.stepping, self.optimizer = self.fabric.setup(module, optimizer)
        module.on_fit_start()
        side, seeded = (cell.crop, cell.crop), torch.Generator().manual_seed(0)
        self.images = pixels_of([smooth_photo(side, seed) for seed in range(cell.batch)]).to(device)
        shape = (cell.batch, *side)
        self.given = torch.randint(cell.classes, shape, generator=seeded).to(device)
        self.unlabeled = torch.full_like(self.given, UNLABELED)

    def bare(self) -> None:
        with self.fabric.autocast():
            logits = self.student(self.images)
        logits = F.interpolate(logits, self.given.shape[1:], mode="bilinear")
        self._descend(F.cross_entropy(logits, self.given))

    def ours(self) -> None:
        self._descend(self.stepping.training_step((self.images, self.unlabeled), 0))

    def labels(self) -> Tensor:
        unread = self.images  # the student's features label in self-training alone
        return self.module.find_labels(self.images, self.unlabeled, unread)

    def _descend(self, loss: Tensor) -> None:
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()


def peak(way: str, cell: Cell) -> float:
    """Return the MiB that one run adds at its peak; to be called in a fresh process."""
    return peak_mib(getattr(Contest(cell), way), cell.device)


def measure(cell: Cell, how: Namespace) -> dict[str, Any]:
    peaks = {way: apart(peak, way, cell) for way in ("bare", "ours")}  # before memory is taken here
    contest = Contest(cell)
    runs = {way: getattr(contest, way) for way in WAYS}
    return {
        **asdict(cell),
        "clock": how.clock,
        "machine": machine(),
        "seconds": in_turn(runs, how.repeats, clock=how.clock),
        "peak_mib": peaks,
    }


def steps(how: Namespace) -> tuple[Rows, float]:
    """Return the table of steps, and the images a second that the fastest of them takes."""
    rows, fastest = [HEAD.split("|")], 0.0
    for student, classes, teacher, precision in product(
        how.students, how.classes, how.teachers, how.teacher_precisions
    ):
        cell = Cell(
            student,
            how.precision,
            teacher,
            precision,
            classes,
            how.crop,
            how.batch_size,
            how.device,
        )
        print(cell, file=sys.stderr)
        path = how.out / f"{cell} {how.clock}.json".replace(" ", "_").replace(":", "")
        found = kept(path, lambda cell=cell: measure(cell, how))
        times, peaks = found["seconds"], found["peak_mib"]
        fastest = max(fastest, cell.batch / float(np.median(times["ours"])))
        beside = (ratios(times, way, "bare") for way in ("ours", "labels"))
        memory = (f"{peaks[way]:.0f}" for way in ("bare", "ours"))
        rows.append([str(cell), spans(times["bare"]), *beside, *memory])
    return rows, fastest


def draw(folder: Path, classes: int) -> tuple[Path, Path]:
    """Draw photos, as grainy as real ones, and masks; return their folders."""
    images, masks = folder / "images", folder / "masks"
    for kind in (images, masks):
        kind.mkdir()
    for seed in range(PHOTOS):
        generator, soft = np.random.default_rng(seed), np.asarray(smooth_photo(PHOTO, seed))
        grain = generator.normal(0, 12, PHOTO)[:, :, None]
        pixels = (soft + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"{seed}.jpg", quality=90)
        ids = (soft[:, :, 0] // 32 + generator.integers(classes)) % classes
        Image.fromarray(ids.astype(np.uint8)).save(masks / f"{seed}.png")
    return images, masks


def pipeline(how: Namespace, consumed: float) -> Rows:
    """Measure the images alone: of the published size, in the order of a training."""
    batch = how.batch_size
    training = training_of(
        Cell("deeplabv2-r101", "float32", "RN50", "auto", how.classes[0], 512, batch, "cpu"),
        steps=how.images_read // batch,
    )

    def read(samples: Samples, workers: int) -> None:
        for _ in training_loader(TrainingDataset(samples, training), workers=workers):
            pass

    vocabulary = words(how.classes[0])
    rows = [["images", "processes", "clock", "images a second", "times what the step takes"]]
    with tempfile.TemporaryDirectory() as drawn:
        images, masks = (how.images, None) if how.images else draw(Path(drawn), len(vocabulary))
        kinds: dict[str, Samples] = {"photos": open_photos(images, vocabulary)}
        if masks:
            kinds["photos and masks"] = open_folder(images, masks, vocabulary)
        clocks = dict.fromkeys((how.clock, "wall"))
        for (kind, samples), workers, clock in product(kinds.items(), how.workers, clocks):
            run = {kind: lambda s=samples, w=workers: read(s, w)}
            others = workers > 0 and clock == "cpu"
            times = in_turn(run, how.repeats, clock="children" if others else clock)[kind]
            count = training.optimization.steps * batch * (workers if others else 1)
            rates = count / np.array(times)
            where = f"{workers} workers" if workers else "its own"
            rows.append([kind, where, clock, spans(rates), f"{np.median(rates) / consumed:.3g}"])
    return rows


def read_options(arguments: Iterable[str] | None) -> Namespace:
    gpu = torch.cuda.is_available()
    parser = ArgumentParser(description="Measure training: steps, memory, and what feeds them.")
    for name, values in LISTS.items():
        parser.add_argument(f"--{name}", nargs="+", type=type(values[0]), default=values)
    parser.add_argument(
        "--precision", choices=LIGHTNING_PRECISIONS, default="float32", help="the student's"
    )
    parser.add_argument("--crop", type=int, default=512 if gpu else 256, help="px, of a step")
    parser.add_argument("--batch-size", type=int, default=4 if gpu else 2)
    parser.add_argument("--images", type=Path, metavar="DIR", help="photos; some are drawn")
    parser.add_argument("--images-read", type=int, default=128, metavar="N", help="a turn")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/train-speed"), help="cells are kept")
    return parser.parse_args(None if arguments is None else list(arguments))


def main(arguments: Iterable[str] | None = None) -> None:
    how = read_options(arguments)
    os.environ["OMP_NUM_THREADS"] = str(how.threads)  # for the fresh processes
    torch.set_num_threads(how.threads)
    rows, consumed = steps(how)
    show("Steps", rows, markdown=how.markdown)
    title = f"Images, of which the fastest step takes {consumed:.3g} a second"
    show(title, pipeline(how, consumed), markdown=how.markdown)
    print(machine())


if __name__ == "__main__":
    main()
