"""The scores that classes need, of a class file, hold wherever labels are made of it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import maskclip
from maskclip.cli import main
from maskclip.core.errors import MaskCLIPWarning
from maskclip.core.vocabulary import IGNORE, Vocabulary
from maskclip.emoji.scenes import draw_scene
from maskclip.plus.config import Supervision
from maskclip.plus.supervision import SupervisionError, assign_labels

CLASSES = 'classes = ["dog", "grass", "sky"]\n\n[confidence]\ngrass = 0.9\nsky = 0.75\n'
NEEDED = np.array([0, 0.9, 0.75], np.float32)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Photos, masks that are all of class 1, and a class file."""
    folder = tmp_path_factory.mktemp("confidence")
    for name in ("photos", "masks", "maps"):
        (folder / name).mkdir()
    for seed in (1, 2):
        Image.fromarray(draw_scene(seed, size=64).image).save(folder / f"photos/{seed}.png")
        Image.fromarray(np.ones((64, 64), np.uint8)).save(folder / f"masks/{seed}.png")
        Image.fromarray(
            np.kron(np.arange(1, 5).reshape(2, 2), np.ones((32, 32))).astype("u1")
        ).save(folder / f"maps/{seed}.png")
    (folder / "classes.toml").write_text(CLASSES)
    return folder


@pytest.fixture(scope="module")
def words(own):
    return Vocabulary.from_file(own / "classes.toml")


@pytest.fixture(scope="module")
def segmenter():
    return maskclip.load("emoji", device="cpu")


@pytest.fixture(scope="module")
def expected(own, words, segmenter):
    """The labels of the first photo, those that are unsure dropped by hand."""
    found = segmenter.segment(own / "photos/1.png", words.with_confidence({}))
    labels = np.where(found.scores < NEEDED[found.labels], IGNORE, found.labels)
    assert 0 < (labels == IGNORE).mean() < 1
    return labels


def test_python_drops_what_the_class_file_says(own, words, segmenter, expected, tmp_path):
    photo = own / "photos/1.png"
    found = segmenter.segment(photo, words)
    np.testing.assert_array_equal(found.labels, expected)
    scored = segmenter.score(segmenter.encode(photo), words)
    np.testing.assert_array_equal(scored.labels, expected)
    assert sum(found.coverage().values()) == pytest.approx((expected != IGNORE).mean())
    assert sum(one["coverage"] for one in found.to_dict()["classes"]) < 1
    found.save_png(tmp_path / "labels.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.png")), expected)
    whole = found.voted(np.ones((64, 64), np.uint8)).labels
    np.testing.assert_array_equal(whole == IGNORE, expected == IGNORE)


def test_segment_and_label_drop_the_same(own, expected, tmp_path):
    given = ["--classes", str(own / "classes.toml"), "--model", "emoji", "--device", "cpu"]
    photo = str(own / "photos/1.png")
    assert main(["segment", photo, *given, "--save", "labels", "--out", str(tmp_path / "a")]) == 0
    assert (
        main(["label", photo, *given, "--precision", "float32", "--out", str(tmp_path / "b")]) == 0
    )
    files = [tmp_path / "a/1_labels.png", *(tmp_path / "b/png").rglob("*.png")]
    for file in files:
        np.testing.assert_array_equal(np.asarray(Image.open(file)), expected)
    assert len(files) == 2


def test_eval_counts_what_is_dropped_as_wrong(own, words, segmenter, tmp_path, monkeypatch):
    monkeypatch.chdir(own)
    given = ["--masks", "masks", "--classes", "classes.toml", "--model", "emoji"]
    given += ["--device", "cpu", "--regions", "maps", "--out", str(tmp_path)]
    assert main(["eval", "folder", "--images", "photos", *given]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["confidence"] == {"dog": 0.0, "grass": 0.9, "sky": 0.75}
    right = []
    for seed in (1, 2):
        plain = words.with_confidence({})
        found = segmenter.segment(own / f"photos/{seed}.png", plain, refine="none", regions="maps")
        right.append((found.labels == 1) & (found.scores >= NEEDED[1]))
    assert result["pixel_accuracy"] == pytest.approx(100 * np.mean(right), abs=0.01)


def test_compare_measures_without_them_and_says_so(own, tmp_path, capsys):
    given = ["--masks", str(own / "masks"), "--models", "emoji", "--methods", "clean"]
    given += ["--images", str(own / "photos"), "--out", str(tmp_path), "--device", "cpu"]
    assert main(["compare", "folder", *given, "--classes", str(own / "classes.toml")]) == 0
    assert "are those of one model and method: all are compared without" in capsys.readouterr().err
    (cell,) = (tmp_path / "cells").glob("*.json")
    assert "confidence" not in json.loads(cell.read_text())


def test_a_method_without_probabilities_drops_nothing_and_says_so(own, words, tmp_path, capsys):
    segmenter = maskclip.load("emoji", method="published", device="cpu")
    with pytest.warns(MaskCLIPWarning, match="method published gives none: no pixel is dropped"):
        found = segmenter.segment(own / "photos/1.png", words)
    assert IGNORE not in found.labels
    given = ["--classes", str(own / "classes.toml"), "--model", "emoji", "--method", "published"]
    command = ["label", str(own / "photos"), *given, "--device", "cpu", "--out", str(tmp_path)]
    for more in ([], ["--dry-run"], []):  # which goes on where nothing is left
        assert main([*command, *more]) == 0
        assert "method published gives none: no pixel is dropped" in capsys.readouterr().err
    assert IGNORE not in np.asarray(Image.open(next((tmp_path / "png").rglob("1.png"))))


@pytest.mark.parametrize(
    ("more", "confidence", "line"),
    [
        ([], (0.0, 0.9, 0.75), ""),
        (["--confidence", "0.5"], (0.5, 0.9, 0.75), ""),
        (["--method", "published"], None, "are left out: the method gives none like them"),
        (["--distillation", "1"], None, "are left out: no labels of CLIP are learnt"),
    ],
)
def test_a_training_learns_no_label_below_them(
    more, confidence, line, own, words, tmp_path, monkeypatch, capsys
):
    run = []
    monkeypatch.setattr("maskclip.cli.train._run", lambda *given, **_: run.append(given))
    given = ["--images", str(own / "photos"), "--classes", str(own / "classes.toml")]
    assert main(["train", *given, "--model", "emoji", "--out", str(tmp_path), *more]) == 0
    ((training, samples, _),) = run
    assert training.supervision.confidence == confidence
    assert samples.vocabulary == words.with_confidence({})  # the student's scores are others
    assert line in " ".join(capsys.readouterr().err.split())


def test_each_class_of_a_training_has_its_own():
    labels = torch.tensor([[[-1, -1, -1, 0]]])
    maps = torch.tensor([[0.6, 0.6, 0.2, 0.9], [0.4, 0.4, 0.8, 0.1]])[None, :, None]
    found = assign_labels(labels, maps, (2, 1), confidence=(0.0, 0.9, 0.5))
    assert found.tolist() == [[[2, 2, 255, 0]]]
    with pytest.raises(SupervisionError, match="`confidence`: expected a value above 0"):
        Supervision(unlabeled=(0,), clip_guided=(1, None), confidence=(-1.0,))
