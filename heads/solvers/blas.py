"""How many threads BLAS may use."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside, _limits = 0, ExitStack()


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread, for who multiplies in threads of their own.

    The limit is of the process: of several threads inside, the first sets it and the last lifts it.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _limits.enter_context(_controller().limit(limits=1))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limits.close()
