import numpy as np
import pytest
from PIL import Image

from maskclip.clip import choice
from maskclip.core.config import ModelConfig, Options
from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.photos import open_folder
from maskclip.emoji.scenes import EmojiScenes
from maskclip.recipes import published_row
from maskclip.tasks import segmenter
from maskclip.tasks.evaluation.predictors import PredictedFolder, load_predictor, settle_method
from maskclip.tasks.evaluation.settings import Evaluation

WORDS = Vocabulary.parse(["dog", "cat", "grass"])
IDS = np.array([[0, 1], [2, 255]], np.uint8)
PHOTO = Image.new("RGB", (2, 2))


class Named:
    """Samples of which only the names matter."""

    vocabulary = WORDS

    def __init__(self, *names):
        self.names = names


@pytest.fixture
def folder(tmp_path):
    """`folder(name)`: the predictions of one image in the test's folder."""
    return lambda name: PredictedFolder.open(tmp_path, Named(name), 1)


@pytest.mark.parametrize(
    "file", ["one.png", "one_labels.png", "one.PNG", "one.tif", "one_mask.bmp"]
)
def test_predictions_are_found_by_id(folder, file, tmp_path):
    Image.fromarray(IDS).save(tmp_path / file)
    np.testing.assert_array_equal(folder("one")("one", PHOTO), IDS)


def test_ids_may_be_in_subfolders_and_in_colours(folder, tmp_path):
    colors = np.array([*WORDS.colors], np.uint8)[np.array([[0, 1], [2, 2]])]
    (tmp_path / "x").mkdir()
    Image.fromarray(colors).save(tmp_path / "x" / "one.png")
    np.testing.assert_array_equal(folder("x/one")("x/one", PHOTO), [[0, 1], [2, 2]])


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (IDS[:1], "the prediction is 2x1 but its image 2x2"),
        (IDS + 3, r"3 is not a class: expected 0\.\.2, or 255"),
        (
            np.array([[1, 3], [3, 2]], np.uint8),
            r"ids seem to count from 1 \(there is 3 and no 0\), and must",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(folder, tmp_path, ids, said):
    Image.fromarray(ids).save(tmp_path / "one.png")
    with pytest.raises(MaskCLIPError, match=said):
        folder("one")("one", PHOTO)


def test_a_damaged_prediction_is_refused(folder, tmp_path):
    (tmp_path / "one.png").write_bytes(b"nothing")
    with pytest.raises(MaskCLIPError, match="cannot be read as a mask"):
        folder("one")("one", PHOTO)


def test_all_predictions_are_looked_for_before_any_is_scored(tmp_path):
    for name in ("a", "b", "c"):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(IDS).convert("L").save(tmp_path / kind / f"{name}.png")
    samples = open_folder(tmp_path / "images", tmp_path / "masks", WORDS)
    found = tmp_path / "found"
    with pytest.raises(MaskCLIPError, match="no folder of predictions"):
        PredictedFolder.open(found, samples, 3)
    found.mkdir()
    Image.fromarray(IDS).save(found / "a.png")
    with pytest.raises(MaskCLIPError, match=r"2 of 3 predictions are missing, the first b\.png"):
        PredictedFolder.open(found, samples, 3)
    PredictedFolder.open(found, samples, 1)  # no more are needed


def test_auto_goes_by_the_protocol_and_is_stored(make_model, monkeypatch):
    vision = {"layers": 12, "patch_size": 16, "width": 768, "head_width": 64, "mlp_ratio": 0.1}
    clip = make_model(vision=vision, short_side=512)
    for module in (choice, segmenter):
        monkeypatch.setattr(module, "load_of", lambda config, options=None: clip)
    model, samples = ModelConfig(name="tiny", method="auto", templates="plain"), EmojiScenes()
    for protocol, method in (("published", "naclip"), ("segment", "naclip"), ("windows", "scclip")):
        evaluation = Evaluation(dataset="emoji", model=model, protocol=protocol)
        named, why = settle_method(evaluation, samples)
        assert named.model.method == method
        assert "published figure" in why
        found = load_predictor(named, samples, device="cpu", why=why).metadata()
        assert (found["method"], found["arithmetic"]["name"]) == (method, method)
        assert found["auto"] == why
    assert load_predictor(evaluation, samples, device="cpu").metadata() == found
    assert "auto" not in load_predictor(named, samples, device="cpu").metadata()
    assert published_row(evaluation, None) is None


def test_what_a_method_cannot_do_is_refused_before_any_image(make_model, monkeypatch):
    clip = make_model(vision={"layers": 10, "head_width": 16})  # patches of 8 px
    monkeypatch.setattr(segmenter, "load_of", lambda config, options=None: clip)
    model = ModelConfig(name="tiny", method="scclip", templates="plain")
    for options, message in (
        ({"key_smoothing": 1.0}, "'scclip' has no keys"),
        ({"window": 40}, "'scclip' needs more than 30 patches, and 40x32 px have 20"),
    ):
        evaluation = Evaluation(
            dataset="emoji", model=model, protocol="segment", options=Options(**options)
        )
        with pytest.raises(MaskCLIPError, match=message):
            load_predictor(evaluation, EmojiScenes(), device="cpu")
