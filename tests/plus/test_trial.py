"""The first step, tried before it is taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskclip.plus.config import StudentConfig, TrainingError, parse_student
from maskclip.plus.module import freeze_norms
from maskclip.plus.student import Student, build_student
from maskclip.plus.trial import Trial, try_step


def built(config: StudentConfig) -> Student:
    return build_student(config, F.normalize(torch.randn(3, config.embed_dim), dim=1))


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("unet:mobilenetv3_small_050", ""),
        ("dpt:vit_tiny_patch16_224", "backbone.encoder.model.head.bias"),
        ("pspnet:efficientnet_lite0", "backbone.encoder.model.blocks.3.0.bn1.bias"),
    ],
)
def test_weights_that_nothing_depends_on_are_found(name: str, unused: str) -> None:
    student = built(parse_student(name, embed_dim=8))
    before = {key: value.clone() for key, value in student.state_dict().items()}
    trial = try_step(student, images=2, crop=(64, 64))
    assert trial.known
    assert min(trial.unused, default="") == unused
    found = student.state_dict()
    assert all(torch.equal(before[key], found[key]) for key in before)  # statistics, too
    student(torch.rand(2, 3, 64, 64)).sum().backward()
    missing = {name for name, weight in student.named_parameters() if weight.grad is None}
    assert trial.unused == missing


def test_a_value_alone_is_not_normalised() -> None:
    student = built(StudentConfig(decoder="deeplabv3plus", depth=50, width=4, embed_dim=8))
    assert try_step(student, images=2, crop=(64, 64)) == Trial()
    with pytest.raises(TrainingError, match="more than 1 image of 48x64 px a process"):
        try_step(student, images=1, crop=(64, 48))
    freeze_norms(student)
    assert try_step(student, images=1, crop=(64, 48)) == Trial()
