"""The preview without CLIP as a segmenter, on weights of its own package and on random ones."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import maskclip
from maskclip.core.errors import MaskCLIPError, MaskCLIPWarning
from maskclip.imagenet.classifier import ImageClassifier
from maskclip.imagenet.words import ids
from maskclip.tasks import without_clip as models


@pytest.fixture(scope="module")
def photo():
    skimage = pytest.importorskip("skimage")
    return Image.open(f"{skimage.data_dir}/chelsea.png").convert("RGB")


@pytest.fixture(scope="module")
def preview():
    return maskclip.load("photo", device="cpu")


@pytest.fixture
def random_preview(monkeypatch):
    torch.manual_seed(0)
    network, half = timm.create_model("tf_efficientnet_lite0").eval(), (0.5, 0.5, 0.5)
    classifier = ImageClassifier(
        name="photo", network=network, mean=half, std=half, fingerprint="0" * 16
    )
    monkeypatch.setattr(models, "load_classifier", lambda name: classifier)
    return maskclip.load("photo", device="cpu")


def test_a_photo_of_a_cat_is_labelled_so(preview, photo):
    found = preview.segment(photo, ["dog", "Cats", "car"])
    assert found.coverage()["Cats"] > 0.9
    assert found.labels.shape == (photo.height, photo.width)
    assert 0 <= found.scores.min() <= found.scores.max() <= 1
    whole = preview.segment(photo, maskclip.Vocabulary.builtin("photo"), background=0.5)
    assert max(whole.coverage(), key=whole.coverage().get) == "cat"
    assert 0.02 < whole.coverage()["background"] < 0.5


def test_its_maps_are_refined_unless_that_is_refused(preview, photo):
    words = ["cat", "dog"]
    plain = preview.segment(photo, words, refine=())
    named = preview.segment(photo, words, refine=("dominant", "pamr"))
    assert np.array_equal(preview.segment(photo, words).scores, named.scores)
    assert not np.array_equal(plain.scores, named.scores)


def test_every_refinement_runs_and_photos_are_scored_again(preview, photo):
    small = photo.resize((96, 64))
    encoded = preview.encode(small, keys=True, image=True, short_side=64)
    options = {"refine": ("surgery", "dominant", "tlp"), "key_smoothing": 0.9}
    at_once = preview.segment(small, ["cat", "bus"], short_side=64, **options)
    again = preview.score(encoded, ["cat", "bus"], **options)
    assert np.array_equal(at_once.labels, again.labels)


def test_the_best_of_a_words_classes_counts_less_the_more_there_are(random_preview):
    words = maskclip.Vocabulary.parse(["dog=dog,cat", "toaster"])
    scoring = random_preview.scoring(words, maskclip.core.config.Options())
    of_dog = len(ids("dog")) + len(ids("cat"))
    assert scoring.classes == (0,) * of_dog + (1,)
    rows = random_preview.classifier.rows()
    torch.testing.assert_close(scoring.rows[-1], rows[ids("toaster")[0]])
    lowered = scoring.rows[0, -1] - rows[ids("dog")[0], -1]
    assert lowered.item() == pytest.approx(-0.5 * np.log(of_dog), rel=1e-5)


def test_what_it_does_not_know_is_refused(random_preview):
    with pytest.raises(MaskCLIPError, match=r"'grass'.*'giraffe'"):
        random_preview.segment(Image.new("RGB", (8, 8)), ["cat", "grass", "giraffe"])
    with pytest.raises(MaskCLIPError, match="no classes"):
        random_preview.segment(Image.new("RGB", (8, 8)))
    for settings in ({"method": "naclip"}, {"templates": "plain"}, {"weights": "random"}):
        with pytest.raises(MaskCLIPError, match=r"belongs to CLIP, and photo is a preview"):
            maskclip.load("photo", **settings)


@pytest.mark.parametrize(
    ("words", "background", "message"),
    [
        (["cat", "dog"], 0.5, "of 0.5 does nothing: the best of 2 probabilities"),
        (["cat"], 0.9, "does nothing with one class"),
        (["cat"], None, "one class and no background"),
    ],
)
def test_thresholds_that_do_nothing_are_warned_of_once(random_preview, words, background, message):
    with pytest.warns(MaskCLIPWarning, match=message) as caught:
        random_preview.segment(Image.new("RGB", (64, 64)), words, background=background)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error::maskclip.core.errors.MaskCLIPWarning")
def test_thresholds_that_do_something_and_words_alone_are_not(random_preview):
    random_preview.prepare(["cat", "dog"], background=0.6)
    random_preview.prepare(maskclip.Vocabulary.builtin("photo"), background=0.5)
    random_preview.prepare(maskclip.Vocabulary.builtin("voc20"), background=0.8)
    random_preview.prepare(["cat", "dog"], background=["bed"])
    random_preview.prepare(["cat", "dog"])
