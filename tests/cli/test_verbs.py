"""The other verbs, and what all verbs share."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from maskclip.cli import console, main
from maskclip.core.methods import COSTS, METHODS, SOURCES, for_any_tower, needed_blocks
from maskclip.core.vocabulary import Vocabulary, builtin_names
from tests.conftest import ROOT

VERBS = [
    (),
    ("segment",),
    ("eval",),
    ("convert",),
    ("models",),
    ("recipes",),
    ("methods",),
    ("vocabularies",),
    ("doctor",),
    ("data",),
    ("data", "convert"),
    ("data", "check"),
    ("emoji",),
    ("emoji", "scenes"),
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_help_text_carries_an_example(verb, capsys):
    assert main([*verb, "--help"]) == 0
    printed = capsys.readouterr().out
    command = " ".join(("maskclip", *verb))
    # The usage line is the first mention; an example is another.
    assert printed.replace("│", " ").count(command) >= 2


def test_help_does_not_import_torch():
    code = (
        "import sys; from maskclip.cli import main; main(['--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("maskclip ")


def test_unknown_verbs_and_missing_arguments_are_usage_errors():
    assert main(["segmnt"]) == 2
    assert main(["segment"]) == 2


def test_vocabularies_lists_every_set_and_the_classes_of_one(capsys):
    assert main(["vocabularies"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in builtin_names())
    assert main(["vocabularies", "context459"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1 + 459


def test_models_lists_embedded_and_open_clip_models_without_cutting(capsys):
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    for name in ("emoji-rn", "emoji-vit", "RN50x64", "ViT-L-14-336", "ViT-bigG-14"):
        assert f"\n{name} " in f"\n{listed}"
    assert "laion2b_s34b_b88k" in listed
    assert "SigLIP" not in listed
    assert all(line == line.rstrip() for line in listed.splitlines())


def test_doctor_says_what_a_bug_report_needs(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for part in ("python", "torch", "open_clip_torch", "cpu", "cache of weights", "emoji-rn"):
        assert part in printed


def test_scenes_are_a_data_set_in_the_layout_of_voc(tmp_path, capsys):
    arguments = ["emoji", "scenes", "--out", str(tmp_path), "--count", "2", "--size", "64"]
    assert main(arguments) == 0
    names = (tmp_path / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert list(captions) == names
    classes = (tmp_path / "classes.txt").read_text().splitlines()
    assert tuple(classes) == Vocabulary.builtin("emoji").names
    for name in names:
        assert Image.open(tmp_path / "JPEGImages" / f"{name}.jpg").size == (64, 64)
        mask = Image.open(tmp_path / "SegmentationClass" / f"{name}.png")
        assert mask.mode == "P"
        assert np.asarray(mask).max() < len(classes)


def test_methods_are_listed_with_what_is_known_of_each_as_in_the_docs(capsys):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out.splitlines()
    header, *rows = printed[: 1 + len(METHODS)]
    assert header.split() == ["method", "published", "time", "needs", "from"]
    for row, (name, method) in zip(rows, METHODS.items(), strict=True):
        assert row.startswith(f"{name} ")
        source = SOURCES[name]
        parts = [f"{COSTS[name]:.2f}", source.paper, source.note]
        parts += [] if source.mean is None else [f"{source.mean:.1f}"]
        parts += ["any CLIP" if for_any_tower(method) else "a ViT"]
        parts += [f"{needed_blocks(method)} blocks"] * (needed_blocks(method) > 1)
        parts += ["31 patches"] * (name == "scclip")
        assert all(part in row for part in parts)
    docs = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    begin, end = "<!-- maskclip methods -->", "<!-- end of maskclip methods -->"
    listed = docs[docs.index(begin) + len(begin) : docs.index(end)]
    same = [line.removeprefix("    ") for line in listed.strip("\n").splitlines()]
    assert same == printed, "put what `maskclip methods` prints into docs/methods.md"
    for name in METHODS:
        assert f"\n| `{name}` | " in docs, f"no row of fields for {name} in docs/methods.md"


def test_methods_are_listed_for_programs(capsys):
    assert main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [method["name"] for method in listed] == list(METHODS)
    by_name = {method["name"]: method for method in listed}
    assert by_name["scclip"]["needs"] == {"vit": True, "blocks": 10, "patches": 31}
    assert by_name["clean"]["needs"] == {"vit": False, "blocks": 1, "patches": 1}
    assert by_name["naclip"]["published"] == 39.4
    assert by_name["naclip"]["fields"]["window"] == 5


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_of_methods_fits_a_terminal(width, capsys, monkeypatch):
    def screen(*, errors=False):
        return Console(file=sys.stdout, width=width, force_terminal=True, color_system=None)

    monkeypatch.setattr(console, "console", screen)
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    for name in METHODS:  # names and figures are not broken
        (line,) = (line for line in lines if line.startswith(f"{name} "))
        assert f"{COSTS[name]:.2f}" in line
