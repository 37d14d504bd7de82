"""Values that are kept for a while, within so many bytes: features of photos, visitors' photos."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


@dataclass
class _Entry(Generic[V]):
    value: V
    size: int
    used: float
    owner: str


class Kept(Generic[K, V]):
    """Values by key: the longest unused go first, and all that nobody uses for a time go.

    Where they become too many, those of the owner go who has most: nobody fills it for others.
    Threads may share it.

    Args:
        max_bytes: what all values may take together.
        max_seconds: how long a value is kept after its last use.
        clock: seconds that only grow.
    """

    def __init__(
        self, max_bytes: int, max_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes, self._max_seconds, self._clock = max_bytes, max_seconds, clock
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """Return a value, as used now, or None where it is not kept."""
        with self._lock:
            self._drop_old()
            entry = self._entries.get(key)
            if entry is None:
                return None
            entry.used = self._clock()
            self._entries.move_to_end(key)
            return entry.value

    def put(self, key: K, value: V, size: int, owner: str = "") -> None:
        """Keep a value of so many bytes; one that is larger than all may be is not kept."""
        with self._lock:
            self._remove(key)
            if size > self._max_bytes:
                return
            self._drop_old()
            while self._held + size > self._max_bytes:
                self._drop_of_most()
            self._entries[key] = _Entry(value, size, self._clock(), owner)
            self._held += size

    def remove(self, key: K) -> bool:
        """Let a value go; return whether it was there."""
        with self._lock:
            return self._remove(key)

    def keys(self) -> list[K]:
        """Return the keys of what is kept, the longest unused first."""
        with self._lock:
            self._drop_old()
            return list(self._entries)

    @property
    def held(self) -> int:
        """The bytes of what is kept."""
        with self._lock:
            self._drop_old()
            return self._held

    def _remove(self, key: K) -> bool:
        entry = self._entries.pop(key, None)
        self._held -= 0 if entry is None else entry.size
        return entry is not None

    def _drop_of_most(self) -> None:
        sizes: Counter[str] = Counter()
        for entry in self._entries.values():
            sizes[entry.owner] += entry.size
        most = max(sizes, key=lambda owner: sizes[owner])
        self._remove(next(key for key, entry in self._entries.items() if entry.owner == most))

    def _drop_old(self) -> None:
        oldest = self._clock() - self._max_seconds
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if entry.used >= oldest:
                return
            self._remove(key)
