"""Work in threads: how many, how far ahead, and in how much memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, repeat, takewhile
from typing import Any, Generic, ParamSpec, TypeVar

import pyarrow as pa

from featurestore.concurrency import ahead_of
from featurestore.machine import available_cores

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # from malloc.h
MOST_MMAP = 32 * 2**20  # bytes: how far glibc lets this threshold grow by itself, with the other at twice as much

In = TypeVar("In")
Out = TypeVar("Out")
P = ParamSpec("P")


@functools.cache
def bound_memory() -> None:
    """Make freed memory available to all threads, so that the process does not grow with their number.

    By default glibc uses up to eight heaps per core; each new thread may add one, and none is given back (mallopt(3)).
    Arrow's own memory pool kept 50 MiB per 100,000 catalog rows that Lance's threads had freed. Dask's nanny lets glibc
    give back all but 64 KiB at once, so that each image's pixels are pages that the system makes anew.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_ARENA_MAX, available_cores())
        if "MALLOC_TRIM_THRESHOLD_" in os.environ:
            mallopt(M_MMAP_THRESHOLD, MOST_MMAP)
            mallopt(M_TRIM_THRESHOLD, 2 * MOST_MMAP)


class Once(Generic[P, Out]):
    """A function whose last result is kept; threads that ask for it at the same time wait for one of them to make it.

    A child process that is forked makes its own: threads of the parent, which a result may own, are not in it.
    """

    def __init__(self, function: Callable[P, Out]) -> None:
        functools.update_wrapper(self, function)
        self._signature = inspect.signature(function)
        self._kept: Any = functools.lru_cache(maxsize=1)(function)
        self._making = threading.RLock()
        os.register_at_fork(after_in_child=self._forget)

    def __call__(self, *args: P.args, **options: P.kwargs) -> Out:
        """Return the result, made now if it was made for other arguments."""
        given = self._signature.bind(*args, **options)
        given.apply_defaults()
        with self._making:
            return self._kept(*given.args, **given.kwargs)

    def cache_clear(self) -> None:
        """Forget the result."""
        self._kept.cache_clear()

    def _forget(self) -> None:
        self._making = threading.RLock()  # another thread of the parent may have held it
        self._kept.cache_clear()


@Once
def shared_pool(threads: int) -> ThreadPoolExecutor:
    """Return the pool of this process, whose threads all shards share."""
    return ThreadPoolExecutor(threads)


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
