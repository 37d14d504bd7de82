"""Checkpoints, and what is done to the layers of a student on several GPUs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from maskclip.plus.config import parse_student
from maskclip.plus.student import build_student
from maskclip.tasks import callbacks
from maskclip.tasks.callbacks import AtomicCheckpoints, SyncNorms
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


@pytest.mark.parametrize("links", [True, False])  # some file systems have no hard links
def test_the_checkpoint_before_the_last_is_kept(links: bool, tmp_path, monkeypatch) -> None:
    def no_links(*_) -> None:
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(callbacks.os, "link", no_links)
    for step in (1, 2, 3):
        AtomicCheckpoints().save_checkpoint({"global_step": step}, tmp_path / "last.ckpt")
        AtomicCheckpoints().save_checkpoint({"global_step": step}, tmp_path / "best.ckpt")
    found = {path.name: torch.load(path)["global_step"] for path in tmp_path.iterdir()}
    assert found == {"last.ckpt": 3, "previous.ckpt": 2, "best.ckpt": 3}
