"""What is done to the layers of a student on several GPUs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from maskclip.plus.config import parse_student
from maskclip.plus.student import build_student
from maskclip.tasks.callbacks import SyncNorms
from tests.conftest import randomize


@pytest.mark.parametrize("name", ["unet:mobilenetv3_small_050", "fpn:efficientnet_lite0"])
def test_synchronised_norms_keep_the_activations_of_timm(name: str) -> None:
    rows = F.normalize(torch.randn(3, 8), dim=1)
    student = randomize(build_student(parse_student(name, embed_dim=8), rows)).eval()
    assert any(isinstance(module, BatchNormAct2d) for module in student.modules())
    image = torch.rand(1, 3, 64, 64)
    before, names = student(image), list(student.state_dict())
    converted = SyncNorms().apply(student)
    plain = (nn.BatchNorm1d, nn.BatchNorm2d)
    assert not any(isinstance(module, plain) for module in converted.modules())
    assert list(converted.state_dict()) == names
    torch.testing.assert_close(converted(image), before)
