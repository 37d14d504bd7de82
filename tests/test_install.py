"""What the base installation does without the extras, and what it says where it needs one."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
import torch

from maskclip.cli import lists
from maskclip.core.vocabulary import Vocabulary
from maskclip.emoji.scenes import write_scenes
from maskclip.plus.files import TrainedStudent, save_student
from maskclip.plus.student import StudentConfig, build_student
from tests.conftest import ROOT

EXTRAS = [
    *("torchmetrics", "matplotlib", "scipy"),
    *("lightning", "pytorch_lightning", "tensorboard", "ray", "skimage"),
    *("fastapi", "uvicorn", "python_multipart"),
]
RUN = f"""
import contextlib, io, json, sys
for name in {EXTRAS}:
    sys.modules[name] = None  # as if it were not installed
from maskclip.cli import console, main
console._PATIENCE = 3600.0  # what is printed must not hang on the machine's load
for command in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(command)
    print("said", json.dumps([code, said.getvalue()]), flush=True)
"""
WORDS = ("--vocabulary", "emoji", "--model", "emoji")


def run_without_extras(commands, folder):
    """Run commands in a process of its own; return the exit code and the errors of each."""
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([[str(word) for word in command] for command in commands]),
        env={**os.environ, "COLUMNS": "500"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("said ")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    list(write_scenes(folder, count=2, size=64))
    return folder / "JPEGImages"


def test_segment_and_label_need_no_extra(photos, tmp_path):
    words = Vocabulary.parse(["dog", "grass"])
    config = StudentConfig(depth=50, width=4, embed_dim=8)
    student = build_student(config, torch.nn.functional.normalize(torch.rand(2, 8), dim=1))
    save_student(TrainedStudent(student, words), tmp_path / "student.safetensors")
    formats = "png,coco,cvat,label-studio,yolo,scores"
    commands = [
        ("segment", photos, *WORDS, "--out", "a", "--save", "overlay,labels,scores,json"),
        ("segment", photos, "--model", "student.safetensors", "--out", "b"),
        ("label", photos, *WORDS, "--format", formats, "--min-region", "9", "--out", "c"),
        ("emoji", "scenes", "--count", "1", "--size", "32", "--out", "d"),
        ("models",), ("vocabularies",), ("recipes",), ("doctor",),
    ]  # fmt: skip
    assert run_without_extras(commands, tmp_path) == [[0, ""]] * len(commands)
    assert (tmp_path / "a" / "scene_000001_labels.png").is_file()
    assert (tmp_path / "c" / "report.html").is_file()


def test_verbs_that_need_an_extra_say_so_in_one_line(photos, tmp_path):
    sbd = tmp_path / "VOCdevkit" / "VOCaug" / "dataset" / "cls"
    sbd.mkdir(parents=True)
    (sbd / "2008_000001.mat").write_bytes(b"")
    needs = {
        ("eval", "emoji", "--model", "emoji", "--limit", "1"): "eval",
        ("eval", "emoji", "--model", "emoji", "--corruption", "all", "--out", "sweep"): "eval",
        ("data", "convert", "voc-aug", "--data", "."): "eval",
        ("train", "emoji-annofree-rn", "--out", "run"): "train",
        ("train", "--images", photos, "--vocabulary", "emoji", "--out", "run"): "train",
        ("label", photos, *WORDS, "--ray", "--out", "labels"): "ray",
        ("label", photos, *WORDS, "--regions", "slic", "--out", "labels"): "regions",
        ("segment", photos, *WORDS, "--regions", "slic", "--out", "labels"): "regions",
        ("serve", "--model", "emoji"): "web",
    }
    found = run_without_extras(list(needs), tmp_path)
    for (command, extra), (code, said) in zip(needs.items(), found, strict=True):
        line = rf'error: this needs .*: pip install "\S+\[{extra}\]"\n'
        assert re.fullmatch(line, said), (command, said)
        assert code == 2, command


def test_doctor_lists_what_the_project_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements):
        found = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
        return found - {"maskclip"}

    assert names(project["dependencies"]) == set(lists._PACKAGES)
    extras = project["optional-dependencies"]
    assert {extra: names(extras[extra]) for extra in lists._EXTRAS} == {
        extra: set(packages) for extra, packages in lists._EXTRAS.items()
    }
