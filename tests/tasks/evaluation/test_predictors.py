import numpy as np
import pytest
from PIL import Image

from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.datasets import open_folder
from maskclip.tasks.evaluation.predictors import PredictedFolder

WORDS = Vocabulary.parse(["dog", "cat", "grass"])
IDS = np.array([[0, 1], [2, 255]], np.uint8)
PHOTO = Image.new("RGB", (2, 2))


@pytest.fixture
def folder(tmp_path):
    return PredictedFolder(tmp_path, WORDS)


@pytest.mark.parametrize("file", ["one.png", "one_labels.png"])
def test_predictions_are_found_by_id(folder, file):
    Image.fromarray(IDS).save(folder.folder / file)
    np.testing.assert_array_equal(folder("one", PHOTO), IDS)


def test_ids_may_be_in_subfolders_and_in_colours(folder):
    colors = np.array([*WORDS.colors], np.uint8)[np.array([[0, 1], [2, 2]])]
    (folder.folder / "x").mkdir()
    Image.fromarray(colors).save(folder.folder / "x" / "one.png")
    np.testing.assert_array_equal(folder("x/one", PHOTO), [[0, 1], [2, 2]])


def test_what_cannot_be_scored_is_refused(folder):
    with pytest.raises(MaskCLIPError, match=r"no prediction .*one\.png"):
        folder("one", PHOTO)
    Image.fromarray(IDS[:1]).save(folder.folder / "one.png")
    with pytest.raises(MaskCLIPError, match="the prediction is 2x1 but its image 2x2"):
        folder("one", PHOTO)
    Image.fromarray(IDS + 3).save(folder.folder / "one.png")
    with pytest.raises(MaskCLIPError, match=r"3 is not a class: expected 0\.\.2, or 255"):
        folder("one", PHOTO)
    (folder.folder / "one.png").write_bytes(b"nothing")
    with pytest.raises(MaskCLIPError, match="cannot be read as a mask"):
        folder("one", PHOTO)


def test_all_predictions_are_looked_for_before_any_is_scored(tmp_path):
    for name in ("a", "b", "c"):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(IDS).convert("L").save(tmp_path / kind / f"{name}.png")
    samples = open_folder(tmp_path / "images", tmp_path / "masks", WORDS)
    folder = PredictedFolder(tmp_path / "found", WORDS)
    with pytest.raises(MaskCLIPError, match="no folder of predictions"):
        folder.check(samples, 3)
    folder.folder.mkdir()
    Image.fromarray(IDS).save(folder.folder / "a.png")
    with pytest.raises(MaskCLIPError, match=r"2 of 3 predictions are missing, the first b\.png"):
        folder.check(samples, 3)
    folder.check(samples, 1)  # no more are asked for
