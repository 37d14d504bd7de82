import json

import numpy as np
import pytest
from PIL import Image

from maskclip.cli import main


def save_mask(root, index, values):
    image = Image.fromarray(np.array(values, np.uint8))
    image.save(root / "masks" / f"{index:02}.png")


@pytest.fixture
def own(tmp_path):
    """Write 25 images of 3x1 px with masks, and classes, and return the folder."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(25):
        Image.new("RGB", (3, 1)).save(tmp_path / "images" / f"{index:02}.png")
        save_mask(tmp_path, index, [[0, 1, 255]])
    (tmp_path / "classes.txt").write_text("dog\nx [bold]\n")
    return tmp_path


def check(root, *arguments):
    folders = (f"--{name}={root / name}" for name in ("images", "masks"))
    return main(
        ["data", "check", "folder", *folders, f"--classes={root / 'classes.txt'}", *arguments]
    )


def test_a_valid_set_gives_a_table_and_one_line(own, capsys):
    assert check(own) == 0
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()]
    assert lines == [
        ["class", "images", "pixels", "share", "%"],
        ["dog", "25", "25", "50.00"],
        ["x", "[bold]", "25", "25", "50.00"],
        ["ignored", "25", "25"],
        ["folder,", "25", "images:", "no", "problems"],
    ]
    assert printed.err == ""


def test_masks_of_0_and_255_are_a_problem(own, capsys):
    for index in range(25):
        save_mask(own, index, [[0, 255, 255]])
    assert check(own) == 1
    assert capsys.readouterr().err == (
        "error: no mask has a pixel of x [bold], and all have ignored ones: 255 means ignored, and "
        "classes are 0..1\n"
    )


def test_an_absent_class_is_a_note_where_others_can_be_told_apart(own, capsys):
    (own / "classes.txt").write_text("dog\nx [bold]\ncat\n")
    assert check(own) == 0
    assert capsys.readouterr().err == (
        "warning: no mask has a pixel of cat, and all have ignored ones: 255 means ignored, and "
        "classes are 0..2\n"
    )


def test_exports_of_other_tools_are_checked_as_well(own, capsys):
    region = {"category_id": 1, "image_id": 1, "segmentation": {"size": [1, 3], "counts": [0, 3]}}
    content = {
        "images": [{"id": 1, "file_name": "03.png", "width": 3, "height": 1}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [region, {"bbox": [0, 0, 1, 1]}],
    }
    (own / "coco.json").write_text(json.dumps(content))
    command = ["data", "check", "folder", f"--images={own / 'images'}"]
    command += [f"--masks={own / 'coco.json'}", f"--classes={own / 'classes.txt'}"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "folder, 1 images: no problems"
    assert [line.split(": ", 2)[2] for line in printed.err.splitlines()] == [
        "left out, because they do not say pixels: 1 annotations without a segmentation",
        "24 photos have no labels and are left out (00.png, 01.png, 02.png, ...)",
    ]


def test_a_problem_is_a_line_and_exit_code_1(own, capsys):
    (own / "masks" / "07.png").unlink()
    assert check(own) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith("folder, 25 images: 1 problem\n")
    assert printed.err == f"error: no mask {own / 'masks' / '07.png'}\n"


def test_of_many_problems_the_first_are_printed_and_all_are_written(own, capsys):
    for index in range(24):
        (own / "masks" / f"{index:02}.png").unlink()
    Image.new("L", (5, 5)).save(own / "masks" / "24.png")
    assert check(own) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[-1] == (
        "error: and 5 more (missing mask 4, other size 1); --out FILE writes all of them"
    )
    out = own / "new" / "report.json"
    assert check(own, "--out", str(out)) == 1
    printed = capsys.readouterr()
    assert f"-> {out}\n" in printed.out
    assert printed.err.splitlines()[-1].endswith(f"all are in {out}")
    assert len(json.loads(out.read_text())["problems"]) == 25


def test_masks_without_an_image_are_a_warning(own, capsys):
    for index in range(4):
        (own / "images" / f"{index:02}.png").unlink()
    assert check(own, "--workers", "1") == 0
    masks = ", ".join(str(own / "masks" / f"0{index}.png") for index in range(3))
    assert capsys.readouterr().err == f"warning: masks without a photo: 4 ({masks}, ...)\n"


def test_mistakes_are_one_line_and_exit_code_2(own, capsys):
    for arguments, said in (
        (["voc20"], "voc20 needs --data ROOT"),
        (["voc20", "--data", str(own)], f"voc20: no folder {own}"),
        (["folder", "--images", str(own / "images")], "folder needs --images DIR, --masks DIR"),
    ):
        assert main(["data", "check", *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"error: {said}")
    assert check(own, "--out", str(own)) == 2
    assert (
        capsys.readouterr().err
        == f"error: --out {own} is a folder: give the name of a file in it\n"
    )
