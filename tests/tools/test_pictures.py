"""Every picture of the documents is shown by one and made by a command that there is."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

import maskclip
from maskclip.core.methods import METHODS, needed_blocks
from maskclip.emoji.captions import class_names
from maskclip.emoji.scenes import draw_scene
from tests.test_docs import ROOT, arguments, context
from tools.pictures import methods, pages
from tools.pictures.__main__ import DOCS, PICTURES, main

FILES = {path.relative_to(DOCS).as_posix(): path for path in DOCS.rglob("*.*")}
IMAGES = {name: path for name, path in FILES.items() if path.suffix in (".jpg", ".png")}
METHODS_DRAWN = [name for name, one in METHODS.items() if needed_blocks(one) <= methods.BLOCKS]
QUICK = ("maps", "refined")  # the others are drawn by `make test-full`
LEARNT = "student"  # minutes of training come before it


def listed():
    """Yield the patterns of each row of the list in CONTRIBUTING.md, and its commands."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| picture | made by |\n|---|---|\n")[2].partition("\n\n")[0]
    for line in table.splitlines():
        pictures, commands = line.strip("| ").split(" | ")
        yield re.findall(r"`([^`]+)`", pictures), re.findall(r"`([^`]+ [^`]+)`", commands)


def test_every_picture_is_made_by_one_command_of_the_list():
    made = [name for patterns, _ in listed() for name in found(patterns)]
    assert sorted(made) == sorted(IMAGES)


def found(patterns):
    for pattern in patterns:
        matching = [path.relative_to(DOCS).as_posix() for path in DOCS.glob(pattern)]
        assert matching, f"no picture is called {pattern}"
        yield from matching


def test_every_picture_is_shown_in_a_document():
    documents = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *DOCS.glob("*.md")]
    shown = {
        (document.parent / target).resolve()
        for document in documents
        for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", document.read_text(encoding="utf-8"))
    }
    assert shown == set(IMAGES.values())


@pytest.mark.parametrize("row", list(listed()), ids=lambda row: row[0][0])
def test_every_command_of_the_list_is_one(row):
    patterns, commands = row
    assert commands
    for command in commands:
        given = arguments(command)
        if given is not None:
            assert context(given) is not None
            continue
        python, *words = shlex.split(command)
        assert python == "python"
        if words[:2] == ["-m", "tools.pictures"]:
            names = [path.removesuffix(".jpg") for path in found(patterns)]
            assert set(names if words[2] == "NAME" else words[2:]) <= set(PICTURES)
            continue
        script = (ROOT / words[0]).read_text(encoding="utf-8")
        sections = [word for word in words[1:] if re.fullmatch("[a-z-]+", word)]
        if words[1:] == ["NAME"]:
            sections = [path.partition("/")[2].removesuffix(".png") for path in found(patterns)]
        for word in sections:  # options, and names of what the script has in a table
            assert f'"{word}"' in script, f"{words[0]} has no {word}"


def test_all_that_is_drawn_by_the_tool_is_kept():
    assert {f"{name}.jpg" for name in PICTURES} == {name for name in IMAGES if "/" not in name}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.full)
        for name in PICTURES
        if name != LEARNT
    ],
)
def test_a_picture_is_the_one_that_is_kept(name):
    if name == "review" and pages.CHROMIUM is None:
        pytest.skip("there is no Chromium")
    drawn = PICTURES[name]()
    with Image.open(DOCS / f"{name}.jpg") as kept:
        assert kept.size == drawn.size
        apart = np.abs(np.asarray(kept, np.float32) - np.asarray(drawn, np.float32))
    assert apart.mean() < 8, f"draw it again: python -m tools.pictures {name}"


@pytest.mark.full
def test_the_scene_of_the_methods_is_an_ordinary_one():
    """As docs/methods.md says: one of the two whose figures are nearest to the means."""
    read = {name: maskclip.load(methods.MODEL, method=name) for name in METHODS_DRAWN}
    figures = {}
    for seed in range(60):
        drawn = draw_scene(seed, size=(320, 320))
        ids = np.unique(drawn.labels)
        if len(ids) >= 4:
            names = [class_names()[id] for id in ids]
            found = [one.segment(drawn.image, names, refine="none") for one in read.values()]
            figures[seed] = [(ids[one.labels] == drawn.labels).mean() for one in found]
    assert len(figures) == 25
    means = np.mean(list(figures.values()), axis=0)
    apart = {seed: np.abs(np.array(shares) - means).mean() for seed, shares in figures.items()}
    assert methods.SEED in sorted(apart, key=apart.__getitem__)[:2]


def test_what_is_no_picture_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pictures", "nonsense"])
    with pytest.raises(SystemExit, match="no picture is called nonsense"):
        main()
