"""The method `published` gives the labels of the authors' pipeline, from the file on."""

import io
from functools import cache

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskclip.clip.encoder import DenseCLIP
from maskclip.core.config import Options
from maskclip.core.dense import Scoring
from maskclip.core.method import BASELINE, PUBLISHED
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.images import read_image
from maskclip.emoji.scenes import draw_scene
from maskclip.tasks.photos import Network, network_input, network_size, read_maps
from tests.conftest import GOLDEN
from tests.golden import authors
from tests.golden.networks import build_tower, read_rows, read_tower

NAMES = ("vit_tiny", "rn_tiny")
SIZES = ((375, 500), (300, 203), (1061, 797))  # enlarged twice, and shrunk


@cache
def sides(name):
    """Their reading of a network, ours, and its text rows."""
    state = read_tower(GOLDEN["small"], name)
    tower = build_tower(state)
    theirs = authors.vit(state) if name.startswith("vit") else authors.resnet(tower)
    encoder = DenseCLIP(build_tower(state), method=PUBLISHED, mean=(0, 0, 0), std=(1, 1, 1))
    return theirs, encoder, read_rows(GOLDEN["small"], name)


def network_of(encoder, method=PUBLISHED):
    return Network(
        encode=encoder.encode,
        short_side=512,
        antialias=method.antialias,
        resizes=method.resizes,
        device=torch.device("cpu"),
    )


def ours(photo, encoder, rows):
    """What the product makes of a decoded photo: the pixels that the network sees, and labels."""
    network, options, output = network_of(encoder), Options(), (photo.height, photo.width)
    seen = network_input(photo, network_size(output, options, network), network)
    names = [f"class {index}" for index in range(len(rows))]
    scoring = Scoring(rows=rows, classes=tuple(range(len(rows))), method=PUBLISHED, temperature=100)
    (maps,) = read_maps([seen], [output], options, network, scoring)
    return seen.permute(1, 2, 0).numpy(), maps.labels(Vocabulary.parse(names))[0]


def jpeg(size, seed, **how):
    """Draw a photo and write it as a JPEG."""
    scene = Image.fromarray(draw_scene(seed, size=size).image)
    noise = np.random.default_rng(seed).normal(0, 6, (*size, 3))
    photo = Image.fromarray((np.asarray(scene) + noise).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    photo.save(file, "JPEG", **{"quality": 90, **how})
    return file.getvalue()


@pytest.mark.parametrize("how", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 60}])
def test_pixels_of_a_jpeg_are_those_that_opencv_decodes(how):
    data = jpeg((203, 151), 1, **how)
    found = np.asarray(read_image(data, name="photo"))
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(found, theirs)


@torch.inference_mode()
def test_the_authors_pipeline_is_that_of_the_golden_arrays():
    for case in sorted((GOLDEN["small"] / "maskclip").glob("*.npz")):
        with np.load(case) as file:
            arrays = dict(file)
        read, _, rows = sides(case.stem.rpartition("_")[0])
        pixels, output = arrays["image_rgb_u8"], tuple(arrays["ori_shape"].tolist())
        found = authors.logits(pixels, read, rows, output).numpy()
        np.testing.assert_allclose(found, arrays["final_none"][0], atol=2e-6)
        same = authors.labels(pixels, read, rows, output) == arrays["pred_none"]
        assert same.mean() > 0.9999


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_labels_from_a_jpeg_are_those_of_the_authors(name):
    read, encoder, rows = sides(name)
    same, pixels = 0, 0
    for seed, size in enumerate(SIZES):
        data = jpeg(size, seed)
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        theirs = authors.scaled(decoded)
        seen, found = ours(read_image(data, name="photo"), encoder, rows)
        np.testing.assert_array_equal(seen, theirs)
        same += int((found == authors.labels(theirs, read, rows, size)).sum())
        pixels += found.size
    assert same / pixels >= 0.99999


@pytest.mark.parametrize("method", [PUBLISHED, BASELINE], ids=lambda method: method.name)
@pytest.mark.parametrize("size", [(512, 683), (70, 33), (1, 7), (160, 222)])
def test_photos_are_resized_to_the_bytes_of_opencv(method, size):
    photo = Image.fromarray(draw_scene(3, size=(160, 222)).image)
    network = network_of(sides("vit_tiny")[1], method)
    found = network_input(photo, size, network)
    expected = cv2.resize(np.asarray(photo), size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float()
    smooth = F.interpolate(pixels, size=size, mode="bilinear")[0]
    assert (found.float() - smooth).abs().max() <= 1  # what it stands for
