"""What the published trainings cost, counted without a GPU: `python benchmarks/cost.py`.

A training step of one process runs on the meta device, where tensors have shapes and no values:
torch counts the operations, and the bytes of all tensors alive are followed to their peak. Hours
are operations over an assumed speed. `--measure` also runs small steps on this CPU, to set their
peaks beside the counted ones.
"""

from __future__ import annotations

import weakref
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from measuring import Rows, apart, machine, peak_mib, show
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from maskclip.clip.model import CLIPModel
from maskclip.clip.weights import load_clip
from maskclip.core.dense import similarity
from maskclip.core.methods import get_method
from maskclip.core.resize import fit_within
from maskclip.core.view import LONG_SIDE_RATIO
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.specs import SPECS
from maskclip.plus.config import Machine, Optimization, Training, parse_student
from maskclip.plus.student import Student, build_student
from maskclip.plus.supervision import build_teacher, segmentation_loss, teacher_maps
from maskclip.trainings import TRAININGS

TEXT_DIMS = {"RN50:openai": 1024, "RN50x16:openai": 768, "ViT-B-16:openai": 512}
PHOTO = (375, 500)  # a usual size, for validation
BATCH = Optimization().batch_size  # the published one
SMALL = {"batch": 2, "crop": 256}  # of the steps that are measured
HEAD = (
    "row|student, TFLOP|teacher|GiB at {own} images|GiB at {all}|run, GB|training, h|validation, h"
)


class Memory(TorchDispatchMode):
    """The bytes of the tensors that are made inside and still alive, and their peak.

    Args:
        there: tensors from outside, which do not count when they are changed in place.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {id(storage) for storage in (each.untyped_storage() for each in there)}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self.known:
            return
        self.known.add(id(storage))
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, id(storage), storage.nbytes())

    def _forget(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size


@cache
def clip(name: str) -> CLIPModel:
    return load_clip(name, weights="random")


class Step:
    """A training step of one process; calling it makes one, in the order that Lightning has.

    Args:
        training: the recipe; the step is one that CLIP guides.
        batch: images of this process.
        crop: their side.
        device: `meta` or `cpu`.
    """

    def __init__(self, training: Training, *, batch: int, crop: int, device: str) -> None:
        config, dim = training.supervision, TEXT_DIMS[training.teacher.name]
        architecture = parse_student(training.student, embed_dim=dim, background=config.background)
        self.config = config
        self.rows = torch.randn(len(Vocabulary.builtin(training.dataset)), dim, device=device)
        with torch.device(device):
            self.student = build_student(architecture, self.rows[config.background :])
        teacher = training.teacher
        self.teacher = build_teacher(clip(teacher.name), method=get_method(teacher.method))
        self.teacher.prepare(torch.float32 if device == "cpu" else torch.bfloat16)
        self.teacher.to(device)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4
        )
        self.images = torch.zeros(batch, 3, crop, crop, dtype=torch.uint8, device=device)
        self.labels = torch.zeros(batch, crop, crop, dtype=torch.int64, device=device)

    @property
    def tensors(self) -> list[Tensor]:
        """All that is there before the first step."""
        states = [module.state_dict() for module in (self.student, self.teacher)]
        return [self.images, self.labels, *states[0].values(), *states[1].values()]

    def __call__(self) -> None:
        features = self.student.features(self.images)
        self.teach()
        loss = segmentation_loss(logits_of(self.student, features), self.labels)
        del features
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def teach(self) -> None:
        """Run the teacher, and enlarge its maps image by image as `assign_labels` does."""
        for maps in teacher_maps(self.teacher, self.images, self.rows, self.config):
            F.interpolate(maps[None], size=self.labels.shape[1:], mode="bilinear")

    @torch.no_grad()
    def validate(self, size: tuple[int, int]) -> None:
        """Run the student alone on one image."""
        self.student.eval()
        image = torch.zeros(1, 3, *size, dtype=torch.uint8, device=self.images.device)
        logits_of(self.student, self.student.features(image))
        self.student.train()


def logits_of(student: Student, features: Tensor) -> Tensor:
    """Classify features as `Student.logits` does, without autocast, which knows no meta device."""
    return similarity(student.dropout(features), student.classifier(), normalize=False)


def size_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def operations(run: Callable[[], object]) -> int:
    """Count operations; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def added(step: Step) -> int:
    """Return the bytes that steps add at their peak; the second has the state of SGD."""
    with Memory([*step.tensors, step.rows]) as memory:
        step()
        step()
    return memory.peak


def line(name: str, how: Namespace) -> list[str]:
    """Count one recipe."""
    training = TRAININGS[name].training
    config, crop = training.optimization, training.augmentation.crop[0]
    own = config.batch_size // how.gpus
    step = Step(training, batch=own, crop=crop, device="meta")
    weights = size_of(step.student.state_dict().values())
    teacher = operations(step.teach)
    student = operations(step) - teacher
    short = training.short_side
    size = fit_within(PHOTO, short=short, long=LONG_SIDE_RATIO * short)
    image = operations(partial(step.validate, size))
    there = size_of(step.tensors)
    shared = there + added(step) + (weights if how.gpus > 1 else 0)  # what is sent is a copy
    alone = Step(training, batch=config.batch_size, crop=crop, device="meta")
    guided = training.supervision.clip_guided[1] or config.steps
    images = -(-SPECS[training.dataset].splits["val"].official // how.gpus)
    validations = config.steps // min(Machine().validate_every, config.steps)
    speed = how.tflops * 1e12 * 3600
    return [
        name,
        f"{student / 1e12:.1f}",
        f"{teacher / 1e12:.2f}",
        f"{shared / 2**30:.1f}",
        f"{(size_of(alone.tensors) + added(alone)) / 2**30:.0f}",
        f"{5 * weights / 1e9:.1f}",
        f"{(config.steps * student + guided * teacher) / speed:.2g}",
        f"{validations * images * image / speed:.2g}",
    ]


def measured(name: str) -> float:
    """Return the MiB that two small steps add on the CPU; to be called in a fresh process."""
    step = Step(TRAININGS[name].training, **SMALL, device="cpu")

    def run() -> None:
        step()
        step()

    return peak_mib(run)


def comparison(names: list[str]) -> Rows:
    """Set counted peaks beside measured ones."""
    rows = [["row, a step of 2 images of 256 px", "counted, MiB", "measured, MiB"]]
    for name in names:
        counted = added(Step(TRAININGS[name].training, **SMALL, device="meta")) / 2**20
        rows.append([name, f"{counted:.0f}", f"{apart(measured, name):.0f}"])
    return rows


def read_options(arguments: Iterable[str] | None) -> Namespace:
    parser = ArgumentParser(description="Count what the published trainings cost.")
    parser.add_argument("--rows", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--gpus", type=int, default=4, help="that share the published batch")
    parser.add_argument("--tflops", type=float, default=10, help="assumed of each, sustained")
    parser.add_argument("--measure", action="store_true", help="also measure small steps")
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args(None if arguments is None else list(arguments))


def main(arguments: Iterable[str] | None = None) -> None:
    how = read_options(arguments)
    rows = [HEAD.format(all=BATCH, own=BATCH // how.gpus).split("|")]
    rows += [line(name, how) for name in how.rows]
    title = f"Counted for {how.gpus} GPUs of {how.tflops:g} TFLOP/s each"
    show(title, rows, markdown=how.markdown)
    if how.measure:
        show("Counted and measured", comparison(how.rows), markdown=how.markdown)
        print(machine())


if __name__ == "__main__":
    main()
