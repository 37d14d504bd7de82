"""Choosing where and how precisely to compute, at run time."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from maskclip.core.errors import MaskCLIPError
from maskclip.core.probe import Probe, Run, processor

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


LARGE = 10_000_000
"""Parameters from which on a network is worth preparing: CLIP's smallest image tower has 38
million."""


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; `auto` prefers CUDA, then Apple's GPU, then the CPU.

    Raises:
        MaskCLIPError: no such device, or not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # a device without values, `meta`, fails here too
    except (RuntimeError, AssertionError, TypeError) as error:
        raise MaskCLIPError(
            f"device {name!r} is not to be had here: expected auto, cpu, cuda, cuda:N or mps, "
            "of those that `maskclip doctor` lists"
        ) from error
    return device


def check_precision(name: str) -> None:
    """Refuse what is neither `auto` nor one of `PRECISIONS`.

    Raises:
        MaskCLIPError: names them.
    """
    if name not in ("auto", *PRECISIONS):
        expected = ", ".join(PRECISIONS)
        raise MaskCLIPError(f"unknown precision {name!r}: expected auto, {expected}")


def choose_precision(name: str, device: torch.device, *, parameters: int) -> torch.dtype:
    """Return the dtype called `name`.

    `auto` is bfloat16 on CUDA devices that compute in it, and on CPUs whose matrix products are
    faster in it; float32 elsewhere, and for networks so small that converting costs more than it
    saves.

    Args:
        name: `auto` or one of `PRECISIONS`.
        device: where the network runs.
        parameters: how many it has.

    Raises:
        MaskCLIPError: no such precision.
    """
    check_precision(name)
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cuda":
        with torch.cuda.device(device):  # V100 and T4 only emulate it, slower than float32
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and parameters >= LARGE and BFLOAT16.pays()
    return torch.bfloat16 if fast else torch.float32


def _products() -> tuple[Run, Run]:
    """Return matrix products of a transformer's size, in float32 and in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    tokens, weights = (torch.randn(side, 768, generator=generator) for side in (256, 768))
    narrow = [x.bfloat16() for x in (tokens, weights)]
    return lambda: tokens @ weights.T, lambda: narrow[0] @ narrow[1].T


BFLOAT16 = Probe(
    "bfloat16", "products in bfloat16 by `precision=auto`, not in float32", most=0.8, runs=_products
)
"""Processors with instructions for it take about half the time, others several times it. Labels
differ a little, so it has to be worth it."""


# What CUDA, cuBLAS, cuDNN, MPS, NumPy and torch's allocator for the CPU say when memory is short.
_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "unable to allocate",
    "alloc_failed",
    "invalid buffer size",
    "memoryallocation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory is short; only CUDA has a class of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in _OUT_OF_MEMORY)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what computes, in words that name nobody, ready for JSON."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "system": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "processes": torch.distributed.get_world_size() if shared else 1,
        "gpu": "Apple GPU" if device.type == "mps" else gpu,
        "python": platform.python_version(),
    }


@dataclass
class Cost:
    """What a piece of work took.

    Attributes:
        seconds: by the clock.
        memory: the most bytes that were taken: on CUDA those of torch, weights included; on CPUs,
            under Linux, those of the whole process; None where it is not to be had.
    """

    seconds: float = 0.0
    memory: int | None = None


@contextmanager
def costing(device: torch.device) -> Iterator[Cost]:
    """Measure what the block takes, and what it leaves for the device to do."""
    cost, watched = Cost(), _forget_peak(device)
    _synchronize(device)
    start = time.perf_counter()
    yield cost
    _synchronize(device)
    cost.seconds = time.perf_counter() - start
    cost.memory = _peak(device) if watched else None


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _forget_peak(device: torch.device) -> bool:
    """Begin anew to look for the most memory taken; return whether that can be measured."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if device.type != "cpu" or sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # some containers do not allow it
        return False
    return True


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = [1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None


def free_memory() -> int | None:
    """Return the bytes of main memory that this process can still take; None if that is unknown.

    A container's limit counts as the machine's does.
    """
    if sys.platform != "linux":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        (free,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        return min([1024 * free, *_room_of_groups()])
    except (OSError, ValueError):
        return None


def _room_of_groups() -> list[int]:
    """Return what the limits of this process' control groups leave, of versions 2 and 1."""
    rooms = []
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root, limit, used = "/sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root = "/sys/fs/cgroup/memory"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        for folder in {Path(root), Path(root + group)}:
            try:
                most = (folder / limit).read_text(encoding="ascii").strip()
                taken = int((folder / used).read_text(encoding="ascii"))
                stat = (folder / "memory.stat").read_text(encoding="ascii").split()
            except OSError:
                continue
            cache = dict(zip(stat[::2], map(int, stat[1::2]), strict=True))
            if most != "max":
                rooms.append(int(most) - taken + cache.get("inactive_file", 0))
    return rooms


class Processes(NamedTuple):
    """The processes that train together, as `torchrun` describes them; alone without it."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @classmethod
    def from_environment(cls) -> Processes:
        """Read the variables that `torchrun` sets."""
        values = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        return cls(*(int(os.environ.get(name, value)) for name, value in values.items()))

    def device_of(self, device: torch.device) -> torch.device:
        """Return the GPU of this process, where a launcher started one for each."""
        if device.type != "cuda" or device.index is not None:
            return device
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())
