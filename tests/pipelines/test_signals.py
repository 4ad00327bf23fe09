"""Ctrl-C and SIGTERM in this process, step by step; ``tests/faults`` sends them to whole ones."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from featurestore.errors import Interrupted
from pipelines import signals

TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing noted, nothing watched; handlers are the same afterwards."""
    monkeypatch.setattr(signals, "_noted", [])
    monkeypatch.setattr(signals, "_watched", False)
    monkeypatch.setattr(signals, "_deferring", False)
    before = [signal.getsignal(number) for number in (INT, TERM)]
    yield
    assert [signal.getsignal(number) for number in (INT, TERM)] == before


@pytest.mark.parametrize("number", [INT, TERM])
def test_a_signal_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    done = []
    with pytest.raises(Interrupted) as caught, signals.deferred():
        os.kill(os.getpid(), number)
        done.append(True)
    assert done and caught.value.exit_code == 128 + number
    with signals.deferred():  # which begins anew
        signals.check()
    assert not signals._noted


def test_a_signal_is_raised_at_a_check() -> None:
    signals.check()
    with pytest.raises(Interrupted), signals.deferred():
        signals.check()
        os.kill(os.getpid(), TERM)
        signals.check()
        pytest.fail("went on")


def test_an_error_of_the_block_is_not_lost() -> None:
    with pytest.raises(ValueError, match="its own"), signals.deferred():
        os.kill(os.getpid(), TERM)
        raise ValueError("its own")
    assert not signals._deferring


def test_other_threads_leave_signals_alone() -> None:
    found: list[Any] = []

    def work() -> None:
        with signals.deferred():
            found.append((signal.getsignal(TERM), signals._deferring))

    before = signal.getsignal(TERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]


def test_where_signals_are_watched_their_handlers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_watched", True)
    before = signal.getsignal(TERM)
    with signals.deferred():
        assert signal.getsignal(TERM) is before and signals._deferring
    assert not signals._deferring


def test_a_second_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda *given: done.append(given))
    monkeypatch.setattr(os, "kill", lambda *given: done.append(given))
    signals._note(INT, None)
    assert done == [] and signals._noted == [INT]
    signals._note(TERM, None)
    assert done == [(TERM, signal.SIG_DFL), (os.getpid(), TERM)]


class Ended(Exception):
    pass


@pytest.mark.parametrize(
    ("deferring", "sent", "ended", "noted"),
    [
        (False, [signal.SIGCHLD, TERM], TERM, []),
        (False, [INT, TERM], INT, []),
        (True, [signal.SIGCHLD, INT, signal.SIGUSR1, TERM], TERM, [INT]),
        (True, [TERM, TERM], TERM, [TERM]),
    ],
)
def test_the_watcher_ends_the_process_or_notes_the_first_signal(
    monkeypatch: pytest.MonkeyPatch, deferring: bool, sent: list[int], ended: int, noted: list[int]
) -> None:
    def end(number: int) -> None:
        raise Ended(number)

    monkeypatch.setattr(signals, "_end", end)
    monkeypatch.setattr(signals, "_deferring", deferring)
    reads, writes = os.pipe()
    os.write(writes, bytes(sent))
    with pytest.raises(Ended) as caught:
        signals._watch(reads)
    assert caught.value.args == (ended,) and signals._noted == noted
    os.close(reads)
    os.close(writes)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_end_is_a_sentence_and_an_exit_code(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    said: list[tuple[int, bytes]] = []
    codes: list[int] = []
    monkeypatch.setattr(os, "isatty", lambda descriptor: terminal and descriptor == 2)
    monkeypatch.setattr(os, "write", lambda *given: said.append(given))
    monkeypatch.setattr(os, "_exit", codes.append)
    signals._end(TERM)
    cursor = b"\x1b[?25h\n" if terminal else b""
    assert said == [(2, cursor + f"penult: {Interrupted(TERM)}\n".encode())] and codes == [143]

    def closed(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "write", closed)
    signals._end(INT)
    assert codes == [143, 130]


def test_at_the_very_end_signals_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda *given: done.append(given))
    signals._ignore()
    assert done == [(INT, signal.SIG_IGN), (TERM, signal.SIG_IGN)]
    monkeypatch.undo()
