"""`maskclip reproduce`: rows whose data and weights are here, and why the others are left out."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import maskclip
from maskclip import recipes
from maskclip.cli import main
from maskclip.core.config import Options
from maskclip.core.errors import install_command
from maskclip.tasks.evaluation.predictors import ModelPredictor
from maskclip.tasks.evaluation.reproduction import Reproduced, pack

ROW = recipes.EMBEDDED["emoji-rn"]
QUICK = replace(ROW.evaluation.model, templates="plain")


def row(dataset, **model):
    evaluation = replace(ROW.evaluation, dataset=dataset, model=replace(QUICK, **model))
    return replace(ROW, evaluation=evaluation)


@pytest.fixture
def rows(monkeypatch):
    """Four rows, of which two can be measured where there is VOC."""
    found = {
        "emoji-vit": row("emoji", name="emoji-vit"),
        "voc20-rn": row("voc20"),
        "voc20-rn50": row("voc20", name="RN50:openai"),
        "ade150-rn": row("ade150"),
    }
    monkeypatch.setattr(recipes, "REPRODUCIBLE", found)
    return found


@pytest.fixture
def root(tmp_path):
    """A data set of one photo in VOC's layout."""
    voc = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("one\n")
    for folder, suffix, array in (
        ("JPEGImages", ".jpg", np.full((40, 60, 3), 128, np.uint8)),
        ("SegmentationClass", ".png", np.full((40, 60), 3, np.uint8)),
    ):
        (voc / folder).mkdir()
        Image.fromarray(array).save(voc / folder / f"one{suffix}")
    return tmp_path / "data"


def reproduce(out, *arguments):
    return main(["reproduce", "--limit", "1", "--out", str(out), *map(str, arguments)])


def test_what_is_there_is_measured_and_the_rest_is_reported(rows, root, tmp_path, capsys):
    out, report = tmp_path / "out", tmp_path / "mine.zip"
    assert reproduce(out, "--data", root, "--report", report) == 0
    printed = capsys.readouterr().out
    assert "measured 2 of 4 rows" in printed
    assert "expected  measured  difference" in printed
    (weights,) = [line for line in printed.splitlines() if line.startswith("left out: voc20-rn50")]
    assert "cannot be downloaded" in weights
    assert weights.endswith("Give a local file for RN50:openai with --weights MODEL=FILE")
    assert f"left out: ade150-rn: ade150: no folder {root}" in printed
    table = {one["name"]: one for one in json.loads((out / "reproduce.json").read_text())["rows"]}
    assert table["voc20-rn"]["miou"] is not None
    assert table["voc20-rn"]["images"] == 1
    assert table["voc20-rn"]["difference"] is None  # one image is not all of them
    assert table["ade150-rn"]["miou"] is None
    assert sorted(path.stem for path in (out / "rows").iterdir()) == ["emoji-vit", "voc20-rn"]
    with zipfile.ZipFile(report) as archive:
        assert sorted(archive.namelist()) == [
            *("reproduce.json", "reproduce.md", "rows/emoji-vit.json", "rows/voc20-rn.json")
        ]
        whole = b"".join(map(archive.read, archive.namelist())).decode()
        result = json.loads(archive.read("rows/voc20-rn.json"))
    assert str(tmp_path) not in whole
    assert result["folders"][0][0] == "DATA/VOCdevkit/VOC2012/JPEGImages"
    assert {"versions", "machine", "arithmetic", "weights", "seconds"} <= result.keys()

    assert reproduce(out, "--data", root) == 0  # nothing is measured again
    assert capsys.readouterr().out.count("(kept)") == 2

    cell = out / "rows" / "emoji-vit.json"
    cell.write_text(cell.read_text().replace('"machine"', '"other"'))
    assert reproduce(out, "--data", root) == 2
    assert "emoji-vit.json is damaged: expected an object as machine" in capsys.readouterr().err


def test_a_figure_of_all_images_is_compared(rows):
    content = {"miou": 66.5, "images": 300, "official_images": 300}
    assert Reproduced.of("emoji-rn", ROW, content).difference == pytest.approx(-0.5)
    assert Reproduced.of("emoji-rn", ROW, {**content, "images": 9}).difference is None
    random = row("emoji", weights="random")
    assert Reproduced.of("emoji-rn", random, content).difference is None
    assert Reproduced.of("emoji-rn", ROW, {"reason": "no data"}).difference is None


def test_rows_of_one_method_are_encoded_once(monkeypatch, tmp_path):
    plain = row("emoji", name="emoji-vit")
    options = Options(refine=("dominant",))
    refined = replace(plain, evaluation=replace(plain.evaluation, options=options))
    monkeypatch.setattr(recipes, "REPRODUCIBLE", {"plain": plain, "refined": refined})
    encode, calls = ModelPredictor.encode, []

    def counted(self, *arguments, **options):
        calls.append(1)
        return encode(self, *arguments, **options)

    monkeypatch.setattr(ModelPredictor, "encode", counted)
    assert reproduce(tmp_path) == 0
    assert len(calls) == 1
    table = json.loads((tmp_path / "reproduce.json").read_text())["rows"]
    assert table[0]["miou"] != table[1]["miou"]


def test_without_data_the_embedded_rows_run(rows, tmp_path, capsys):
    assert reproduce(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "measured 1 of 4 rows" in printed
    assert "left out: voc20-rn, voc20-rn50: voc20 needs --data ROOT" in printed


def test_rows_are_chosen_by_patterns_and_weights_may_be_files(rows, root, tmp_path, capsys):
    (tmp_path / "RN50.pt").write_bytes(b"no weights")
    arguments = ["--data", root, "--rows", "*-rn50", "--rows", "ade*"]
    given = f"RN50:openai={tmp_path / 'RN50.pt'}"
    assert reproduce(tmp_path / "out", *arguments, "--weights", given) == 0
    printed = capsys.readouterr().out
    assert "measured 0 of 2 rows" in printed
    assert f"left out: voc20-rn50: {tmp_path / 'RN50.pt'}" in printed


@pytest.mark.parametrize("form", ["typed", "dotted", "absolute", "linked"])
def test_a_report_names_no_folder_of_weights_that_do_not_fit(
    rows, root, tmp_path, monkeypatch, form
):
    (tmp_path / "alice" / "deep").mkdir(parents=True)
    (tmp_path / "alice" / "deep" / "RN50.pt").write_bytes(b"no weights")
    (tmp_path / "bob").symlink_to(tmp_path / "alice" / "deep", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    file = {
        "typed": "alice/deep/RN50.pt",
        "dotted": ".//alice/./deep/RN50.pt",
        "absolute": tmp_path / "alice" / "deep" / "RN50.pt",
        "linked": tmp_path / "bob" / "RN50.pt",
    }[form]
    given = ["--data", "data", "--rows", "*-rn50", "--weights", f"RN50:openai={file}"]
    assert reproduce("out", *given, "--report", "mine.zip") == 0
    with zipfile.ZipFile("mine.zip") as archive:
        whole = b"".join(map(archive.read, archive.namelist())).decode()
    assert "WEIGHTS/RN50.pt" in whole
    assert not [name for name in ("alice", "bob", "deep", str(tmp_path)) if name in whole]


def test_folders_have_other_names_in_a_report_and_words_stay(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "sets").mkdir(parents=True)
    (tmp_path / "link").symlink_to(home, target_is_directory=True)
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    monkeypatch.chdir(home)
    program = Path(maskclip.__file__).parents[2]
    reason = (
        f"no data in {home}/sets/a, {tmp_path}/link/b, sets/c or {home.parent}/home/sets/w.pt; "
        f"sets of {program}/x are words, and/sets/ too: 1/2; {install_command('eval')}"
    )
    row = Reproduced.of("emoji-rn", ROW, {"reason": reason})
    pack([row], tmp_path / "mine.zip", data=Path("sets"), weights=[Path("/w.pt"), Path("w.pt")])
    with zipfile.ZipFile(tmp_path / "mine.zip") as archive:
        (found,) = json.loads(archive.read("reproduce.json"))["rows"]
    assert found["reason"] == (
        "no data in DATA/a, ~/b, DATA/c or DATA/w.pt; "
        "sets of PYTHON/x are words, and/sets/ too: 1/2; the extra `eval` is missing there"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "voc20"], "--rows voc20: no row is called so"),
        (["--rows", "nothing-*"], "no row is called so; `maskclip recipes` lists them; its stud"),
        (["--data", "nowhere"], "no folder nowhere: --data is the folder that holds VOCdevkit"),
        (["--report", "mine.txt"], "expected a name that ends with .zip"),
        (["--weights", "RN50.pt"], "--weights RN50.pt: expected MODEL=FILE"),
        (["--weights", f"nothing={__file__}"], "no model is 'nothing' here: there are "),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, tmp_path, capsys):
    assert reproduce(tmp_path, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_embedded_rows_come_first_and_need_no_data():
    names = list(recipes.REPRODUCIBLE)
    assert names[:2] == ["emoji-rn", "emoji-vit"]
    assert {one.evaluation.dataset for one in recipes.EMBEDDED.values()} == {"emoji"}
    assert set(recipes.RECIPES) < set(names)
