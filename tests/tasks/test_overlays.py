"""Pictures of a training: photos, labels and titles side by side."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskclip.core.samples import UNLABELED
from maskclip.core.vocabulary import Vocabulary
from maskclip.tasks.overlays import side_by_side

WORDS = Vocabulary.parse(["dog", "sky"])
GREY = (128, 128, 128)


@pytest.mark.parametrize("nothing", [255, UNLABELED, 65_535])
def test_each_panel_shows_its_labels_over_the_photo(nothing: int) -> None:
    photo = Image.new("RGB", (300, 256), GREY)
    own = np.zeros((256, 300), np.int32)
    taught = np.full((256, 300), nothing)
    taught[:, 150:] = 1
    sheet = side_by_side(photo, [("photo", None), ("CLIP", taught), ("own", own)], WORDS)
    pixels = np.array(sheet)[128]  # a row through all panels
    step = 300 + 8
    assert tuple(pixels[100]) == GREY
    assert tuple(pixels[step + 60]) == GREY  # no label there
    sky, dog = pixels[step + 220].astype(int), pixels[2 * step + 100].astype(int)
    for found, color in ((sky, WORDS.colors[1]), (dog, WORDS.colors[0])):
        others = set(WORDS.colors) - {color}
        near = np.abs(found - color).sum()
        assert all(near < np.abs(found - other).sum() for other in others)
    assert sheet.width >= 2 * step + 300
    assert sheet.height > 256 + 20  # titles above, a legend below


def test_small_photos_are_enlarged() -> None:
    labels = np.zeros((64, 64), np.uint8)
    sheet = side_by_side(Image.new("RGB", (64, 64), GREY), [("a", None), ("b", labels)], WORDS)
    assert sheet.width >= 2 * 256
