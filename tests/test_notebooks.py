"""The notebooks of examples/ run, show what they are stored with, and are small."""

import base64
import json
import re

import pytest

from tools import notebooks

FEWER = {
    "labels-with-words": {"SIDE": 160},
    "a-network-of-your-own": {"PHOTOS": 4, "TESTS": 2, "STEPS": 2, "SIDE": 160},
}
PLACES = re.compile(r"/(?:tmp|home|root|work|Users|var|private)/|[A-Z]:\\")
HERE = """
import shlex
from maskclip.cli import main

def here(given):
    assert main(shlex.split(get_ipython().var_expand(given))) == 0, given
"""
EVERY = [pytest.param(path, id=path.stem) for path in notebooks.paths()]


def outputs(notebook):
    return [one for cell in notebook["cells"] for one in cell.get("outputs", ())]


def shown(output):
    """Return the text of an output: what was printed, or stands for a value."""
    if "text" in output:
        return notebooks.text(output, "text")
    return notebooks.text(output["data"], "text/plain")


def notebook_of(*sources, tags=()):
    cells = [
        {"cell_type": "code", "metadata": {}, "source": source, "outputs": []} for source in sources
    ]
    cells[0]["metadata"] = {"tags": list(tags)}
    for index, cell in enumerate(cells):
        cell |= {"execution_count": None, "id": f"cell{index}"}
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def in_one_process(notebook):
    """Return a copy whose commands run in the kernel, which imports everything but once."""
    copy = json.loads(json.dumps(notebook))
    for cell in copy["cells"]:
        source = re.sub(r"\\\n\s*", "", notebooks.text(cell))
        if cell["cell_type"] == "code" and "!maskclip" in source:
            commands = re.compile(r"^!maskclip (.*)$", re.MULTILINE)
            cell["source"] = HERE + commands.sub(lambda found: f"here({found[1]!r})", source)
    return copy


def test_both_are_here():
    assert {path.stem for path in notebooks.paths()} == set(FEWER)


@pytest.mark.parametrize("path", EVERY)
def test_it_runs_offline_on_little(path, tmp_path):
    notebook = in_one_process(notebooks.read(path))
    assert "here('" in json.dumps(notebook)
    done = notebooks.run(notebook, tmp_path, **FEWER[path.stem])
    assert any("image/png" in one.get("data", {}) for one in outputs(done))


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", EVERY)
def test_it_runs_as_it_is(path, tmp_path):
    notebooks.run(notebooks.read(path), tmp_path)


@pytest.mark.parametrize("path", EVERY)
def test_what_is_stored_is_a_whole_run_and_small(path):
    notebook = notebooks.read(path)
    assert path.stat().st_size < 500_000
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(set(cell["metadata"]) <= {"tags"} for cell in cells)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    for one in outputs(notebook):
        assert one["output_type"] != "error"
        assert one.get("name") != "stderr", "a warning is no part of a lesson"
        assert not PLACES.search(shown(one)), shown(one)
        assert not set(one.get("data", {})) - {"text/plain", "image/jpeg"}
    assert sum("image/jpeg" in one.get("data", {}) for one in outputs(notebook)) >= 4


@pytest.mark.parametrize("path", EVERY)
def test_its_page_shows_the_pictures_that_are_stored(path):
    notebook = notebooks.read(path)
    page, pictures = notebooks.page(notebook, path.stem)
    assert page.startswith("# ")
    assert len(pictures) == sum("image/jpeg" in one.get("data", {}) for one in outputs(notebook))
    assert all(f"]({name})" in page for name in pictures)
    assert all(picture.startswith(b"\xff\xd8") for picture in pictures.values())


def test_the_network_is_better_than_its_teacher_where_it_is_stored():
    path = next(one for one in notebooks.paths() if one.stem == "a-network-of-your-own")
    printed = "".join(shown(one) for one in outputs(notebooks.read(path)))
    figures = dict(re.findall(r"^(teacher|student) +mIoU ([\d.]+) %$", printed, re.MULTILINE))
    assert float(figures["student"]) > float(figures["teacher"]) + 2


def test_outputs_become_small_and_plain(tmp_path):
    notebook = notebook_of(
        "WIDTH = 4000",
        "from PIL import Image\nImage.new('RGB', (WIDTH, 20))",
        "print('a\\x1b[31mb')\nprint('c')",
        tags=["parameters"],
    )
    done = notebooks.small(notebooks.run(notebook, tmp_path, WIDTH=3000))
    (picture, words) = outputs(done)
    assert "width 3000" in json.dumps(picture) or "3000x20" in json.dumps(picture)
    assert "image/png" not in picture["data"]
    assert len(base64.b64decode(picture["data"]["image/jpeg"])) < 5_000
    assert words["text"] == "ab\nc\n"
    assert notebook["cells"][1]["outputs"] == []


@pytest.mark.parametrize("source", ["1 / 0", "!maskclip segment no-such-photo.jpg -c dog"])
def test_a_cell_or_a_command_that_fails_is_an_error(source, tmp_path):
    with pytest.raises(Exception, match=r"ZeroDivisionError|no-such-photo"):
        notebooks.run(notebook_of(source), tmp_path)
