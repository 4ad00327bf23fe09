"""Ctrl-C and SIGTERM, taken at safe points instead of in the middle of a write."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from featurestore.errors import Interrupted

_noted: list[int] = []  # signals that wait for the next check()


@contextmanager
def deferred() -> Iterator[None]:
    """Within, a signal is only noted, for ``check`` to raise; a second one ends the process at once.

    Raises:
        Interrupted: at the end of the block, where a signal came and no check has raised it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    _noted.clear()
    before = {number: signal.signal(number, _note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    check()


def check() -> None:
    """Raise Interrupted if a signal was noted."""
    if _noted:
        raise Interrupted(_noted[0])


def _note(number: int, _frame: object) -> None:
    if _noted:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _noted.append(number)
