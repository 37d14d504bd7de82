import io

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from maskclip.core.vocabulary import Vocabulary
from maskclip.data.conversions import (
    CONVERSIONS,
    ConversionError,
    convert_file,
    convert_values,
    read_mat,
    read_png,
    voc_lists,
)

# fmt: off
CITYSCAPES = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}
# fmt: on


def save_sbd(path, labels):
    """Write a label file in SBD's layout, with the fields that are not read, too."""
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = csc_matrix(np.eye(3, dtype=bool))
    present = np.unique(labels[labels > 0]).astype(np.uint8)[:, None]
    fields = {"Boundaries": boundaries, "Segmentation": labels, "CategoriesPresent": present}
    savemat(path, {"GTcls": fields}, do_compression=True)


def ids_of(name, values):
    table = np.array([values])
    return convert_values(table, CONVERSIONS[name])[0].tolist()


class TestValues:
    @pytest.mark.parametrize(
        ("name", "pairs"),
        [
            ("voc-aug", {0: 0, 1: 1, 15: 15, 20: 20, 255: 255}),
            ("context", {0: 0, 1: 0, 2: 1, 3: 0, 9: 2, 284: 37, 454: 58, 458: 59, 459: 0}),
            ("cocostuff", {0: 0, 10: 10, 12: 11, 24: 23, 26: 24, 27: 25, 30: 26, 43: 39}),
            ("cocostuff", {45: 40, 64: 59, 66: 60, 69: 61, 71: 62, 81: 72, 83: 73, 89: 79}),
            ("cocostuff", {91: 80, 92: 81, 156: 145, 181: 170, 255: 255}),
            ("cocostuff", dict.fromkeys((11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90), 255)),
            ("cocoobject", {0: 1, 10: 11, 12: 12, 24: 24, 26: 25, 89: 80, 91: 0, 181: 0}),
            ("cocoobject", dict.fromkeys((11, 25, 68, 90, 255), 255)),
            ("cityscapes", CITYSCAPES),
            ("cityscapes", {v: 255 for v in range(256) if v not in CITYSCAPES}),
        ],
    )
    def test_known_pairs(self, name, pairs):
        assert ids_of(name, list(pairs)) == list(pairs.values())

    @pytest.mark.parametrize(
        ("name", "classes"),
        [
            ("voc-aug", 21),
            ("context", 60),
            ("cocostuff", 171),
            ("cocoobject", 81),
            ("cityscapes", 19),
        ],
    )
    def test_every_class_has_one_value(self, name, classes):
        table = CONVERSIONS[name].table
        values = np.flatnonzero(table >= 0)
        ids, counts = np.unique(convert_values(values[None], CONVERSIONS[name]), return_counts=True)
        labels = ids[ids != 255]
        assert labels.tolist() == list(range(classes))
        background = 1 if name in ("context", "cocoobject") else 0
        assert (counts[background:classes] == 1).all()

    def test_the_classes_of_context_keep_their_names(self):
        all_names = Vocabulary.builtin("context459").names
        names = Vocabulary.builtin("context60").names
        ids = ids_of("context", list(range(1, 460)))
        kept = {index: name for index, name in zip(ids, all_names, strict=True) if index}
        assert [kept[index] for index in range(1, 60)] == list(names[1:])

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.int32, np.int64])
    def test_types_do_not_matter(self, dtype):
        values = np.array([[0, 91], [181, 255]], dtype)
        ids = convert_values(values, CONVERSIONS["cocostuff"])
        assert ids.dtype == np.uint8
        assert ids.tolist() == [[0, 80], [170, 255]]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("voc-aug", 21),
            ("voc-aug", 254),
            ("context", 460),
            ("context", 65_535),
            ("cocostuff", 182),
            ("cocostuff", 254),
            ("cocostuff", -1),
            ("cityscapes", 26_001),
        ],
    )
    def test_values_the_data_set_does_not_have_are_named(self, name, value):
        with pytest.raises(ConversionError, match=f"value {value} out of range"):
            ids_of(name, [0, value, value])
        with pytest.raises(ConversionError, match="and 1 more out of range"):
            ids_of(name, [70_000, 0, value])

    @pytest.mark.parametrize(
        "values",
        [
            np.zeros((2, 2)),
            np.zeros((2, 2), bool),
            np.zeros((2, 2, 3), np.uint8),
            np.zeros((0, 2), np.uint8),
            np.empty((1, 1), object),
        ],
        ids=["float", "bool", "colors", "no pixels", "objects"],
    )
    def test_what_is_no_label_map_is_refused(self, values):
        with pytest.raises(ConversionError, match="one integer per pixel"):
            convert_values(values, CONVERSIONS["cityscapes"])


class TestReading:
    def test_structs_of_matlab(self, tmp_path):
        labels = np.array([[0, 20, 255], [7, 0, 0]], np.uint8)
        save_sbd(tmp_path / "a.mat", labels)
        read = read_mat(tmp_path / "a.mat", ("GTcls", "Segmentation"))
        assert read.dtype == np.uint8
        assert np.array_equal(read, labels)

    def test_plain_variables_of_matlab(self, tmp_path):
        labels = np.array([[459, 2]], np.uint16)
        savemat(tmp_path / "a.mat", {"LabelMap": labels})
        assert read_mat(tmp_path / "a.mat", ("LabelMap",)).tolist() == [[459, 2]]

    @pytest.mark.parametrize("content", [{"GTinst": 1}, {"GTcls": 1}, {"GTcls": {"Other": 1}}])
    def test_another_variable_is_said(self, tmp_path, content):
        savemat(tmp_path / "a.mat", content)
        with pytest.raises(ConversionError, match=r"a\.mat: expected .* GTcls\.Segmentation"):
            read_mat(tmp_path / "a.mat", ("GTcls", "Segmentation"))

    @pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "hdf5", "folder"])
    def test_a_broken_matlab_file_is_one_line(self, tmp_path, kind):
        path = tmp_path / "a.mat"
        if kind == "cut":
            noise = np.random.default_rng(0).integers(0, 459, (50, 50), dtype=np.uint16)
            savemat(path, {"LabelMap": noise}, do_compression=True)
            path.write_bytes(path.read_bytes()[:-200])
        elif kind == "folder":
            path.mkdir()
        elif kind != "missing":
            head = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
            path.write_bytes({"empty": b"", "text": b"no labels", "hdf5": head}[kind])
        with pytest.raises(ConversionError) as caught:
            read_mat(path, ("LabelMap",))
        assert str(caught.value).count(str(path)) == 1
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("mode", ["L", "P", "I;16"])
    def test_numbers_of_png_are_kept(self, tmp_path, mode):
        labels = np.array([[0, 91, 255], [12, 1, 2]], np.uint16 if mode == "I;16" else np.uint8)
        image = Image.fromarray(labels)
        if mode == "P":
            image.putpalette(bytes(range(255, -1, -1)) * 3)
        image.save(tmp_path / "a.png")
        assert Image.open(tmp_path / "a.png").mode == mode
        assert np.array_equal(read_png(tmp_path / "a.png"), labels)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
    def test_pictures_are_refused(self, tmp_path, mode):
        Image.new(mode, (4, 3)).save(tmp_path / "a.png")
        with pytest.raises(ConversionError, match=rf"a\.png: expected class .* got mode {mode}$"):
            read_png(tmp_path / "a.png")

    @pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "jpeg", "folder"])
    def test_a_broken_png_is_one_line(self, tmp_path, kind):
        path = tmp_path / "a.png"
        noise = np.random.default_rng(0).integers(0, 181, (50, 50), dtype=np.uint8)
        if kind == "cut":
            Image.fromarray(noise).save(path)
            path.write_bytes(path.read_bytes()[:-200])
        elif kind == "jpeg":
            Image.fromarray(noise).save(path, format="JPEG")
        elif kind == "folder":
            path.mkdir()
        elif kind != "missing":
            path.write_bytes(b"no labels" if kind == "text" else b"")
        with pytest.raises(ConversionError) as caught:
            read_png(path)
        assert str(caught.value).count(str(path)) == 1
        assert "\n" not in str(caught.value)


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "source", "target"),
        [
            ("voc-aug", "2008_000002.mat", "2008_000002.png"),
            ("context", "2008_000002.mat", "2008_000002.png"),
            ("cocostuff", "val2017/000000000139.png", "val2017/000000000139_labelTrainIds.png"),
            (
                "cityscapes",
                "val/ulm/ulm_000000_000019_gtFine_labelIds.png",
                "val/ulm/ulm_000000_000019_gtFine_labelTrainIds.png",
            ),
        ],
    )
    def test_names_of_masks(self, name, source, target):
        assert CONVERSIONS[name].target(source) == target

    @pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 2)])
    def test_voc_masks_have_the_official_colours(self, tmp_path, shape):
        labels = np.resize(np.array([15, 0, 255, 20], np.uint8), shape)
        save_sbd(tmp_path / "a.mat", labels)
        convert_file(tmp_path / "a.mat", tmp_path / "new" / "a.png", CONVERSIONS["voc-aug"])
        mask = Image.open(tmp_path / "new" / "a.png")
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), labels)
        official = {15: (192, 128, 128), 0: (0, 0, 0), 255: (224, 224, 192), 20: (0, 64, 128)}
        for x in range(shape[1]):
            assert mask.convert("RGB").getpixel((x, 0)) == official[labels[0, x]]

    @pytest.mark.parametrize("suffix", [".mat", ".png"])
    def test_context_comes_as_matlab_or_png(self, tmp_path, suffix):
        labels = np.array([[2, 459], [458, 1], [0, 284]], np.uint16)
        source = tmp_path / f"a{suffix}"
        if suffix == ".mat":
            savemat(source, {"LabelMap": labels})
        else:
            Image.fromarray(labels).save(source)
        convert_file(source, tmp_path / "mask.png", CONVERSIONS["context"])
        mask = Image.open(tmp_path / "mask.png")
        assert (mask.mode, mask.size) == ("P", (2, 3))
        assert np.asarray(mask).tolist() == [[1, 0], [59, 0], [0, 37]]

    @pytest.mark.parametrize("name", ["cocostuff", "cityscapes"])
    def test_the_others_are_plain_grey(self, tmp_path, name):
        Image.new("L", (5, 4), 24).save(tmp_path / "a.png")
        convert_file(tmp_path / "a.png", tmp_path / "mask.png", CONVERSIONS[name])
        mask = Image.open(tmp_path / "mask.png")
        assert (mask.mode, mask.size) == ("L", (5, 4))
        assert set(np.asarray(mask).ravel().tolist()) == {{"cocostuff": 23, "cityscapes": 11}[name]}

    def test_a_failure_names_the_source_and_leaves_nothing(self, tmp_path):
        buffer = io.BytesIO()
        Image.new("L", (5, 4), 200).save(buffer, format="PNG")
        source = tmp_path / "a.png"
        source.write_bytes(buffer.getvalue())
        with pytest.raises(ConversionError, match=r"a\.png: value 200 .*Stuff 164k are 0\.\.181"):
            convert_file(source, tmp_path / "out" / "mask.png", CONVERSIONS["cocostuff"])
        assert not list((tmp_path / "out").glob("*"))


def test_lists_leave_the_validation_images_out():
    lists = voc_lists(train=["t1", "both"], val=["v1", "v2"], sbd=["s2", "both", "v1", "s1"])
    assert lists == {"trainaug": ["both", "s1", "s2", "t1"], "aug": ["s1", "s2"]}
