"""A CLIP of any family may teach: its student is trained, saved, resumed and used."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import maskclip
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.weights import load_clip
from maskclip.core.config import ModelConfig
from maskclip.plus.config import TEACHER, StudentConfig, Supervision
from maskclip.plus.files import (
    StudentMetadata,
    TrainedStudent,
    clip_name,
    read_student,
    save_student,
)
from maskclip.plus.supervision import teacher_maps
from maskclip.tasks import train as task
from tests.conftest import TINY_ARCHITECTURES
from tests.training import CLASSES, MACHINE, SCENES, TINY, StopAt, StoppedError

LABELS = Supervision(unlabeled=tuple(range(CLASSES)), clip_guided=(1, None), published_loss=False)
TWO_STEPS = replace(TINY.optimization, steps=2)


def taught_by(name: str, **changes: object) -> task.Training:
    teacher = ModelConfig(name=name, weights="random", templates="plain")
    fields = {"teacher": teacher, "supervision": LABELS, "optimization": TWO_STEPS, **changes}
    return replace(TINY, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TINY_ARCHITECTURES)
def test_a_student_that_starts_as_its_teacher_is_trained_resumed_and_used(
    name: str, tiny_architectures: list[str], tmp_path: Path
) -> None:
    training = taught_by(name, student=TEACHER)
    with pytest.raises(StoppedError):
        task.train(training, SCENES, tmp_path, machine=MACHINE, callbacks=[StopAt(1)])
    assert task.train(training, SCENES, tmp_path, machine=MACHINE, resume=True).steps == 2
    tower = read_student(tmp_path / "student.safetensors").student.config.tower
    assert tower is not None
    assert (tower["family"], tower["name"]) == ("architecture", name)
    assert_used(tmp_path / "student.safetensors", name)


def test_another_student_has_rows_of_its_teachers_width(
    tiny_architectures: list[str], tmp_path: Path
) -> None:
    training = taught_by("tiny-siglip", student=TINY.student)
    module = task.build(training, SCENES.vocabulary, device=torch.device("cpu"))
    file = tmp_path / "student.safetensors"
    known = {"clip": module.metadata.clip, "templates": module.metadata.templates}
    save_student(TrainedStudent(module.student, SCENES.vocabulary, **known), file)  # type: ignore[arg-type]
    assert_used(file, "tiny-siglip")


@torch.inference_mode()
def test_maps_and_students_have_the_softmax_of_the_models_own_logits(
    tiny_architectures: list[str],
) -> None:
    clip = load_clip("tiny-siglip", weights="random")
    model: Any = clip.model
    assert clip.bias == float(model.logit_bias) == -10
    training = taught_by("tiny-siglip", student=TEACHER)
    module = task.build(training, SCENES.vocabulary, device=torch.device("cpu"))
    rows, encoder = module.teacher.rows, module.teacher.encoder
    assert isinstance(encoder, DenseCLIP)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cosines = F.normalize(encoder.encode(images).features[0].flatten(1).T, dim=1) @ rows.T
    own = (model.logit_scale.exp() * cosines + model.logit_bias).softmax(dim=1)
    maps = teacher_maps(encoder, images, rows, training.supervision)
    torch.testing.assert_close(maps[0].flatten(1).T, own, rtol=1e-4, atol=1e-6)
    _, _, features, _ = module.student.eval().backbone(images)
    found = (features[0].flatten(1).T @ rows.T).softmax(dim=1)
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-6)


def assert_used(file: Path, name: str) -> None:
    """Label a photo with a student's own words, and with others by its CLIP."""
    trained = read_student(file)
    assert trained.student.rows.shape == (CLASSES, TINY_ARCHITECTURES[name][-1])
    assert trained.clip == name
    photo = np.asarray(SCENES[0].image)
    own = maskclip.load(str(file)).segment(photo, short_side=64)
    assert own.labels.shape == photo.shape[:2]
    segmenter = maskclip.load(str(file), weights="random")
    mixed = segmenter.segment(photo, ["a new word", SCENES.vocabulary.names[0]], short_side=64)
    assert mixed.vocabulary.names == ("a new word", SCENES.vocabulary.names[0])


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("MobileCLIP2-S0:dfndr2b", "MobileCLIP2-S0:dfndr2b"),
        ("hf-hub:org/a.name@v1", "hf-hub:org/a.name@v1"),
        ("models/mine.safetensors", "mine.safetensors"),
        ("models/folder", "folder"),
    ],
)
def test_a_students_file_names_its_clip_but_no_folder(model: str, known: str) -> None:
    config = StudentConfig()
    metadata = StudentMetadata(config=config, clip=clip_name(model))
    assert StudentMetadata.from_dict(metadata.to_dict(), source="x").clip == known
