import json

import numpy as np
import pytest
from PIL import Image

from maskclip.cli import main


@pytest.fixture
def own(tmp_path):
    """Write 25 images of 2x1 px with masks, and classes, and return the folder."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(25):
        Image.new("RGB", (2, 1)).save(tmp_path / "images" / f"{index:02}.png")
        Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "masks" / f"{index:02}.png")
    (tmp_path / "classes.txt").write_text("dog\n[bold]\n")
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
        ["dog", "25", "25", "100.00"],
        ["[bold]", "0", "0", "0.00"],
        ["ignored", "25", "25"],
        ["folder,", "25", "images:", "no", "problems"],
    ]
    assert printed.err == ""


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
    assert capsys.readouterr().err == f"warning: masks without an image: 4 ({masks}, ...)\n"


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
