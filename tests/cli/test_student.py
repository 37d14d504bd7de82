"""A trained student in `segment`, `eval` and `convert`, as a user runs them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import maskclip
from maskclip.cli import main
from maskclip.core.config import ModelConfig
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.photos import open_folder
from maskclip.emoji.scenes import draw_scene
from maskclip.plus.config import StudentConfig
from maskclip.plus.files import TrainedStudent, read_student, save_student
from maskclip.plus.released import published_name
from maskclip.plus.student import build_student
from maskclip.tasks.evaluation.predictors import load_predictor
from maskclip.tasks.evaluation.settings import Evaluation

EMOJI = Vocabulary.builtin("emoji")


def made(classes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = F.normalize(torch.randn(classes, 8), dim=1)
        return build_student(StudentConfig(depth=50, width=8, embed_dim=8), rows).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A student of the emoji's classes, with their names and without, and a released one."""
    folder = tmp_path_factory.mktemp("students")
    student = made(len(EMOJI))
    save_student(TrainedStudent(student, EMOJI, 5), folder / "named.safetensors")
    save_student(TrainedStudent(student), folder / "bare.safetensors")
    three = made(3)
    state = {published_name(key): value for key, value in three.state_dict().items()}
    torch.save({"meta": {"iter": 3}, "state_dict": state}, folder / "released.pth")
    return folder


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(draw_scene(7, size=(48, 64)).image).save(path)
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_segment_needs_no_classes_where_the_file_carries_them(files, photo, tmp_path):
    out = tmp_path / "out"
    model = files / "named.safetensors"
    save = ("--out", out, "--save", "labels,json")
    assert run("segment", photo, "--model", model, "--short-side", 64, *save) == 0
    labels = np.asarray(Image.open(out / "photo_labels.png"))
    (found,) = maskclip.load(str(model)).segment([photo], short_side=64)
    assert np.array_equal(labels, found.labels)
    assert found.vocabulary == EMOJI
    assert found.scores.max() <= 1


def test_the_labels_are_those_of_the_plain_pipeline(files, photo):
    found = maskclip.load(str(files / "named.safetensors"), precision="float32").segment(
        photo, short_side=0
    )
    image = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1)[None]
    with torch.no_grad():
        maps = read_student(files / "named.safetensors").student(image).softmax(dim=1)
    full = F.interpolate(maps, image.shape[-2:], mode="bilinear")[0]
    np.testing.assert_allclose(found.scores, full.amax(dim=0).numpy(), rtol=1e-4, atol=1e-6)
    two = full.topk(2, dim=0).values
    sure = (two[0] - two[1] > 1e-5).numpy()
    assert sure.mean() > 0.5
    assert (found.labels == full.argmax(dim=0).numpy())[sure].all()


def test_published_labels_are_argmax_of_logits_resized_twice(files, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    scene = draw_scene(3, size=(60, 80))
    Image.fromarray(scene.image).save(tmp_path / "images" / "a.png")
    Image.fromarray(scene.labels).save(tmp_path / "masks" / "a.png")
    samples = open_folder(tmp_path / "images", tmp_path / "masks", EMOJI)
    model = files / "named.safetensors"
    config = ModelConfig(name=str(model), precision="float32")
    evaluation = Evaluation(dataset="folder", model=config, protocol="published")
    predictor = load_predictor(evaluation, samples, device="cpu")
    long, short = samples.scale
    scale = min(short / 60, long / 80)
    size = (round(60 * scale), round(80 * scale))
    image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float()
    seen = F.interpolate(image, size, mode="bilinear").round().to(torch.uint8)
    with torch.no_grad():
        logits = F.interpolate(read_student(model).student(seen), size, mode="bilinear")
        full = F.interpolate(logits, (60, 80), mode="bilinear")[0]
    labels = predictor("a", Image.fromarray(scene.image))
    two = full.topk(2, dim=0).values
    sure = (two[0] - two[1] > 1e-3 * full.abs().max()).numpy()
    assert sure.mean() > 0.5
    assert (labels == full.argmax(dim=0).numpy())[sure].all()
    metadata = predictor.metadata()
    assert metadata["arithmetic"] == {"antialias": False, "upsample": "maps", "resizes": 2}
    json.dumps(metadata)


def test_some_of_its_classes_will_do(files, photo, tmp_path):
    model, out = ("--model", files / "named.safetensors"), ("--out", tmp_path / "out")
    words, save = ("-c", "grass", "-c", "dog"), ("--save", "labels,json")
    assert run("segment", photo, *words, *model, *out, *save, "--short-side", 64) == 0
    (saved,) = (tmp_path / "out").glob("*.json")
    assert {entry["name"] for entry in json.loads(saved.read_text())["classes"]} <= set(words)


@pytest.mark.parametrize("name", ["named", "bare"])
def test_eval_of_emoji(name, files, tmp_path, capsys):
    model, out = files / f"{name}.safetensors", tmp_path / "out"
    limits = ("--limit", 2, "--size", 64, "--short-side", 64)
    assert run("eval", "emoji", "--model", model, *limits, "--out", out) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["model"] == str(model)
    assert len(result["weights"]) == 16
    assert (result["student"]["width"], result["protocol"]) == (8, "segment")
    assert result["step"] == (5 if name == "named" else None)
    assert "protocol segment · short side 64 · float32" in capsys.readouterr().out


def test_eval_warns_of_sizes_that_are_far_from_those_of_the_training(files, tmp_path, capsys):
    save_student(TrainedStudent(made(len(EMOJI)), EMOJI, short_side=40), tmp_path / "s.safetensors")
    command = ("eval", "emoji", "--model", tmp_path / "s.safetensors", "--limit", 1, "--size", 48)
    assert run(*command, "--short-side", 48) == 0
    assert "trained at" not in capsys.readouterr().err
    assert run(*command, "--protocol", "published") == 0
    error = " ".join(capsys.readouterr().err.split())
    assert "trained at a short side of about 40 px, and the protocol published shows" in error
    assert "--protocol segment takes its own size" in error


def test_windows_and_sizes_work(files, picture):
    segmenter = maskclip.load(str(files / "named.safetensors"))
    images = [picture(40, 60), picture(1, 1), picture(40, 60, seed=1)]
    found = segmenter.segment(images, short_side=32, window=24, stride=16)
    assert [result.labels.shape for result in found] == [(40, 60), (1, 1), (40, 60)]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_runs(precision, files, picture):
    segmenter = maskclip.load(str(files / "named.safetensors"), precision=precision)
    assert segmenter.segment(picture(40, 60), short_side=0).scores.dtype == np.float32


def test_a_released_file_takes_the_right_number_of_classes(files, photo, tmp_path, capsys):
    model, out = ("--model", files / "released.pth"), ("--out", tmp_path / "out")
    words = ("-c", "a", "-c", "b")
    assert run("segment", photo, *words, "-c", "c", *model, *out, "--short-side", 32) == 0
    capsys.readouterr()
    assert run("segment", photo, *words, *model, *out) == 2
    assert "tells 3 classes apart, not 2" in capsys.readouterr().err
    assert run("segment", photo, *model, *out) == 2
    assert "carries no class names: give its 3 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-c", "dog", "-c", "pangolin"), "its file does not name it"),
        (("-c", "pangolin", "--weights", "emoji-rn"), "is not the CLIP that gave"),
        (("--key-smoothing", 1), "key smoothing belongs to CLIP"),
        (("--prompt-denoising", 0.5), "prompt denoising belongs to CLIP"),
        (("--method", "published"), "method belongs to CLIP"),
        (("--templates", "plain"), "templates belongs to CLIP"),
        (("--background", "0.5"), "--background goes with classes"),
        (("--weights", "emoji-rn"), "--weights: all of these are"),
        (("--method", "x"), "unknown method 'x'"),
    ],
)
def test_segment_refuses_what_is_not_the_students(arguments, message, files, photo, capsys):
    out = ("--out", photo.parent / "out")
    assert run("segment", photo, "--model", files / "named.safetensors", *arguments, *out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("named.safetensors", ("--key-smoothing", 1), "key smoothing belongs to CLIP"),
        ("named.safetensors", ("--method", "published"), "method belongs to CLIP"),
        ("released.pth", (), "emoji: "),
        ("nothing.ckpt", (), "no such model file"),
    ],
)
def test_eval_refuses_what_is_not_the_students(name, arguments, message, files, capsys):
    assert run("eval", "emoji", "--model", files / name, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_load_refuses_options_of_clip(files):
    with pytest.raises(MaskCLIPError, match="templates belongs to CLIP"):
        maskclip.load(str(files / "named.safetensors"), templates="plain")


def test_a_clip_needs_classes():
    with pytest.raises(MaskCLIPError, match="no classes"):
        maskclip.load("emoji").prepare()


def test_convert_puts_classes_into_a_file(files, tmp_path, capsys):
    out = tmp_path / "new" / "a.safetensors"
    words = tmp_path / "classes.txt"
    words.write_text("dog\nperson=man,woman\nsky\n")
    assert run("convert", files / "released.pth", out, "--classes", words) == 0
    assert "3 classes: dog, person, sky" in capsys.readouterr().out
    assert read_student(out).vocabulary == Vocabulary.from_file(words)
    assert read_student(out).step == 3
    before = out.read_bytes()
    assert run("convert", files / "named.safetensors", out) == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert run("convert", files / "named.safetensors", out, "--force") == 0
    assert read_student(out).vocabulary == EMOJI


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("released.pth", "a.pt"), "written as .safetensors"),
        (("released.pth", "a.safetensors", "--vocabulary", "voc20"), "the vocabulary has 20"),
        (("nothing.pth", "a.safetensors"), "no such student file"),
    ],
)
def test_convert_refuses(arguments, message, files, tmp_path, capsys):
    source, out, *rest = arguments
    assert run("convert", files / source, tmp_path / out, *rest) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / out).exists()
