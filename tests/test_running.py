import subprocess
import sys

import pytest

from tests import running
from tests.conftest import ROOT
from tests.running import share_of_processors, worker_count


@pytest.mark.parametrize(
    ("processors", "memory", "workers"),
    [(2, 24, 2), (16, 24, 6), (16, 2, 1), (4, 8, 2), (4, 7.9, 1), (8, None, 8), (1, 100, 1)],
)
def test_workers_fit_processors_and_memory(processors, memory, workers):
    memory = None if memory is None else memory * 2**30
    assert worker_count(processors, memory) == workers


@pytest.mark.parametrize(("load", "share"), [(0, 1), (1.5, 1), (2, 1), (8, 0.25)])
def test_a_busy_machine_gives_a_share(monkeypatch, load, share):
    monkeypatch.setattr(running, "usable_processors", lambda: 2)
    monkeypatch.setattr(running.os, "getloadavg", lambda: (load, 0, 0), raising=False)
    assert share_of_processors() == pytest.approx(share)


DYING = """
import os, time
def test_fails(): assert False
def test_hangs(): time.sleep(60)
def test_dies(): os._exit(3)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a test that hangs ends its process there")
def test_failures_are_named_before_the_process_dies(tmp_path):
    (tmp_path / "test_dying.py").write_text(DYING)
    command = [sys.executable, "-m", "pytest", "-p", "tests.running", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--timeout=0.3", str(tmp_path / "test_dying.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    named = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert named == [
        f"FAILED test_dying.py::{name} (call)" for name in ("test_fails", "test_hangs")
    ]


COUNTING = """
import pytest
@pytest.mark.parametrize("number", [1, 2, 3])
def test_counts(number, tally):
    tally("files tried", number * 1000)
    tally("files refused")
def test_counts_nothing(tally): pass
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_tests_count_is_summed_at_the_end(tmp_path, workers):
    (tmp_path / "test_counting.py").write_text(COUNTING)
    command = [sys.executable, "-m", "pytest", "-p", "tests.running", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*command, "-n", workers, str(tmp_path / "test_counting.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if line]
    first = next(index for index, line in enumerate(lines) if " counted " in line)
    assert lines[first + 1 : first + 3] == ["files refused: 3", "files tried: 6,000"]
