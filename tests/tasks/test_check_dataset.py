import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFile

from maskclip.core.files import write_json
from maskclip.core.vocabulary import Vocabulary
from maskclip.data.datasets import open_dataset
from maskclip.data.photos import open_folder
from maskclip.data.specs import SPECS
from maskclip.tasks.check_dataset import check_lists, check_samples

MASKS = "VOCdevkit/VOC2012/SegmentationClass"
IMAGES = "VOCdevkit/VOC2012/JPEGImages"
LISTS = "VOCdevkit/VOC2012/ImageSets/Segmentation"


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def save_mask(path, values):
    save(path, Image.fromarray(np.asarray(values, np.uint8)))


@pytest.fixture
def voc(tmp_path):
    """Write three pairs of 3x2 px in VOC's layout and return the root."""
    for name, values in (
        ("a", [[0, 0, 1], [1, 1, 255]]),
        ("b", [[1, 2, 2], [0, 0, 0]]),
        ("c", [[20, 0, 0], [0, 0, 255]]),
    ):
        save(tmp_path / IMAGES / f"{name}.jpg", Image.new("RGB", (3, 2)))
        save_mask(tmp_path / MASKS / f"{name}.png", values)
    (tmp_path / LISTS).mkdir(parents=True)
    (tmp_path / LISTS / "val.txt").write_text("a\nb\nc\n")
    return tmp_path


def checked(dataset, workers=2):
    report = check_lists(dataset)
    results = list(check_samples(dataset, workers=workers))
    assert len(results) == report.samples
    for result in results:
        report.add(result)
    report.conclude()
    return report


def check(root, name="voc21", *, official=3):
    """Check a data set as if so many images were official."""
    return checked(replace(open_dataset(name, root), official=official))


def only_problem(report):
    (problem,) = report.problems
    assert not report.valid
    assert "\n" not in problem.message
    return problem


class TestCounting:
    def test_pixels_of_a_whole_set_by_hand(self, voc):
        report = check(voc)
        assert report.valid
        assert report.images == report.samples == 3
        assert report.pixels.tolist() == [9, 4, 2, *[0] * 17, 1]
        assert report.images_with.tolist() == [3, 2, 1, *[0] * 17, 1]
        assert (report.ignored, report.images_with_ignored) == (2, 2)
        np.testing.assert_allclose(report.shares[:3], [900 / 16, 400 / 16, 200 / 16])

    def test_where_zero_is_ignored_ids_are_one_less(self, voc):
        report = check(voc, "voc20")
        assert report.valid
        assert report.pixels.tolist() == [4, 2, *[0] * 17, 1]
        assert (report.ignored, report.images_with_ignored) == (11, 3)

    @pytest.mark.parametrize("workers", [1, 5])
    def test_threads_change_nothing(self, voc, workers):
        (voc / MASKS / "b.png").unlink()
        save_mask(voc / MASKS / "c.png", [[77]])
        dataset = open_dataset("voc21", voc)
        assert checked(dataset, workers).to_dict() == checked(dataset).to_dict()

    def test_without_a_labelled_pixel_shares_are_zero(self, voc):
        for name in "abc":
            save_mask(voc / MASKS / f"{name}.png", [[255] * 3] * 2)
        report = check(voc)
        assert "no mask has a labelled pixel: 255 means ignored" in only_problem(report).message
        assert not report.shares.any()
        assert report.ignored == 18

    def test_pixels_of_images_are_not_decoded(self, voc, monkeypatch):
        decode = ImageFile.ImageFile.load

        def load(image):
            assert image.format == "PNG", "a photo was decoded"
            return decode(image)

        monkeypatch.setattr(ImageFile.ImageFile, "load", load)
        assert check(voc).valid


class TestLists:
    def test_too_few_images(self, voc):
        problem = only_problem(check(voc, official=1449))
        assert problem.kind == "number of images"
        assert problem.message == (
            f"3 of 1,449 images: 1,446 are missing from {voc / LISTS / 'val.txt'}"
        )

    def test_too_many_images(self, voc):
        problem = only_problem(check(voc, official=2))
        assert problem.message == f"3 of 2 images: 1 too many in {voc / LISTS / 'val.txt'}"

    def test_without_lists_the_folder_is_named(self, tmp_path):
        part = SPECS["ade150"].splits["val"].parts[0]
        save(tmp_path / part.images / "x.jpg", Image.new("RGB", (1, 1)))
        save_mask(tmp_path / part.masks / "x.png", [[150]])
        problem = only_problem(checked(open_dataset("ade150", tmp_path)))
        assert problem.message == (
            f"1 of 2,000 images: 1,999 are missing from {tmp_path / part.images}"
        )

    def test_a_name_listed_twice_is_counted_once(self, voc):
        (voc / LISTS / "val.txt").write_text("a\nb\na\nc\na\n")
        report = check(voc)
        problem = only_problem(report)
        assert problem.kind == "listed twice"
        assert problem.message == (
            f"a is listed 3 times: keep one line in {voc / LISTS / 'val.txt'}"
        )
        assert report.pixels.sum() == 16

    def test_a_name_in_both_lists_of_trainaug(self, voc):
        (voc / LISTS / "train.txt").write_text("a\nb\n")
        (voc / LISTS / "aug.txt").write_text("b\nc\n")
        for name in "bc":
            save_mask(voc / f"{MASKS}Aug" / f"{name}.png", [[5] * 3] * 2)
        report = checked(replace(open_dataset("voc21", voc, split="trainaug"), official=3))
        problem = only_problem(report)
        assert problem.message == (
            f"b is listed 2 times: keep one line in {voc / LISTS / 'train.txt'} and "
            f"{voc / LISTS / 'aug.txt'}"
        )
        assert (report.images, report.samples) == (3, 4)
        assert report.pixels[5] == 12


class TestFiles:
    def test_a_missing_image(self, voc):
        (voc / IMAGES / "b.jpg").unlink()
        report = check(voc)
        problem = only_problem(report)
        assert problem == ("missing image", f"no image {voc / IMAGES / 'b.jpg'}")
        assert report.pixels.sum() == 16  # the mask is there and counts

    def test_a_missing_mask(self, voc):
        (voc / MASKS / "b.png").unlink()
        report = check(voc)
        assert only_problem(report) == ("missing mask", f"no mask {voc / MASKS / 'b.png'}")
        assert report.pixels.sum() == 10

    def test_a_name_without_any_file_is_two_problems(self, voc):
        (voc / LISTS / "val.txt").write_text("a\nb\nx\n")
        assert [p.kind for p in check(voc).problems] == ["missing image", "missing mask"]

    def test_of_a_missing_mask_that_is_made_the_conversion_is_named(self, tmp_path):
        part = SPECS["cocostuff171"].splits["val"].parts[0]
        for name in "xy":
            save(tmp_path / part.images / f"{name}.jpg", Image.new("RGB", (1, 1)))
        save_mask(tmp_path / part.masks / f"x{part.mask_suffix}", [[170]])
        problem = only_problem(check(tmp_path, "cocostuff171", official=2))
        assert problem.kind == "missing mask"
        assert problem.message.endswith(f"`maskclip data convert cocostuff --data {tmp_path}`")

    @pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0\x00"])
    def test_a_damaged_header_of_an_image(self, voc, content):
        (voc / IMAGES / "b.jpg").write_bytes(content)
        problem = only_problem(check(voc))
        assert problem.kind == "unreadable image"
        assert problem.message.startswith(f"{voc / IMAGES / 'b.jpg'}: ")

    def test_a_damaged_mask(self, voc):
        path = voc / MASKS / "b.png"
        path.write_bytes(path.read_bytes()[:-25])
        report = check(voc)
        problem = only_problem(report)
        assert problem.kind == "unreadable mask"
        assert problem.message.startswith(f"{path}: cannot be read as a mask")
        assert report.pixels.sum() == 10

    def test_colours_of_no_class(self, voc):
        save(voc / MASKS / "b.png", Image.new("RGB", (3, 2), (1, 2, 3)))
        problem = only_problem(check(voc))
        assert problem.kind == "unreadable mask"
        assert "the colour #010203 is no class" in problem.message

    def test_another_size(self, voc):
        save_mask(voc / MASKS / "b.png", [[1, 1]])
        report = check(voc)
        problem = only_problem(report)
        assert problem == (
            "other size",
            f"{voc / MASKS / 'b.png'}: the mask is 2x1 but its image 3x2: save it again at the "
            "image's size, without smooth resizing",
        )
        assert report.pixels.sum() == 10

    def test_sizes_are_those_of_upright_images(self, voc):
        exif = Image.Exif()
        exif[0x0112] = 6
        save(voc / IMAGES / "b.jpg", Image.new("RGB", (2, 3)), exif=exif)
        assert check(voc).valid
        save(voc / IMAGES / "b.jpg", Image.new("RGB", (3, 2)), exif=exif)
        problem = only_problem(check(voc))
        assert problem.kind == "other size"
        assert problem.message.endswith(
            "the mask is 3x2 but its image 2x3: one of them is rotated; images follow their EXIF "
            "orientation"
        )

    def test_a_file_in_the_way_of_a_folder(self, tmp_path):
        part = SPECS["cityscapes19"].splits["val"].parts[0]
        for town in ("ulm", "bonn"):
            save(tmp_path / part.images / town / "x_leftImg8bit.png", Image.new("RGB", (1, 1)))
        save_mask(tmp_path / part.masks / "ulm" / f"x{part.mask_suffix}", [[18]])
        (tmp_path / part.masks / "bonn").write_text("in the way")
        assert only_problem(check(tmp_path, "cityscapes19", official=2)).kind == "missing mask"


class TestValues:
    @pytest.mark.parametrize(
        ("name", "expected"), [("voc21", "0..20, or 255"), ("voc20", "1..20, or 0 and 255")]
    )
    def test_those_of_the_file_are_named_with_their_pixels(self, voc, name, expected):
        save_mask(voc / MASKS / "b.png", [[21, 1, 99], [99, 2, 0]])
        report = check(voc, name)
        problem = only_problem(report)
        assert problem.kind == "invalid values"
        assert problem.message == (
            f"{voc / MASKS / 'b.png'}: no class has the value 99 (2 px), 21 (1 px): expected "
            f"{expected} for ignored pixels"
        )
        assert report.pixels.sum() + report.ignored == 18 - 3

    def test_of_many_the_most_frequent_are_named(self, voc):
        save_mask(voc / MASKS / "b.png", [[31, 32, 33], [34, 35, 36]])
        message = only_problem(check(voc)).message
        assert "31 (1 px), 32 (1 px), 33 (1 px), 34 (1 px), 35 (1 px), 1 more (1 px): " in message

    def test_a_sample_can_have_several_problems(self, voc):
        save_mask(voc / MASKS / "b.png", [[200] * 3] * 2)
        (voc / IMAGES / "b.jpg").unlink()
        assert [p.kind for p in check(voc).problems] == ["missing image", "invalid values"]


class TestOwnFolders:
    @pytest.fixture
    def own(self, tmp_path):
        for name in ("one.jpg", "x/two.png"):
            save(tmp_path / "images" / name, Image.new("RGB", (2, 1)))
        for name in ("one.png", "x/two.png"):
            save_mask(tmp_path / "masks" / name, [[0, 1]])
        return tmp_path

    def check(self, root):
        words = Vocabulary.parse(["dog", "grass", "sky"])
        return checked(open_folder(root / "images", root / "masks", words, missing=True))

    def test_a_photo_without_a_mask_is_a_problem(self, own):
        (own / "masks/one.png").unlink()
        assert [p.kind for p in self.check(own).problems] == ["missing mask"]

    def test_ids_that_count_from_1_are_reported(self, own):
        for name in ("one.png", "x/two.png"):
            save_mask(own / "masks" / name, [[1, 3]])
        hint = "ids seem to count from 1 (there is 3 and no 0), and must count from 0"
        assert self.check(own).notes == [hint]
        save_mask(own / "masks/one.png", [[0, 3]])
        assert self.check(own).notes == []

    def test_they_have_no_official_size(self, own):
        report = self.check(own)
        assert report.valid
        assert report.pixels.tolist() == [2, 2, 0]
        assert report.masks_without_image == []

    def test_masks_without_an_image_are_listed_and_do_no_harm(self, own):
        for name in ("three.png", "x/one.png", ".writing-two.png"):
            save_mask(own / "masks" / name, [[0, 1]])
        report = self.check(own)
        assert report.valid
        assert report.masks_without_image == [own / "masks/three.png", own / "masks/x/one.png"]
        assert report.pixels.sum() == 4

    def test_where_a_list_chooses_other_masks_are_no_surplus(self, voc):
        (voc / LISTS / "val.txt").write_text("a\n")
        assert check(voc, official=1).masks_without_image == []


def test_only_the_masks_of_the_split_can_be_spare(tmp_path):
    part = SPECS["cityscapes19"].splits["val"].parts[0]
    save(tmp_path / part.images / "ulm/x_leftImg8bit.png", Image.new("RGB", (1, 1)))
    for name in ("ulm/x", "ulm/y"):
        for suffix in (part.mask_suffix, "_gtFine_color.png"):
            save_mask(tmp_path / part.masks / f"{name}{suffix}", [[18]])
    report = check(tmp_path, "cityscapes19", official=1)
    assert report.masks_without_image == [tmp_path / part.masks / f"ulm/y{part.mask_suffix}"]


def test_the_report_file_holds_everything(voc, tmp_path):
    (voc / MASKS / "b.png").unlink()
    write_json(check(voc).to_dict(), tmp_path / "new" / "report.json")
    held = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    classes = held.pop("classes")
    assert held == {
        "dataset": "voc21",
        "split": "val",
        "images": 3,
        "official": 3,
        "valid": False,
        "problems": [{"kind": "missing mask", "message": f"no mask {voc / MASKS / 'b.png'}"}],
        "notes": [],
        "masks_without_image": [],
        "ignored": {"images": 2, "pixels": 2},
    }
    assert classes[1] == {"name": "airplane", "images": 1, "pixels": 3, "percent": 30.0}
    assert len(classes) == 21


@pytest.mark.parametrize(("split", "images"), [("val", 18), ("train", 35), ("trainaug", 70)])
def test_of_real_pairs_only_the_number_is_wrong(real_data, split, images):
    dataset = open_dataset("voc21", real_data, split=split)
    report = checked(dataset)
    assert report.images == images
    assert only_problem(report).kind == "number of images"
    labels = np.concatenate([sample.labels.ravel() for sample in dataset])
    expected = np.bincount(labels, minlength=256)
    assert report.pixels.tolist() == expected[:21].tolist()
    assert report.ignored == expected[255]
