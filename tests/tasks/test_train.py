"""Whole trainings on drawn scenes: tiny, on the CPU, and the same however they are broken up."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from maskclip.clip.model import CLIPModel
from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError, differences
from maskclip.core.samples import UNLABELED, Sample, Samples
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.photos import open_photos
from maskclip.plus.config import (
    Optimization,
    StudentError,
    Supervision,
    TrainingError,
)
from maskclip.plus.dataset import TrainingDataset
from maskclip.plus.files import read_student
from maskclip.plus.module import MaskCLIPPlus
from maskclip.plus.words import StudentWords
from maskclip.tasks import run_folder
from maskclip.tasks import train as task
from maskclip.tasks.callbacks import checkpoint_callbacks
from maskclip.tasks.run_folder import run_config
from tests import training
from tests.training import (
    FROZEN,
    MACHINE,
    ONE,
    ONE_THREAD,
    SCENES,
    TINY,
    StopAt,
    StoppedError,
    same,
    weights,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Painted(Samples):
    """Images of 64 x 64 px in columns: each of another label, and another colour."""

    columns: tuple[int, ...]

    @property
    def names(self) -> Sequence[str]:
        return ["one", "other"]

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        row = np.repeat(np.array(self.columns, np.int32), 64 // len(self.columns))
        labels = np.tile(row, (64, 1))
        pixels = (labels[..., None] * (7, 90, 151) % 256).astype(np.uint8)
        return Sample(self.names[index], Image.fromarray(pixels), labels)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    task.train(TINY, SCENES, out, machine=MACHINE, validation=replace(SCENES, split="val"))
    return out


def test_a_run_folder_holds_the_student_its_settings_and_its_curves(unbroken: Path) -> None:
    kept = sorted(path.name for path in unbroken.glob("*.ckpt"))
    steps = ["step=2.ckpt", "step=4.ckpt", "step=6.ckpt"]
    assert kept == ["best.ckpt", "last.ckpt", "previous.ckpt", *steps]
    config = json.loads((unbroken / "config.json").read_text())
    assert config["optimization"]["steps"] == 6
    assert config["samples"]["first_seed"] == 10_000
    (table,) = (unbroken / "logs" / "csv").rglob("metrics.csv")
    assert {"loss", "miou", "lr"} <= set(table.read_text().splitlines()[0].split(","))
    assert list((unbroken / "logs" / "tensorboard").rglob("events.out.tfevents.*"))
    assert not list(unbroken.rglob(".writing-*"))


def test_the_finished_student_knows_its_words(unbroken: Path) -> None:
    trained = read_student(unbroken / "student.safetensors")
    assert trained.vocabulary == SCENES.vocabulary
    for name in ("last.ckpt", "best.ckpt"):
        assert read_student(unbroken / name).vocabulary == SCENES.vocabulary
    assert (trained.clip, trained.templates) == (TINY.teacher.name, TINY.teacher.templates)
    assert trained.vocabulary is not None
    words = Vocabulary.parse(["dark grass", trained.vocabulary.names[0]])
    assert len(StudentWords(trained, name="student").rows(words)[0]) == 2


def test_the_teacher_is_not_in_the_checkpoint(unbroken: Path) -> None:
    assert all(key.startswith("student.") for key in weights(unbroken / "last.ckpt"))


@pytest.mark.parametrize("step", [4, 5])  # at a writing of last.ckpt, and between two
def test_going_on_gives_the_weights_of_the_unbroken_training(
    step: int, unbroken: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        task.train(TINY, SCENES, tmp_path, machine=MACHINE, callbacks=[StopAt(step)])
    done = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < done < 6  # it truly stopped in between
    task.train(TINY, SCENES, tmp_path, machine=MACHINE, resume=True)
    assert same(weights(tmp_path / "last.ckpt"), weights(unbroken / "last.ckpt"))


def test_an_interrupt_keeps_the_step_at_work(unbroken: Path, tmp_path: Path) -> None:
    class PressKey(task.Callback):
        def on_train_batch_start(self, trainer, *_args) -> None:
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    rarely = replace(MACHINE, save_every=100, keep_every=None)
    with pytest.raises(KeyboardInterrupt):
        task.train(TINY, SCENES, tmp_path, machine=rarely, callbacks=[PressKey()])
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    task.train(TINY, SCENES, tmp_path, machine=MACHINE, resume=True)
    assert same(weights(tmp_path / "last.ckpt"), weights(unbroken / "last.ckpt"))


@pytest.mark.parametrize(
    ("given", "steps", "every"),
    [(None, 4, 1), (None, 200, 20), (None, 2000, 200), (None, 80_000, 200), (7, 80_000, 7)],
)
def test_a_short_training_that_is_killed_loses_a_tenth_at_most(
    given: int | None, steps: int, every: int, tmp_path: Path
) -> None:
    machine = replace(MACHINE, save_every=given, keep_every=None)
    (latest,) = checkpoint_callbacks(tmp_path, machine, steps=steps, validated=False)
    assert latest._every_n_train_steps == every


def test_a_student_starts_from_the_weights_of_another(unbroken: Path, tmp_path: Path) -> None:
    file = unbroken / "student.safetensors"
    still = replace(
        TINY,
        initial=str(file),
        optimization=replace(TINY.optimization, steps=1, lr=1e-30, min_lr=1e-30, frozen_norms=True),
        supervision=Supervision(unlabeled=TINY.supervision.unlabeled, clip_guided=(1, None)),
    )
    (tmp_path / "photos").mkdir()
    for index in range(2):
        SCENES[index].image.save(tmp_path / "photos" / f"{index}.png")
    others = open_photos(tmp_path / "photos", Vocabulary.parse(["dog", "grass"]))
    for samples in (SCENES, others):
        out = tmp_path / f"{len(samples.vocabulary)}"
        classes = tuple(range(len(samples.vocabulary)))
        fewer = replace(still, supervision=replace(still.supervision, unlabeled=classes))
        given = read_student(file).student.state_dict()
        task.train(fewer, samples, out, machine=MACHINE)
        found = read_student(out / "student.safetensors").student.state_dict()
        assert len(found.pop("rows")) == len(classes)
        given.pop("rows")
        torch.testing.assert_close(found, given)


def test_a_backbone_starts_from_a_file_that_is_not_needed_again(tmp_path: Path) -> None:
    file = tmp_path / "backbone.safetensors"
    network = timm.create_model("mobilenetv3_small_050")
    save_file(network.state_dict(), file)
    still = replace(
        TINY,
        student_weights=str(file),
        optimization=replace(TINY.optimization, steps=4, lr=1e-30, min_lr=1e-30, frozen_norms=True),
    )
    with pytest.raises(StoppedError):
        task.train(still, SCENES, tmp_path / "run", machine=MACHINE, callbacks=[StopAt(3)])
    file.unlink()
    with pytest.raises(StudentError, match="`student_weights`: no file"):
        task.train(still, SCENES, tmp_path / "anew", machine=MACHINE)
    other = replace(still, student_weights="random")
    with pytest.raises(TrainingError, match=r"student_weights: .* there, 'random'"):
        task.train(other, SCENES, tmp_path / "run", machine=MACHINE, resume=True)
    task.train(still, SCENES, tmp_path / "run", machine=MACHINE, resume=True)
    found = read_student(tmp_path / "run" / "student.safetensors").student.backbone
    for name, weight in network.named_parameters():
        if name.startswith("conv_stem"):
            torch.testing.assert_close(found.state_dict()[f"encoder.model.{name}"], weight)


def test_images_drawn_evenly_are_the_same_after_a_stop(tmp_path: Path) -> None:
    even = replace(TINY, optimization=replace(TINY.optimization, balance=True))
    task.train(even, SCENES, tmp_path / "whole", machine=MACHINE)
    with pytest.raises(StoppedError):
        task.train(even, SCENES, tmp_path / "run", machine=MACHINE, callbacks=[StopAt(4)])
    shown = json.loads((tmp_path / "run" / "classes.json").read_text())
    assert len(shown) == len(SCENES)
    assert all(shown)
    task.train(even, SCENES, tmp_path / "run", machine=MACHINE, resume=True)
    whole, broken = (weights(tmp_path / name / "last.ckpt") for name in ("whole", "run"))
    assert same(whole, broken)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_head_learns_at_a_rate_of_its_own(optimizer: str, tmp_path: Path) -> None:
    config = replace(TINY.optimization, steps=1, optimizer=optimizer, lr=1e-3, frozen_norms=True)
    found = {}
    for mult in (1, 2, 3):
        out = tmp_path / str(mult)
        training = replace(TINY, optimization=replace(config, head_lr_mult=mult))
        task.train(training, SCENES, out, machine=MACHINE)
        found[mult] = dict(read_student(out / "student.safetensors").student.named_parameters())
    with next((tmp_path / "3" / "logs" / "csv").rglob("metrics.csv")).open() as file:
        (logged, *_) = csv.DictReader(file)
    assert float(logged["head_lr"]) == pytest.approx(3 * float(logged["lr"])) == 3e-3
    for name, one in found[1].items():
        near, far = found[2][name] - one, found[3][name] - one
        if name.startswith("backbone."):
            assert not far.any(), name
        else:
            torch.testing.assert_close(far, 2 * near, atol=1e-6, rtol=1e-3, msg=name)
            assert far.any(), name


def test_a_student_of_another_architecture_gives_no_weights(unbroken: Path, tmp_path: Path) -> None:
    other = replace(
        TINY, student="unet:mobilenetv3_small_050", initial=str(unbroken / "student.safetensors")
    )
    with pytest.raises(StudentError, match="decoder: 'fpn' there, 'unet' wanted"):
        task.train(other, SCENES, tmp_path, machine=MACHINE)


@pytest.mark.parametrize("steps", [2, 10])  # the last step is looked at, however few there are
def test_labels_that_nobody_is_sure_enough_of_are_noted(steps: int, tmp_path: Path) -> None:
    noted = []

    class Watch(task.Callback):
        def on_train_batch_end(self, trainer, module, *_args) -> None:
            noted.append(module.no_labels)

    unsure = replace(
        TINY,
        supervision=replace(
            TINY.supervision, confidence=2.0, clip_guided=(1, None), self_training=None
        ),
        optimization=replace(TINY.optimization, steps=steps),
    )
    task.train(unsure, SCENES, tmp_path, machine=MACHINE, callbacks=[Watch()])
    assert noted == [False] * (steps - 1) + [True]


def test_workers_change_nothing(unbroken: Path, tmp_path: Path) -> None:
    task.train(TINY, SCENES, tmp_path, machine=replace(MACHINE, workers=2))
    assert same(weights(tmp_path / "last.ckpt"), weights(unbroken / "last.ckpt"))


def test_another_seed_gives_other_weights(unbroken: Path, tmp_path: Path) -> None:
    other = replace(TINY, optimization=replace(TINY.optimization, seed=1))
    task.train(other, SCENES, tmp_path, machine=MACHINE)
    assert not same(weights(tmp_path / "last.ckpt"), weights(unbroken / "last.ckpt"))


def test_killed_at_any_moment_it_goes_on_to_the_same_weights(
    unbroken: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, training.__file__, str(tmp_path), "TINY"], env=ONE_THREAD
    )
    deadline = time.monotonic() + 90
    while not (tmp_path / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "last.ckpt").exists()
    task.train(TINY, SCENES, tmp_path, machine=MACHINE, resume=True)
    assert same(weights(tmp_path / "last.ckpt"), weights(unbroken / "last.ckpt"))


def test_two_processes_agree_with_one_on_the_joined_batch(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    together = tmp_path / "two"
    subprocess.run(
        [*launcher, training.__file__, str(together), "FROZEN"],
        check=True,
        env=ONE_THREAD,
        timeout=110,
    )
    task.train(FROZEN, SCENES, tmp_path / "one", validation=ONE, machine=MACHINE)
    for name in ("last.ckpt", "best.ckpt"):
        one, two = weights(tmp_path / "one" / name), weights(together / name)
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-5)


def test_mixed_precision_learns_and_is_validated(tmp_path: Path) -> None:
    short = replace(TINY, optimization=replace(TINY.optimization, steps=4, optimizer="adamw"))
    mixed = replace(MACHINE, precision="bfloat16")
    task.train(short, SCENES, tmp_path, machine=mixed, validation=SCENES)
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path / "last.ckpt").values())
    assert all(value.isfinite().all() for value in weights(tmp_path / "best.ckpt").values())


def test_distillation_brings_features_closer(tmp_path: Path) -> None:
    distilled = replace(
        TINY,
        supervision=Supervision(distillation=1.0, unlabeled=TINY.supervision.unlabeled),
        optimization=replace(TINY.optimization, steps=12, lr=0.1),
    )
    distances = []

    class Watch(task.Callback):
        def on_train_batch_end(self, trainer, *_args) -> None:
            distances.append(float(trainer.callback_metrics["distance"]))

    task.train(distilled, SCENES, tmp_path, machine=MACHINE, callbacks=[Watch()])
    assert distances[-1] < 0.8 * distances[0]


def test_pictures_show_what_the_student_learns(unbroken: Path) -> None:
    pictures = sorted(path.name for path in (unbroken / "overlays").iterdir())
    assert pictures == [
        f"{step:06}_scene_{seed:06}.jpg" for step in (3, 6) for seed in range(10_000, 10_004)
    ]
    with Image.open(unbroken / "overlays" / pictures[0]) as picture:
        assert picture.width >= 3 * 256  # the photo enlarged, CLIP's labels, the student's
        assert picture.height > 256  # titles and a legend


def test_a_folder_of_another_training_is_refused_with_the_difference(unbroken: Path) -> None:
    other = replace(TINY, optimization=replace(TINY.optimization, lr=0.02))
    with pytest.raises(TrainingError, match=r"optimization\.lr: 0\.01 there, 0\.02 wanted"):
        task.train(other, SCENES, unbroken, machine=MACHINE, resume=True)


def test_a_training_that_was_begun_keeps_the_method_that_auto_became(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = replace(TINY.teacher, name="emoji-vit", method="auto")
    auto, seen = replace(TINY, teacher=teacher), []

    def chosen(config: ModelConfig, options: Options) -> tuple[ModelConfig, str]:
        seen.append(options.short_side)
        return replace(config, method="naclip"), "for a test"

    monkeypatch.setattr(run_folder, "settle", chosen)
    with pytest.raises(StoppedError):
        task.train(auto, SCENES, tmp_path, machine=MACHINE, callbacks=[StopAt(3)])
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["teacher"]["method"], config["auto"]) == ("naclip", "for a test")
    named = replace(auto, teacher=replace(teacher, method="naclip"))
    assert run_folder.settle_teacher(auto, tmp_path) == (named, "for a test")
    assert seen == [64]
    run_folder.compare(tmp_path, run_config(named, SCENES), SCENES)
    other = replace(auto, teacher=replace(teacher, method="clean"))
    with pytest.raises(TrainingError, match=r"teacher\.method: 'naclip' there, 'clean' wanted"):
        run_folder.compare(tmp_path, run_config(other, SCENES), SCENES)


def test_other_weights_of_the_same_name_are_another_training(tmp_path: Path) -> None:
    weights = tmp_path / "clip.safetensors"
    training = replace(TINY, teacher=replace(TINY.teacher, weights=str(weights)))
    configs = []
    for content in (b"one", b"other"):
        weights.write_bytes(content)
        configs.append(run_config(training, SCENES))
    (change,) = differences(*configs)
    assert change.startswith("files.teacher.weights: ")


def test_a_training_is_not_begun_anew_by_accident(unbroken: Path) -> None:
    with pytest.raises(TrainingError, match=r"already finished: .*another `out` with `initial="):
        task.train(TINY, SCENES, unbroken, machine=MACHINE)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_step_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskclip.plus import module as training

    plain = training.segmentation_loss
    calls = iter(range(100))

    def broken(*args, **kwargs):
        loss = plain(*args, **kwargs)
        return loss * float("nan") if next(calls) == 2 else loss

    monkeypatch.setattr(training, "segmentation_loss", broken)
    faster = replace(TINY, optimization=replace(TINY.optimization, head_lr_mult=3))
    with pytest.raises(
        TrainingError, match=r"loss of step 3 is not finite.* smaller `head_lr_mult` than 3, and"
    ):
        task.train(faster, SCENES, tmp_path, machine=replace(MACHINE, save_every=100))
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_values_that_break_within_a_step_leave_the_statistics_before_it(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskclip.plus import student

    plain, calls = student.normalize_pixels, iter(range(100))

    def broken(*args):
        pixels = plain(*args)
        return pixels * float("nan") if next(calls) == 3 else pixels  # the first is a trial

    with monkeypatch.context() as patch:
        patch.setattr(student, "normalize_pixels", broken)
        with pytest.raises(
            TrainingError, match=r"loss of step 3 is not finite.*`initial=.*`lr=0\.005`"
        ):
            task.train(TINY, SCENES, tmp_path, machine=replace(MACHINE, save_every=100))
    assert same(weights(tmp_path / "last.ckpt"), weights(unbroken / "step=2.ckpt"))
    task.train(TINY, SCENES, tmp_path, machine=MACHINE, resume=True)
    assert same(weights(tmp_path / "last.ckpt"), weights(unbroken / "last.ckpt"))


def test_gradients_that_are_not_finite_never_become_weights(unbroken: Path, tmp_path: Path) -> None:
    class Break(task.Callback):
        def on_after_backward(self, trainer, module) -> None:
            if trainer.global_step == 2:
                next(module.student.parameters()).grad[0] = float("inf")

    rarely = replace(MACHINE, save_every=100, keep_every=None)
    with pytest.raises(TrainingError, match="gradient of step 3 is not finite"):
        task.train(TINY, SCENES, tmp_path, machine=rarely, callbacks=[Break()])
    assert same(weights(tmp_path / "last.ckpt"), weights(unbroken / "step=2.ckpt"))


def test_weights_that_are_not_finite_are_never_kept(unbroken: Path, tmp_path: Path) -> None:
    class Break(task.Callback):
        def on_train_batch_end(self, trainer, module, *_args) -> None:
            if trainer.global_step == 4:
                with torch.no_grad():
                    next(module.student.parameters())[0] = float("nan")

    with pytest.raises(TrainingError, match=r"weights after step 4 are not finite \(student\."):
        task.train(TINY, SCENES, tmp_path, machine=MACHINE, callbacks=[Break()])
    assert same(weights(tmp_path / "last.ckpt"), weights(unbroken / "step=2.ckpt"))


@pytest.mark.parametrize("by_masks", [False, True])
def test_labels_of_one_class_alone_are_noticed(by_masks: bool, tmp_path: Path, monkeypatch) -> None:
    from maskclip.plus import module as training

    unlabeled = (6, 7) if by_masks else TINY.supervision.unlabeled
    monkeypatch.setattr(training, "_CHECK_EVERY", 2)
    monkeypatch.setattr(
        training,
        "teacher_maps",
        lambda _, images, *__, **___: (
            torch.eye(len(unlabeled))[-1 if by_masks else 7]
            .view(1, -1, 1, 1)
            .repeat(len(images), 1, 1, 1)
        ),
    )
    seen = []

    class Watch(task.Callback):
        def on_train_batch_end(self, trainer, module: MaskCLIPPlus, *_args) -> None:
            seen.append(module.collapsed)

    short = replace(
        TINY,
        supervision=replace(TINY.supervision, unlabeled=unlabeled),
        optimization=replace(TINY.optimization, steps=2),
    )
    task.train(short, SCENES, tmp_path, machine=MACHINE, callbacks=[Watch()])
    assert seen[-1] == (None if by_masks else (7, 1.0))


@pytest.mark.parametrize(
    ("saved", "kept"),
    [(0, "it was the first: nothing is kept"), (1, "the one before is kept")],
)
def test_a_checkpoint_that_cannot_be_written_says_what_is_kept(
    saved: int, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskclip.tasks import callbacks

    plain, calls = torch.save, iter(range(100))

    def full(content, path) -> None:
        if next(calls) == saved:
            raise OSError(28, "No space left on device")
        plain(content, path)

    monkeypatch.setattr(callbacks.torch, "save", full)
    with pytest.raises(MaskCLIPError, match=rf"last\.ckpt.*No space left on device.*{kept}"):
        task.train(TINY, SCENES, tmp_path, machine=replace(MACHINE, keep_every=None))
    assert (tmp_path / "last.ckpt").is_file() == bool(saved)
    if saved:
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


def test_300_classes_are_learnt_and_class_255_is_one_of_them(tmp_path: Path) -> None:
    names = [f"thing {number}" for number in range(300)]
    names[254], names[255] = "grass", "dog"
    words = Vocabulary.parse(names)
    samples = Painted(
        name="painted", split="all", vocabulary=words, columns=(255, 254, words.ignore, UNLABELED)
    )
    wide = replace(
        TINY,
        supervision=Supervision(published_loss=False),
        augmentation=replace(TINY.augmentation, ratio=(1.0, 1.0), distort=False, flip=0.0),
        optimization=replace(TINY.optimization, steps=20, lr=0.1),
    )
    task.train(wide, samples, tmp_path, machine=MACHINE, validation=samples)
    trained = read_student(tmp_path / "student.safetensors")
    image = torch.from_numpy(np.array(samples[0].image)).permute(2, 0, 1)[None]
    found = trained.student(image).argmax(dim=1)
    assert set(found[..., 1:3].flatten().tolist()) == {255}
    assert set(found[..., 5:7].flatten().tolist()) == {254}
    (csv,) = (tmp_path / "logs" / "csv").rglob("metrics.csv")
    last = [float(line.split(",")[3]) for line in csv.read_text().splitlines()[1:] if ",,," in line]
    assert last[-1] > 90  # ignored and unlabelled pixels do not count


def test_labels_that_samples_have_are_kept_and_clip_fills_in_the_rest(tmp_path: Path) -> None:
    seen = []

    class Watch(task.Callback):
        def on_train_batch_start(self, trainer, module, batch, *_args) -> None:
            labels = module.find_labels(batch, module.student(batch.images))
            seen.append((batch.labels, labels))

    samples = Painted(
        name="painted", split="all", vocabulary=SCENES.vocabulary, columns=(7, UNLABELED, 255, 3)
    )
    corrected = replace(
        TINY,
        supervision=replace(TINY.supervision, keep_labels=True),
        augmentation=replace(TINY.augmentation, ratio=(1.0, 1.0)),
    )
    task.train(corrected, samples, tmp_path, machine=MACHINE, callbacks=[Watch()])
    assert len(seen) == 6
    for given, labels in seen:  # CLIP labels, then the student does
        assert set(given.unique().tolist()) == {3, 7, UNLABELED, 255}
        assert torch.equal(labels[given != UNLABELED], given[given != UNLABELED])
        assert UNLABELED not in labels


def test_true_labels_of_unseen_classes_are_never_seen() -> None:
    zero_shot = replace(TINY, supervision=Supervision(unlabeled=(0,), clip_guided=(1, None)))
    dataset = TrainingDataset(SCENES, zero_shot)
    assert all(0 not in dataset[index][1] for index in range(4))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("DataLoader worker (pid 1) is killed by signal: Killed.", "take fewer `workers`"),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory", "a smaller `batch_size`"),
    ],
)
def test_memory_that_runs_out_is_one_line(error: str, message: str, tmp_path: Path) -> None:
    class Break(task.Callback):
        def on_train_batch_start(self, *_args) -> None:
            raise RuntimeError(error)

    with pytest.raises(TrainingError, match=message):
        task.train(TINY, SCENES, tmp_path, machine=MACHINE, callbacks=[Break()])


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"lr": -1.0},
        {"min_lr": 1.0},
        {"momentum": 1},
        {"head_lr_mult": 0},
        {"head_lr_mult": 1001},
        {"optimizer": "x"},
        *(
            {name: value}
            for name in ("lr", "min_lr", "head_lr_mult", "momentum", "weight_decay", "power")
            for value in (float("nan"), float("inf"), -float("inf"))
        ),
    ],
)
def test_impossible_settings_are_refused(values) -> None:
    with pytest.raises(TrainingError):
        Optimization(**values)


def test_a_method_that_cannot_teach_so_is_refused_before_the_first_step(
    make_model: Callable[..., CLIPModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_model(vision={"layers": 10, "head_width": 16})  # patches of 8 px
    monkeypatch.setattr("maskclip.plus.supervision.load_of", lambda *_, **__: clip)
    training = replace(TINY, teacher=ModelConfig(name="tiny", method="scclip", templates="plain"))
    small = replace(training.augmentation, crop=(40, 40))
    smoothed = replace(training.supervision, key_smoothing=1.0)
    for changed, message in (
        ({"augmentation": small}, "'scclip' needs more than 30 patches, and 40x40 px have 25"),
        ({"supervision": smoothed}, "'scclip' has no keys"),
    ):
        with pytest.raises(MaskCLIPError, match=message):
            task.build(replace(training, **changed), SCENES.vocabulary, device=torch.device("cpu"))
