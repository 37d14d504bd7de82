"""`maskclip train`, from the command line to a student that segments."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import maskclip
from maskclip.cli import main
from maskclip.core.samples import UNLABELED
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats import Labeled, PhotoFile, find_format
from maskclip.emoji.scenes import draw_scene
from maskclip.plus import module
from maskclip.plus.files import read_student
from maskclip.plus.module import MaskCLIPPlus
from maskclip.tasks.train import build
from maskclip.trainings import own_training

SMALL = [
    "--model",
    "emoji",
    "--student",
    "unet:mobilenetv3_small_050",
    "--student-weights",
    "random",
]
SHORT = ["--steps", "2", "--batch-size", "2", "--crop", "64", "--workers", "0", "--device", "cpu"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in (1, 2, 3):
        Image.fromarray(draw_scene(seed, size=64).image).save(folder / f"{seed}.png")
    (tmp_path / "classes.txt").write_text("dog\ngrass\nsky\n")
    return folder


def test_own_photos_and_words_become_a_student_that_labels(photos, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--images", str(photos), "--classes", str(tmp_path / "classes.txt")]
    assert main(["train", *words, "--out", str(run), *SMALL, *SHORT]) == 0
    told = capsys.readouterr()
    assert "trained 2 steps, in 0:00:" in told.out
    assert f"what it makes of a few images is in {run / 'overlays'}" in told.out
    assert told.out.endswith(f"next: maskclip segment PHOTO --model {run}/student.safetensors\n")
    assert "short side is about 64 px, and they are enlarged to 512 px: --short-side 64" in told.err
    pictures = sorted(path.name for path in (run / "overlays").iterdir())
    assert pictures == [f"000002_{seed}_png.jpg" for seed in (1, 2, 3)]
    for model in ("student.safetensors", "last.ckpt"):
        out = tmp_path / model
        asked = ["segment", str(photos / "1.png"), "--model", str(run / model), "--save", "json"]
        assert main([*asked, "--out", str(out)]) == 0
        found = json.loads((out / "1.json").read_text())["classes"]
        assert {one["name"] for one in found} <= {"dog", "grass", "sky"}


def test_a_finished_training_can_go_on(photos, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--images", str(photos), "-c", "dog", "-c", "sky", "--short-side", "64"]
    command = ["train", *words, "--out", str(run), *SMALL, *SHORT]
    assert main(command) == 0
    assert "enlarged" not in capsys.readouterr().err
    augmentation = json.loads((run / "config.json").read_text())["augmentation"]
    assert (augmentation["scale"], augmentation["crop"]) == ([256, 64], [64, 64])
    before = (run / "student.safetensors").read_bytes()
    assert main([*command, "--resume"]) == 0
    assert "already finished, after 2 steps" in capsys.readouterr().out
    assert (run / "student.safetensors").read_bytes() == before
    command[command.index("--steps") + 1] = "4"
    assert main([*command, "--resume"]) == 2
    error = capsys.readouterr().err
    assert "--steps: 2 there, 4 wanted" in error
    assert f"--init {run}/student.safetensors" in error


def test_a_student_from_its_teacher_sees_whole_photos_and_learns_gently(photos, tmp_path):
    run = tmp_path / "run"
    words = ["--images", str(photos), "-c", "dog", "-c", "sky", "--short-side", "64"]
    given = ["--student", "teacher", "--teacher-short-side", "96", "--refine", "dominant"]
    command = ["train", *words, "--out", str(run), *SMALL[:2], *given, *SHORT]
    assert main(command) == 0
    config = json.loads((run / "config.json").read_text())
    how, supervision = config["optimization"], config["supervision"]
    learnt = (how["optimizer"], how["lr"], how["head_lr_mult"], how["steps"], how["batch_size"])
    assert learnt == ("adamw", 1e-4, 10, 2, 2)
    assert (supervision["teacher_short_side"], supervision["refine"]) == (96, ["dominant"])
    assert main([*command, "--lr", "0.001", "--out", str(tmp_path / "other")]) == 0
    other = json.loads((tmp_path / "other/config.json").read_text())["optimization"]
    assert other == {**how, "lr": 0.001}


def test_the_teacher_is_read_by_the_method_wanted(photos, tmp_path, capsys):
    own = tmp_path / "mine.toml"
    own.write_text('base = "naclip"\nwindow = 3\nmiddle = { blocks = [1], weight = 0.5 }\n')
    words = ["--images", str(photos), "-c", "dog", "-c", "sky", "--short-side", "64"]
    idle, made = ["--confidence", "0.4"], {}
    for method in ("clean", "naclip", str(own)):
        run = tmp_path / Path(method).stem
        given = [*SMALL, *SHORT, "--model", "emoji-vit", "--method", method]
        assert main(["train", *words, *idle, "--out", str(run), *given]) == 0
        assert "a confidence of 0.4 does nothing: the best of 2" in capsys.readouterr().err
        teacher = json.loads((run / "config.json").read_text())["teacher"]
        made[run.name] = (run / "student.safetensors").read_bytes()
    assert len(set(made.values())) == 3
    assert (teacher["method"]["name"], teacher["method"]["window"]) == ("mine", 3)
    own.write_text('base = "naclip"\nwindow = 4\n')
    assert main(["train", *words, *idle, "--out", str(run), *given, "--resume"]) == 2
    assert "window: 3" in capsys.readouterr().err
    assert main(["train", *words, "--out", str(run), *given, "--method", "naclop"]) == 2
    assert "'naclop' (did you mean naclip" in capsys.readouterr().err


def test_photos_that_break_later_are_listed_at_the_end(photos, tmp_path, capsys, monkeypatch):
    from maskclip.plus import dataset

    monkeypatch.setattr(dataset, "_CHEAP_IMAGES", 0)  # as if there were a hundred thousand
    content = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(content[:-200])
    words = ["--images", str(photos), "-c", "dog", "-c", "sky", "--short-side", "64"]
    run = tmp_path / "run"
    command = ["train", *words, "--out", str(run), *SMALL, *SHORT, "--workers", "2"]
    assert main([*command, "--steps", "3", "--overlays", "0"]) == 0
    error = capsys.readouterr().err
    assert "1 image could not be read, and others were learnt from instead: 2.png (" in error
    assert (run / "skipped.txt").read_text().startswith("2.png: ")


WORDS = Vocabulary.parse(["dog", "grass", "sky"])


@pytest.fixture
def label(photos, tmp_path):
    """`label(format)`: the left half of photo 1 is dog, of photo 3 grass; no more is said."""

    def write(name):
        made = find_format(name)(WORDS, tmp_path / "labels")
        files = []
        for photo, value in (("1", 0), ("3", 1)):
            ids = np.full((64, 64), 255, np.uint8)
            ids[:, :32] = value
            made.write(Labeled(photo, f"{photo}.png", ids))
            files.append(PhotoFile(photo, f"{photo}.png", str(photos / f"{photo}.png")))
        made.finish(files)
        labels = tmp_path / "labels"
        return [
            *("train", "--images", str(photos), "--classes", str(tmp_path / "classes.txt")),
            *("--labels", str(labels), "--out", str(tmp_path / "run"), *SMALL, *SHORT),
        ]

    return write


@pytest.mark.parametrize("name", ["png", "cvat", "label-studio", "coco"])
def test_corrected_labels_are_learnt_as_they_are_and_clip_labels_the_rest(
    label, name, tmp_path, monkeypatch, capsys
):
    given, learnt = [], []

    def find_labels(module, batch, logits):
        given.append(batch.labels.clone())
        return found(module, batch, logits)

    def segmentation_loss(logits, labels, **options):
        learnt.append(labels.clone())
        return loss(logits, labels, **options)

    found, loss = MaskCLIPPlus.find_labels, module.segmentation_loss
    monkeypatch.setattr(MaskCLIPPlus, "find_labels", find_labels)
    monkeypatch.setattr(module, "segmentation_loss", segmentation_loss)
    assert main([*label(name), "--seed", "1"]) == 0
    seen = torch.cat(given)
    assert {0, 1, UNLABELED} <= set(seen.unique().tolist()) <= {0, 1, UNLABELED, 255}
    for before, after in zip(given, learnt, strict=True):
        assert torch.equal(after[before != UNLABELED], before[before != UNLABELED])
        assert UNLABELED not in after
    assert 2 in torch.cat(learnt)[seen == UNLABELED]  # which nobody labelled
    kind = json.loads((tmp_path / "run/config.json").read_text())["samples"]["labels"]["kind"]
    said = capsys.readouterr()
    assert (
        f"{kind} of 2 photos are learnt as they are; the teacher labels the rest of these, and"
        in (said.err + said.out)
    )


def test_a_training_with_labels_goes_on_and_tells_other_labels(label, tmp_path, capsys):
    command = [*label("png"), "--validate", "0.5"]
    assert main(command) == 0
    config = json.loads((tmp_path / "run/config.json").read_text())["samples"]
    assert config["labels"]["kept"] == [0.5, 0]
    assert (tmp_path / "run/best.ckpt").exists()
    assert main([*command, "--resume"]) == 0
    capsys.readouterr()
    assert main([*command[:-1], "0.9", "--resume"]) == 2
    assert "holds another training: samples.labels.kept" in capsys.readouterr().err
    Image.new("L", (64, 64), 1).save(tmp_path / "labels/3.png")
    assert main([*command, "--resume"]) == 2
    error = capsys.readouterr().err
    assert f"holds another training: the labels in {tmp_path / 'labels'} have changed." in error


def save_masks(tmp_path, photos, *values):
    (tmp_path / "labels").mkdir()
    for photo, value in zip(photos.iterdir(), itertools.cycle(values), strict=False):
        ids = np.full((64, 64), value[0], np.uint8)
        ids[:, :32] = value[1]
        Image.fromarray(ids).save(tmp_path / "labels" / photo.name)
    return [
        *("train", "--images", str(photos), "-c", "dog", "-c", "grass"),
        *("--labels", str(tmp_path / "labels"), "--out", str(tmp_path / "run"), *SMALL, *SHORT),
    ]


def test_masks_of_0_and_255_and_of_no_photo_are_reported_before_training(photos, tmp_path, capsys):
    command = save_masks(tmp_path, photos, (0, 255))
    Image.new("L", (64, 64)).save(tmp_path / "labels/strange.png")
    assert main([*command, "--validate", "0.5", "--validate-every", "1"]) == 0
    error = capsys.readouterr().err
    said = "no mask has a pixel of grass, and all have ignored ones: 255 means ignored"
    assert said in error
    assert error.index(said) < error.index("in validation")
    assert "% in validation (1 of 2 classes have pixels)" in error
    assert f"masks without a photo: 1 ({tmp_path / 'labels/strange.png'})" in error


def test_masks_that_count_from_1_are_not_learnt_from(photos, tmp_path, capsys):
    assert main(save_masks(tmp_path, photos, (1, 1), (1, 255), (2, 1))) == 2
    error = capsys.readouterr().err
    assert "label 2 is out of range: expected classes 0..1, or 255 for ignored pixels" in error
    assert "ids seem to count from 1 (there is 2 and no 0), and must count from 0" in error
    assert not (tmp_path / "run").exists()


def test_labels_that_do_not_fit_are_one_line(label, tmp_path, capsys):
    command = label("png")
    Image.new("L", (64, 63), 1).save(tmp_path / "labels/3.png")
    assert main(command) == 2
    assert "3.png: the mask is 64x63 but its image 64x64" in capsys.readouterr().err
    (tmp_path / "labels/classes.txt").write_text("dog\ngras\nsky\n")
    assert main(command) == 2
    assert "its class 'gras' is not among the classes given (did you mean grass?)" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to train on"),
        (["emoji-annofree-rn", "--labels", "x"], "--labels and --validate belong to --images"),
        (["--images", ".", "--validate", "0.1", "-c", "dog"], "give --labels"),
        (["--images", ".", "--labels", ".", "--validate", "2", "-c", "dog"], "a share of the"),
        (["voc20-annofree-rn50", "--images", "x"], "a recipe has its own images"),
        (["voc20-annofree-rn50"], "--data ROOT"),
        (["voc20"], "unknown recipe 'voc20'"),
        (["emoji-annofree-rn", "--classes", "x.txt"], "belong to --images"),
        (["--images", "nowhere", "--vocabulary", "voc20"], "no folder of images"),
        (
            ["emoji-annofree-rn", "--student", "unet:nothing", "--student-weights", "random"],
            "nothing",
        ),
        (
            ["emoji-annofree-rn", "--student-weights", "photo"],
            "are for the backbone tf_efficientnet_lite0, got resnet10t; take --student unet:tf_ef",
        ),
        (
            ["emoji-annofree-rn", "--student", "teacher", "--student-weights", "x.pth"],
            "--student-weights and --student teacher: a student starts from one of them",
        ),
        (["emoji-annofree-rn", "--lr", "-1"], "--min-lr: expected a rate above 0"),
        (["emoji-annofree-rn", "--precision", "int8"], "precision"),
    ],
)
def test_mistakes_are_reported_in_one_line(arguments, message, tmp_path, capsys):
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_photos_that_cannot_be_read_are_named_before_the_first_step(photos, tmp_path, capsys):
    for name in ("4.png", "5.png"):
        (photos / name).write_bytes(b"no image")
    words = ["--images", str(photos), "--classes", str(tmp_path / "classes.txt")]
    assert main(["train", *words, "--out", str(tmp_path / "run"), *SMALL, *SHORT]) == 2
    error = capsys.readouterr().err
    assert "4.png: not an image that can be read" in error
    assert "(and 1 more): fix it, or remove it from the folder" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["", "runs/mine", ".."])
def test_a_run_folder_and_photos_in_one_another_are_refused(photos, place, capsys):
    run = photos / place
    before = sorted(photos.rglob("*"))
    assert main(["train", "--images", str(photos), "-c", "dog", "--out", str(run), *SHORT]) == 2
    assert "lie in one another" in capsys.readouterr().err
    assert sorted(photos.rglob("*")) == before


def test_words_are_refused_before_photos_are_looked_at_and_no_empty_run_is_left(
    photos, tmp_path, capsys
):
    (photos / "2.png").write_bytes(b"no photo")
    classes, run = ["-c", "dog", "-c", "sky"], tmp_path / "runs" / "mine"
    asked = ["train", "--images", str(photos), *classes, "--out", str(run), *SHORT]
    assert main([*asked, "--model", "photo"]) == 2
    told = capsys.readouterr().err
    assert "'sky'" in told
    assert "background" not in told
    (photos / "2.png").unlink()
    assert main([*asked, "--model", "emoji-rn", "--student-weights", str(tmp_path / "no.pth")]) == 2
    assert "no.pth" in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.parametrize(("model", "option"), [("emoji", "--images"), ("emoji-vit", "--labels")])
def test_a_background_by_threshold_is_learnt(photos, tmp_path, capsys, model, option):
    """What CLIP is unsure of, or what people say is none of the classes, becomes class 0."""
    file, run = tmp_path / "animals.toml", tmp_path / "run"
    file.write_text(
        'classes = ["dog", "grass", "sky"]\nbackground = 0.9\n[confidence]\ndog = 0.95\n'
    )
    command = [
        *("train", "--images", str(photos), "--classes", str(file), "--out", str(run)),
        *(*SMALL[:1], model, *SMALL[2:], *SHORT, "--short-side", "64"),
        *("--optimizer", "adamw", "--lr", "0.003", "--steps", "6"),
    ]
    if option == "--labels":
        (tmp_path / "masks").mkdir()
        Image.new("L", (64, 64), 0).save(tmp_path / "masks/1.png")
        command += ["--labels", str(tmp_path / "masks")]
    assert main(command) == 0
    supervision = json.loads((run / "config.json").read_text())["supervision"]
    assert (supervision["background"], supervision["threshold"]) == (True, 0.9)
    assert supervision["confidence"] == [0.0, 0.95, 0.0, 0.0]
    own = read_student(run).vocabulary
    assert own is not None
    assert (own.names, own.threshold) == (("background", "dog", "grass", "sky"), None)
    for given in ([], ["--classes", str(file)]):
        asked = ["segment", str(photos / "1.png"), "--model", str(run), *given, "--save", "json"]
        assert main([*asked, "--out", str(tmp_path / "out")]) == 0
        found = json.loads((tmp_path / "out/1.json").read_text())["classes"]
        assert "background" in {one["name"] for one in found if one["coverage"] > 0}
    capsys.readouterr()
    assert main([*command, "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out
    file.write_text(
        'classes = ["dog", "grass", "sky"]\nbackground = 0.8\n[confidence]\ndog = 0.95\n'
    )
    assert main([*command, "--resume"]) == 2
    error = capsys.readouterr().err
    assert "threshold: 0.9 there, 0.8 wanted" in error
    assert main([*command, "--background", "0.7", "--resume"]) == 2
    assert "threshold: 0.9 there, 0.7 wanted" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["emoji", "emoji-vit"])
def test_a_threshold_means_in_training_what_it_means_in_segment(photos, tmp_path, model):
    words = Vocabulary.parse(["dog", "grass", "sky"])
    training = own_training("photos", model, classes=4)
    supervision = replace(training.supervision, background=True, threshold=0.6)
    training = replace(training, student="teacher", supervision=supervision)
    module = build(
        replace(training, augmentation=replace(training.augmentation, crop=(64, 64))),
        words.with_background(["background"]),
        device=torch.device("cpu"),
    )
    segmenter = maskclip.load(model, device="cpu", precision="float32")
    shown = set()
    for path in sorted(photos.iterdir()):
        photo = Image.open(path).convert("RGB")
        pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
        taught = module.taught(pixels, torch.full((1, 64, 64), UNLABELED))
        found = segmenter.segment(photo, words, background=0.6, short_side=64, refine=())
        assert taught is not None
        assert (taught[0].numpy() == found.labels).mean() > 0.999
        shown |= set(np.unique(found.labels))
    assert len(shown) > 1
    assert 0 in shown


def test_a_background_by_threshold_that_cannot_be_is_refused_or_warned_of(photos, tmp_path, capsys):
    file = tmp_path / "animals.toml"
    command = ["train", "--images", str(photos), "--classes", str(file), *SMALL, *SHORT]
    file.write_text('classes = ["dog", "grass", "sky"]\nbackground = 0.5\n')
    assert main([*command, "--out", str(tmp_path / "a"), "--distillation", "1"]) == 2
    assert "give the background words, or leave --distillation out" in capsys.readouterr().err
    (tmp_path / "p.toml").write_text('base = "clean"\nupsample = "prompts"\n')
    by_prompts = ["--method", str(tmp_path / "p.toml")]
    assert main([*command, "--out", str(tmp_path / "a"), *by_prompts]) == 2
    assert "prompts compete for themselves by this method" in capsys.readouterr().err
    file.write_text('classes = ["dog", "grass", "sky"]\nbackground = 0.3\n')
    assert main([*command, "--out", str(tmp_path / "a"), "--confidence", "0.2"]) == 0
    error = capsys.readouterr().err
    assert "a background threshold of 0.3 does nothing: the best of 3" in error
    assert "a confidence of 0.2 does nothing" in error
