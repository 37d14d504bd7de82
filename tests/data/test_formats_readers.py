"""Each format, read back by a reader that is not ours, gives the labels that were written."""

import io
import json
import zipfile
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import supervision
import yaml
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage

from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats import find_format
from maskclip.data.formats.label_studio import brush_rle
from maskclip.data.formats.yolo import polygons

BACKGROUND = Vocabulary.parse(["dog", "cat", "car"]).with_background(["sky"])


def write(name, vocabulary, out, items):
    made = find_format(name)(vocabulary, out)
    for item in items:
        made.write(item)
    made.finish(item.name for item in items)


@pytest.fixture(params=["words", "background", "many"])
def vocabulary(request, words, many):
    return {"words": words, "background": BACKGROUND, "many": many}[request.param]


def without_background(labels, vocabulary):
    """Where a format knows regions alone, what is background is not said."""
    background = labels == 0 if vocabulary.has_background else False
    return np.where(background | (labels == vocabulary.ignore), -1, labels.astype(int))


def painted(shape, masks):
    """Lay (label, mask) over each other; no pixel may be claimed twice."""
    labels, claims = np.full(shape, -1), np.zeros(shape, int)
    for label, mask in masks:
        labels[mask], claims = label, claims + mask
    assert claims.max() <= 1
    return labels


def test_coco_instances(tmp_path, label_maps, vocabulary):
    items = label_maps(vocabulary)
    write("coco", vocabulary, tmp_path, items)
    coco = COCO(str(tmp_path / "instances.json"))
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == list(vocabulary.names)
    by_file = {image["file_name"]: image for image in coco.dataset["images"]}
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    for item in items:
        image = by_file[item.image]
        assert (image["height"], image["width"]) == item.labels.shape
        found = coco.loadAnns(coco.getAnnIds(image["id"]))
        masks = [(each["category_id"] - 1, coco.annToMask(each) > 0) for each in found]
        wanted = without_background(item.labels, vocabulary)
        np.testing.assert_array_equal(painted(item.labels.shape, masks), wanted)
        for each, (_, mask) in zip(found, masks, strict=True):
            ((rows, columns),) = ndimage.find_objects(mask.astype(int))
            assert each["area"] == mask.sum()
            assert each["bbox"] == [
                columns.start,
                rows.start,
                columns.stop - columns.start,
                rows.stop - rows.start,
            ]
            assert each["score"] == pytest.approx(item.scores[mask].mean(), abs=1e-4)
        classes = set(np.unique(wanted).tolist()) - {-1}
        assert len(found) == sum(ndimage.label(wanted == i, np.ones((3, 3)))[1] for i in classes)


def test_coco_panoptic(tmp_path, label_maps, vocabulary):
    items = label_maps(vocabulary)
    write("coco", vocabulary, tmp_path, items)
    panoptic = json.loads((tmp_path / "panoptic.json").read_text(encoding="utf-8"))
    assert all(each["isthing"] == 0 for each in panoptic["categories"])
    images = {image["file_name"]: image["id"] for image in panoptic["images"]}
    annotations = {each["image_id"]: each for each in panoptic["annotations"]}
    for item in items:
        annotation = annotations[images[item.image]]
        with Image.open(tmp_path / "panoptic" / annotation["file_name"]) as image:
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(int), 2, 0)
        ids = red + 256 * green + 256 * 256 * blue
        labels = np.full(ids.shape, int(vocabulary.ignore))
        for segment in annotation["segments_info"]:
            mask = ids == segment["id"]
            labels[mask] = segment["category_id"] - 1
            ((rows, columns),) = ndimage.find_objects(mask.astype(int))
            x, y, width, height = segment["bbox"]
            assert (y, y + height, x, x + width) == (
                rows.start,
                rows.stop,
                columns.start,
                columns.stop,
            )
            assert segment["area"] == mask.sum()
        assert set(np.unique(ids)) - {0} == {s["id"] for s in annotation["segments_info"]}
        np.testing.assert_array_equal(labels, item.labels)


@pytest.mark.parametrize("decode", ["colors", "indices", "opencv"])
@pytest.mark.parametrize("case", ["words", "background", "255 classes"])
def test_cvat(tmp_path, label_maps, words, case, decode):
    """Read as its documentation says: by the colours of the list, or by places in it."""
    wide = Vocabulary.parse([f"class {index}" for index in range(255)])
    vocabulary = {"words": words, "background": BACKGROUND, "255 classes": wide}[case]
    items = label_maps(vocabulary)
    write("cvat", vocabulary, tmp_path, items)
    with zipfile.ZipFile(tmp_path / "annotations.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    entries = [
        line.split(":")
        for line in files["labelmap.txt"].decode().splitlines()
        if not line.startswith("#")
    ]
    assert all(len(entry) == 4 for entry in entries)
    names = [name for name, *_ in entries]
    colors = [tuple(map(int, color.split(","))) for _, color, *_ in entries]
    assert entries[0][:2] == ["background", "0,0,0"]
    assert len(set(colors)) == len(set(names)) == len(entries)
    if case == "words":
        assert colors[1] == vocabulary.colors[0], "a colour that is free is kept"
    listed = files["ImageSets/Segmentation/default.txt"].decode().splitlines()
    assert listed == sorted(item.name for item in items)
    for item in items:
        places = _places(files[f"SegmentationClass/{item.name}.png"], colors, decode)
        objects = _places(files[f"SegmentationObject/{item.name}.png"], _voc_colors(), decode)
        ids = np.array([-1, *(vocabulary.names.index(name) for name in names[1:])])
        np.testing.assert_array_equal(ids[places], without_background(item.labels, vocabulary))
        pairs = set(zip(places.ravel().tolist(), objects.ravel().tolist(), strict=True))
        assert len(pairs) == len(np.unique(places)) == len(np.unique(objects)), "one for one"


def _places(png, colors, decode):
    if decode == "opencv":
        pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
    else:
        image = Image.open(io.BytesIO(png))
        if decode == "indices":
            return np.asarray(image)
        pixels = np.asarray(image.convert("RGB"))
    place = {color: index for index, color in enumerate(colors)}
    flat = [place[tuple(pixel)] for pixel in pixels.reshape(-1, 3).tolist()]
    return np.array(flat).reshape(pixels.shape[:2])


def _voc_colors():
    """VOC's colour map, as its development kit describes it."""
    colors = []
    for index in range(256):
        red = green = blue = 0
        for bit in range(8):
            red |= (index & 1) << 7 - bit
            green |= (index >> 1 & 1) << 7 - bit
            blue |= (index >> 2 & 1) << 7 - bit
            index >>= 3
        colors.append((red, green, blue))
    return colors


@pytest.fixture
def decoder():
    """Label Studio's own decoder, which is not to be had for every system."""
    return pytest.importorskip("label_studio_brush_rle_rs")


def test_label_studio(decoder, tmp_path, label_maps, vocabulary):
    items = label_maps(vocabulary)
    write("label-studio", vocabulary, tmp_path, items)
    config = ElementTree.parse(tmp_path / "label_config.xml").getroot()
    image_tag, brush = config.find("Image"), config.find("BrushLabels")
    assert [image_tag.get("value"), brush.get("toName")] == ["$image", image_tag.get("name")]
    known = [label.get("value") for label in brush]
    assert known == [name for name in vocabulary.names if name != "background"]
    tasks = json.loads((tmp_path / "tasks-00001.json").read_text(encoding="utf-8"))
    assert len(tasks) == len(items)
    for task, item in zip(tasks, sorted(items, key=lambda item: item.name), strict=True):
        (prediction,) = task["predictions"]
        masks = []
        for region in prediction["result"]:
            assert region["from_name"] == brush.get("name")
            assert region["to_name"] == image_tag.get("name")
            height, width = region["original_height"], region["original_width"]
            flat = np.array(decoder.decode_rle(region["value"]["rle"], False))
            layer = flat.reshape(height, width, 4)
            assert set(np.unique(layer)) <= {0, 255}
            assert (layer == layer[..., :1]).all()
            (name,) = region["value"]["brushlabels"]
            assert name in known
            masks.append((vocabulary.names.index(name), layer[..., 3] > 0))
        wanted = without_background(item.labels, vocabulary)
        np.testing.assert_array_equal(painted(item.labels.shape, masks), wanted)
        said = wanted >= 0
        if said.any():
            assert prediction["score"] == pytest.approx(item.scores[said].mean(), abs=1e-4)
        else:
            assert "score" not in prediction


def test_label_studio_splits_runs_that_are_too_long_for_it(decoder):
    for pixels in (16_383, 16_384, 16_385, 50_000):
        mask = np.ones((1, pixels + 3), bool)
        mask[0, pixels:] = [False, True, False]
        flat = np.array(decoder.decode_rle(brush_rle(mask), False))
        np.testing.assert_array_equal(flat.reshape(-1, 4)[:, 3] > 0, mask[0])


def test_label_studio_finds_photos_on_its_disk(tmp_path, label_maps, words):
    write("label-studio", words, tmp_path, label_maps(words))
    tasks = json.loads((tmp_path / "tasks-00001.json").read_text(encoding="utf-8"))
    urls = [task["data"]["image"] for task in tasks]
    assert "/data/local-files/?d=a/b/photo.jpg" in urls
    assert "/data/local-files/?d=a/one%20pixel.jpg" in urls


def test_yolo(tmp_path, label_maps, vocabulary):
    items = label_maps(vocabulary)
    write("yolo", vocabulary, tmp_path, items)
    assert yaml.safe_load((tmp_path / "data.yaml").read_text(encoding="utf-8"))["names"] == dict(
        enumerate(vocabulary.names)
    )
    for item in items:
        height, width = item.labels.shape
        photo = tmp_path / "images" / f"{item.name}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height)).save(photo)
        text = tmp_path / "labels" / f"{item.name}.txt"
        found = supervision.DetectionDataset.from_yolo(
            str(photo.parent), str(text.parent), str(tmp_path / "data.yaml"), force_masks=True
        )
        assert found.classes == list(vocabulary.names)
        detections = found.annotations[str(photo)]
        masks = (
            [] if detections.is_empty() else zip(detections.class_id, detections.mask, strict=True)
        )
        wanted = without_background(item.labels, vocabulary)
        np.testing.assert_array_equal(painted(item.labels.shape, masks), wanted)
        np.testing.assert_array_equal(_cut_off(text, item.labels.shape), wanted)
        photo.unlink()


def _cut_off(text, shape):
    """Read polygons as training code does that cuts off what follows the decimal point."""
    labels = np.full(shape, -1, np.int32)
    for line in text.read_text().splitlines():
        label, *values = line.split()
        assert len(values) >= 6
        points = np.array(values, float).reshape(-1, 2)
        assert points.min() >= 0
        assert points.max() <= 1
        cv2.fillPoly(labels, [(points * shape[::-1]).astype(np.int32)], int(label))
    return labels


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.95])
def test_polygons_fill_to_their_pixels(share):
    for seed in range(40):
        mask = np.random.default_rng(seed).random((23, 31)) < share
        filled = np.zeros(mask.shape, np.uint8)
        for polygon in polygons(mask):
            alone = np.zeros(mask.shape, np.uint8)
            cv2.fillPoly(alone, [polygon.astype(np.int32)], 1)
            filled += alone
        np.testing.assert_array_equal(filled, mask)
