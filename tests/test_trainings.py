"""Every published student: two steps at full size, of networks with random weights, on real photos.

Two run with every suite, the others with `make test-full`.
"""

from __future__ import annotations

import csv
import gc
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskclip.cli import main
from maskclip.clip.weights import load_clip
from maskclip.core.samples import UNLABELED
from maskclip.core.vocabulary import IGNORE
from maskclip.data.datasets import Dataset, open_dataset
from maskclip.data.specs import SPECS
from maskclip.plus import supervision
from maskclip.plus.config import Machine, Training
from maskclip.plus.files import read_student
from maskclip.tasks import train as task
from maskclip.trainings import TRAININGS

pytestmark = pytest.mark.timeout(600)  # a machine that is busy takes minutes for one

STEPS = 2
CROP = 64
PHOTOS = 8  # of Context, in each split
MACHINE = Machine(device="cpu", workers=0, validate_on=1, overlays=0)
TEXT_DIMS = {"RN50": 1024, "RN50x16": 768, "ViT-B-16": 512}


def short(training: Training) -> Training:
    """Two steps on small crops; all else is the recipe's."""
    return replace(
        training,
        teacher=replace(training.teacher, weights="random"),
        student_weights="random",
        augmentation=replace(training.augmentation, scale=(CROP, CROP), crop=(CROP, CROP)),
        optimization=replace(training.optimization, steps=STEPS, batch_size=2),
    )


def both_phases(training: Training) -> Training:
    """CLIP labels in the first step, the student in the second."""
    phases = {"clip_guided": (1, 1), "self_training": (2, None)}
    return replace(training, supervision=replace(training.supervision, **phases))


PUBLISHED = {name: row.training for name, row in TRAININGS.items() if row.miou is not None}
CASES = {name: short(training) for name, training in PUBLISHED.items()}
CASES |= {f"{name}-both-phases": both_phases(CASES[name]) for name in CASES if "zeroshot" in name}
IN_EVERY_SUITE = ("voc20-annofree-rn50", "context60-zeroshot-rn50-both-phases")
CASES_OF_SUITES = [
    pytest.param(name, marks=() if name in IN_EVERY_SUITE else pytest.mark.full) for name in CASES
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Path:
    """The real pairs; those of COCO-Stuff converted, and for Context the photos of VOC again."""
    root = tmp_path_factory.mktemp("data")
    for link in ("VOCdevkit/VOC2012", "coco_stuff164k/images", "coco_stuff164k/stuffthingmaps"):
        (root / link).parent.mkdir(exist_ok=True)
        (root / link).symlink_to(real_data / link, target_is_directory=True)
    assert main(["data", "convert", "cocostuff", "--data", str(root), "--workers", "1"]) == 0
    draw_context(root)
    return root


def draw_context(root: Path) -> None:
    """Lay VOC's photos out as VOC2010 has them, with masks of a few drawn regions each."""
    draw = np.random.default_rng(0)
    for split, whole in SPECS["context60"].splits.items():
        (part,) = whole.parts
        real = SPECS["voc20"].splits[split].parts[0]
        names = (root / str(real.listing)).read_text().split()[:PHOTOS]
        for folder in (part.images, part.masks, str(Path(str(part.listing)).parent)):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            photo = root / part.images / f"{name}.jpg"
            photo.symlink_to(root / real.images / f"{name}.jpg")
            regions = Image.fromarray(draw.integers(0, 60, (3, 4), dtype=np.uint8))
            with Image.open(photo) as image:
                mask = regions.resize(image.size, Image.Resampling.NEAREST)
            mask.save(root / part.masks / f"{name}.png")
        (root / str(part.listing)).write_text("\n".join(names))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run folder that does not stay, nor does the training: each takes gigabytes."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    gc.collect()  # a training and its engine know each other


@pytest.fixture(scope="module")
def load_once():
    """A full-size teacher is built once for the students it has in a row."""
    loaded: dict[str, Any] = {}

    def load(config, options=None):
        name = config.name
        if name not in loaded:
            loaded.clear()
            loaded[name] = load_clip(name, weights=config.weights)
        return loaded[name]

    return load


@pytest.fixture
def only_networks(load_once, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random text rows in place of minutes in the text tower."""

    def random_rows(clip, prompts, **_) -> torch.Tensor:
        dim = TEXT_DIMS[clip.name.partition(":")[0]]
        generator = torch.Generator().manual_seed(0)
        return F.normalize(torch.randn(len(prompts), dim, generator=generator), dim=1)

    monkeypatch.setattr(supervision, "load_of", load_once)
    monkeypatch.setattr(supervision, "class_rows", random_rows)


class Watch(task.Callback):
    """Remember which labels the training was given."""

    def __init__(self) -> None:
        self.given: set[int] = set()

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        self.given |= set(batch[1].unique().tolist())


def with_unseen(samples: Dataset) -> Dataset:
    """Return the samples whose truth has a class of the zero-shot split."""
    found = [
        item
        for index, item in enumerate(samples.items)
        if np.isin(samples[index].labels, samples.unseen).any()
    ]
    return replace(samples, items=tuple(found))


def losses_of(run: Path) -> list[float]:
    (curves,) = (run / "logs" / "csv").rglob("metrics.csv")
    with curves.open() as file:
        return [float(line["loss"]) for line in csv.DictReader(file) if line["loss"]]


@pytest.mark.parametrize("name", CASES_OF_SUITES)
def test_a_published_student_trains_at_full_size(
    name: str, root: Path, run: Path, only_networks: None
) -> None:
    training = CASES[name]
    samples = open_dataset(training.dataset, root, split=training.split)
    unlabeled = training.supervision.unlabeled
    zero_shot = unlabeled == samples.unseen
    if zero_shot:
        samples = with_unseen(samples)
    validated = name not in IN_EVERY_SUITE and training.dataset != "cocostuff171"
    validation = open_dataset(training.dataset, root) if validated else None
    watch = Watch()
    finished = task.train(
        training, samples, run, validation=validation, machine=MACHINE, callbacks=[watch]
    )

    files = {".lock", "config.json", "last.ckpt", "logs", "samples.json", "student.safetensors"}
    files |= {"previous.ckpt", *(["best.ckpt"] if validated else [])}
    assert {path.name for path in run.iterdir()} == files
    trained = read_student(finished.student)
    assert (trained.vocabulary, trained.step) == (samples.vocabulary, STEPS)
    architecture = trained.student.config
    assert architecture.depth == 101
    assert architecture.embed_dim == TEXT_DIMS[training.teacher.name.partition(":")[0]]
    assert architecture.background == training.supervision.background
    assert torch.load(run / "last.ckpt", weights_only=True, mmap=True)["global_step"] == STEPS
    losses = losses_of(run)
    assert losses
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    kept = json.loads((run / "config.json").read_text())
    assert kept["classes"] == list(samples.vocabulary.names)
    asked = json.loads(json.dumps(asdict(training)))
    assert {key: kept[key] for key in asked} == asked
    assert watch.given.isdisjoint(unlabeled)  # no true label of theirs was seen
    assert UNLABELED in watch.given
    assert bool(watch.given - {UNLABELED, IGNORE}) == zero_shot
