"""Labels as each tool leaves them are read as truth; hostile files are one line."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from maskclip.core.errors import MaskCLIPError
from maskclip.core.text import printable
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.annotations import open_annotations
from maskclip.data.datasets import DatasetError
from maskclip.data.formats import PhotoFile, find_format
from maskclip.data.formats.label_studio import brush_rle
from maskclip.data.names import output_names
from maskclip.data.photos import open_folder, open_photos

WORDS = Vocabulary.parse(["dog", "cat", "car"])
BACKGROUND = WORDS.with_background(["sky"])
NONE = 255


def write(name, vocabulary, out, items):
    made = find_format(name)(vocabulary, out)
    for item in items:
        made.write(item)
    made.finish([PhotoFile(item.name, item.image, f"/photos/{item.image}") for item in items])
    return out


def photos_of(items):
    return [item.image for item in items]


class TestOurOwnFormats:
    """What `label` writes is read back pixel for pixel, as far as the format can hold it."""

    @pytest.fixture(params=["words", "background", "many"])
    def vocabulary(self, request, words, many):
        return {"words": words, "background": BACKGROUND, "many": many}[request.param]

    @pytest.mark.parametrize("name", ["png", "coco", "cvat", "label-studio"])
    def test_labels_are_read_as_they_were_written(self, tmp_path, label_maps, vocabulary, name):
        if name == "cvat" and len(vocabulary) > 255:
            vocabulary = Vocabulary.parse(vocabulary.names[:255])  # as many as it holds
        items = label_maps(vocabulary)
        place = write(name, vocabulary, tmp_path, items)
        found = open_annotations(place, photos_of(items), vocabulary)
        for item in items:
            wanted = item.labels.astype(int)
            if name == "label-studio" and vocabulary.has_background:
                wanted[wanted == 0] = vocabulary.ignore  # what no region covers has no label
            elif name == "cvat" and vocabulary.has_background:
                wanted[wanted == vocabulary.ignore] = 0  # one colour stands for both
            if (wanted == vocabulary.ignore).all() and item.image not in found.photos:
                continue  # nothing in it has a class
            size = (wanted.shape[1], wanted.shape[0])
            np.testing.assert_array_equal(found.read(item.image, size), wanted)
            assert found.read(item.image).dtype == np.int32
        assert not found.notes
        assert not found.unused

    def test_instances_alone_do_not_say_what_is_background(self, tmp_path, label_maps):
        items = label_maps(BACKGROUND)
        place = write("coco", BACKGROUND, tmp_path, items) / "instances.json"
        found = open_annotations(place, photos_of(items), BACKGROUND)
        for item in items:
            if item.image in found.photos:
                wanted = np.where(item.labels == 0, NONE, item.labels)
                np.testing.assert_array_equal(found.read(item.image), wanted)

    @pytest.mark.parametrize("vocabulary", [WORDS, BACKGROUND], ids=["words", "background"])
    def test_pngs_that_were_flattened_to_colours(self, tmp_path, label_maps, vocabulary):
        items = label_maps(vocabulary)
        place = write("png", vocabulary, tmp_path, items)
        for path in place.rglob("*.png"):
            with Image.open(path) as image:
                flat = image.convert("RGB")
            flat.save(path)
        found = open_annotations(place, photos_of(items), vocabulary)
        for item in items:
            np.testing.assert_array_equal(found.read(item.image), item.labels)

    def test_classes_in_another_order_are_known_by_their_names(self, tmp_path, label_maps):
        items = label_maps(WORDS)
        place = write("png", WORDS, tmp_path, items)
        other = Vocabulary.parse(["car", "bird", "dog", "cat"])
        found = open_annotations(place, photos_of(items), other)
        ids = np.append([2, 3, 0], [NONE] * 253)
        for item in items:
            np.testing.assert_array_equal(found.read(item.image), ids[item.labels])
        assert "in its order" in found.notes[0]

    def test_the_folder_above_the_formats_is_named(self, tmp_path, label_maps):
        write("png", WORDS, tmp_path / "png", label_maps(WORDS))
        with pytest.raises(MaskCLIPError, match=r"holds the formats of `label`: name .*png"):
            open_annotations(tmp_path, ["photo.jpg"], WORDS)


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = values if isinstance(values, Image.Image) else Image.fromarray(np.asarray(values))
    (image if mode is None else image.convert(mode)).save(path)


def mask(*rows):
    return np.array(rows, np.uint8)


class TestMaskFolders:
    TRUTH = mask([0, 1, 2], [255, 2, 0])

    @pytest.mark.parametrize(
        ("photo", "name"),
        [
            ("a.jpg", "a.png"),
            ("a.jpg", "a.PNG"),
            ("a.jpg", "a.tif"),
            ("a.jpg", "a.TIFF"),
            ("a.jpg", "a.bmp"),
            ("a.jpg", "a_mask.png"),
            ("a.jpg", "a_labels.png"),
            ("a.jpg", "a_seg.PNG"),
            ("a.jpg", "a.jpg.png"),
            ("a.JPG", "A-mask.png"),
            ("x/A.v2.jpg", "x/a.v2.png"),
            ("x/cat_mask.jpg", "x/cat_mask.png"),
        ],
    )
    def test_masks_by_any_habit_of_names(self, tmp_path, photo, name):
        save(tmp_path / name, self.TRUTH)
        found = open_annotations(tmp_path, [photo], WORDS)
        np.testing.assert_array_equal(found.read(photo), self.TRUTH)

    def test_mixed_suffixes_in_one_folder(self, tmp_path):
        for name in ("a.png", "b_mask.tif", "c.bmp"):
            save(tmp_path / name, self.TRUTH)
        found = open_annotations(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], WORDS)
        assert list(found.photos) == ["a.jpg", "b.jpg", "c.jpg"]
        assert found.expected("d.jpg") == str(tmp_path / "d.png")

    def test_photos_that_differ_in_case_alone_have_masks_of_their_own(self, tmp_path):
        save(tmp_path / "a.png", self.TRUTH)
        if (tmp_path / "A.png").exists():
            pytest.skip("upper and lower case are the same here")
        save(tmp_path / "A.png", self.TRUTH[::-1])
        found = open_annotations(tmp_path, ["a.jpg", "A.jpg"], WORDS)
        np.testing.assert_array_equal(found.read("A.jpg"), self.TRUTH[::-1])
        (tmp_path / "A.png").unlink()
        assert list(open_annotations(tmp_path, ["a.jpg", "A.jpg"], WORDS).photos) == ["a.jpg"]

    def test_photos_of_one_stem_have_the_masks_that_label_gives_them(self, tmp_path):
        photos = ["x.jpg", "x.png"]
        for index, name in enumerate(output_names(photos)):
            save(tmp_path / f"{name}.png", mask([index]))
        found = open_annotations(tmp_path, photos, WORDS)
        assert [found.read(photo).item() for photo in photos] == [0, 1]

    def test_a_photo_called_like_a_mask_keeps_its_own(self, tmp_path):
        save(tmp_path / "cat_mask.png", self.TRUTH)
        found = open_annotations(tmp_path, ["cat.jpg", "cat_mask.jpg"], WORDS)
        assert list(found.photos) == ["cat_mask.jpg"]

    def test_several_masks_of_a_photo_are_named(self, tmp_path):
        for name in ("a.png", "a_mask.png"):
            save(tmp_path / name, self.TRUTH)
        with pytest.raises(MaskCLIPError, match=r"a\.png and a_mask\.png are both masks of a\.jpg"):
            open_annotations(tmp_path, ["a.jpg"], WORDS)

    @pytest.mark.parametrize("suffix", ["jpg", "gif"])
    def test_formats_that_change_ids_are_no_masks(self, tmp_path, suffix):
        save(tmp_path / f"a.{suffix}", self.TRUTH)
        found = open_annotations(tmp_path, ["a.jpg"], WORDS)
        with pytest.raises(MaskCLIPError, match=r"a (JPEG|GIF), whose .* class ids"):
            found.read("a.jpg")

    def test_another_size_is_said_before_the_mask_is_decoded(self, tmp_path):
        save(tmp_path / "a.png", self.TRUTH)
        found = open_annotations(tmp_path, ["a.jpg"], WORDS)
        with pytest.raises(MaskCLIPError, match="3x2 but its image 2x3: one of them is rotated"):
            found.read("a.jpg", (2, 3))


LABEL_MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:10,20,30::\ndog:250,50,83::\n"


class TestCvatMasks:
    """As CVAT's "Segmentation mask 1.1" export is, unpacked: masks are colours."""

    @pytest.fixture
    def export(self, tmp_path):
        (tmp_path / "labelmap.txt").write_text(LABEL_MAP)
        colors = np.array([(0, 0, 0), (10, 20, 30), (250, 50, 83)], np.uint8)
        save(tmp_path / "SegmentationClass/x/a.png", colors[mask([0, 1, 2], [2, 2, 0])])
        save(tmp_path / "SegmentationObject/x/a.png", colors[mask([0, 1, 2], [2, 2, 0])])
        (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
        (tmp_path / "ImageSets/Segmentation/default.txt").write_text("x/a\n")
        return tmp_path

    def test_black_is_unlabelled(self, export):
        found = open_annotations(export, ["x/a.jpg", "x/b.jpg"], WORDS)
        assert list(found.photos) == ["x/a.jpg"]
        np.testing.assert_array_equal(found.read("x/a.jpg"), mask([NONE, 1, 0], [0, 0, NONE]))

    def test_black_is_the_background_where_that_is_a_class(self, export):
        found = open_annotations(export, ["x/a.jpg"], BACKGROUND)
        np.testing.assert_array_equal(found.read("x/a.jpg"), mask([0, 2, 1], [1, 1, 0]))

    def test_grey_masks_hold_places_in_the_list(self, export):
        save(export / "SegmentationClass/x/a.png", mask([0, 1, 2], [2, 2, 0]))
        found = open_annotations(export, ["x/a.jpg"], WORDS)
        np.testing.assert_array_equal(found.read("x/a.jpg"), mask([NONE, 1, 0], [0, 0, NONE]))

    def test_colour_masks_beside_their_list(self, export):
        shutil.move(export / "SegmentationClass/x", export / "x")
        shutil.rmtree(export / "SegmentationClass")
        shutil.rmtree(export / "SegmentationObject")
        found = open_annotations(export, ["x/a.jpg"], WORDS)
        np.testing.assert_array_equal(found.read("x/a.jpg"), mask([NONE, 1, 0], [0, 0, NONE]))

    @pytest.mark.parametrize("below", ["", "task/"])
    def test_the_archive_is_read_as_it_is_exported(self, export, below):
        path = export / "annotations.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(export.rglob("*.*")):
                if file != path:
                    archive.write(file, below + file.relative_to(export).as_posix())
            archive.writestr(f"{below}JPEGImages/x/a.jpg", b"a photo")
        found = open_annotations(path, ["x/a.jpg", "x/b.jpg"], WORDS)
        assert list(found.photos) == ["x/a.jpg"]
        np.testing.assert_array_equal(found.read("x/a.jpg"), mask([NONE, 1, 0], [0, 0, NONE]))
        same = open_annotations(export, ["x/a.jpg"], WORDS)
        assert found.fingerprint() == same.fingerprint()
        assert found.expected("x/b.jpg") == str(path / "x/b.png")

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("../a.png", b"", r"the name '\.\./a\.png' leads out of the archive"),
            ("x/../../a.txt", b"", "leads out of the archive"),
            ("/tmp/a.png", b"", "leads out of the archive"),
            ("..\\a.png", b"", "leads out of the archive"),
            ("C:\\a.png", b"", "leads out of the archive"),
            ("LABELMAP.txt", b"", "LABELMAP.txt is there twice"),
            ("a.json", None, "a.json has 600,000,000 bytes: too large"),
            ("labels.jpg", b"", r"annotations\.zip/labelmap\.txt: its class 'cow' is not among"),
        ],
    )
    def test_hostile_archives_are_one_line(self, tmp_path, name, content, said):
        path = tmp_path / "annotations.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("labelmap.txt", "cow:1,2,3::\n")
            archive.writestr(name, content or b"0")
            if content is None:
                archive.getinfo(name).file_size = 600_000_000
        with pytest.raises(MaskCLIPError, match=said):
            open_annotations(path, ["a.jpg"], WORDS)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["annotations.zip"]

    def test_what_is_no_archive_is_one_line(self, tmp_path):
        (tmp_path / "a.zip").write_bytes(b"PK")
        with pytest.raises(MaskCLIPError, match=r"a\.zip: not a ZIP archive that can be read"):
            open_annotations(tmp_path / "a.zip", ["a.jpg"], WORDS)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("Dog:1,2,3::\n", r"'Dog' is not among the classes given \(did you mean dog\?\)"),
            ("dog\n", "line 1: expected `name:red,green,blue::`, got 'dog"),
            ("dog:1,2::\n", "line 1: expected `name"),
            ("dog:1,2,999999999999999999::\n", "line 1: expected `name"),
            ("dog:1,2,3::\ncat:1,2,3::\n", r"line 2: \(1, 2, 3\) is there twice"),
            ("dog:1,2,3::\ndog:1,2,4::\n", "line 2: dog is there twice"),
            ("# nothing\n", "no labels in it"),
            ("".join(f"c{i}:{i // 250},{i % 250},7::\n" for i in range(300)), "more than 256"),
        ],
    )
    def test_lists_that_do_not_fit(self, export, text, said):
        (export / "labelmap.txt").write_text(text)
        with pytest.raises(MaskCLIPError, match=said):
            open_annotations(export, ["x/a.jpg"], WORDS)


def cvat_xml(shapes, size="width='6' height='4'", head=""):
    return (
        f"<?xml version='1.0' encoding='utf-8'?>\n{head}<annotations><version>1.1</version>"
        "<meta><task><labels><label><name>dog</name></label></labels></task></meta>"
        f"<image id='0' name='x/a.jpg' {size}>{shapes}</image>"
        "<image id='1' name='x/b.jpg' width='6' height='4'></image></annotations>"
    )


class TestCvatImages:
    """As CVAT's "CVAT for images 1.1" export is: masks by rows within their box, polygons."""

    MASK = (
        "<mask label='dog' source='manual' occluded='0' rle='1, 2, 1, 2' left='2' top='1' "
        "width='3' height='2' z_order='0'></mask>"
    )
    POLYGON = (
        "<polygon label='cat' occluded='0' points='0.00,0.00;3.00,0.00;3.00,2.00;0.00,2.00' "
        "z_order='1'><attribute name='age'>old</attribute></polygon>"
    )

    def read(self, root, text):
        (root / "annotations.xml").write_text(text)
        found = open_annotations(root, ["x/a.jpg", "x/b.jpg"], WORDS)
        return found, found.read("x/a.jpg", (6, 4))

    def test_masks_and_polygons_in_their_order(self, tmp_path):
        found, ids = self.read(tmp_path, cvat_xml(self.POLYGON + self.MASK))
        assert list(found.photos) == ["x/a.jpg"], "nothing is drawn on the other"
        wanted = np.full((4, 6), NONE)
        wanted[1:3, 2:5] = [[NONE, 0, 0], [NONE, 0, 0]]
        wanted[:2, :3] = 1  # higher, though it is named first
        np.testing.assert_array_equal(ids, wanted)

    def test_boxes_are_counted_and_left_out(self, tmp_path):
        box = "<box label='dog' xtl='0' ytl='0' xbr='3' ybr='3' z_order='0'></box>"
        found, ids = self.read(tmp_path, cvat_xml(box + self.MASK))
        assert (ids == 0).sum() == 4
        assert found.notes[0].endswith("left out, because they do not say pixels: 1 box")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (cvat_xml(MASK, head="<!DOCTYPE x [<!ENTITY a 'ha'>]>"), "a document type is declared"),
            (cvat_xml(MASK)[:200], "not CVAT's annotations.xml"),
            ("<other/>", "expected CVAT's <annotations>, got <other>"),
            ("<annotations><track/></annotations>", "annotations of a video"),
            (cvat_xml(MASK, size="width='60' height='4'"), "60x4 but its image 6x4"),
            (cvat_xml(MASK, size="width='6'"), "expected a whole number as height"),
            (cvat_xml(MASK.replace("'dog'", "'fox'")), "its class 'fox' is not among"),
            (cvat_xml(MASK.replace("left='2'", "left='4'")), "reaches over the edge"),
            (cvat_xml(MASK.replace("left='2'", "left='-1'")), "reaches over the edge"),
            (cvat_xml(MASK.replace("1, 2, 1", "1, 2, 99999999")), "a run length is out of range"),
            (cvat_xml(MASK.replace("1, 2, 1", "1, x")), "expected numbers"),
            (cvat_xml(POLYGON.replace("3.00,2.00", "3e300,2")), "far outside its photo"),
            (cvat_xml(POLYGON.replace("3.00,2.00", "nan,2")), "not finite"),
            (cvat_xml("<polygon label='cat' points='1,2'/>"), "three points or more"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, tmp_path, text, said):
        with pytest.raises(MaskCLIPError, match=said) as raised:
            self.read(tmp_path, text)
        assert "\n" not in str(raised.value)


def brush(pixels, label, **changes):
    height, width = np.shape(pixels)
    value = {"format": "rle", "rle": brush_rle(np.array(pixels, bool)), "brushlabels": [label]}
    return {
        "id": label,
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "image",
        "origin": "manual",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value,
    } | changes


def task(*results, image="/data/upload/1/0a1b2c3d-a.jpg", **changes):
    annotations = [
        {"id": i, "was_cancelled": False, "updated_at": f"2024-0{i + 1}-01", "result": result}
        for i, result in enumerate(results)
    ]
    return {
        "id": 1,
        "annotations": annotations,
        "predictions": [],
        "data": {"image": image},
    } | changes


DOG = brush([[1, 0, 0], [1, 1, 0]], "dog")
CAT = brush([[0, 0, 1], [0, 1, 1]], "cat")
BOTH = mask([0, NONE, 1], [0, 1, 1])  # of DOG, and CAT over it


class TestLabelStudio:
    def read(self, root, tasks, photo="a.jpg", size=(3, 2)):
        (root / "project-1-at-2024.json").write_text(json.dumps(tasks))
        found = open_annotations(root, [photo, "x/b.jpg"], WORDS)
        return found, found.read(photo, size)

    def test_brushes_of_an_upload(self, tmp_path):
        found, ids = self.read(tmp_path, [task([DOG, CAT]), task(image="/data/upload/1/b.jpg")])
        np.testing.assert_array_equal(ids, BOTH)
        assert list(found.photos) == ["a.jpg"], "the other has no annotation"
        assert not found.notes

    @pytest.mark.parametrize(
        ("address", "photo"),
        [
            ("/data/local-files/?d=photos/x/a%20b.jpg", "x/a b.jpg"),
            ("s3://bucket/photos/x/a.jpg", "x/a.jpg"),
            ("https://example.org/photos/x/a.jpg?token=1", "x/a.jpg"),
            ("photos\\x\\a.jpg", "x/a.jpg"),
            ("/data/upload/3/01234567-A.JPG", "x/a.jpg"),
        ],
    )
    def test_photos_are_found_by_the_end_of_their_address(self, tmp_path, address, photo):
        _, ids = self.read(tmp_path, [task([DOG, CAT], image=address)], photo)
        np.testing.assert_array_equal(ids, BOTH)

    def test_the_last_annotation_counts_and_cancelled_ones_do_not(self, tmp_path):
        tasks = [task([CAT], [DOG], [CAT])]
        tasks[0]["annotations"][2]["was_cancelled"] = True
        found, ids = self.read(tmp_path, tasks)
        np.testing.assert_array_equal(ids, mask([0, NONE, NONE], [0, 0, NONE]))
        assert "1 photo has several annotations, of which the last counts" in found.notes[0]

    def test_polygons_labels_of_brushes_and_json_min(self, tmp_path):
        square = [[0, 0], [100 / 3, 0], [100 / 3, 100], [0, 100]]
        polygon = DOG | {
            "type": "polygonlabels",
            "value": {"points": square, "closed": True, "polygonlabels": ["dog"]},
        }
        other = brush(CAT["value"]["rle"] and [[0, 0, 1], [0, 0, 1]], "cat")
        other["value"]["labels"] = other["value"].pop("brushlabels")
        wanted = mask([0, NONE, 1], [0, NONE, 1])
        _, ids = self.read(tmp_path, [task([polygon, other | {"type": "labels"}])])
        np.testing.assert_array_equal(ids, wanted)
        flat = [{**r["value"], "original_width": 3, "original_height": 2} for r in (polygon, other)]
        _, ids = self.read(
            tmp_path, [{"image": "/data/upload/1/a.jpg", "annotator": 1, "tag": flat}]
        )
        np.testing.assert_array_equal(ids, wanted)

    def test_boxes_are_counted_and_left_out(self, tmp_path):
        box = DOG | {"type": "rectanglelabels", "value": {"x": 1, "y": 2, "width": 3, "height": 4}}
        found, _ = self.read(tmp_path, [task([DOG, box, {"type": "relation"}])])
        assert found.notes[0].endswith("they do not say pixels: 1 rectanglelabels")

    def test_literal_runs_are_read(self, tmp_path):
        """As its encoder writes single values: a zero bit, and then each of them."""
        values = [255, 255, 255, 255, 0, 0, 0, 200]
        bits = f"{8:032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in (3, 4, 8, 16))
        bits += "0" + "00" + f"{7:03b}" + "".join(f"{value:08b}" for value in values)
        data = np.packbits([int(bit) for bit in bits]).tolist()
        region = brush([[1, 0]], "dog")
        region["value"]["rle"] = data
        _, ids = self.read(tmp_path, [task([region])], size=(2, 1))
        np.testing.assert_array_equal(ids, [[0, 0]])

    @pytest.mark.parametrize(
        ("region", "said"),
        [
            (brush([[1, 0, 0], [1, 1, 0]], "Dog"), r"'Dog' is not among .*did you mean dog"),
            (DOG | {"original_width": 300}, "300x2 but its image 3x2"),
            (DOG | {"image_rotation": 90}, "was turned in Label Studio"),
            (DOG | {"value": DOG["value"] | {"rle": [255] * 40}}, "a brush layer of 4,294,967,295"),
            (DOG | {"value": DOG["value"] | {"rle": DOG["value"]["rle"][:-1]}}, "ends too early"),
            (DOG | {"value": DOG["value"] | {"rle": [999]}}, "is damaged: expected bytes"),
            (DOG | {"value": DOG["value"] | {"rle": "x"}}, "expected the brush layer"),
            (DOG | {"value": DOG["value"] | {"brushlabels": ["dog", "cat"]}}, "has 2 labels"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, tmp_path, region, said):
        with pytest.raises(MaskCLIPError, match=said) as raised:
            self.read(tmp_path, [task([region])])
        assert "\n" not in str(raised.value)

    def test_one_photo_in_two_tasks(self, tmp_path):
        with pytest.raises(MaskCLIPError, match="is labelled in two tasks"):
            self.read(tmp_path, [task([DOG]), task([CAT])])


def coco(*annotations, **changes):
    return {
        "info": {},
        "licenses": [],
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 6, "height": 4, "license": 1},
            {"id": 8, "file_name": "b.jpg", "width": 6, "height": 4},
        ],
        "categories": [
            {"id": 18, "name": "dog", "supercategory": "animal"},
            {"id": 17, "name": "cat", "supercategory": "animal"},
            {"id": 1, "name": "person", "supercategory": ""},
        ],
        "annotations": [
            {"id": i, "image_id": 7, "iscrowd": 0, "area": 4.0, "bbox": [0, 0, 1, 1]} | each
            for i, each in enumerate(annotations)
        ],
    } | changes


def wrapping(pixels):
    """Return COCO's compressed run lengths, none negative, whose sum is 2**64 too large.

    NumPy would take memory for `pixels` and write far beyond it.
    """
    most, half = 2**34 - 1, 1
    while most * half * (half + 1) < 2**64 + pixels:
        half += 1
    odd, even = [most] * half, [most] * half
    over = most * half * (half + 1) - 2**64 - pixels
    for steps in (odd, even):  # the first step is in each of the `half` sums
        less = min(most, over // half)
        steps[0] -= less
        over -= less * half
    odd[-1] -= over
    return _compressed([0, *(step for pair in zip(odd, even, strict=True) for step in pair)])


def _compressed(numbers):
    text = ""
    for number in numbers:
        left, more = number, True
        while more:
            digit, left = left & 31, left >> 5
            more = left != (-1 if digit & 16 else 0)
            text += chr(48 + digit + 32 * more)
    return text


SQUARE = {"category_id": 18, "segmentation": [[0, 0, 3, 0, 3, 2, 0, 2]]}
CROWD = {"category_id": 17, "iscrowd": 1, "segmentation": {"size": [4, 6], "counts": [4, 4, 16]}}


class TestCocoInstances:
    def read(self, root, content):
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations/instances_default.json").write_text(json.dumps(content))
        found = open_annotations(root, ["a.jpg", "b.jpg"], WORDS)
        return found, found.read("a.jpg", (6, 4))

    def test_polygons_and_run_lengths_in_their_order(self, tmp_path):
        found, ids = self.read(tmp_path, coco(SQUARE, CROWD))
        wanted = np.full((4, 6), NONE)
        wanted[:2, :3] = 0
        wanted[:, 1] = 1
        np.testing.assert_array_equal(ids, wanted)
        assert list(found.photos) == ["a.jpg"], "nothing is drawn on the other"

    @pytest.mark.parametrize(
        ("annotation", "said"),
        [
            (SQUARE | {"category_id": 1}, "its class 'person' is not among the classes given"),
            (SQUARE | {"category_id": 5}, "the category 5 is not in its list"),
            (SQUARE | {"image_id": 5}, "annotations of the image 5, which is not in its list"),
            (SQUARE | {"image_id": -1}, "expected the image_id of an annotation, got -1"),
            (SQUARE | {"segmentation": [[0, 0, -9e9, 0, 3, 2]]}, "far outside its photo"),
            (SQUARE | {"segmentation": [[0, 0, 10**400, 0, 3, 2]]}, "far outside its photo"),
            (SQUARE | {"segmentation": [[0, 0, 1]]}, "three points or more"),
            (SQUARE | {"segmentation": [0, 0, 1]}, "expected a polygon"),
            (SQUARE | {"segmentation": "x"}, "expected polygons or run lengths"),
            (
                CROWD | {"segmentation": {"size": [10**6, 10**6], "counts": [10**12]}},
                "run lengths for another size than 6x4",
            ),
            (
                CROWD | {"segmentation": {"size": [4, 6], "counts": [10**12]}},
                "a run length is out of range: expected 24 pixels in all",
            ),
            (CROWD | {"segmentation": {"size": [4, 6], "counts": [4, 4, 15]}}, "of 23 pixels, exp"),
            (CROWD | {"segmentation": {"size": [4, 6], "counts": wrapping(24)}}, "out of range"),
            (CROWD | {"segmentation": {"size": [4, 6], "counts": [-3, 27]}}, "out of range"),
            (CROWD | {"segmentation": {"size": [4, 6], "counts": "ooooooooooo0"}}, "out of range"),
            (CROWD | {"segmentation": {"size": [4, 6], "counts": "a~\u1234"}}, "are damaged"),
            (CROWD | {"segmentation": {"size": [4, 6], "counts": None}}, "expected run lengths"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, tmp_path, annotation, said):
        with pytest.raises(MaskCLIPError, match=said) as raised:
            self.read(tmp_path, coco(SQUARE, annotation))
        assert "\n" not in str(raised.value)

    def test_a_polygon_may_reach_a_little_over_the_edge(self, tmp_path):
        _, ids = self.read(
            tmp_path, coco(SQUARE | {"segmentation": [[-1, -1, 3, -1, 3, 2, -1, 2]]})
        )
        assert (ids[:2, :3] == 0).all()
        assert (ids == 0).sum() == 6

    def test_another_size_than_the_photo(self, tmp_path):
        content = coco(SQUARE)
        content["images"][0] |= {"width": 4, "height": 6}
        with pytest.raises(
            MaskCLIPError, match="are for 4x6 but its image 6x4: one of them is rot"
        ):
            self.read(tmp_path, content)


class TestCocoPanoptic:
    def read(self, root, numbers, **changes):
        segments = [{"id": 300, "category_id": 18}, {"id": 70_000, "category_id": 17}]
        annotation = {"image_id": 7, "file_name": "a.png", "segments_info": segments} | changes
        content = coco() | {"annotations": [annotation]}
        (root / "panoptic_val.json").write_text(json.dumps(content))
        wide = np.array(numbers, "<u4")
        save(root / "panoptic_val/a.png", wide[..., None].view(np.uint8)[..., :3])
        found = open_annotations(root, ["a.jpg"], WORDS)
        return found.read("a.jpg", (6, 4))

    def test_segments_are_their_categories(self, tmp_path):
        numbers = np.zeros((4, 6), int)
        numbers[0], numbers[1] = 300, 70_000
        ids = self.read(tmp_path, numbers)
        assert np.unique(ids[0]) == 0
        assert np.unique(ids[1]) == 1
        assert np.unique(ids[2:]) == NONE

    def test_what_cannot_be_is_one_line(self, tmp_path):
        numbers = np.zeros((4, 6), int)
        with pytest.raises(MaskCLIPError, match="the segment 5 is not in"):
            self.read(tmp_path, numbers + 5)
        with pytest.raises(MaskCLIPError, match="lies outside its folder"):
            self.read(tmp_path, numbers, file_name="../../a.png")
        for name in ("a\0.png", f"{'x' * 300}.png", "\ud800.png"):
            with pytest.raises(MaskCLIPError, match=r"the PNG .* cannot be read: it (has|is)") as e:
                self.read(tmp_path, numbers, file_name=name)
            assert printable(str(e.value)) == str(e.value)
        with pytest.raises(MaskCLIPError, match="6x40 but its image 6x4"):
            self.read(tmp_path, np.zeros((40, 6), int))


@pytest.mark.parametrize("side", [0, 10**9])
def test_annotations_of_no_photos_size_take_no_memory(tmp_path, side):
    content = coco(SQUARE)
    content["images"][0] |= {"width": side, "height": side}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    found = open_annotations(tmp_path, ["a.jpg"], WORDS)
    with pytest.raises(MaskCLIPError, match="expected a photo's size"):
        found.read("a.jpg")


def test_the_wrapping_run_lengths_do_wrap():
    from maskclip.data.annotations.shapes import _uncompressed

    lengths = _uncompressed(wrapping(24))
    assert lengths.min() == 0
    assert lengths.sum() == 24
    assert sum(map(int, lengths)) == 24 + 2**64


def test_run_lengths_by_rows_are_bounded_before_they_are_summed():
    from maskclip.data.annotations.shapes import ShapeError, row_rle

    with pytest.raises(ShapeError, match="out of range"):
        row_rle([2**40 - 1] * 9_000_000, (6, 4))  # their sum is negative in 64 bits


def test_paths_that_fit_two_photos_are_named(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(coco(SQUARE)))
    with pytest.raises(MaskCLIPError, match=r"a\.jpg may be x/a\.jpg or y/a\.jpg"):
        open_annotations(tmp_path, ["x/a.jpg", "y/a.jpg"], WORDS)


@pytest.mark.parametrize("content", ["[[[[", "3", "[]", '{"a": 1}', "[3]", '[{"name": "dog"}]'])
def test_json_that_is_no_label_file_is_one_line(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(MaskCLIPError) as raised:
        open_annotations(tmp_path / "labels.json", ["a.jpg"], WORDS)
    assert "\n" not in str(raised.value)


class TestPhotos:
    @pytest.fixture
    def own(self, tmp_path):
        for index in range(10):
            save(tmp_path / f"photos/{index}.jpg", np.zeros((2, 3, 3), np.uint8))
        for index in range(4):
            save(tmp_path / f"masks/{index}.png", mask([0, 1, 2], [255, 2, index % 3]))
        return tmp_path

    def test_what_has_no_label_is_left_to_a_teacher(self, own):
        photos = open_photos(own / "photos", WORDS, own / "masks")
        assert len(photos) == 10
        np.testing.assert_array_equal(photos[1].labels, [[0, 1, 2], [-1, 2, 1]])
        assert (photos[7].labels == -1).all()
        held = photos.metadata()["labels"]
        (own / "photos/3.jpg").unlink()
        assert open_photos(own / "photos", WORDS, own / "masks").metadata()["labels"] == held
        save(own / "masks/3.png", mask([0, 1, 2], [255, 2, 2]))
        assert open_photos(own / "photos", WORDS, own / "masks").metadata()["labels"] != held

    def test_a_share_is_kept_for_validation(self, own):
        photos = open_photos(own / "photos", WORDS, own / "masks")
        learnt, kept = photos.split_off(0.5, seed=0)
        assert (len(learnt), len(kept)) == (8, 2)
        assert set(learnt.files) | set(kept.files) == set(photos.files)
        assert set(kept.files) <= set(photos.annotations.photos)
        assert 255 in kept[0].labels
        assert -1 not in kept[0].labels
        assert kept.files == photos.split_off(0.5, seed=0)[1].files
        assert learnt.metadata()["labels"]["kept"] == (0.5, 0)
        others = {photos.split_off(0.5, seed=seed)[1].files for seed in range(9)}
        assert len(others) > 1
        save(own / "masks/4.png", mask([0, 1, 2], [255, 2, 0]))
        more = open_photos(own / "photos", WORDS, own / "masks").split_off(0.4, seed=0)[1]
        assert set(kept.files) & set(more.files)

    def test_one_labelled_photo_is_too_few_to_validate(self, own):
        for index in (1, 2, 3):
            (own / f"masks/{index}.png").unlink()
        with pytest.raises(DatasetError, match="two labelled photos or more are needed, got 1"):
            open_photos(own / "photos", WORDS, own / "masks").split_off(0.1, seed=0)

    def test_labels_of_other_photos_are_said(self, own):
        for index in range(4):
            (own / f"masks/{index}.png").rename(own / f"masks/other{index}.png")
        with pytest.raises(
            DatasetError, match=r"none of the 10 photos has labels: expected .*0\.png"
        ):
            open_photos(own / "photos", WORDS, own / "masks")

    def test_labels_below_the_photos_are_no_photos(self, own):
        shutil.move(own / "masks", own / "photos/masks")
        photos = open_photos(own / "photos", WORDS, own / "photos/masks")
        assert len(photos) == 10
        for index in range(4):
            (own / f"photos/masks/{index}.png").rename(own / f"photos/{index}_mask.png")
        with pytest.raises(DatasetError, match="photos and labels in one folder"):
            open_folder(own / "photos", own / "photos", WORDS)

    def test_photos_to_be_scored_that_have_no_mask_are_left_out_and_counted(self, own):
        samples = open_folder(own / "photos", own / "masks", WORDS)
        assert samples.names == ("0", "1", "2", "3")
        assert "6 photos have no labels and are left out (4.jpg, 5.jpg, 6" in samples.notes[0]
        assert len(open_folder(own / "photos", own / "masks", WORDS, missing=True)) == 10
        for index in range(5, 10):
            (own / f"photos/{index}.jpg").unlink()
        samples = open_folder(own / "photos", own / "masks", WORDS)
        assert "1 photo has no labels and is left out (4.jpg)" in samples.notes[0]

    def test_exports_are_evaluated_where_they_have_labels(self, own):
        content = coco(SQUARE)
        content["images"][0] |= {"file_name": "3.jpg", "width": 3, "height": 2}
        (own / "coco.json").write_text(json.dumps(content))
        samples = open_folder(own / "photos", own / "coco.json", WORDS)
        assert samples.names == ("3",)
        assert (samples[0].labels == 0).all()
        assert "9 photos have no labels and are left out" in samples.annotations.notes[0]
