"""Label maps of segments: whatever they are called and coded, and what cannot be one."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskclip.core.errors import MaskCLIPError
from maskclip.data.annotations.mask_folder import find_masks
from maskclip.data.region_folder import RegionFolder

IDS = np.array([[0, 1, 2], [300, 300, 2]])


def put(folder, name, ids=IDS):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, ids)
    else:
        Image.fromarray(np.asarray(ids).astype(np.uint16)).save(path)
    return path


@pytest.mark.parametrize(
    ("file", "photo"),
    [
        ("a.png", "a.jpg"),
        ("a.npy", "a.jpg"),
        ("a.tif", "sub/a.jpeg"),
        ("a.jpg.png", "a.jpg"),
        ("a_seg.png", "a.jpg"),
        ("A.PNG", "a.jpg"),
        ("sub/a.png", "sub/a.jpg"),
        ("sub/a.png", "/home/me/sub/a.jpg"),
        ("a.png", "../photos/./a.jpg"),
        ("a.png", "a"),
        ("2007_000033.v2.png", "2007_000033.v2"),
    ],
)
def test_maps_are_found_by_the_photos_names(tmp_path, file, photo):
    path = put(tmp_path, file)
    folder = RegionFolder(tmp_path)
    assert folder.find(photo) == path
    np.testing.assert_array_equal(folder.read(photo, (3, 2)), IDS)


def test_the_longest_name_counts_and_none_is_guessed(tmp_path):
    for name in ("a.png", "x/a.png", "x/a.jpg.png", "b_mask.png", "b.png"):
        put(tmp_path, name)
    folder = RegionFolder(tmp_path)
    assert folder.find("x/a.jpg") == tmp_path / "x/a.jpg.png"
    assert folder.find("x/a.png") == tmp_path / "x/a.png"
    assert folder.find("b.jpg") == tmp_path / "b.png"
    assert folder.find("aa.jpg") is None
    assert folder.missing(["b.jpg", "c.jpg", "x/a.png"]) == ["c.jpg"]


def test_maps_of_two_photos_and_photos_of_two_maps_are_reported(tmp_path):
    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    put(tmp_path, "b.npy")
    folder = RegionFolder(tmp_path)
    with pytest.raises(MaskCLIPError, match=r"a\.png is called like x/a\.jpg and y/a\.jpg"):
        folder.missing(["x/a.jpg", "y/a.jpg"])
    with pytest.raises(MaskCLIPError, match=r"are both label maps of b\.jpg: keep one"):
        folder.find("b.jpg")


def saved(tmp_path, image):
    image.save(tmp_path / "a.png")
    return RegionFolder(tmp_path).read("a", image.size)


def test_every_coding_of_numbers_is_read(tmp_path):
    grey = np.array([[0, 9], [255, 9]], np.uint8)
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(grey)), grey)
    palette = Image.fromarray(grey, "P")
    palette.putpalette([17] * 768)
    np.testing.assert_array_equal(saved(tmp_path, palette), grey)
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(grey > 0)), grey > 0)
    colors = np.array([[[0, 0, 0], [0, 1, 2]], [[3, 0, 0], [0, 1, 2]]], np.uint8)
    expected = [[0, 258], [3 << 16, 258]]
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(colors)), expected)
    clear = np.dstack([colors, [[255, 255], [0, 255]]]).astype(np.uint8)
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(clear)), [[0, 258], [0, 258]])


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.png", IDS, "the label map is 3x2 but its image 2x3: one of them is rotated"),
        ("a.npy", IDS, "the label map is 3x2 but its image 2x3: one of them is rotated"),
        ("a.npy", np.ones((4, 3, 2), bool), "expected an array .* got bool of shape"),
        ("a.npy", IDS + 0.5, "whole numbers, got float64"),
        ("a.npy", np.array([{}]), "cannot be read as a label map"),
        ("a.npy", b"\x93NUMPY\x01\0\x76\0{'descr': '<i8', 'shape': (9999, 9999)", "cannot be read"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "cannot be read"),
    ],
)
def test_what_is_no_map_is_one_line(tmp_path, name, content, part):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif name == "a.npy":
        np.save(tmp_path / name, content, allow_pickle=True)
    else:
        put(tmp_path, name, content)
    with pytest.raises(MaskCLIPError, match=part) as error:
        RegionFolder(tmp_path).read("a.jpg", (2, 3))
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value)


def test_a_photo_without_a_map_and_no_folder_of_maps_are_reported(tmp_path):
    with pytest.raises(MaskCLIPError, match=r"slick \(did you mean slic\?\)"):
        RegionFolder(Path("slick"))
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(MaskCLIPError, match="no label maps in this folder"):
        RegionFolder(tmp_path)
    put(tmp_path, "b.png")
    with pytest.raises(MaskCLIPError, match=r"x/a\.jpg: no label map .* expected .*a\.png"):
        RegionFolder(tmp_path).read("x/a.jpg", (3, 2))


def test_the_fingerprint_is_of_the_content(tmp_path):
    put(tmp_path, "a.png")
    before = RegionFolder(tmp_path).fingerprint(["a.jpg"])
    put(tmp_path, "b.png", IDS + 1)
    folder = RegionFolder(tmp_path)
    assert folder.fingerprint(["a.jpg"]) == before != folder.fingerprint(["a.jpg", "b.jpg"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_devices_and_links_to_them_are_no_maps(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    (tmp_path / "b.npy").symlink_to("/dev/zero")
    (tmp_path / "c.png").symlink_to("nowhere.png")
    with pytest.raises(MaskCLIPError, match="no label maps in this folder"):
        RegionFolder(tmp_path)
    for name in ("d.npy", "e.png"):
        put(tmp_path, name)
    folder, photos = RegionFolder(tmp_path), [f"{letter}.jpg" for letter in "abcde"]
    assert folder.missing(photos) == photos[:3]
    assert len(folder.fingerprint(photos)) == 16
    for name in ("d.npy", "e.png"):  # what takes the place of a map later
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises(MaskCLIPError, match=f"{name}: "):
            folder.read(f"{name[0]}.jpg", (3, 2))
        with pytest.raises(MaskCLIPError, match=f"{name}: no such file any more"):
            folder.fingerprint([f"{name[0]}.jpg"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_folders_of_masks_take_regular_files_alone_too(tmp_path):
    put(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    found, unused = find_masks(tmp_path, ["a.jpg", "b.jpg"])
    assert (found, unused) == ({"a.jpg": tmp_path / "a.png"}, [])
