"""Engines that Beam runs on, as processes of their own on free ports of the loopback: Dask, and Beam's job service."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from object_servers import free_ports

STARTING_SECONDS = 60.0


class Cluster:
    """A Dask scheduler and its workers, each ended by its own process id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""
        self.workers: list[subprocess.Popen[bytes]] = []
        self.environment = dict(os.environ)
        self.through: list[str] = []  # a command that starts each process, such as prlimit

    @property
    def runner(self) -> list[str]:
        """What ``penult embed`` is told to run on it."""
        return ["--runner", "DaskRunner", "--", f"--dask_client_address={self.address}"]

    def start_scheduler(self, port: int = 0) -> None:
        told = self.folder / "scheduler.json"
        told.unlink(missing_ok=True)
        self.scheduler = self._start(
            "scheduler", "--host=127.0.0.1", f"--port={port}", "--no-dashboard", f"--scheduler-file={told}"
        )
        until(lambda: told.exists() and told.stat().st_size > 0)
        self.address = json.loads(told.read_text())["address"]

    def add_worker(self, threads: int = 1, *options: str) -> subprocess.Popen[bytes]:
        """Start a worker of so many threads; return the process of its nanny."""
        worker = self._start(
            "worker",
            self.address,
            f"--nthreads={threads}",
            "--no-dashboard",
            "--host=127.0.0.1",
            f"--local-directory={self.folder}",
            *options,
        )
        self.workers.append(worker)
        return worker

    def wait_for_workers(self, count: int) -> None:
        """Wait until the scheduler knows of so many workers."""
        import distributed

        with distributed.Client(self.address, set_as_default=False) as client:
            until(lambda: len(client.nthreads()) >= count)

    def kill(self, process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
        """Signal a process and all it has started."""
        for pid in [process.pid, *below(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_worker(self, nanny: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
        """Signal the worker below a nanny, and not the nanny: it brings a new one."""
        for pid in below(nanny.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        for process in [*self.workers, self.scheduler]:
            self.kill(process)
            process.wait()

    def _start(self, what: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{what}-{len(self.workers)}.log").open("ab") as log:
            return subprocess.Popen(
                [*self.through, sys.executable, "-m", f"distributed.cli.dask_{what}", *words],
                stdout=log,
                stderr=log,
                env=self.environment,
            )


@contextlib.contextmanager
def dask(
    folder: Path, workers: int = 2, threads: int = 1, environment: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """A Dask cluster, with workers under nannies; its logs are in the folder."""
    cluster = Cluster(folder)
    cluster.environment |= environment or {}
    try:
        cluster.start_scheduler()
        for _ in range(workers):
            cluster.add_worker(threads)
        yield cluster
    finally:
        cluster.close()


@contextlib.contextmanager
def job_service(folder: Path, prism: str | None = None) -> Iterator[list[str]]:
    """A portable runner (Beam's own job service, or Prism) and a pool of workers; yields penult's options for them."""
    jobs, web, pool = free_ports(3)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the pool starts a bare ``python``
    python = [sys.executable, "-m"]
    service = [*python, "apache_beam.runners.portability.local_job_service_main", f"--job_port={jobs}"]
    if prism is not None:
        service = [prism, f"-job_port={jobs}", f"-web_port={web}"]
    workers = [*python, "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}"]
    processes = []
    with (folder / "jobs.log").open("wb") as log:
        for command in (service, workers):
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ) | {"PATH": path}))
    try:
        for port in (jobs, pool):
            until(lambda port=port: answers(port))
        yield [
            *("--runner", "PortableRunner", "--", f"--job_endpoint=localhost:{jobs}"),
            *("--environment_type=EXTERNAL", f"--environment_config=localhost:{pool}"),
        ]
    finally:
        for process in processes:
            for pid in [process.pid, *below(process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def answers(port: int) -> bool:
    """Whether something listens on a port of the loopback."""
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


def until(true: Callable[[], object], seconds: float = STARTING_SECONDS) -> None:
    """Wait until a call is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.05)


def below(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *below(int(child))]
    return found
