"""Runs in an MLflow server or database: each is written once, and what goes wrong is one sentence, never an error.

No other module imports MLflow.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import UsageError
from pipelines.concurrency import within
from pipelines.options import TrackOptions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_ID = "penult.run_id"  # the tag by which a run is found again
ROW = "penult.row"  # of a child run: its row of the leaderboard, from 1
HEAD_ID = "penult.head_id"  # the head that the run made
PARENT, NAME, NOTE = "mlflow.parentRunId", "mlflow.runName", "mlflow.note.content"
LIMIT_SECONDS = 120.0  # MLflow tries again and again to reach a database
LEAST_RATE = 2**20  # bytes of artifacts per second, for which there is more time
MAX_TOLD = 200  # characters of an error
EXTRA = ("mlflow", "sqlalchemy", "alembic")  # what `penult[track]` brings
SETTINGS = {  # of MLflow, unless the environment has others
    "MLFLOW_DISABLE_TELEMETRY": "true",  # a job tells nobody else of itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; by default 120, seven times over
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the last line of stdout is the job's own
}


@dataclass(frozen=True)
class Entry:
    """What one MLflow run holds.

    Attributes:
        tags: at least ``RUN_ID``, and ``ROW`` if it is a child; those that are empty are left out.
        params: what was asked for; those that are None are left out.
        metrics: numbers; those that are None are left out.
        files: kept as artifacts under their own names.
        children: runs below this one.
        started: when the job began; None for now.
        failed: whether the job did.
    """

    tags: Mapping[str, str]
    params: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    files: Sequence[Path] = ()
    children: Sequence[Entry] = ()
    started: datetime | None = None
    failed: bool = False


def require() -> None:
    """Raise UsageError if MLflow is not installed; for who wants to know before the work."""
    if importlib.util.find_spec("mlflow") is None:
        raise UsageError(_missing("mlflow"))


def attempt(
    options: TrackOptions,
    what: str,
    write: Callable[[Experiment], None],
    say: Callable[[str], None],
    size: int = 0,
) -> str | None:
    """Let ``write`` write to the experiment that the options name.

    Args:
        options: where to; nothing is written without a ``uri``.
        what: is written, in words.
        write: may raise anything.
        say: called with a line if something went wrong.
        size: bytes of artifacts.

    Returns:
        What went wrong, in one sentence; None if nothing did.
    """
    if options.uri is None:
        return None
    seconds = LIMIT_SECONDS + size // LEAST_RATE
    late: str | None = f"MLflow did not take {what} within {seconds:g} s."
    wrong = within(seconds, lambda: _attempt(options, what, write), late)
    if wrong is not None:
        say(wrong)
    return wrong


def _attempt(options: TrackOptions, what: str, write: Callable[[Experiment], None]) -> str | None:
    """Write; return what went wrong."""
    uri = str(options.uri)
    try:
        write(Experiment(uri, options.experiment))
    except ModuleNotFoundError as error:
        return _missing(error.name or str(error))
    except Exception as error:  # MLflow and its databases raise nearly anything
        return f"MLflow did not take {what} ({_told(error, uri)})."
    return None


class Experiment:
    """An experiment of an MLflow server or database; it is made if there is none of this name."""

    def __init__(self, uri: str, name: str) -> None:
        self._client = _client(uri)
        found = self._client.get_experiment_by_name(name)
        self._id = found.experiment_id if found else self._client.create_experiment(name)

    def write(self, entry: Entry) -> None:
        """Write a run, or what was not yet written of it when an earlier attempt was killed.

        One that is there whole stays as it is.
        """
        there = {run.data.tags.get(ROW): run for run in self._runs(RUN_ID, f"= '{entry.tags[RUN_ID]}'")}
        self._write(entry, there, {})

    def mark(self, tag: str, value: str, head_id: str, before: set[str]) -> None:
        """Put a tag on the runs that made a head, and remove it from those that made one of the heads ``before``."""
        for run in self._runs(tag, "LIKE '%'"):
            if run.data.tags.get(HEAD_ID) in before - {head_id}:
                self._client.delete_tag(run.info.run_id, tag)
        for run in self._runs(HEAD_ID, f"= '{head_id}'"):
            if run.data.tags.get(tag) != value:
                self._client.set_tag(run.info.run_id, tag, value)

    def _write(self, entry: Entry, there: Mapping[str | None, Run], below: Mapping[str, str]) -> None:
        from mlflow.entities import Metric, Param, RunStatus

        client, began = self._client, entry.started and int(entry.started.timestamp() * 1000)
        tags = {name: text for name, text in {**entry.tags, **below}.items() if text}
        run = there.get(entry.tags.get(ROW)) or client.create_run(self._id, began, tags)
        if RunStatus.is_terminated(RunStatus.from_string(run.info.status)):
            return
        run_id, now = run.info.run_id, int(time.time() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in _given(entry.metrics) if name not in run.data.metrics]
        params = [Param(name, str(value)) for name, value in _given(entry.params)]
        client.log_batch(run_id, metrics=metrics, params=params)
        for child in entry.children:
            self._write(child, there, {PARENT: run_id})
        for file in entry.files:
            client.log_artifact(run_id, str(file))
        client.set_terminated(run_id, "FAILED" if entry.failed else "FINISHED")

    def _runs(self, tag: str, is_so: str) -> list[Run]:
        return list(self._client.search_runs([self._id], f"tags.`{tag}` {is_so}"))


def head_params(head: str | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a head's family and its parameters, as parameters of an MLflow run."""
    return {"head": head, **{f"head.{name}": value for name, value in params.items()}}


def scored(name: str, value: float | None, ci: Sequence[float] | None) -> dict[str, float | None]:
    """Return a score, from 0 to 1, and the ends of its interval, as metrics."""
    low, high = ci or (None, None)
    return {name: value, f"{name}.low": low, f"{name}.high": high}


def _client(uri: str) -> MlflowClient:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they tell of the tables that they make
    return MlflowClient(uri)


def _given(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in values.items() if value is not None)


def _missing(package: str) -> str:
    brings = "`pip install 'penult[track]'` brings MLflow and its SQLite store" if package in EXTRA else "install it"
    return f"Tracking needs the package {package}: {brings}."


def _told(error: Exception, uri: str) -> str:
    """Return an error's kind and, unless the address holds what may be secret, the first line of its text."""
    kind, text = type(error).__name__, str(error).partition("\n")[0]
    return kind if "@" in uri or "?" in uri or not text else f"{kind}: {text[:MAX_TOLD]}"
