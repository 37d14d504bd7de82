import numpy as np
import pytest
from PIL import Image

from maskclip.core.vocabulary import Vocabulary
from maskclip.data.annotations import AnnotationError
from maskclip.data.datasets import DatasetError, open_dataset
from maskclip.data.images import ImageError
from maskclip.data.masks import MaskError
from maskclip.data.photos import open_folder
from maskclip.data.specs import SPECS


def make(root, name, split, *, names=("a", "b"), value=1, size=(6, 4)):
    """Write a small data set in the layout of `name`."""
    for part in SPECS[name].splits[split].parts:
        for stem in names:
            for folder, suffix, picture in (
                (part.images, part.image_suffix, Image.new("RGB", size)),
                (part.masks, part.mask_suffix, Image.new("L", size, value)),
            ):
                path = root / folder / f"{stem}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
        if part.listing:
            (root / part.listing).parent.mkdir(parents=True, exist_ok=True)
            (root / part.listing).write_text("\n".join(names) + "\n")


@pytest.mark.parametrize("name", SPECS)
def test_every_split_of_every_layout_is_read(tmp_path, name):
    spec = SPECS[name]
    for split in spec.splits:
        make(tmp_path, name, split)
        dataset = open_dataset(name, tmp_path, split=split)
        assert len(dataset) == 2 * len(spec.splits[split].parts)
        sample = dataset[0]
        assert sample.name == "a"
        assert sample.image.size == (6, 4)
        assert np.unique(sample.labels) == (0 if spec.reduce_zero else 1)
        assert len(dataset.vocabulary) == int("".join(filter(str.isdigit, name)))
        assert all(0 <= unseen < len(dataset.vocabulary) for unseen in dataset.unseen)


def test_zero_shot_splits_with_and_without_background_are_the_same_classes():
    for without, having in (("voc20", "voc21"), ("context59", "context60")):
        assert [i + 1 for i in SPECS[without].unseen] == list(SPECS[having].unseen)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_byte_order_mark_of_a_list_is_no_part_of_a_name(tmp_path, encoding):
    make(tmp_path, "voc20", "val")
    listing = tmp_path / SPECS["voc20"].splits["val"].parts[0].listing
    listing.write_text("a\nb\n", encoding=encoding)
    assert [sample.name for sample in open_dataset("voc20", tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\na\n", r"a is listed 2 times"),
        (b"\xff\xfe\x00", "is not UTF-8 text .*: expected a list of samples"),
    ],
    ids=["twice", "binary"],
)
def test_lists_that_cannot_be_trusted(tmp_path, content, message):
    make(tmp_path, "voc20", "val")
    (tmp_path / SPECS["voc20"].splits["val"].parts[0].listing).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        open_dataset("voc20", tmp_path).check(3)


def test_metadata_of_two_folders_differ(tmp_path):
    metadata = []
    for folder, names in (("one", ("a", "b")), ("two", ("a", "b")), ("two", ("a", "b", "c"))):
        make(tmp_path / folder, "ade150", "val", names=names)
        metadata.append(open_dataset("ade150", tmp_path / folder).metadata())
    assert metadata[0]["folders"] != metadata[1]["folders"] == metadata[2]["folders"]
    assert metadata[0]["list"] == metadata[1]["list"] != metadata[2]["list"]


def test_hidden_files_of_archives_are_no_images(tmp_path):
    make(tmp_path, "ade150", "val", names=("a", ".a"))
    assert open_dataset("ade150", tmp_path).names == ["a"]


def test_images_in_subfolders_find_their_masks(tmp_path):
    make(tmp_path, "cityscapes19", "val", names=("ulm/ulm_01", "bonn/bonn_02"), value=18)
    dataset = open_dataset("cityscapes19", tmp_path)
    assert [dataset[i].name for i in range(2)] == ["bonn_02", "ulm_01"]


def test_missing_pieces_are_named(tmp_path):
    with pytest.raises(DatasetError, match="`data` is the folder that holds VOCdevkit"):
        open_dataset("voc20", tmp_path)
    with pytest.raises(DatasetError, match="unknown data set 'voc': expected one of voc20"):
        open_dataset("voc", tmp_path)
    make(tmp_path, "cocostuff171", "val")
    with pytest.raises(DatasetError, match="has no split 'test': expected val, train"):
        open_dataset("cocostuff171", tmp_path, split="test")
    for mask in (tmp_path / "coco_stuff164k/annotations/val2017").iterdir():
        mask.unlink()
    with pytest.raises(DatasetError, match="maskclip data convert cocostuff --data"):
        open_dataset("cocostuff171", tmp_path)


def test_missing_files_are_counted_before_any_is_read(tmp_path):
    make(tmp_path, "voc21", "val", names=("a", "b", "c"))
    dataset = open_dataset("voc21", tmp_path)
    dataset.check(3)
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/c.jpg").unlink()
    dataset.check(2)
    with pytest.raises(DatasetError, match=r"voc21 val: 1 of 6 files are missing, .*c\.jpg"):
        dataset.check(3)


def test_a_mask_of_another_size_or_out_of_range_is_an_error(tmp_path):
    make(tmp_path, "voc21", "val", value=21)
    with pytest.raises(MaskError, match="label 21 is out of range"):
        open_dataset("voc21", tmp_path)[0]
    Image.new("L", (3, 3)).save(tmp_path / "VOCdevkit/VOC2012/SegmentationClass/a.png")
    with pytest.raises(MaskError, match="the mask is 3x3 but its image 6x4"):
        open_dataset("voc21", tmp_path)[0]


def test_a_folder_of_ones_own(tmp_path):
    words = Vocabulary.parse(["dog", "grass"])
    for path in ("images/x/one.jpg", "images/two.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5)).save(tmp_path / path)
    for path in ("masks/x/one.png", "masks/two.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5), words.colors[1]).save(tmp_path / path)
    dataset = open_folder(tmp_path / "images", tmp_path / "masks", words)
    assert [dataset[i].name for i in range(2)] == ["two", "x/one"]
    assert (dataset[1].labels == 1).all()
    with pytest.raises(AnnotationError, match="no folder of labels"):
        open_folder(tmp_path / "images", tmp_path / "none", words)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images in"):
        open_folder(tmp_path / "empty", tmp_path / "masks", words)
    Image.new("RGB", (5, 5)).save(tmp_path / "images" / "two.k.jpg")  # sorts between the two
    Image.new("RGB", (5, 5)).save(tmp_path / "images" / "two.jpg")
    with pytest.raises(DatasetError, match=r"two.jpg and two.png would share a mask"):
        open_folder(tmp_path / "images", tmp_path / "masks", words)


def test_real_pairs_of_voc_are_read(real_data):
    for split in ("val", "trainaug"):
        dataset = open_dataset("voc20", real_data, split=split)
        for index in range(len(dataset)):
            sample = dataset[index]
            assert sample.labels.shape == (sample.image.height, sample.image.width)
            assert (sample.labels[sample.labels != 255] < 20).all()
