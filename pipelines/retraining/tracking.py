"""One MLflow run per night, for those who look at their experiments there. Never ends the night."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelines.concurrency import within
from pipelines.retraining.options import TrackOptions

if TYPE_CHECKING:
    from mlflow import MlflowClient

NIGHT = "penult.run_id"  # the tag by which a night's run is found again
LIMIT_SECONDS = 120.0  # MLflow tries again and again to reach a database
MAX_TOLD = 200  # characters of an error
SETTINGS = {  # of MLflow, unless the environment has others
    "MLFLOW_DISABLE_TELEMETRY": "true",  # a night tells nobody else of itself
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; by default 120, seven times over
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}


def track(options: TrackOptions, outcome: dict[str, Any], say: Callable[[str], None]) -> str | None:
    """Write a night as an MLflow run: its parameters, scores and decision. A night that has its run gets no other.

    Args:
        options: where to; nothing is written without a ``uri``.
        outcome: of the night.
        say: called with a line if something went wrong.

    Returns:
        What went wrong, in one sentence; None if nothing did.
    """
    if options.uri is None:
        return None
    late: str | None = f"MLflow did not take the night within {LIMIT_SECONDS:g} s."
    wrong = within(LIMIT_SECONDS, partial(_attempt, options.uri, options.experiment, outcome), late)
    if wrong is not None:
        say(wrong)
    return wrong


def _attempt(uri: str, experiment: str, outcome: dict[str, Any]) -> str | None:
    """Write the run; return what went wrong."""
    try:
        _write(_client(uri), experiment, outcome)
    except ImportError as error:
        return (
            f"[track] needs the package {error.name}: `pip install 'penult[track]'` brings MLflow and its SQLite store."
        )
    except Exception as error:  # MLflow and its databases raise nearly anything
        return f"MLflow did not take the night ({_told(error, uri)})."
    return None


def _client(uri: str) -> MlflowClient:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they tell of the tables that they make
    return MlflowClient(uri)


def _write(client: MlflowClient, experiment: str, outcome: dict[str, Any]) -> None:
    """Write the run, or what was not yet written of it when an earlier attempt was killed."""
    from mlflow.entities import Metric, Param, RunStatus

    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    runs = client.search_runs([experiment_id], f"tags.`{NIGHT}` = '{outcome['run_id']}'", max_results=1)
    run = runs[0] if runs else client.create_run(experiment_id, tags=_tags(outcome))
    if RunStatus.is_terminated(RunStatus.from_string(run.info.status)):
        return
    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, 0) for name, value in _metrics(outcome).items() if name not in run.data.metrics]
    params = [Param(name, value) for name, value in _params(outcome).items()]
    client.log_batch(run.info.run_id, metrics=metrics, params=params)
    client.set_terminated(run.info.run_id)


def _tags(outcome: dict[str, Any]) -> dict[str, str]:
    tags = {
        NIGHT: outcome["run_id"],
        "penult.date": outcome["date"],
        "penult.decision": outcome["decision"],
        "mlflow.runName": f"{outcome['recipe']} {outcome['date']}",
        "mlflow.note.content": outcome["reason"],
    }
    heads = {f"penult.{who}": outcome[who]["head_id"] for who in ("champion", "challenger") if outcome[who]}
    return tags | heads


def _params(outcome: dict[str, Any]) -> dict[str, str]:
    """Return what was asked for: the recipe, the rule, and the challenger's family with its parameters."""
    challenger, test = outcome["challenger"] or {}, outcome["test"] or {}
    told = {
        "recipe": outcome["recipe"],
        **{name: test.get(name) for name in ("rule", "metric", "margin")},
        "head": challenger.get("head"),
        **{f"head.{name}": value for name, value in challenger.get("params", {}).items()},
    }
    return {name: str(value) for name, value in told.items() if value is not None}


def _metrics(outcome: dict[str, Any]) -> dict[str, float]:
    """Return the scores, from 0 to 1, with the ends of their intervals, and the numbers of images and classes."""
    told: dict[str, Any] = {f"n.{name}": count for name, count in (outcome["n"] or {}).items()}
    for who, key in (("champion", "score"), ("challenger", "score"), ("difference", "value")):
        part = outcome[who] or {}
        low, high = part.get("ci") or (None, None)
        told |= {who: part.get(key), f"{who}.low": low, f"{who}.high": high}
    told["p_value"] = (outcome["difference"] or {}).get("p_value")
    return {name: float(value) for name, value in told.items() if value is not None}


def _told(error: Exception, uri: str) -> str:
    """Return an error's kind and, unless the address holds what may be secret, the first line of its text."""
    kind, text = type(error).__name__, str(error).partition("\n")[0]
    return kind if "@" in uri or "?" in uri or not text else f"{kind}: {text[:MAX_TOLD]}"
