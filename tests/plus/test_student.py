from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim, export

from maskclip.core.errors import MaskCLIPError
from maskclip.plus.config import StudentConfig, StudentError, TrainingError, parse_student
from maskclip.plus.module import freeze_norms
from maskclip.plus.student import Student, Trial, build_student, try_step
from tests.golden import networks
from tests.golden.networks import read_student

TOLERANCE = 1e-4
SMALL = {"depth": 50, "width": 4, "skip": 3, "embed_dim": 8}


def rows(count=5, channels=8):
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(count, channels, generator=generator), dim=1)


def small(**fields):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_student(StudentConfig(**{**SMALL, **fields}), rows())


def images(*size, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (batch, 3, *size), generator=generator, dtype=torch.uint8)


def distance(ours, theirs):
    assert ours.shape == theirs.shape
    theirs = theirs.astype(np.float64)
    return np.linalg.norm(ours.numpy() - theirs) / np.linalg.norm(theirs)


@torch.no_grad()
def computed(student, pictures):
    """Run a student at the start of its training: array name -> what it must equal."""
    ours = {}
    ours["eval_feat"] = student.eval().features(pictures)
    ours["eval_logits"] = student.logits(ours["eval_feat"])
    full = F.interpolate(student(pictures), pictures.shape[-2:], mode="bilinear")
    ours["eval_encode_decode"] = full
    ours["eval_pred"] = full.argmax(dim=1)
    ours["s1_student_feat"] = student.train().features(pictures)
    ours["s1_logits"] = student.logits(ours["s1_student_feat"])
    return ours


class TestGolden:
    def test_features_logits_and_labels_are_those_of_the_authors(self, golden_training):
        arrays = np.load(golden_training)
        student = networks.build_student(read_student(golden_training), source="golden")
        pictures = torch.from_numpy(arrays["input"]) * student.std + student.mean
        ours = computed(student, pictures)
        checked = [name for name in ours if name in arrays]
        assert checked
        for name in checked:
            if name != "eval_pred":
                assert distance(ours[name], arrays[name]) < TOLERANCE, name
        if "eval_pred" in arrays:
            second, best = ours["eval_encode_decode"].sort(dim=1).values[:, -2:].unbind(dim=1)
            clear = (best - second > TOLERANCE * best.abs()).numpy()
            assert clear.mean() > 0.99
            assert np.array_equal(ours["eval_pred"].numpy()[clear], arrays["eval_pred"][clear])


class TestStudent:
    @pytest.mark.parametrize(("decoder", "cell"), [("deeplabv2", 8), ("deeplabv3plus", 4)])
    @pytest.mark.parametrize("size", [(64, 48), (61, 45), (9, 130), (1, 1)])
    def test_any_size_has_a_grid_rounded_up(self, decoder, cell, size):
        student = small(decoder=decoder, background=True).eval()
        grid = tuple(-(-side // cell) for side in size)
        with torch.no_grad():
            features = student.features(images(*size))
            assert features.shape == (2, 8, *grid)
            assert features.min() >= 0
            assert student.logits(features).shape == (2, 6, *grid)
            assert torch.equal(student(images(*size)), student.logits(features))

    def test_bytes_and_floats_are_the_same_picture(self):
        student = small().eval()
        picture = images(40, 40)
        with torch.no_grad():
            assert torch.allclose(student(picture), student(picture.float() / 255))

    @pytest.mark.parametrize("bad", [images(8, 8)[0], images(8, 8).long(), images(8, 8)[:, :2]])
    def test_other_batches_are_refused(self, bad):
        with pytest.raises(ValueError, match="expected"):
            small()(bad)

    def test_logits_are_inner_products_with_the_rows(self):
        student = small()
        features = torch.rand(2, 8, 3, 4)
        expected = torch.einsum("bdhw,kd->bkhw", features, rows())
        assert torch.allclose(student.logits(features), expected, atol=1e-6)

    def test_the_background_is_class_0_and_unit_length_whatever_was_learnt(self):
        student = small(background=True)
        with torch.no_grad():
            student.background.mul_(7)
        classifier = student.classifier()
        assert classifier.shape == (6, 8)
        assert torch.allclose(classifier[0].norm(), torch.ones(()))
        assert torch.equal(classifier[1:], rows())

    def test_training_reaches_all_but_the_rows(self):
        student = small(decoder="deeplabv3plus", background=True)
        student(images(32, 32)).square().mean().backward()
        assert all(parameter.grad is not None for parameter in student.parameters())
        assert "rows" in student.state_dict()
        assert "rows" not in dict(student.named_parameters())

    def test_the_rows_are_a_copy(self):
        given = rows()
        student = build_student(StudentConfig(**SMALL), given)
        given.zero_()
        assert torch.equal(student.rows, rows())

    def test_dilations_are_the_published_ones(self):
        backbone = small().backbone
        dilations = {
            stage: [block.conv2.dilation[0] for block in getattr(backbone, f"layer{stage}")]
            for stage in (1, 2, 3, 4)
        }
        assert dilations == {1: [1] * 3, 2: [1] * 4, 3: [1] + [2] * 5, 4: [2] + [4] * 2}


class TestConfig:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"decoder": "fcn"}, r"decoder: expected deeplabv2 or deeplabv3plus, got 'fcn'"),
            ({"depth": 34}, r"depth: expected 50 or 101, got 34"),
            ({"width": 15}, r"width: expected an even number from 2, got 15"),
            ({"skip": 0}, r"`skip`: expected at least 1, got 0"),
            ({"embed_dim": -1}, r"`embed_dim`: expected at least 1, got -1"),
        ],
    )
    def test_impossible_students_are_refused(self, fields, message):
        with pytest.raises(StudentError, match=message):
            StudentConfig(**fields)

    @pytest.mark.parametrize("wrong", [rows(5, 9), rows(5)[0], rows(5)[:0]])
    def test_rows_of_another_clip_are_refused(self, wrong):
        with pytest.raises(MaskCLIPError, match=r"text rows: expected \(classes, 8\), got"):
            build_student(StudentConfig(**SMALL), wrong)


@pytest.mark.parametrize(
    ("fields", "unit", "least", "others"),
    [
        ({}, 1, 16, [(16, 33), (131, 97)]),
        ({"decoder": "deeplabv3plus", "background": True}, 1, 16, [(16, 33), (131, 97)]),
        (
            {"decoder": "unet", "backbone": "mobilenetv4_conv_small"},
            32,
            4,
            [(128, 160), (192, 128)],
        ),
    ],
    ids=str,
)
def test_an_exported_student_takes_other_batches_and_sizes(fields, unit, least, others):
    student = small(**fields).eval()
    height, width = (unit * Dim(name, min=least, max=100 * least) for name in ("h", "w"))
    shapes = {"images": {0: Dim("batch", min=1, max=64), 2: height, 3: width}}
    example = torch.rand(2, 3, 160, 192)
    program = export(student, (example,), dynamic_shapes=shapes).module()
    for batch, size in zip((1, 3), others, strict=True):
        pixels = images(*size, batch=batch) / 255
        with torch.inference_mode():
            torch.testing.assert_close(program(pixels), student(pixels), rtol=1e-4, atol=1e-5)


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
