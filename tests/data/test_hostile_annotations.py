"""Exports of tools, damaged at random by a seed: each is read, or is one line."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from maskclip.core.errors import MaskCLIPError
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.annotations import open_annotations
from maskclip.data.formats.label_studio import brush_rle

WORDS = Vocabulary.parse(["dog", "cat"])
SIZE = {"width": 6, "height": 4}
STRANGE = [
    *(None, True, -1, 0, 0.5, 1e308, float("inf"), float("nan"), 2**31, 10**30, "9" * 5000),
    *("", "x", "\u202e", "../../x", [], {}, [[]], [None], [1, 2, 3], {"a": 1}, "dog", "a.jpg"),
]

COCO = {
    "images": [{"id": 7, "file_name": "a.jpg", **SIZE}, {"id": 8, "file_name": "b.jpg", **SIZE}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
    "annotations": [
        {"image_id": 7, "category_id": 18, "segmentation": [[0, 0, 3, 0, 3, 2, 0, 2]]},
        {"image_id": 7, "category_id": 17, "segmentation": {"size": [4, 6], "counts": [4, 4, 16]}},
        {"image_id": 8, "category_id": 17, "segmentation": {"size": [4, 6], "counts": "44`0"}},
    ],
}
SEGMENTS = [{"id": 300, "category_id": 18}]
PANOPTIC = COCO | {
    "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": SEGMENTS}]
}
BRUSH = {"rle": brush_rle(np.eye(4, 6) > 0), "brushlabels": ["dog"]}
POLYGON = {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": ["cat"]}
REGIONS = [
    {"type": kind, "original_width": 6, "original_height": 4, "value": value}
    for kind, value in (("brushlabels", BRUSH), ("polygonlabels", POLYGON))
]
TASKS = [{"data": {"image": "/data/upload/1/a.jpg"}, "annotations": [{"result": REGIONS}]}]
XML = (
    b"<?xml version='1.0'?><annotations><image name='a.jpg' width='6' height='4'>"
    b"<polygon label='cat' points='0,0;3,0;3,2' z_order='1'/><mask label='dog' rle='1, 2, 1, 2' "
    b"left='2' top='1' width='3' height='2' z_order='0'/></image></annotations>"
)


def changed(value, chance, draw):
    """Replace, remove and repeat parts of JSON at random."""
    if draw.random() < chance:
        return draw.choice(STRANGE)
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if draw.random() > chance / 3}
        return {key: changed(each, chance, draw) for key, each in kept.items()}
    if isinstance(value, list) and len(value) > 20:  # bytes of a brush layer
        return [draw.choice(range(256)) if draw.random() < chance / 9 else b for b in value]
    if isinstance(value, list):
        parts = [changed(each, chance, draw) for each in value]
        return parts + parts[: draw.random() < chance]
    return value


def damaged(content, draw):
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data))
        new = draw.choice([b"9" * 20, b"-", b"nan", b";", b"1e309", b"&x;", b"", b"\xff", b"0"])
        data[place : place + draw.randint(0, 1)] = new
    return bytes(data)


@pytest.mark.parametrize("count", [200, pytest.param(4000, marks=pytest.mark.full)])
def test_damaged_exports_are_read_or_are_one_line(tmp_path, count, tally):
    draw, read, refused = random.Random(count), 0, []
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (6, 4), (44, 1, 0)).save(tmp_path / "labels" / "a.png")  # segment 300
    for number in range(count):
        place = tmp_path / ("labels.xml" if number % 4 == 3 else "labels.json")
        content = XML
        if number % 4 < 3:
            chance = draw.choice([0.005, 0.02, 0.1])
            content = json.dumps(
                changed([COCO, PANOPTIC, TASKS][number % 4], chance, draw)
            ).encode()
        place.write_bytes(damaged(content, draw) if draw.random() < 0.3 else content)
        try:
            found = open_annotations(place, ["a.jpg", "b.jpg"], WORDS)
            for photo in found.photos:
                assert found.read(photo, (6, 4)).shape == (4, 6)
                found.read(photo)
                read += 1
        except MaskCLIPError as error:
            refused.append(str(error))
    assert read > count / 10
    assert refused
    assert not any("\n" in line for line in refused)
    tally("damaged exports of labels", count)
