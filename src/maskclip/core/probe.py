"""Which of two ways to compute the same is faster on this machine: measured once, then recorded.

The ways differ in their last digits. So that all processes of a machine compute alike, as those of
one labelling and who resumes it, what was measured is recorded in the user's cache, for a
processor, a release of torch and a number of threads, until `maskclip doctor --benchmark` measures
again. Where the record cannot be kept each process measures for itself.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import torch

from maskclip.core.errors import MaskCLIPError
from maskclip.core.files import write_json
from maskclip.core.text import read_json

Run = Callable[[], object]

_TURNS = 10  # of runs so short that some of them are interrupted by nothing
_KNOWN: dict[tuple[str, str], float] = {}
"""What this process has measured or read: (machine, name) -> ratio."""


@dataclass(frozen=True)
class Probe:
    """A choice between the usual way to compute something and another.

    Attributes:
        name: under which it is recorded.
        way: the other way, in words.
        most: which share of the usual way's time the other may take to be chosen. Below 1, for
            the choice must not hang on what else the machine does.
        runs: makes what is timed: the usual way and the other, of a few ms each.
    """

    name: str
    way: str
    most: float
    runs: Callable[[], tuple[Run, Run]] = field(repr=False)

    def pays(self) -> bool:
        """Return whether the other way is chosen."""
        return self.ratio() <= self.most

    def ratio(self, *, anew: bool = False) -> float:
        """Return the other way's time over the usual one's.

        Args:
            anew: measure, even though it is known, and record that.
        """
        key = (_machine(), self.name)
        if anew or key not in _KNOWN:
            found = None if anew else _recorded(*key)
            if found is None:
                found = _measured(*self.runs())
                _record(*key, found)
            _KNOWN[key] = found
        return _KNOWN[key]


def record_path() -> Path:
    """Return the file of what was measured; it may not exist yet."""
    return platformdirs.user_cache_path("maskclip") / "probes-1.json"


def _measured(usual: Run, other: Run) -> float:
    """Return the ratio of the shortest times, of runs in turn."""
    # By its processor time, which other work does not disturb, one thread alone can be measured.
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    # A large tensor that is freed lets the C library keep memory for the next, as networks' own do.
    torch.ones(4 * 2**20)
    times: dict[Run, float] = {usual: math.inf, other: math.inf}
    with torch.inference_mode():
        for turn in range(_TURNS + 1):
            for run in times:
                start = now()
                run()
                if turn:  # the first prepares what later ones find
                    times[run] = min(times[run], now() - start)
    return round(times[other] / times[usual], 4)


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _machine() -> str:
    return f"{processor()}; torch {torch.__version__}; {torch.get_num_threads()} threads"


def _read() -> dict[str, Any]:
    """Return the record; an empty one where there is none that can be read."""
    try:
        found = read_json(record_path(), "a record of what was measured")
    except (MaskCLIPError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _recorded(machine: str, name: str) -> float | None:
    ratios = _read().get(machine)
    found = ratios.get(name) if isinstance(ratios, dict) else None
    return found if isinstance(found, float) and 0 < found < math.inf else None


def _record(machine: str, name: str, ratio: float) -> None:
    found = _read()
    ratios = found.get(machine)
    own = ratios if isinstance(ratios, dict) else {}
    with suppress(OSError):  # a cache that cannot be written is none
        write_json({**found, machine: {**own, name: ratio}}, record_path())
