"""What is faster on a machine is measured once, and recorded."""

import json
import time

import pytest
import torch

from maskclip.core import probe as module
from maskclip.core.probe import Probe, record_path


class Runs:
    """Two ways, the other of which takes a share of the usual one's time, by a clock of ours."""

    now = 0.0

    def __init__(self, monkeypatch, share):
        self.made, self.share = 0, share
        for clock in ("process_time", "perf_counter"):
            monkeypatch.setattr(time, clock, lambda: Runs.now)

    def __call__(self):
        self.made += 1
        return lambda: self.take(1.0), lambda: self.take(self.share)

    def take(self, seconds):
        Runs.now += seconds


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(module, "_KNOWN", {})


@pytest.mark.parametrize(("share", "pays"), [(0.5, True), (0.95, False), (3.0, False)])
def test_the_faster_way_is_chosen(monkeypatch, share, pays):
    probe = Probe("tried", "another way", most=0.9, runs=Runs(monkeypatch, share))
    assert probe.ratio() == pytest.approx(share)
    assert probe.pays() is pays


def test_another_process_chooses_as_the_first_did(monkeypatch):
    first, second = Runs(monkeypatch, 0.5), Runs(monkeypatch, 2.0)
    assert Probe("tried", "another way", most=0.9, runs=first).pays()
    module._KNOWN.clear()  # as in a new process
    assert Probe("tried", "another way", most=0.9, runs=second).pays()
    assert (first.made, second.made) == (1, 0)
    again = Probe("tried", "another way", most=0.9, runs=second)
    assert again.ratio(anew=True) == pytest.approx(2.0)
    module._KNOWN.clear()
    assert not Probe("tried", "another way", most=0.9, runs=first).pays()


def test_other_threads_are_another_machine(monkeypatch):
    assert Probe("tried", "another way", most=0.9, runs=Runs(monkeypatch, 0.5)).pays()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert not Probe("tried", "another way", most=0.9, runs=Runs(monkeypatch, 2.0)).pays()
    ratios = json.loads(record_path().read_text()).values()
    assert [found["tried"] for found in ratios] == [0.5, 2.0]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"machine": 1}', '{"MACHINE": {"tried": -1}}', '{"MACHINE": []}']
)
def test_a_damaged_record_is_none(monkeypatch, text):
    record_path().parent.mkdir(parents=True)
    record_path().write_text(text.replace("MACHINE", module._machine()))
    probe = Probe("tried", "another way", most=0.9, runs=Runs(monkeypatch, 0.5))
    assert probe.ratio() == pytest.approx(0.5)
    assert json.loads(record_path().read_text())[module._machine()] == {"tried": 0.5}


def test_where_nothing_can_be_recorded_it_is_measured(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module, "record_path", lambda: tmp_path / "file" / "probes.json")
    assert Probe("tried", "another way", most=0.9, runs=Runs(monkeypatch, 0.5)).pays()
