"""Results computed before they are needed, in order and in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int
) -> Iterator[Result]:
    """Yield `function` of each item in order, computing up to `ahead` results in advance.

    The executor is shut down at the end; when the caller stops early, waiting items are cancelled.
    An exception of the function is raised in place of its result.
    """
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(running) == ahead:
                yield running.popleft().result()
            running.append(executor.submit(function, item))
        while running:
            yield running.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def usable_cpus() -> int:
    """Return the number of CPUs this process may use; on a node of a cluster, its share."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
