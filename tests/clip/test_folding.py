import copy

import pytest
import torch
from torch import nn

from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.folding import fold_batch_norms
from maskclip.core.method import CLEAN, PUBLISHED

STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.2)}


@pytest.mark.parametrize("method", [CLEAN, PUBLISHED])
@pytest.mark.parametrize("family", ["resnet", "vit"])
@torch.inference_mode()
def test_a_prepared_tower_computes_the_same(make_clip, family, method):
    visual = make_clip(family).visual
    plain = DenseCLIP(copy.deepcopy(visual), method=method, **STATISTICS).eval()
    prepared = DenseCLIP(visual, method=method, **STATISTICS)
    prepared.prepare(torch.float32)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    images = torch.rand(2, 3, 70, 90, generator=torch.Generator().manual_seed(0))
    expected, found = (encoder.encode(images, keys=True) for encoder in (plain, prepared))
    torch.testing.assert_close(found.features, expected.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.keys, expected.keys, rtol=1e-4, atol=1e-5)
    prepared.prepare(torch.bfloat16)  # again, as when a model is used by two segmenters
    assert prepared.encode(images).features.dtype == torch.bfloat16


def test_only_a_norm_that_follows_its_convolution_is_folded():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    fold_batch_norms(module)
    assert isinstance(module[2], nn.BatchNorm2d)
