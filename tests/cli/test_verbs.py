"""The other verbs, and what all verbs share."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from maskclip.cli import main
from maskclip.core.vocabulary import Vocabulary, builtin_names

VERBS = [
    (),
    ("segment",),
    ("eval",),
    ("convert",),
    ("models",),
    ("recipes",),
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
