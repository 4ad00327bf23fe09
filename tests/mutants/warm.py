"""pytest in processes forked from one that has imported the libraries, and nothing of the project."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

TESTS = str(Path(__file__).parents[1])


def run_tests(options: list[str], tree: Path, seconds: float) -> tuple[int | None, str]:
    """pytest's exit code in a checkout, None where it did not end in time; and what it said."""
    with tempfile.NamedTemporaryFile() as output:
        process = _context().Process(target=_run, args=(options, str(tree), output.name))
        process.start()
        assert process.pid is not None
        process.join(seconds)
        code = process.exitcode
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what its tests have left running
        process.join()
        return code, Path(output.name).read_text(errors="replace")


def _run(options: list[str], tree: str, output: str) -> None:
    """What the process does; those that its tests start find the checkout by the environment."""
    os.setsid()
    os.chdir(tree)
    os.environ.update(PYTHONPATH=tree, PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    sys.path[:] = [tree, *(place for place in sys.path if place not in ("", TESTS))]
    with Path(output).open("wb") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    code = pytest.main(options)
    sys.stdout.flush()
    os._exit(code)  # without a wait for threads of TensorFlow and Lance


@cache
def _context() -> ForkServerContext:
    """The first process starts the one that the others are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mutants.libraries"])
    return context
