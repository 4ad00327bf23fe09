"""penult in a process of its own, which may be struck by a signal at a named point; run by the battery.

python -m faults.child [--fake] [--at MODULE:FUNCTION before|after NTH SIGNAL]
                       [--call NTH [--half]] [--wait] COMMAND...

Beam is imported before it says "ready" to an embed run. ``--fake`` puts a counting engine in the CNN's place;
``--call`` has the shim kill it at its NTH call that changes the disk; ``--wait`` has it read a line after "ready".

python -m faults.child --each MARK

runs, each in a fork of its own, what standard input tells: words as above, a JSON list a line. It says how each ended,
and makes and removes the folder MARK after it.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import CountingEngine
from pipelines import __main__ as start
from pipelines.embedding import worker
from pipelines.embedding.embed import import_beam


def strike_at(point: str, when: str, nth: int, number: int) -> None:
    """Wrap the function at ``point`` so that its ``nth`` call sends this process a signal."""
    module_name, path = point.split(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    function, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls == nth
        if mine and when == "before":
            os.kill(os.getpid(), number)
        result = function(*args, **options)
        if mine and when == "after":
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, wrapped)


def strike_at_call(nth: int, half: bool) -> None:
    """Have the shim, with which this process was loaded, kill it at the nth call from now on that changes the disk."""
    ctypes.CDLL(None).strike(ctypes.c_long(nth), half)


def run(words: Sequence[str]) -> None:
    """Run a command as asked; the process ends with it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fake", action="store_true")
    parser.add_argument("--at", nargs=4, action="append", default=[])
    parser.add_argument("--call", type=int)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args(words)
    for point, when, nth, name in asked.at:
        strike_at(point, when, int(nth), signal.Signals[name])
    if asked.fake:
        worker.open_engine = lambda *_args, **_options: CountingEngine(batch_size=8)  # type: ignore[assignment]
    if asked.command[0] == "embed":
        import_beam()
    sys.argv[1:] = asked.command
    print("ready", flush=True)
    if asked.wait:
        sys.stdin.readline()
    if asked.call:
        strike_at_call(asked.call, asked.half)
    start.main()


def each(mark: Path) -> list[str]:
    """Fork for each line of standard input, and return what it asks for in the fork; end with standard input."""
    warnings.filterwarnings("ignore", "lance is not fork-safe")  # it is until something of it has run
    import_beam()
    for line in sys.stdin:
        if (fork := os.fork()) == 0:
            os.dup2(2, 1)
            return list(json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
        mark.mkdir()
        mark.rmdir()
        print(code, flush=True)
    sys.exit()


if __name__ == "__main__":
    run(each(Path(sys.argv[2])) if sys.argv[1] == "--each" else sys.argv[1:])
