"""Work in threads, with a bounded number of results that wait to be taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import TypeVar

AT_ONCE = 32  # small reads from a place that may be far away

In = TypeVar("In")
Out = TypeVar("Out")


def ahead_of(pool: Executor, function: Callable[[In], Out], items: Iterable[In], ahead: int) -> Iterator[Out]:
    """Map a function over items in a pool, in order, with at most ``ahead`` results begun and not yet taken.

    At the end, after an error too, no call is running any more.
    """
    begun: deque[Future[Out]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) >= ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
        wait(begun)


def side_by_side(function: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]:
    """Map a function that waits more than it computes over items, in order, many at once."""
    if len(items) < 2:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(min(AT_ONCE, len(items))) as pool:
        yield from ahead_of(pool, function, items, AT_ONCE)
