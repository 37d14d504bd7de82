"""The words of students: their own without a CLIP, others by the one that gave their rows."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import maskclip
from maskclip.clip.prompts import class_rows
from maskclip.clip.weights import load_clip
from maskclip.core.config import ModelConfig
from maskclip.core.errors import MaskCLIPWarning
from maskclip.core.method import CLEAN
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import EmojiScenes, draw_scene
from maskclip.plus import words as words_module
from maskclip.plus.config import StudentConfig, StudentError
from maskclip.plus.files import TrainedStudent, read_student, save_student
from maskclip.plus.from_teacher import config_from, start_from
from maskclip.plus.student import build_student
from maskclip.plus.words import StudentWords
from maskclip.tasks.evaluation.predictors import load_predictor
from maskclip.tasks.evaluation.settings import Evaluation

OWN = Vocabulary.parse(["dog", "grass", "car"])
NEW = Vocabulary.parse(["cat", "car", "thing=house,banana"])
CLIP = "emoji-vit"


def rows_of(prompts, templates="published"):
    return class_rows(load_clip(CLIP), prompts, templates=templates)


def taught(*, vocabulary=OWN, background=False, templates="published", **about):
    """A light student whose rows are those of a CLIP; its features are random."""
    rows = rows_of(vocabulary.prompts[background:], templates)
    config = StudentConfig(
        depth=50, width=8, embed_dim=rows.shape[1], background=background, **about
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = build_student(config, rows).eval()
    return TrainedStudent(student, vocabulary, clip=CLIP, templates=templates)


@pytest.fixture(scope="module")
def started():
    """A student that starts from its teacher, which it is at first."""
    source = load_clip(CLIP)
    rows = rows_of(OWN.prompts)
    config = config_from(source, CLEAN, [0, 1, 2], embed_dim=rows.shape[1], background=False)
    student = build_student(config, rows)
    start_from(student.backbone, source, CLEAN)
    return TrainedStudent(student.eval(), OWN, short_side=128, clip=CLIP)


@pytest.fixture
def without_clips(monkeypatch):
    def refuse(name, weights=None):
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(words_module, "load_clip", refuse)


def test_new_words_are_labelled_as_by_the_teacher(started, tmp_path):
    path = tmp_path / "student.safetensors"
    save_student(started, path)
    scene = draw_scene(5, size=128, objects=["cat", "house"], grounds=["water"])
    words = ["cat", "house", "water", "grass"]
    found = maskclip.load(path).segment(scene.image, words)
    teacher = maskclip.load(CLIP).segment(scene.image, words, short_side=128, refine=())
    assert found.vocabulary.names == tuple(words)
    assert (found.labels == teacher.labels).mean() > 0.9


def test_trained_and_new_words_mix(started):
    rows, classes = StudentWords(started, name="s").rows(NEW)
    own = started.student.classifier()
    assert classes == (0, 1, 2)
    assert torch.equal(rows[1], own[2])
    torch.testing.assert_close(rows[[0, 2]], rows_of([["cat"], ["house", "banana"]]))


@pytest.mark.parametrize("names", [["dog", "grass", "car"], ["car", "dog"], ["grass"]])
def test_trained_words_in_any_order_need_no_clip(names, started, without_clips):
    words = Vocabulary.parse(names)
    rows, classes = StudentWords(started, name="s").rows(words)
    at = [OWN.names.index(name) for name in names]
    assert torch.equal(rows, started.student.classifier()[at])
    assert classes == tuple(range(len(names)))


def test_its_file_says_which_clip_by_which_prompts(tmp_path):
    trained = taught(templates="plain")
    save_student(trained, tmp_path / "s.safetensors")
    again = read_student(tmp_path / "s.safetensors")
    assert (again.clip, again.templates) == (CLIP, "plain")
    rows, _ = StudentWords(again, name="s").rows(NEW)
    torch.testing.assert_close(rows[:1], rows_of([["cat"]], "plain"))


def test_a_learnt_background_is_a_class_like_any_other(without_clips):
    own = OWN.with_background(["sky"])
    trained = taught(vocabulary=own, background=True)
    words = Vocabulary.parse(["background", "car"])
    rows, classes = StudentWords(trained, name="s").rows(words)
    assert torch.equal(rows, trained.student.classifier()[[0, 3]])
    assert classes == (0, 1)
    by_threshold = Vocabulary.parse(["car"]).with_background(0.5)
    assert StudentWords(trained, name="s").threshold(by_threshold) is None


def test_a_background_by_threshold_is_no_row(started, picture):
    words = Vocabulary.parse(["cat", "dog"]).with_background(0.7)
    rows, classes = StudentWords(started, name="s").rows(words)
    assert (len(rows), classes) == (2, (0, 1))
    assert StudentWords(started, name="s").threshold(words) == 0.7


def test_several_rows_of_a_class_stay_together(without_clips):
    rows = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    config = StudentConfig(depth=50, width=8, embed_dim=8, counts=(1, 3))
    trained = TrainedStudent(build_student(config, rows), Vocabulary.parse(["dog", "car"]))
    found, classes = StudentWords(trained, name="s").rows(Vocabulary.parse(["car", "dog"]))
    assert torch.equal(found, trained.student.classifier()[[1, 2, 3, 0]])
    assert classes == (0, 0, 0, 1)


def test_the_clip_may_be_given(tmp_path):
    trained = replace(taught(), clip="gone.pt")
    with pytest.raises(
        StudentError, match=r"^new words need .* s its own rows, gone.pt: .*weights"
    ):
        StudentWords(trained, name="s").rows(NEW)
    rows, _ = StudentWords(trained, name="s", weights=CLIP).rows(NEW)
    torch.testing.assert_close(rows[:1], rows_of([["cat"]]))
    with pytest.raises(StudentError, match="does not name it: give its name or file as `weights`"):
        StudentWords(replace(trained, clip=None), name="s").rows(NEW)


def test_a_clip_is_known_by_its_rows():
    shared = replace(taught(), clip="emoji-rn")  # the embedded two have one text tower
    rows, _ = StudentWords(shared, name="s").rows(NEW)
    torch.testing.assert_close(rows[:1], rows_of([["cat"]]))
    other = replace(taught(), vocabulary=Vocabulary.parse(["lion", "water", "bus"]))
    with pytest.raises(
        StudentError, match=f"{CLIP} is not the CLIP .* alike to 0.*`weights`$"
    ) as e:
        StudentWords(other, name="s").rows(NEW)
    assert "\n" not in str(e.value)


def test_a_clip_of_other_channels_is_refused():
    rows = torch.eye(3, 8)
    student = build_student(StudentConfig(depth=50, width=8, embed_dim=8), rows).eval()
    with pytest.raises(StudentError, match=r"channels, and these have 8"):
        StudentWords(TrainedStudent(student, OWN, clip=CLIP), name="s").rows(NEW)


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        (lambda: taught(trained_rows=True), "as they were trained, and none for cat, thing: it "),
        (lambda: replace(taught(), clip="photo"), "as photo taught it, which is no CLIP"),
    ],
)
def test_rows_that_are_no_text_rows_take_no_new_words(trained, message, without_clips):
    with pytest.raises(StudentError, match=message):
        StudentWords(trained(), name="s").rows(NEW)


def test_a_data_set_may_have_classes_that_it_was_not_trained_on(tmp_path):
    path = tmp_path / "student.safetensors"
    save_student(taught(templates="plain"), path)
    scenes = EmojiScenes(size=64)
    config = ModelConfig(name=str(path), precision="float32")
    evaluation = Evaluation(dataset="emoji", model=config, protocol="segment")
    predictor = load_predictor(evaluation, scenes, device="cpu")
    labels = predictor("a", scenes[0].image)
    assert labels.shape == (64, 64)
    told = predictor.metadata()
    assert (len(told["untrained"]), told["templates"]) == (len(scenes.vocabulary) - 3, "plain")


def test_words_that_an_embedded_clip_never_saw_are_reported(started):
    with pytest.warns(MaskCLIPWarning, match="emoji-vit was trained on .* never saw: xylophonist"):
        StudentWords(started, name="s").rows(Vocabulary.parse(["dog", "xylophonist"]))
