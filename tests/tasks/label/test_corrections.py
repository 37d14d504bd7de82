"""Labels that people have corrected: `label` writes them, and a training learns from them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.samples import UNLABELED
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.corrections import ACCEPTED, REJECTED, CorrectionJournal
from maskclip.data.photos import open_folder, open_photos
from maskclip.data.sources import find_sources
from maskclip.emoji.scenes import draw_scene
from maskclip.tasks.label import Job
from maskclip.tasks.label.pipeline import label_photos, plan_labels

WORDS = Vocabulary.parse(["dog", "red car", "grass", "sky"])
FORMATS = ("png", "coco", "json", "scores")
SHAPE = (48, 64)


def job(out, **fields):
    model = ModelConfig(name="emoji", templates="plain", precision="float32")
    options = Options(short_side=160)
    return Job(model=model, vocabulary=WORDS, options=options, out=out, formats=FORMATS, **fields)


def run(photos, out, **fields):
    seen, notes = [], []
    label_photos(
        job(out, **fields),
        find_sources([photos]),
        device="cpu",
        on_progress=lambda outcomes, _: seen.extend(o.task.name for o in outcomes),
        on_note=notes.append,
    )
    return seen, notes


def png(out, name):
    with Image.open(out / "png" / f"{name}.png") as image:
        return np.array(image)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    for seed, name in enumerate(("a.png", "b.png", "c.jpg", "sub/a.png")):
        Image.fromarray(draw_scene(seed, size=SHAPE).image).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def labeled(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("labels")
    run(photos, out)
    return out


@pytest.fixture
def out(labeled, tmp_path):
    return shutil.copytree(labeled, tmp_path / "labels")


@pytest.fixture
def true():
    """Labels of which half is a class, and a corner is set to ignore."""
    labels = np.full(SHAPE, 2, np.uint8)
    labels[:, :32], labels[:8, :8] = 1, WORDS.ignore
    return labels


def test_photos_of_another_folder_are_noted_and_keep_their_names_apart(out, photos, tmp_path):
    others = shutil.copytree(photos / "sub", tmp_path / "others")
    seen, notes = run(others, out)
    assert len(seen) == 1
    assert seen[0] not in {"a", "sub/a"}
    assert (out / "png" / f"{seen[0]}.png").is_file()
    assert notes[0].startswith(f"photos of another folder than before: {photos}; the labels lie")
    for again in (photos, photos / "sub"):  # the same folder, or a part of it
        _, notes = run(again, shutil.copytree(out, tmp_path / f"out-{again.name}"))
        there = [note for note in notes if f"than before: {photos}" in note]
        assert there == []


def test_corrected_labels_are_written_in_every_format_and_stay(photos, out, true):
    before = png(out, "a")
    with CorrectionJournal(out, WORDS) as journal:
        journal.edit("sub/a", true)
        journal.mark("a", ACCEPTED)
    seen, notes = run(photos, out)
    assert seen == ["sub/a"]  # the others' files are as they were
    assert (png(out, "sub/a") == true).all()
    assert (png(out, "a") == before).all()
    assert notes[0] == "2 photos reviewed: 1 accepted, 1 with corrected labels"
    summary = json.loads((out / "json" / "sub" / "a.json").read_text())
    shares = {found["name"]: found["coverage"] for found in summary["classes"]}
    assert shares == pytest.approx({"red car": 0.5 - 64 / 3072, "grass": 0.5})
    panoptic = json.loads((out / "coco" / "panoptic.json").read_text())
    assert len(panoptic["annotations"]) == 4
    assert run(photos, out)[0] == []


def test_a_correction_that_is_undone_gives_the_labels_of_the_model_back(photos, out, true):
    before = png(out, "b")
    with CorrectionJournal(out, WORDS) as journal:
        journal.edit("b", true)
        run(photos, out)
        assert (png(out, "b") == true).all()
        assert journal.undo() == "b"
        assert (journal.read_labels("b", WORDS) == before).all()
    assert run(photos, out)[0] == ["b"]
    assert (png(out, "b") == before).all()


def test_rejected_photos_are_left_out_of_files_about_the_set(photos, out):
    with CorrectionJournal(out, WORDS) as journal:
        journal.mark("b", REJECTED)
    _, notes = run(photos, out)
    assert notes[0].startswith("1 photo reviewed: 1 rejected; rejected ones are left out of files")
    panoptic = json.loads((out / "coco" / "panoptic.json").read_text())
    assert sorted(image["file_name"] for image in panoptic["images"]) == [
        "a.png",
        "c.jpg",
        "sub/a.png",
    ]


def test_the_report_says_what_was_reviewed(photos, out, true):
    with CorrectionJournal(out, WORDS) as journal:
        journal.edit("a", true)
        journal.mark("a", ACCEPTED)
        journal.mark("b", REJECTED)
    run(photos, out)
    report = json.loads((out / "report.json").read_text())
    found = {photo["name"]: photo.get("correction") for photo in report["photos"]}
    assert found == {
        "a": {"state": "accepted", "labels_corrected": True},
        "b": {"state": "rejected", "labels_corrected": False},
        "c": None,
        "sub/a": None,
    }
    page = (out / "report.html").read_text()
    assert "<dt>reviewed</dt><dd>2</dd>" in page
    assert "<b>labels corrected, accepted</b>" in page


def test_a_plan_counts_corrected_photos_as_to_be_written(photos, out, true):
    with CorrectionJournal(out, WORDS) as journal:
        journal.edit("a", true)
    assert plan_labels(job(out), find_sources([photos])).counts.left == 1


def test_a_photo_of_another_size_than_its_correction_fails_alone(photos, out, true):
    with CorrectionJournal(out, WORDS) as journal:
        journal.edit("a", true[:, :40])
    seen, _ = run(photos, out)
    report = json.loads((out / "report.json").read_text())
    assert seen == ["a"]
    assert "the mask is 40x48 but its image 64x48" in report["photos"][0]["error"]


def test_other_classes_than_those_corrected_are_refused(photos, out):
    with CorrectionJournal(out, WORDS) as journal:
        journal.mark("a", ACCEPTED)
    (out / "manifest.sqlite").unlink()
    other = job(out)
    object.__setattr__(other, "vocabulary", Vocabulary.parse(["cat", "sky"]))
    with pytest.raises(MaskCLIPError, match="corrections are of"):
        label_photos(other, find_sources([photos]), device="cpu")


def test_a_training_learns_from_what_was_accepted_or_corrected(photos, out, true):
    with CorrectionJournal(out, WORDS) as journal:
        journal.edit("sub/a", true)
        journal.mark("a", ACCEPTED)
        journal.mark("b", REJECTED)
    opened = open_photos(photos, WORDS, out)
    assert opened.files == ("a.png", "c.jpg", "sub/a.png")  # b is not learnt from at all
    assert [opened.has_labels(i) for i in range(3)] == [True, False, True]
    expected = np.where(true == WORDS.ignore, UNLABELED, true.astype(int))
    assert (opened[2].labels == expected).all()
    assert (opened[0].labels == png(out, "a")).all()
    assert (opened[1].labels == UNLABELED).all()
    assert opened.notes == (f"{out}: 1 rejected photo is left out",)
    assert open_folder(photos, out, WORDS).names == ("a", "sub/a")
    with CorrectionJournal(out, WORDS) as journal:
        journal.edit("a", true)
    assert (open_photos(photos, WORDS, out)[0].labels == expected).all()
    assert open_photos(photos, WORDS, out).metadata() != opened.metadata()


def test_classes_in_another_order_are_those_of_the_corrections(photos, out, true):
    with CorrectionJournal(out, WORDS) as journal:
        journal.edit("a", true)
    turned = Vocabulary.parse(["sky", "grass", "red car", "dog"])
    labels = open_photos(photos, turned, out)[0].labels
    assert set(np.unique(labels)) == {UNLABELED, 1, 2}
    assert (labels[:, 32:] == 1).all()


def test_a_labelling_of_which_nothing_counts_as_true_is_refused(photos, out):
    with CorrectionJournal(out, WORDS) as journal:
        journal.mark("a", REJECTED)
    with pytest.raises(
        MaskCLIPError, match="none of the 4 photos has labels: expected photos that "
    ):
        open_photos(photos, WORDS, out)
