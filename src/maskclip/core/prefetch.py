"""Work done ahead of its reader, in order and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int
) -> Iterator[Result]:
    """Yield `function` of each item in their order, with at most `ahead` of them in work.

    The executor is shut down at the end, and what waits is cancelled when the reader stops early.
    What a function raises is raised where its result would have been.
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
