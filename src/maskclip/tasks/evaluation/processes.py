"""One job in several processes, as `torchrun` starts them; alone, everything is its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from maskclip.core.errors import MaskCLIPError

_OF_A_LAUNCHER = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(days=2)  # processes wait for the slowest; torchrun ends all when one dies


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many.

    Attributes:
        rank: 0 for the one that prints and writes.
        world: their number.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in order of rank, to each of them."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def agree(self, value: Any) -> Any:
        """Return the first process' value to each of them."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Let the processes that a launcher started work together while the block runs.

    They talk over gloo: what they exchange is counts, on the CPU. Each uses a GPU of its own.

    Raises:
        MaskCLIPError: the environment tells of several processes, but not which this one is.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Processes()
        return
    missing = [name for name in _OF_A_LAUNCHER if name not in os.environ]
    if missing:
        raise MaskCLIPError(
            f"WORLD_SIZE is set but {', '.join(missing)} not: start with torchrun, or unset it"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
