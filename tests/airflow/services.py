"""Airflow's scheduler and API server, on a free port of the loopback, ended by their process ids."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from photos import BIN, FOLDER

PATIENCE = 240.0  # seconds
GRACE = 10.0  # seconds from SIGTERM to SIGKILL


class Api:
    """Airflow's public REST API."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._token = wait_for("the API server", self._new_token)

    def __call__(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request; one that finds SQLite locked is sent again."""
        return wait_for(f"{method} {path}", lambda: self._answer(method, f"/api/v2{path}", body))

    def _new_token(self) -> str | None:
        try:
            return self._answer("GET", "/auth/token", None)["access_token"]
        except urllib.error.URLError:
            return None

    def _answer(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {getattr(self, '_token', '')}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from error


def wait_for(what: str, look: Callable[[], Any]) -> Any:
    """Return the first true thing that ``look`` sees."""
    end = time.monotonic() + PATIENCE
    while not (seen := look()):
        assert time.monotonic() < end, f"Waited for {what} for {PATIENCE:.0f} s."
        time.sleep(1)  # each look may find SQLite locked, and locks it
    return seen


@contextmanager
def running() -> Iterator[Api]:
    """Start the API server, then the scheduler, and end them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    os.environ |= {
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API_AUTH__JWT_SECRET": os.urandom(32).hex(),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    }
    with _started("api-server"):
        api = Api(port)  # once it answers: a task that finds no API server has failed
        with _started("scheduler", "--skip-serve-logs"):
            yield api


@contextmanager
def _started(*arguments: str) -> Iterator[None]:
    with (FOLDER / f"{arguments[0]}.log").open("w") as log:
        process = subprocess.Popen([BIN / "airflow", *arguments], stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has left behind
        process.wait()
