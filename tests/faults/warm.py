"""Processes forked from one that has imported all that penult needs: a trial waits for no imports.

The one they are forked from runs nothing: Lance, which does not survive a fork once it has begun, begins in the fork.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

TESTS = Path(__file__).parents[1]
IMPORTED = ("faults.imported",)


class Forked:
    """A function in a process of its own; what trials use of ``subprocess.Popen``, by the same names."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.args = [function.__name__, *arguments]
        context = _context()
        (theirs_in, ours_in), *others = [context.Pipe(duplex=False) for _ in range(3)]
        theirs = (theirs_in, *(write for _, write in others))
        self._process = context.Process(target=_begin, args=(theirs, dict(os.environ), function, arguments))
        self._process.start()
        for connection in theirs:
            connection.close()
        self.stdin = _stream(ours_in, "w")
        self.stdout, self.stderr = (_stream(read, "r") for read, _ in others)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            with suppress(BrokenPipeError):
                stream.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Minus a signal's number where one ended it."""
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Close its input, wait until it ends; all that was not read yet of its output and errors."""
        with suppress(BrokenPipeError):
            self.stdin.close()
        with ThreadPoolExecutor(2) as readers:
            told, said = readers.submit(self.stdout.read), readers.submit(self.stderr.read)
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            return told.result(), said.result()

    def wait(self, timeout: float | None = None) -> None:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(map(str, self.args), timeout or 0)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has ended, and its exit code is still on its way
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def shim() -> Path | None:
    """The library that kills a process at a call (``shim.c``), built once; None where there is no compiler."""
    if shutil.which("cc") is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="shim-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = Path(__file__).with_name("shim.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", folder / "shim.so", source, "-ldl"], check=True)
    return folder / "shim.so"


def counting(file: Path) -> dict[str, str]:
    """The environment in which a process counts its calls that change the disk, and writes their number to a file."""
    return {"LD_PRELOAD": str(shim()), "FAULT_COUNT": str(file), "PYTHONDONTWRITEBYTECODE": "1"}


@cache
def _context() -> ForkServerContext:
    """The server is started with the first process; what it imports it has to find by ``PYTHONPATH``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    library = shim()
    loaded = {} if library is None else {"LD_PRELOAD": str(library)}
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    with mock.patch.dict(os.environ, PYTHONPATH=path, **loaded):
        first = context.Process(target=int)
        first.start()
        first.join()
    return context


def _stream(connection: Connection, mode: str) -> Any:
    stream = os.fdopen(os.dup(connection.fileno()), mode, buffering=1)
    connection.close()
    return stream


def _begin(
    streams: Sequence[Connection],
    environment: dict[str, str],
    function: Callable[..., object],
    arguments: Sequence[Any],
) -> None:
    """What ``Forked`` has its process do; signals do there what they do in a process that a shell has started."""
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(TESTS)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function(*arguments)
