"""Students that start from their teacher: at first they label as it does."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F

from maskclip.clip.checkpoint import WeightsError
from maskclip.clip.model import CLIPModel
from maskclip.clip.weights import build_tower, load_clip
from maskclip.core.dense import pool_synonyms
from maskclip.core.errors import MaskCLIPError
from maskclip.core.method import CLEAN
from maskclip.core.methods import CLEARCLIP
from maskclip.imagenet.classifier import ImageClassifier
from maskclip.plus.config import StudentConfig, StudentError, Supervision
from maskclip.plus.files import TrainedStudent, read_student, save_student
from maskclip.plus.from_teacher import config_from, start_from
from maskclip.plus.student import build_student
from maskclip.plus.supervision import Teacher, build_teacher, teacher_maps

WORDS = (("dog", "wolf"), ("car",), ("toaster",))


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    name, half = "tf_efficientnet_lite0", (0.5, 0.5, 0.5)
    return ImageClassifier(
        name="photo",
        network=timm.create_model(name).eval(),
        mean=half,
        std=half,
        fingerprint="",
        tower={"family": "timm", "name": name},
    )


def rows_of(source):
    if isinstance(source, ImageClassifier):
        return source.word_rows(WORDS)
    channels = source.tower.get("embed_dim", 32)
    rows = torch.randn(len(WORDS), channels, generator=torch.Generator().manual_seed(0))
    return F.normalize(rows, dim=1), (0, 1, 2)


def student_of(source, *, method=CLEAN, background=False):
    rows, classes = rows_of(source)
    config = config_from(source, method, classes, embed_dim=rows.shape[1], background=background)
    student = build_student(config, rows)
    start_from(student.backbone, source, method)
    return student.eval()


@pytest.fixture
def smaller(monkeypatch):
    """Networks of timm are as small as they get, whatever their names say."""
    create = timm.create_model
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    monkeypatch.setattr(timm, "create_model", lambda name, **kw: create(name, **{**kw, **small}))


@pytest.fixture(params=["photo", "emoji-rn", "emoji-vit", "ViT-B-16-SigLIP"])
def source(request, classifier):
    if request.param == "photo":
        return classifier
    if request.param.startswith("emoji"):
        return load_clip(request.param)
    request.getfixturevalue("smaller")
    tower = {"family": "architecture", "name": request.param, "quick_gelu": False}
    torch.manual_seed(0)
    visual = build_tower(tower).eval()
    return CLIPModel(name=request.param, visual=visual, load_text=None, fingerprint="", tower=tower)


@torch.inference_mode()
def test_at_first_it_labels_as_its_teacher(source):
    generator = torch.Generator().manual_seed(1)
    student, images = student_of(source), torch.rand(1, 3, 96, 128, generator=generator)
    rows, classes = rows_of(source)
    logits = student(images)
    assert logits.shape == (1, 3, 24, 32)
    encoder = build_teacher(source, method=CLEAN)
    config = Supervision(unlabeled=(0, 1, 2))
    taught = teacher_maps(encoder, images, rows, config, classes=classes)
    found = F.interpolate(logits, size=taught.shape[2:], mode="bilinear")
    agree = found.argmax(dim=1) == taught.argmax(dim=1)
    assert agree.float().mean() > 0.85  # it enlarges logits, its teacher probabilities


@torch.inference_mode()
@pytest.mark.parametrize("background", [False, True])
def test_its_file_says_all_about_it(source, background, tmp_path):
    student = student_of(source, background=background)
    assert len(student) == 3 + background
    save_student(TrainedStudent(student), tmp_path / "s.safetensors")
    again = read_student(tmp_path / "s.safetensors").student
    images = torch.rand(2, 3, 50, 70)
    assert torch.equal(again(images), student(images))
    assert again(images).shape == (2, 3 + background, 13, 18)


@torch.no_grad()
def test_its_logits_need_no_features_at_stride_4(source):
    student, images = student_of(source), torch.rand(2, 3, 70, 90)
    student.decoder.mean.fill_(0.01)
    student.decoder.last.weight.normal_(std=0.1)
    torch.testing.assert_close(student(images), student.logits(student.features(images)))


@torch.no_grad()
def test_what_it_encodes_and_its_rows_give_its_logits(source):
    student, images = student_of(source), torch.rand(1, 3, 64, 96)
    student.decoder.last.weight.normal_(std=0.1)
    rows, classes = student.encoded_rows()
    encoded = student.encode(images)
    assert encoded.shape[1] == rows.shape[1]
    maps = pool_synonyms(torch.einsum("bdhw,pd->bphw", encoded, rows), classes)
    torch.testing.assert_close(maps, student(images))


def test_a_step_sees_the_tower_as_it_labels(source):
    student, images = student_of(source), torch.rand(2, 3, 64, 64)
    at_first = student(images)
    before = {k: v.clone() for k, v in student.backbone.named_buffers()}
    torch.testing.assert_close(student.train()(images), at_first)
    assert all(torch.equal(v, before[k]) for k, v in student.backbone.named_buffers())


def test_all_of_it_learns_but_the_rows_of_a_text_tower(source):
    student = student_of(source).train()
    student(torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert student.decoder.last.weight.grad.abs().sum() > 0
    assert any(p.grad is not None for p in student.backbone.parameters())
    assert ("rows" in dict(student.named_parameters())) == isinstance(source, ImageClassifier)


def test_it_shares_no_weights_with_its_teacher(source):
    student = student_of(source)
    module = source.network if isinstance(source, ImageClassifier) else source.visual
    places = {weight.data_ptr() for weight in module.parameters()}
    assert not places & {weight.data_ptr() for weight in student.parameters()}


def test_other_networks_get_one_row_a_class(classifier):
    rows, classes = classifier.word_rows(WORDS)
    assert len(rows) > 3
    found = Teacher(rows, classes).class_rows()
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found[2], F.normalize(rows[-1], dim=0))


def test_towers_and_methods_that_no_file_describes_are_refused(make_clip):
    other = SimpleNamespace(name="strange", tower=None)
    with pytest.raises(StudentError, match=r"strange has a tower.*yet"):
        config_from(other, CLEAN, [0], embed_dim=8, background=False)
    clip, mine = load_clip("emoji-vit"), replace(CLEARCLIP, name="mine", window=3.0)
    with pytest.raises(StudentError, match=r"built-in method, not by 'mine'"):
        config_from(clip, mine, [0], embed_dim=8, background=False)


@pytest.mark.parametrize(
    "tower",
    [
        {},
        {"family": "timm", "name": "vit_giant_patch14_224"},
        {"family": "embedded", "embed_dim": 10**9, "vision_cfg": {}},
        {"family": "architecture", "name": "vit_relpos_medium_patch16_cls_224"},
        {"family": "architecture", "name": "resnet18", "quick_gelu": False},
        {"family": "architecture", "name": ["ViT-B-16"], "quick_gelu": False},
        {"family": "open_clip", "embed_dim": 8, "vision_cfg": {"timm_model_name": "resnet18"}},
        {
            "family": "other",
            "embed_dim": 8,
            "vision_cfg": {"layers": 1, "width": 64, "image_size": 32},
        },
    ],
    ids=str,
)
def test_a_file_cannot_ask_for_another_tower(tower):
    with pytest.raises(MaskCLIPError):
        build_student(StudentConfig(decoder="teacher", tower=tower, embed_dim=8), torch.zeros(1, 8))
    if tower.get("family") != "timm":
        with pytest.raises(WeightsError, match="image tower"):
            build_tower(tower)
