import pytest

from tests import running
from tests.running import free_memory, share_of_processors, worker_count


@pytest.mark.parametrize(
    ("processors", "memory", "workers"),
    [(2, 24, 2), (16, 24, 6), (16, 2, 1), (4, 8, 2), (4, 7.9, 1), (8, None, 8), (1, 100, 1)],
)
def test_workers_fit_processors_and_memory(processors, memory, workers):
    memory = None if memory is None else memory * 2**30
    assert worker_count(processors, memory) == workers


def test_free_memory_is_that_of_a_machine():
    memory = free_memory()
    assert memory is None or 2**26 < memory < 2**50


@pytest.mark.parametrize(("load", "share"), [(0, 1), (1.5, 1), (2, 1), (8, 0.25)])
def test_a_busy_machine_gives_a_share(monkeypatch, load, share):
    monkeypatch.setattr(running, "usable_processors", lambda: 2)
    monkeypatch.setattr(running.os, "getloadavg", lambda: (load, 0, 0), raising=False)
    assert share_of_processors() == pytest.approx(share)
