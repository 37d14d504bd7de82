"""Each format, read back by a reader that is not ours, gives the labels that were written."""

import io
import json
import os
import posixpath
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import supervision
import yaml
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import hidden_character
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.formats import FormatOptions, Labeled, PhotoFile, find_format
from maskclip.data.formats.label_studio import brush_rle
from maskclip.data.names import output_names
from maskclip.data.polygons import polygons

BACKGROUND = Vocabulary.parse(["dog", "cat", "car"]).with_background(["sky"])


def write(name, vocabulary, out, items, folder="/data/photos", **options):
    made = find_format(name)(vocabulary, out, FormatOptions(**options))
    for item in items:
        made.write(item)
    files = [PhotoFile(item.name, item.image, f"{folder}/{item.image}") for item in items]
    return made.finish(files)


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


def test_coco_has_the_things_that_are_wanted(tmp_path, label_maps, words):
    write("coco", words, tmp_path, label_maps(words), things=("dog", "naïve 日本"))
    panoptic = json.loads((tmp_path / "panoptic.json").read_text(encoding="utf-8"))
    things = [each["name"] for each in panoptic["categories"] if each["isthing"]]
    assert things == ["dog", "naïve 日本"]
    with pytest.raises(MaskCLIPError, match="'dogs' is not one of the classes: did you mean 'dog'"):
        find_format("coco")(words, tmp_path, FormatOptions(things=("dogs",)))


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
    constructor = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in constructor] == names[1:]
    assert [each["color"] for each in constructor] == [f"#{bytes(c).hex()}" for c in colors[1:]]
    assert all(each["attributes"] == [] for each in constructor)
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


def urls(out):
    tasks = json.loads((out / "tasks-00001.json").read_text(encoding="utf-8"))
    return [task["data"]["image"] for task in tasks]


def served(url, root, storages):
    """Return the file that Label Studio sends: its `d` below the root, and within a storage."""
    parts = urlsplit(url)
    assert parts.path == "/data/local-files/"
    ((name, d),) = parse_qsl(parts.query, strict_parsing=True)
    assert name == "d"
    path = Path(root, posixpath.normpath(d).lstrip("/"))
    assert any(storage in path.parents and Path(root) in storage.parents for storage in storages)
    return path


def test_label_studio_finds_photos_on_its_disk(tmp_path, label_maps, words):
    items = [replace(item, image=f"{item.name}#1?%.jpg") for item in label_maps(words)]
    (note,) = write("label-studio", words, tmp_path, items)
    assert "SERVING_ENABLED=true" in note
    assert "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/data, add a local storage for /data/p" in note
    assert "/data/local-files/?d=photos/a/b/photo%231%3F%25.jpg" in urls(tmp_path)
    found = {str(served(url, "/data", [Path("/data/photos")])) for url in urls(tmp_path)}
    assert found == {f"/data/photos/{item.image}" for item in items}


@pytest.mark.parametrize(
    ("photos", "root", "storages"),
    [
        (("a/x.jpg", "/d/one/a/x.jpg", "y.jpg", "/d/two/y.jpg"), "/", ["/d"]),
        (("x.jpg", "/d/e/one/x.jpg", "y.jpg", "/d/e/two/y.jpg"), "/d", ["/d/e"]),
        (("x.jpg", "/d/x.jpg", "y.jpg", "/e/f/y.jpg"), "/", ["/d", "/e"]),
        (("d/e/x.jpg", "/d/e/x.jpg", "d/e/f/y.jpg", "/d/e/f/y.jpg"), "/d", ["/d/e"]),
        (("d/x.jpg", "/d/x.jpg", "y.jpg", "/d/b/y.jpg"), "/", ["/d"]),
    ],
)
def test_label_studio_serves_several_folders_from_one_that_holds_them(
    tmp_path, words, photos, root, storages
):
    made = find_format("label-studio")(words, tmp_path)
    one, two = PhotoFile("x", *photos[:2]), PhotoFile("y", *photos[2:])
    for photo in (one, two):
        made.write(Labeled(photo.name, photo.image, np.zeros((2, 3), np.uint8)))
    (note,) = made.finish([one, two])
    assert f"DOCUMENT_ROOT={root}, add a local storage for {' and for '.join(storages)} " in note
    where = [served(url, root, [Path(each) for each in storages]) for url in urls(tmp_path)]
    assert where == [Path(one.path), Path(two.path)]


def test_label_studio_finds_photos_on_the_web(tmp_path, label_maps, words):
    items = label_maps(words)
    (note,) = write("label-studio", words, tmp_path, items, url_prefix="https://host/my/")
    assert "LOCAL_FILES" not in note
    assert "https://host/my/a/one%20pixel.jpg" in urls(tmp_path)
    write("label-studio", words, tmp_path, items, url_prefix="s3://bucket/x")
    assert "s3://bucket/x/a/one pixel.jpg" in urls(tmp_path), "a key is no address"
    with pytest.raises(MaskCLIPError, match=r"begins with https://.*, got 'ftp://host'"):
        FormatOptions(url_prefix="ftp://host")


def ultralytics(data):
    """Read a data set as Ultralytics 8 does; return {split: {photo: label file}}, as it has them.

    Lines of a list that begin with `./` are relative to it, and all else of a path is taken as it
    is; the labels of a photo lie where the last `/images/` of its path is `/labels/`.
    """
    settings = yaml.safe_load(data.read_text(encoding="utf-8"))
    found = {}
    for split in ("train", "val"):
        source = (data.parent / settings[split]).resolve()
        if source.is_dir():
            photos = [str(path) for path in source.rglob("*.*")]
        else:
            lines = source.read_text(encoding="utf-8").strip().splitlines()
            start = f"{source.parent}{os.sep}"
            photos = [x.replace("./", start) if x.startswith("./") else x for x in lines]
        found[split] = {
            photo: "/labels/".join(photo.rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt"
            for photo in photos
        }
    return found


YOLO_PHOTOS = (
    "a.jpg", "train/images/b.JPG", "images/c.png", "images/images/d.v2.webp", "labels/e.jpg",
    "same.jpg", "same.png", "sp ace/ü #1.jpg",
)  # fmt: skip


@pytest.fixture
def linked_set(tmp_path, words):
    """`linked_set(**options)`: YOLO's files of photos, those photos, and what was said of them."""

    def make(**options):
        names = output_names(YOLO_PHOTOS)
        photos = [
            PhotoFile(name, image, str(tmp_path / "ds" / image))
            for name, image in zip(names, YOLO_PHOTOS, strict=True)
        ]
        made = find_format("yolo")(words, tmp_path / "out" / "yolo", FormatOptions(**options))
        for index, photo in enumerate(photos):
            path = Path(photo.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo.image.encode())
            labels = np.full((4, 5), index % len(words), np.uint8)
            made.write(Labeled(photo.name, photo.image, labels))
        return made.out, photos, made.finish(photos)

    return make


def check_yolo(out, photos):
    """Every photo is found once, as it is, and its labels are its own."""
    found = ultralytics(out / "data.yaml")
    assert not set(found["train"]) & set(found["val"])
    seen = {}
    for photo, label in (pair for split in found.values() for pair in split.items()):
        seen[Path(photo).read_bytes().decode()] = Path(label).read_text().split()[0]
    assert seen == {photo.image: str(index % 5) for index, photo in enumerate(photos)}


def test_yolo_labels_lie_where_ultralytics_looks_for_them(linked_set):
    out, photos, notes = linked_set(link=True)
    assert notes == [f"yolo: train with {out / 'data.yaml'}"]
    check_yolo(out, photos)
    for photo in photos:
        assert (out / "images" / f"{photo.name}{Path(photo.image).suffix}").is_symlink()
    linked_set(link=True)
    check_yolo(out, photos)


def test_yolo_is_found_where_images_is_a_link_to_the_photos(tmp_path, words):
    made = find_format("yolo")(words, tmp_path / "yolo")
    (tmp_path / "photos" / "images").mkdir(parents=True)
    (tmp_path / "photos" / "a.jpg").write_bytes(b"a.jpg")
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / "images").symlink_to(tmp_path / "photos")
    photo = PhotoFile("a", "a.jpg", str(tmp_path / "photos" / "a.jpg"))
    made.write(Labeled("a", "a.jpg", np.zeros((4, 5), np.uint8)))
    assert made.finish([photo]) == [f"yolo: train with {made.out / 'data.yaml'}"]
    (label,) = ultralytics(tmp_path / "yolo" / "data.yaml")["train"].values()
    assert Path(label).read_text().startswith("0 ")
    with pytest.raises(MaskCLIPError, match="images leads out of"):  # into the user's photos
        made.write(Labeled("images/b", "images/b.jpg", np.zeros((4, 5), np.uint8)))
    assert sorted(path.name for path in (tmp_path / "photos").rglob("*")) == ["a.jpg", "images"]


def test_yolo_names_what_ultralytics_would_not_find(linked_set):
    out, _, notes = linked_set()
    assert len(notes) == 2
    assert f"into {out / 'images'} under the same names (`link` does it)" in notes[0]
    assert "1 photo has the name of another (same.png, whose labels are called same_" in notes[1]


def test_yolo_copies_where_links_are_impossible(linked_set, monkeypatch):
    def refuse(*_, **__):
        raise OSError("a file system without links")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    out, photos, notes = linked_set(link=True)
    assert notes[0] == f"yolo: links cannot be made here: {out / 'images'} has copies of the photos"
    check_yolo(out, photos)
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    (out / "images" / "a.jpg").write_bytes(b"something of the user's")
    (note,) = (note for note in linked_set(link=True)[2] if "not the photo" in note)
    assert "has 1 file that is not the photo that was labelled: move it away" in note
    assert (out / "images" / "a.jpg").read_bytes() == b"something of the user's"


@pytest.mark.parametrize("links", [True, False])
def test_yolo_counts_photos_that_are_gone(tmp_path, words, monkeypatch, links):
    if not links:
        monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError))
    note, *_ = find_format("yolo")(words, tmp_path, FormatOptions(link=True)).finish(
        [PhotoFile("a", "a.jpg", str(tmp_path / "gone" / "a.jpg"))]
    )
    assert "1 photo is not where it was labelled any more: it has no link" in note
    assert not (tmp_path / "images").exists()


def test_yolo_follows_photos_that_have_moved(linked_set, tmp_path):
    out, photos, _ = linked_set(link=True)
    link = out / "images" / "a.jpg"
    link.unlink()
    link.symlink_to(tmp_path / "gone.jpg")
    linked_set(link=True)
    check_yolo(out, photos)


def test_yolo_keeps_some_photos_for_validation(tmp_path, words):
    photos = [PhotoFile(f"{i}", f"{i}.jpg", f"/photos/{i}.jpg") for i in range(200)]

    def split(count, **options):
        find_format("yolo")(words, tmp_path, FormatOptions(**options)).finish(photos[:count])
        return [
            set((tmp_path / name).read_text().splitlines()) for name in ("train.txt", "val.txt")
        ]

    train, kept = split(200)
    assert len(train | kept) == 200
    assert not train & kept
    assert 10 <= len(kept) <= 30
    assert split(200) == [train, kept]
    assert split(200, seed=1)[1] != kept
    fewer = split(150)
    assert fewer[1] <= kept, "more photos move none of the others"
    assert [len(part) for part in split(2)] == [1, 1]
    assert split(1)[0] == split(1)[1] == {"./images/0.jpg"}
    assert split(200, validate=0)[1] == split(200, validate=0)[0], "val may not be empty"
    with pytest.raises(MaskCLIPError, match="from 0 up to 1, without 1, got 1"):
        FormatOptions(validate=1)


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", "dot./x", "x\x85"])
def test_yolo_refuses_photos_that_its_lists_cannot_hold(tmp_path, words, name):
    with pytest.raises(MaskCLIPError, match="yolo cannot hold a photo called"):
        find_format("yolo")(words, tmp_path).write(
            Labeled(name, f"{name}.jpg", np.zeros((2, 2), np.uint8))
        )


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


AWKWARD = (
    'a "quoted" word', "it's", "key: value # note", "&<b> &amp; ]]>", "- item", "!tag", "*star",
    "on", "null", "12", "back\\slash", "{x}", "%YAML", "日本 🐶",
)  # fmt: skip
HIDDEN = (
    "esc\x1b[31m",
    "csi\x9b1m",
    "turned\u202egnp",
    "line\nbreak",
    'quo"te\u2028',
    "tag\U000e0041",
)


def test_strict_parsers_read_awkward_names_of_classes_back(tmp_path):
    words = Vocabulary.parse(AWKWARD)
    item = Labeled("x", "x.jpg", np.arange(len(words), dtype=np.uint8)[None])
    for name in ("coco", "label-studio", "yolo"):
        write(name, words, tmp_path / name, [item])
    data = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text(encoding="utf-8"))
    assert data["names"] == dict(enumerate(AWKWARD))
    panoptic = json.loads((tmp_path / "coco" / "panoptic.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in panoptic["categories"]] == list(AWKWARD)
    config = ElementTree.parse(tmp_path / "label-studio" / "label_config.xml").getroot()
    assert [label.get("value") for label in config.find("BrushLabels")] == list(AWKWARD)


def test_strict_parsers_read_hidden_characters_in_names_of_photos_back(tmp_path, words):
    items = [Labeled(name, f"{name}.jpg", np.zeros((2, 3), np.uint8)) for name in HIDDEN]
    for name in ("coco", "label-studio"):
        write(name, words, tmp_path / name, items)
    for kind in ("panoptic", "instances"):
        text = (tmp_path / "coco" / f"{kind}.json").read_text(encoding="utf-8")
        assert [hidden_character(line) for line in text.split("\n") if hidden_character(line)] == []
        assert {image["file_name"] for image in json.loads(text)["images"]} == {
            f"{name}.jpg" for name in HIDDEN
        }
    root = [Path("/data/photos")]
    found = {str(served(url, "/data", root)) for url in urls(tmp_path / "label-studio")}
    assert found == {f"/data/photos/{name}.jpg" for name in HIDDEN}
