"""Whatever a weights file or a student holds: it is a model, or one line; nothing of it runs."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.crafted import CANARY, CRAFTED, NAMED, WORKS, may_work, outcome

ORDINARY = sorted(CRAFTED)[::23]
"""The share of the ordinary suite, in this process."""
OUT_OF_MEMORY = ("too much memory", "allocate", "MemoryError")
"""What a message says if memory was asked for before it was known to be needed."""


def check(name, path, found):
    line = found.replace(str(path), "FILE")
    assert not line.startswith("TRACEBACK"), (name, line)
    assert not any(words in line for words in OUT_OF_MEMORY), (name, line)
    if line == WORKS:
        assert may_work(name), name
    else:
        assert "FILE" in line, (name, line)
        assert line.isprintable(), (name, line)
        assert len(line) < 700, (name, line)
        assert "as it should be" not in name, (name, line)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ORDINARY)
def test_a_crafted_file_is_a_model_or_one_line(name, tmp_path, monkeypatch, tally):
    monkeypatch.chdir(tmp_path)
    path = CRAFTED[name](tmp_path)
    check(name, path, outcome(path, named=name.startswith(NAMED)))
    assert not (tmp_path / CANARY).exists()
    tally("crafted weights files and students read or refused")


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(sys.platform != "linux", reason="/proc, and limits of memory")
def test_all_crafted_files_are_models_or_one_line_in_little_memory(tmp_path, tally):
    paths = {"student: as it should be": None, **dict.fromkeys(CRAFTED)}
    for number, name in enumerate(paths):
        (tmp_path / str(number)).mkdir()
        paths[name] = str(CRAFTED[name](tmp_path / str(number)))
    run = subprocess.run(
        [sys.executable, "-m", "tests.crafted"],
        input=json.dumps(paths),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        cwd=tmp_path,
    )
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, (found[-1:], run.stderr[-2000:])
    assert [name for name, _, _ in found] == list(paths)
    assert len(found) > 300
    for name, line, seconds in found:
        check(name, paths[name], line)
        assert seconds < 60, (name, seconds)
        what = "that worked" if line == WORKS else "refused in one line"
        tally(f"crafted weights files and students {what}, in a process of little memory")
    assert not (tmp_path / CANARY).exists()
