"""Graphs of every family of image towers and by every method: minutes, in `make test-full`."""

import onnxruntime
import pytest
import torch

from maskclip.clip.encoder import DenseCLIP
from maskclip.core.methods import METHODS
from maskclip.export.graph import encoder_graph
from tests.clip.tiny_towers import FAMILIES, tiny_tower

pytestmark = pytest.mark.full
FEATURE_MAPS = ["convnext", "convnext mlp", "fastvit", "fastvit, five stages"]
SIZES = [(1, 97, 233), (2, 128, 160), (3, 250, 190)]


def check(visual, method):
    """Compare a graph's features with PyTorch's, at sizes that it was not made with."""
    encoder = DenseCLIP(visual, method=METHODS[method], mean=(0.5,) * 3, std=(0.3,) * 3).eval()
    session = onnxruntime.InferenceSession(encoder_graph(encoder).SerializeToString())
    seeded = torch.Generator().manual_seed(0)
    for count, height, width in SIZES:
        images = torch.randint(0, 256, (count, 3, height, width), generator=seeded).to(torch.uint8)
        with torch.inference_mode():
            expected = encoder.encode(images).features
        (found,) = session.run(None, {"images": images.numpy()})
        scale = float(expected.abs().max())
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-3 * scale)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", FAMILIES)
def test_vits(family):
    check(tiny_tower(family), "clean")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", FEATURE_MAPS)
def test_feature_maps(family, make_timm_clip):
    check(make_timm_clip(family).visual, "clean")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "resclip"])
def test_methods(method, make_clip):
    check(make_clip("vit", layers=12).visual, method)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["clean", "published", "baseline"])
def test_resnets(method, make_clip):
    check(make_clip("resnet").visual, method)
