"""How the suite runs on machines that are small or busy: hooks for pytest, taken by conftest.py.

As many workers as processors and free memory allow; a test's time is counted by the share of the
processors that was there for it; a failure is named at once, for workers may die later; and what
the tests of a corpus count is summed at the end.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

import pytest
from pytest_timeout import timeout_sigalrm

from maskclip.core.device import free_memory

WORKER_MEMORY = 3.5 * 2**30
"""Bytes that a worker takes at its peak, with the processes that its tests start (measured)."""
LARGEST_TEST = 1.0 * 2**30
"""Bytes that the largest test takes beyond that: a published student at full size."""
# bytes: the peak of one worker, with the processes that its tests start


def pytest_xdist_auto_num_workers(config):
    """Return the number of workers for `-n auto`."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None
    return worker_count(usable_processors(), free_memory())


def worker_count(processors, memory):
    """Return how many workers there is room for; `memory` in bytes, None where it is unknown."""
    fitting = processors if memory is None else int((memory - LARGEST_TEST) / WORKER_MEMORY)
    return max(min(processors, fitting), 1)


def usable_processors():
    """Return the number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item, settings):
    """Count a test's seconds by the share of the processors that was there for it.

    Without SIGALRM (on Windows) pytest-timeout's own clock is used.
    """
    if settings.method != "signal":
        return None
    left, since = settings.timeout, time.monotonic()

    def expire(signum, frame):
        nonlocal left, since
        now = time.monotonic()
        left, since = left - (now - since) * share_of_processors(), now
        if left > 0.1:
            signal.setitimer(signal.ITIMER_REAL, left)
        else:
            timeout_sigalrm(item, settings)

    def cancel():
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel
    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, left)
    return True


def share_of_processors():
    """Return which part of a processor a running process had in the last minute, in (0, 1]."""
    return min(usable_processors() / max(os.getloadavg()[0], 1e-9), 1.0)


class FailuresAtOnce:
    """Name a failed test when it fails: what is printed at the end may never be."""

    def __init__(self, terminal):
        self.terminal = terminal

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.terminal.ensure_newline()
            self.terminal.write_line(f"FAILED {report.nodeid} ({report.when})", red=True)
            self.terminal.flush()


@pytest.hookimpl(trylast=True)  # the terminal is there by then
def pytest_configure(config):
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailuresAtOnce(terminal))


@pytest.fixture
def tally(request):
    """`tally("crafted weights refused", 97)`: sums that are printed at the end of the run.

    A test may call it often; the counts of all tests, on all workers, are added by their text.
    """

    def count(what, number=1):
        request.node.user_properties.append(("tally", [what, number]))

    return count


def pytest_terminal_summary(terminalreporter):
    """Print the sums of `tally`."""
    sums = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, value in report.user_properties:
                    if name == "tally":
                        sums[value[0]] += value[1]
    if sums:
        terminalreporter.section("counted")
        for what in sorted(sums):
            terminalreporter.write_line(f"{what}: {sums[what]:,}")
