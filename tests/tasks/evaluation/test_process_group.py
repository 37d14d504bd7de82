import json
import subprocess
import sys

import pytest

from maskclip.cli import main
from maskclip.core.errors import MaskCLIPError
from maskclip.tasks.evaluation.evaluate import ProcessGroup, process_group

EVAL = ["eval", "emoji", "--limit", "3", "--size", "64", "--templates", "plain"]


def test_alone_everything_is_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as group:
        assert group == ProcessGroup(rank=0, world_size=1)
        assert group.is_main
        assert group.all_gather("a") == ["a"]
        assert group.broadcast("a") == "a"


def test_several_processes_need_a_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(MaskCLIPError, match=r"RANK.* not: start with torchrun"), process_group():
        pass


def test_two_processes_give_the_scores_of_one(tmp_path, capsys):
    assert main([*EVAL, "--out", str(tmp_path / "one")]) == 0
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [sys.executable, *launch, "-m", "maskclip", *EVAL, "--out", str(tmp_path / "two")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stderr
    # One of them prints, and what it prints is what a single process does.
    assert run.stdout.replace("/two/", "/one/") == capsys.readouterr().out
    one, two = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")
    )
    assert one == two
    # The best and the worst images are those of all processes.
    assert (tmp_path / "two" / "images.png").read_bytes() == (
        tmp_path / "one" / "images.png"
    ).read_bytes()
