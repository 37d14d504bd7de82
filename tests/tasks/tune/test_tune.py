"""What is proposed in a world whose truth is exact: wrong words go, and figures hold elsewhere."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

import maskclip
from maskclip.cli import app, main, tune
from maskclip.core.cleaning import Cleaning
from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.corrections import REJECTED, CorrectionJournal
from maskclip.data.sources import find_sources
from maskclip.emoji.captions import class_names
from maskclip.emoji.scenes import draw_scene
from maskclip.tasks.label import Job
from maskclip.tasks.label.pipeline import label_photos
from maskclip.tasks.tune.changes import background_changes, read_tries, synonym_changes
from maskclip.tasks.tune.job import tune_labels

WORDS = Vocabulary.parse(["pet=dog,tree", "car", "grass"]).with_background(["house"])
OBJECTS = [["dog", "car"], ["dog", "cow"], ["car", "tree"]]
MEANT = {"dog": "pet", "car": "car", "grass": "grass"}
TRUE_IDS = np.array([WORDS.names.index(MEANT.get(n, "background")) for n in class_names()])


def scene(seed):
    return draw_scene(seed, size=96, objects=OBJECTS[seed % 3], grounds=["grass"])


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """The labels of twelve scenes."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "photos").mkdir()
    for seed in range(12):
        Image.fromarray(scene(seed).image).save(folder / "photos" / f"{seed}.png")
    model = ModelConfig(name="emoji", templates="plain", precision="float32")
    job = Job(model=model, vocabulary=WORDS, out=folder / "labels", options=Options(short_side=160))
    label_photos(job, find_sources([folder / "photos"]), device="cpu")
    return folder / "labels"


def correct(out, seeds):
    """Give photos their true labels."""
    with CorrectionJournal(out, WORDS) as journal:
        for seed in seeds:
            journal.edit(str(seed), TRUE_IDS[scene(seed).labels].astype(np.uint8))


@pytest.fixture(scope="module")
def tuned(labeled, tmp_path_factory):
    """The folder of corrected labels, and what is proposed for it."""
    out = shutil.copytree(labeled, tmp_path_factory.mktemp("tuned") / "labels")
    correct(out, range(12))
    return out, tune_labels(out, tries=["background=cow,book"], device="cpu")


def test_wrong_synonyms_go_and_helpful_words_come(tuned):
    _, found = tuned
    proposed = found.proposal.vocabulary
    assert proposed.names == WORDS.names
    assert dict(zip(proposed.names, proposed.prompts, strict=True)) == {
        "background": ("house", "cow"),
        "pet": ("dog",),
        "car": ("car",),
        "grass": ("grass",),
    }
    assert proposed.colors == WORDS.colors


def test_the_figure_holds_on_photos_that_nobody_corrected(tuned):
    proposal = tuned[1].proposal
    segmenter = maskclip.load("emoji", device="cpu", templates="plain")

    def miou(vocabulary):
        hits, union = np.zeros(4), np.zeros(4)
        for seed in range(100, 124):
            drawn = scene(seed)
            found = segmenter.segment(drawn.image, vocabulary, short_side=160, refine="none")
            labels = found.labels.astype(int)
            needed = np.array(vocabulary.confidence or [0] * 4, np.float32)
            labels[found.scores < needed[labels]] = -1
            for label in range(4):
                one, other = labels == label, TRUE_IDS[drawn.labels] == label
                hits[label] += (one & other).sum()
                union[label] += (one | other).sum()
        return (hits / union).mean()

    assert proposal.after.miou > proposal.before.miou + 0.05
    assert miou(WORDS) == pytest.approx(proposal.before.miou, abs=0.08)
    assert miou(proposal.vocabulary) == pytest.approx(proposal.after.miou, abs=0.08)


def relabelled(labeled, folder, **fields):
    """Label the scenes into a folder with other settings."""
    model = ModelConfig(name="emoji", templates="plain", precision="float32")
    options = Options(short_side=160, **fields.pop("options", {}))
    words = fields.pop("words", WORDS)
    job = Job(model=model, vocabulary=words, out=folder, options=options, **fields)
    label_photos(job, find_sources([labeled.parent / "photos"]), device="cpu")


def iou_of_files(out):
    """Return the mIoU of the label files of the scenes, where a dropped pixel is missed."""
    hits, union = np.zeros(4), np.zeros(4)
    for seed in range(12):
        labels = np.asarray(Image.open(out / f"png/{seed}.png"))
        truth = TRUE_IDS[scene(seed).labels]
        for label in range(4):
            hits[label] += ((labels == label) & (truth == label)).sum()
            union[label] += ((labels == label) | (truth == label)).sum()
    return (hits / union).mean()


def test_figures_are_of_the_settings_of_the_labelling(labeled, tmp_path):
    (tmp_path / "maps").mkdir()
    for seed in range(12):
        squares = np.arange(1, 37, dtype=np.uint8).reshape(6, 6).repeat(16, 0).repeat(16, 1)
        Image.fromarray(squares).save(tmp_path / f"maps/{seed}.png")
    out, cleaning = tmp_path / "labels", Cleaning(confidence=0.4, min_region=500)
    options = {"regions": str(tmp_path / "maps")}
    relabelled(labeled, out, cleaning=cleaning, options=options)
    before = iou_of_files(out)
    correct(out, range(12))
    found = tune_labels(out, tries=["background=cow"], device="cpu")
    assert found.proposal.before.miou == pytest.approx(before, abs=0.002)
    assert found.left_out == ()
    # what is proposed does at least as well when it labels all photos, by which it was chosen
    words = found.proposal.vocabulary
    relabelled(labeled, tmp_path / "tuned", cleaning=cleaning, options=options, words=words)
    assert iou_of_files(tmp_path / "tuned") > found.proposal.after.miou - 0.02


def test_segments_that_are_gone_are_named(labeled, tmp_path):
    (tmp_path / "maps").mkdir()
    for seed in range(12):
        Image.fromarray(np.ones((96, 96), np.uint8)).save(tmp_path / f"maps/{seed}.png")
    relabelled(labeled, tmp_path / "labels", options={"regions": str(tmp_path / "maps")})
    correct(tmp_path / "labels", range(10))
    shutil.rmtree(tmp_path / "maps")
    with pytest.raises(MaskCLIPError, match=r"no folder of label maps: .*maps"):
        tune_labels(tmp_path / "labels", device="cpu")


def test_words_that_the_model_does_not_know_are_refused_before_photos_are_read(tuned, monkeypatch):
    def prepare(self, classes=None, **_):
        if "wall" in classes.flat_prompts:
            raise MaskCLIPError("no class shows 'wall'")
        return classes

    monkeypatch.setattr("maskclip.tasks.segmenter.CLIPSegmenter.prepare", prepare)
    monkeypatch.setattr("maskclip.tasks.tune.job.load_image", lambda _: pytest.fail("too late"))
    with pytest.raises(MaskCLIPError, match="no class shows 'wall'"):
        tune_labels(tuned[0], tries=["background=wall"], device="cpu")


def test_too_few_photos_get_one_line(labeled, tmp_path):
    out = shutil.copytree(labeled, tmp_path / "labels")
    correct(out, range(10))
    with CorrectionJournal(out, WORDS) as journal:
        journal.mark("3", REJECTED)
    with pytest.raises(MaskCLIPError, match=r"9 photos are accepted or corrected .* 10 are needed"):
        tune_labels(out, device="cpu")


def test_other_weights_than_those_that_labelled_are_refused(tuned):
    with pytest.raises(MaskCLIPError, match="the weights of emoji-vit are not those"):
        tune_labels(tuned[0], model="emoji-vit", device="cpu")


def test_a_class_file_is_written_that_label_reads(tuned, capsys):
    out, found = tuned
    assert main(["tune", str(out), "--try", "background=cow", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "cross-validated over 12 corrected photos" in printed
    options = "--templates plain --short-side 160 --out DIR`"
    following = (
        f"next: `maskclip label PHOTOS --classes {out / 'tuned.toml'} --model emoji {options}"
    )
    assert following in printed
    written = Vocabulary.from_file(out / "tuned.toml")
    assert written.names == WORDS.names
    assert written.prompts == found.proposal.vocabulary.prompts


def test_the_next_command_has_all_options_of_the_labelling(tuned):
    _, found = tuned
    options = Options(
        refine="tlp+pamr",
        pamr_dilations=(4, 8),
        regions="slic",
        window=224,
        stride=112,
        prompt_denoising=0.5,
    )
    model = ModelConfig(name="RN50", weights="my file.pt", method="naclip")
    other = replace(found, model=model, options=options, min_region=100)
    assert tune._next_command(other, Path("t.toml")) == (
        "`maskclip label PHOTOS --classes t.toml --model RN50 --weights 'my file.pt' "
        "--method naclip --prompt-denoising 0.5 --refine tlp+pamr "
        "--pamr-dilations 4,8 --regions slic --window 224 --stride 112 --min-region 100 --out DIR`"
    )
    known = typer.main.get_command(app).commands["label"].params
    assert {f.name for f in fields(Options)} - {"long_side"} <= {one.name for one in known}


def test_progress_has_a_total_that_is_not_exceeded(labeled, tmp_path):
    out = shutil.copytree(labeled, tmp_path / "labels")
    correct(out, range(12))
    seen = {}
    tune_labels(
        out,
        tries=["background=cow,book"],
        device="cpu",
        on_progress=lambda what, count, most: seen.setdefault(what, []).append((count, most)),
    )
    assert seen["photos encoded"] == [(n, 12) for n in range(1, 13)]
    assert "labellings tried (words)" in seen
    for steps in seen.values():
        assert [count for count, _ in steps] == list(range(1, len(steps) + 1))
        assert len({most for _, most in steps}) == 1  # or it would have been exceeded


def test_the_time_that_is_left_is_at_most_what_the_total_needs(monkeypatch):
    now, lines = iter([100.0, 102.0, 104.0]), []
    monkeypatch.setattr(tune.time, "monotonic", lambda: next(now))
    left = tune._Left(lines.append)
    for count in (1, 2, 3):
        left("labellings tried (words)", count, 1203)
    assert lines[0] == "labellings tried (words): 1 of at most 1,203"
    assert lines[-1] == "labellings tried (words): 3 of at most 1,203, at most 0:40:00 left"


def test_a_figure_that_words_do_not_mend_gets_other_advice(tuned, monkeypatch, capsys):
    out, found = tuned
    monkeypatch.setattr("maskclip.tasks.tune.job.tune_labels", lambda *_, **__: found)
    for low, said in ((0.0, False), (1.0, True)):
        monkeypatch.setattr(tune, "_LOW", low)
        assert main(["tune", str(out)]) == 0
        assert ("words and thresholds do not mend that" in capsys.readouterr().err) is said


def test_nothing_is_written_where_nothing_helps(labeled, tmp_path, capsys):
    out = shutil.copytree(labeled, tmp_path / "labels")
    with CorrectionJournal(out, WORDS) as journal:
        for seed in range(10):
            journal.edit(str(seed), journal.read_labels(str(seed), WORDS))
    assert main(["tune", str(out), "--device", "cpu", "--try", "background=book"]) == 0
    assert "nothing that was tried helps" in capsys.readouterr().out
    assert not (out / "tuned.toml").exists()


def test_what_is_tried_is_read_from_words():
    assert read_tries(["pet=puppy, hound", "background=sky"], WORDS) == {
        "pet": ("puppy", "hound"),
        "background": ("sky",),
    }
    for text, why in (
        ("pet", "expected NAME=WORDS"),
        ("pets=dog", r"none of the classes \(did you mean pet"),
        ("car=dog", "'dog' is a word of 'pet' already"),
    ):
        with pytest.raises(MaskCLIPError, match=why):
            read_tries([text], WORDS)


def test_each_class_is_tried_by_each_word_alone_and_with_more():
    words = Vocabulary.parse(["pet=dog,cat,cow", "car"])
    tried = {(c.name, c.words) for c in synonym_changes(words, {"car": ("bus",)})}
    assert tried == {
        ("pet", ("dog",)),
        ("pet", ("cat",)),
        ("pet", ("cow",)),
        ("pet", ("cat", "cow")),
        ("pet", ("dog", "cow")),
        ("pet", ("dog", "cat")),
        ("car", ("bus",)),
        ("car", ("car", "bus")),
    }


def test_a_threshold_is_tried_at_others_and_no_background_stays_none():
    plain = Vocabulary.parse(["dog", "car"])
    rules = [c.rule for c in background_changes(plain.with_background(0.3), ["sky"])]
    assert rules == [0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, ("sky",)]
    assert background_changes(plain, []) == []
    assert background_changes(plain, ["sky"])[0].apply(plain).names[0] == "background"
