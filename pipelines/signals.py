"""Ctrl-C and SIGTERM: the program ends at once with a sentence, or at a safe point where work would be lost.

Ending at once is safe: whatever is on the disk is whole, and a process that is killed loses no more.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from featurestore.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_noted: list[int] = []  # signals that wait for the next check()
_lock = threading.Lock()  # over what the watcher and deferred() tell each other
_watched = False
_deferring = False


def heed() -> None:
    """From now on a signal ends this process with a sentence, whatever it is at; called once, by the main thread.

    A thread of its own does that: the main one may be in the midst of an import or of a long fit, where Python calls
    no signal handler for seconds, and where an exception may be swallowed. A signal that the shell has this process
    ignore, as that of Ctrl-C in the background, stays ignored.
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
    """Within, a signal is only noted, for ``check`` to raise; a second one ends the process at once.

    Raises:
        Interrupted: at the end of the block, where a signal came and no check has raised it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
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


def check() -> None:
    """Raise Interrupted if a signal was noted."""
    if _noted:
        raise Interrupted(_noted[0])


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
            continue  # a library's own
        with _lock:
            if _noted or not _deferring:
                _end(number)
            _noted.append(number)


def _ignore() -> None:
    """All is done and said: while Python takes itself apart, without the watcher, no signal changes the exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end(number: int) -> None:
    error = Interrupted(number)
    below_a_bar = "\x1b[?25h\n" if os.isatty(2) else ""  # and with the cursor that it hid
    with suppress(OSError):
        os.write(2, f"{below_a_bar}penult: {error}\n".encode())
    os._exit(error.exit_code)


def _note(number: int, _frame: object) -> None:
    if _noted:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _noted.append(number)
