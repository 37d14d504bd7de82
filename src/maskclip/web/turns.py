"""What visitors share: none of them takes it all, and each has a turn. No HTTP."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Generic, TypeVar

V = TypeVar("V")


class Share:
    """So much of something for all visitors; the last quarter is for those who have none of it.

    Args:
        size: how much there is.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._held: Counter[str] = Counter()

    def take(self, visitor: str, amount: int) -> bool:
        """Let a visitor have some; return whether there was enough."""
        left = self.size - self._held.total() - amount
        if left < (self.size // 4 if self._held[visitor] else 0):
            return False
        self._held[visitor] += amount
        return True

    def give_back(self, visitor: str, amount: int) -> None:
        """Take back what a visitor had."""
        self._held[visitor] -= amount
        if not self._held[visitor]:
            del self._held[visitor]


class Turns(Generic[V]):
    """Values that wait: those of one visitor in their order, and visitors one after another.

    Threads may share it.

    Args:
        most: how many may wait; see `Share`.
    """

    def __init__(self, most: int) -> None:
        self._share = Share(most)
        self._waiting: list[tuple[str, V]] = []
        self._last: dict[str, int] = {}  # visitor that waits -> the turn that was last, or its own
        self._turn = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def ended(self) -> bool:
        """Whether nothing waits, and nothing will."""
        return self._closed and not self._waiting

    def put(self, visitor: str, value: V) -> bool:
        """Let a value wait; return whether it may."""
        with self._changed:
            if self._closed or not self._share.take(visitor, 1):
                return False
            self._waiting.append((visitor, value))
            self._last.setdefault(visitor, self._turn)
            self._changed.notify()
            return True

    def get(self, seconds: float | None = None) -> V | None:
        """Return the next value; None where there is none in time, or it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, seconds)
            if not self._waiting:
                return None
            visitor, value = found = min(self._waiting, key=lambda one: self._last[one[0]])
            self._waiting.remove(found)
            self._share.give_back(visitor, 1)
            self._turn += 1
            self._last[visitor] = self._turn
            if all(visitor != other for other, _ in self._waiting):
                del self._last[visitor]
            return value

    def close(self) -> None:
        """Let what waits be had, and nothing more wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
