"""Whole runs of a program with all its processes: how long, how much memory, and how they are killed.

A run's processes are those that have inherited a variable of its own, so that daemons count too. Linux only.
"""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.environments import HERE, environment

MARK = "PENULT_PEERS_RUN"
COUNT = "PENULT_PEERS_COUNT"  # as programs/embedder.py has it
LIMIT = 300  # seconds: a run that takes longer hangs
SAMPLE = 0.2  # seconds between two looks at the memory
SEARCH = 0.5  # seconds: how long a worker is looked for that has a file open
WRITING = os.O_WRONLY | os.O_RDWR


class Taken(NamedTuple):
    """What a run took: seconds, bytes of memory at most (PSS of all processes), its exit code, what it printed."""

    seconds: float
    peak: int
    code: int | None
    text: str


class Run:
    """A command under way.

    Args:
        command: what runs.
        folder: for the counts of images and for what it prints.
        watched: whether the memory is looked at.
    """

    def __init__(self, command: list[str], folder: Path, watched: bool = False) -> None:
        self.mark, self._peak, self._over = secrets.token_hex(8), 0, threading.Event()
        self._counts, self._printed = folder / "counts", folder / f"printed-{self.mark}"
        variables = environment(**{MARK: self.mark, COUNT: str(self._counts)})
        self._began = time.perf_counter()
        with self._printed.open("wb") as printed:
            self._root = subprocess.Popen(
                command,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
                cwd=HERE / "programs",
            )
        atexit.register(self.kill)  # daemons outlive their run, and would slow down all that follows
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        if watched:
            self._watcher.start()

    def images(self) -> int:
        """How many images have been computed, in this run and in those before it in the same folder."""
        return sum(int(line.split()[1]) for line in self._lines())

    def wait_for(self, images: int) -> None:
        """Wait until so many images have been computed; raise RuntimeError if the run ends or hangs before."""
        while self.images() < images:
            if self._root.poll() is not None or time.perf_counter() - self._began > LIMIT:
                raise RuntimeError(self.end().text[-3000:])
            time.sleep(0.005)

    def end(self) -> Taken:
        """Wait for the end; a run that hangs is killed, and has no exit code. What it leaves running is killed too."""
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):
            code = self._root.wait(LIMIT)
        seconds = time.perf_counter() - self._began
        self._over.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self.kill()
        atexit.unregister(self.kill)
        return Taken(seconds, self._peak, code, self._printed.read_text(errors="replace"))

    def kill(self) -> None:
        """SIGKILL to every process of the run."""
        while pids := self._members():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._root.wait(1)

    def kill_worker(self, output: Path) -> str:
        """SIGKILL to a worker that writes, else to the one that has computed last; return which it was.

        A worker writes if it has a file under the output open for writing. A library without workers loses itself.
        """
        until = time.perf_counter() + SEARCH
        while time.perf_counter() < until:
            for pid in self._members():
                if pid != self._root.pid and _writes(pid, output):
                    os.kill(pid, signal.SIGKILL)
                    return "a worker that writes"
        pid = int(self._lines()[-1].split()[0])
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return "the process itself" if pid == self._root.pid else "a worker that computes"

    def _lines(self) -> list[str]:
        if not self._counts.exists():
            return []
        text = self._counts.read_text()
        return text[: text.rfind("\n") + 1].splitlines()

    def _members(self) -> list[int]:
        wanted, found = f"{MARK}={self.mark}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if wanted in path.read_bytes() and _state(path.parent) != "Z":
                    found.append(int(path.parent.name))
        return found

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE):
            self._peak = max(self._peak, sum(_memory(pid) for pid in self._members()))


def _state(process: Path) -> str:
    return (process / "stat").read_text().rsplit(")", 1)[1].split()[0]


def _memory(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _writes(pid: int, output: Path) -> bool:
    with suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if str(file.readlink()).startswith(str(output)):
                    lines = Path(f"/proc/{pid}/fdinfo/{file.name}").read_text().splitlines()
                    flags = next(line.split()[1] for line in lines if line.startswith("flags:"))
                    if int(flags, 8) & WRITING:
                        return True
    return False
