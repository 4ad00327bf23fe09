"""Work in threads: how many, how far ahead, and in how much memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import chain, islice, repeat, takewhile
from typing import TypeVar

import pyarrow as pa

from featurestore.machine import available_cores

M_ARENA_MAX = -8  # from malloc.h

In = TypeVar("In")
Out = TypeVar("Out")


@functools.cache
def bound_memory() -> None:
    """Make freed memory available to all threads, so that the process does not grow with their number.

    By default glibc uses up to eight heaps per core; each new thread may add one, and none is given back (mallopt(3)).
    Arrow's own memory pool kept 50 MiB per 100,000 catalog rows that Lance's threads had freed.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, available_cores())


def ahead_of(pool: Executor, function: Callable[[In], Out], items: Iterable[In], ahead: int) -> Iterator[Out]:
    """Map a function over items in a pool, in order, with at most ``ahead`` results begun and not yet taken."""
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


def read_ahead(items: Iterator[In], size: int) -> Iterator[In]:
    """Yield the items, which a thread reads in lists of ``size``: the next one while this one is worked on."""
    lists = batched(items, size)
    with ThreadPoolExecutor(1) as pool:
        ahead = ahead_of(pool, lambda _: next(lists, []), repeat(None), 2)
        yield from chain.from_iterable(takewhile(bool, ahead))


def within(seconds: float, work: Callable[[], Out], late: Out) -> Out:
    """Return what ``work``, which must not raise, returns; ``late`` if it takes longer.

    It then goes on in its thread, and ends with the process at the latest.
    """
    found = [late]
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[-1]


def batched(items: Iterable[In], size: int) -> Iterator[list[In]]:
    """Yield the items in lists of ``size``; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
