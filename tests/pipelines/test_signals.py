"""Ctrl-C and SIGTERM in this process, step by step; ``tests/faults`` sends them to whole ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import Interrupted, OutOfTime, PenultError
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
    assert done == [] and codes(signals._noted) == [130]
    signals._note(TERM, None)
    assert done == [(TERM, signal.SIG_DFL), (os.getpid(), TERM)]


class Ended(Exception):
    pass


def codes(errors: list[PenultError]) -> list[int]:
    return [error.exit_code for error in errors]


@pytest.mark.parametrize(
    ("deferring", "sent", "ended", "noted"),
    [
        (False, [signal.SIGCHLD, TERM], 143, []),
        (False, [INT, TERM], 130, []),
        (True, [signal.SIGCHLD, INT, signal.SIGUSR1, TERM], 143, [130]),
        (True, [TERM, TERM], 143, [143]),
    ],
)
def test_the_watcher_ends_the_process_or_notes_the_first_signal(
    monkeypatch: pytest.MonkeyPatch, deferring: bool, sent: list[int], ended: int, noted: list[int]
) -> None:
    def end(error: PenultError) -> None:
        raise Ended(error.exit_code)

    monkeypatch.setattr(signals, "_end", end)
    monkeypatch.setattr(signals, "_deferring", deferring)
    reads, writes = os.pipe()
    os.write(writes, bytes(sent))
    with pytest.raises(Ended) as caught:
        signals._watch(reads)
    assert caught.value.args == (ended,) and codes(signals._noted) == noted
    os.close(reads)
    os.close(writes)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_end_is_a_sentence_and_an_exit_code(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    said: list[tuple[int, bytes]] = []
    ended: list[int] = []
    monkeypatch.setattr(os, "isatty", lambda descriptor: terminal and descriptor == 2)
    monkeypatch.setattr(os, "write", lambda *given: said.append(given))
    monkeypatch.setattr(os, "_exit", ended.append)
    signals._end(Interrupted(TERM))
    cursor = b"\x1b[?25h\n" if terminal else b""
    assert said == [(2, cursor + f"penult: {Interrupted(TERM)}\n".encode())] and ended == [143]

    def closed(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "write", closed)
    signals._end(Interrupted(INT))
    assert ended == [143, 130]


def test_at_the_very_end_signals_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda *given: done.append(given))
    signals._ignore()
    assert done == [(INT, signal.SIG_IGN), (TERM, signal.SIG_IGN)]
    monkeypatch.undo()


# --- the time limit

OUT_OF_TIME = "Out of time (--timeout {}); what was finished is kept, the same command goes on from there."


def long_ago(seconds: float) -> None:
    """Wait for a timer that should have come by now."""
    time.sleep(seconds + 0.2)


def test_out_of_time_is_raised_at_the_next_safe_point() -> None:
    with pytest.raises(OutOfTime) as caught, signals.time_limit(0.01), signals.deferred():
        signals.check()
        long_ago(0.01)
        signals.check()
        pytest.fail("went on")
    assert str(caught.value) == OUT_OF_TIME.format("0.01s") and caught.value.exit_code == 1
    with signals.deferred():
        signals.check()


def test_out_of_time_is_raised_at_the_end_of_a_block() -> None:
    done = []
    with pytest.raises(OutOfTime), signals.time_limit(0.01), signals.deferred():
        long_ago(0.01)
        done.append(True)
    assert done


@pytest.mark.parametrize("seconds", [0.3, None, 1e300])
def test_nothing_is_left_of_a_limit_that_was_kept(seconds: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[PenultError] = []
    monkeypatch.setattr(signals, "_end", ended.append)
    threads = threading.active_count()
    with signals.time_limit(seconds):
        pass
    with signals.deferred():
        long_ago(0.3)
        signals.check()
    assert not ended and not signals._noted and threading.active_count() == threads


def test_a_timer_that_comes_too_late_to_be_cancelled_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[Any] = []

    class Late:
        daemon = False

        def __init__(self, seconds: float, end: Any) -> None:
            timers.append(end)

        def start(self) -> None:
            pass

        cancel = start

    monkeypatch.setattr(threading, "Timer", Late)
    monkeypatch.setattr(signals, "_end", lambda error: pytest.fail("ended"))
    with signals.time_limit(5.0):
        pass
    timers[0]()
    with signals.deferred():
        timers[0]()
    assert len(timers) == 1 and not signals._noted


def test_a_limit_that_no_check_has_raised_is_forgotten_at_its_end() -> None:
    with pytest.raises(ValueError, match="its own"), signals.time_limit(0.01), signals.deferred():
        long_ago(0.01)
        raise ValueError("its own")
    assert not signals._noted


def test_a_signal_before_the_limit_still_waits_for_its_safe_point() -> None:
    with pytest.raises(Interrupted), signals.time_limit(0.3), signals.deferred():
        os.kill(os.getpid(), TERM)
        long_ago(0.3)
        assert codes(signals._noted) == [143]


WORK = (
    ("import time; time.sleep(60)", 0.5),
    ("import numpy as np; a = np.ones((3000, 3000)); [a @ a for _ in range(10_000)]", 1.0),
    ("import slow", 0.5),
    ("while True: pass", 0.5),
    ("try:\n    import time; time.sleep(60)\nexcept BaseException: pass", 0.5),
)


def test_a_process_ends_in_the_middle_of_its_work(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")

    def run(work: str, limit: float, heeding: bool) -> tuple[subprocess.CompletedProcess[str], float]:
        code = f"import sys; sys.path.append({str(tmp_path)!r})\nfrom pipelines import signals\n"
        code += f"{'signals.heed()' * heeding}\nwith signals.time_limit({limit}):\n{textwrap.indent(work, '    ')}\n"
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
        return done, time.monotonic() - began

    with ThreadPoolExecutor() as pool:  # they sleep for most of their time
        begun = {(*one, heeding): pool.submit(run, *one, heeding) for one in WORK for heeding in (True, False)}
    for (work, limit, heeding), future in begun.items():
        done, seconds = future.result()
        assert (done.returncode, done.stdout) == (1, ""), (work, heeding)
        assert done.stderr == f"penult: {OUT_OF_TIME.format(f'{limit:g}s')}\n", (work, heeding)
        assert limit < seconds < 30, (work, heeding)


def test_sigterm_beats_the_limit_and_keeps_its_exit_code() -> None:
    code = "from pipelines import signals\nimport time\nsignals.heed()\nwith signals.time_limit(60.0):\n"
    code += "    print('on', flush=True)\n    time.sleep(50)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        process.terminate()
        assert process.wait(30) == 143
