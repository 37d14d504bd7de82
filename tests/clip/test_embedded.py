import copy
import json
import subprocess
import sys
from importlib import resources

import pytest
import torch
from safetensors.torch import load_file, save_file

from maskclip.clip.checkpoint import WeightsError
from maskclip.clip.embedded import load_embedded
from maskclip.clip.encoder import DenseCLIP
from maskclip.clip.weights import load_clip
from maskclip.core.config import EMBEDDED
from maskclip.core.methods import METHODS


@pytest.mark.parametrize("size", [(128, 128), (70, 200)])
@pytest.mark.parametrize(
    ("name", "method"),
    [(name, method) for name in EMBEDDED for method in ("clean", "published", "baseline")]
    + [("emoji-vit", "naclip")],
)
@torch.inference_mode()
def test_the_light_towers_are_open_clips(name, method, size):
    clip = load_embedded(name)
    keys = method != "baseline"
    light, theirs = (
        DenseCLIP(visual, method=METHODS[method], mean=clip.mean, std=clip.std)
        for visual in (clip.visual, copy.deepcopy(clip.model.visual))
    )
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found, expected = (encoder.encode(images, keys=keys) for encoder in (light, theirs))
    torch.testing.assert_close(found.features, expected.features, rtol=1e-4, atol=1e-5)
    if keys:
        torch.testing.assert_close(found.keys, expected.keys, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EMBEDDED)
def test_their_weights_have_open_clips_names(name):
    clip = load_embedded(name)
    theirs = clip.model.visual.state_dict()
    ours = clip.visual.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


def test_words_that_were_used_before_do_not_wait_for_open_clip(isolated):
    code = (
        "import sys, numpy, maskclip\n"
        "image = numpy.zeros((32, 32, 3), numpy.uint8)\n"
        "maskclip.load('emoji').segment(image, ['dog', 'grass'])\n"
        "slow = {'open_clip', 'timm', 'torchvision', 'torchmetrics', 'matplotlib', 'skimage'}\n"
        "print(*slow & sys.modules.keys())\n"
    )
    for expected in ({"open_clip", "timm", "torchvision"}, set()):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert set(run.stdout.split()) == expected, run.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"config": "not json"},
        {"config": json.dumps({"embed_dim": 8})},
        {"config": json.dumps({"embed_dim": 8, "vision_cfg": {"layers": 1}, "text_cfg": {}})},
        {"short_side": "large"},
        {"quick_gelu": True},
    ],
    ids=str,
)
def test_a_file_that_describes_no_clip_is_one_error(change, tmp_path):
    with resources.as_file(resources.files("maskclip.clip") / "pretrained") as folder:
        tensors = load_file(folder / "emoji-vit.safetensors")
    config = {"embed_dim": 192, "vision_cfg": {}, "text_cfg": {"vocab_size": 49408}}
    if "quick_gelu" in change:
        change = {"config": json.dumps({**config, **change})}
    metadata = {"config": json.dumps(config), "short_side": "256", **change}
    path = tmp_path / "mine.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(WeightsError, match=r"mine\.safetensors: its metadata do not describe"):
        load_clip(str(path))
