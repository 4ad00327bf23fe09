"""penult in a process of its own, which may be struck by a signal at a named point; run by the battery.

python -m faults.child [--fake] [--at MODULE:FUNCTION before|after NTH SIGNAL] [--wait] COMMAND...

Beam is imported before it says "ready". ``--fake`` puts a counting engine in the CNN's place; ``--wait`` has it read a
line after that.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from typing import Any

from conftest import CountingEngine
from pipelines import __main__ as start
from pipelines import worker
from pipelines.embed import _import_beam


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fake", action="store_true")
    parser.add_argument("--at", nargs=4, action="append", default=[])
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    for point, when, nth, name in asked.at:
        strike_at(point, when, int(nth), signal.Signals[name])
    if asked.fake:
        worker.open_engine = lambda *_args, **_options: CountingEngine(batch_size=8)  # type: ignore[assignment]
    _import_beam()
    sys.argv[1:] = asked.command
    print("ready", flush=True)
    if asked.wait:
        sys.stdin.readline()
    start.main()
