"""Handle Ctrl-C, SIGTERM and a time limit: end the process with a message, at once or where no work is lost.

Ending at once is safe: files on the disk are always complete, and a killed process would lose just as much.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from featurestore.errors import Interrupted, OutOfTime, PenultError

SIGNALS = (signal.SIGINT, signal.SIGTERM)

TEXT: Callable[[str], str] = "penult: {}".format
farewell = TEXT  # makes the last line of an error; the console may set another

_noted: list[PenultError] = []  # why to end, waiting for the next check()
_lock = threading.Lock()  # guards the state that the watcher, deferred() and time_limit() share
_watched = False
_deferring = False


def heed() -> None:
    """Make a signal end this process with a message from now on; call it once, in the main thread.

    A watcher thread ends the process. The main thread may be inside an import or a long fit, where Python runs no
    signal handler for seconds and where an exception may be swallowed. Signals that the shell told this process to
    ignore, such as Ctrl-C for a background process, stay ignored.
    """
    global _watched
    _watched = True
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
            signal.siginterrupt(number, False)
    threading.Thread(target=_watch, args=(reads,), daemon=True).start()
    atexit.register(_ignore)


@contextmanager
def deferred() -> Iterator[None]:
    """Note signals while the block runs, for ``check`` to raise an error; a second signal ends the process at once.

    Raises:
        Interrupted, OutOfTime: at the end of the block, if a signal or the time limit came and no ``check`` raised it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers
        return
    before = {} if _watched else {number: signal.signal(number, _note) for number in SIGNALS}
    _defer(True)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _defer(False)
    check()


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """End the process as SIGTERM does, but with exit code 1, if the block takes longer; None is no limit.

    A timer's thread ends it, for the same reasons as the watcher's. It leaves a signal that came before it alone.

    Raises:
        OutOfTime: by ``check``, or at the end of a block of ``deferred``.
    """
    if seconds is None:
        yield
        return
    from featurestore.options import time_text

    running, error = [True], OutOfTime(time_text(seconds))

    def end() -> None:
        with _lock:
            if running and not _noted:
                _take(error)

    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with _lock:  # the timer may be just beyond the point where it can be cancelled
            running.clear()
            if error in _noted:
                _noted.remove(error)


def check() -> None:
    """Raise Interrupted if a signal was noted, or OutOfTime if the time limit was."""
    if _noted:
        raise _noted[0]


def _defer(begin: bool) -> None:
    global _deferring
    with _lock:
        _deferring = begin
        if begin:
            _noted.clear()


def _watch(pipe: int) -> None:
    while True:
        number = os.read(pipe, 1)[0]
        if number not in SIGNALS:
            continue  # a signal that a library handles
        with _lock:
            _take(Interrupted(number))


def _take(error: PenultError) -> None:
    """End the process, or note why for the next ``check``; the lock must be held."""
    if _noted or not _deferring:
        _end(error)
    _noted.append(error)


def _ignore() -> None:
    """Ignore signals during Python's own exit: the watcher does not run then, and the exit code must not change."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end(error: PenultError) -> None:
    below_a_bar = "\x1b[?25h\n" if os.isatty(2) else ""  # below a progress bar, and show the cursor that it hid
    with suppress(OSError):
        os.write(2, f"{below_a_bar}{farewell(str(error))}\n".encode())
    os._exit(error.exit_code)


def _note(number: int, _frame: object) -> None:
    if _noted:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _noted.append(Interrupted(number))
