"""Comparisons and trainings as MLflow runs, and the aliases of their heads as tags of them.

They are not aliases of MLflow's model registry: one there belongs to one model of the whole server, so that two stores
would take it from one another, and promises that ``mlflow.pyfunc`` loads what it points at, which a head does not suit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import PurePath
from typing import Any

from featurestore import aliases, layout
from featurestore.runs import RunRecord
from featurestore.storage.base import storage_of
from featurestore.storage.files import is_file, size_of
from featurestore.store import FeatureStore
from pipelines.options import TrackOptions
from pipelines.tracking.client import HEAD_ID, NAME, NOTE, ROW, RUN_ID, Entry, Experiment, attempt, head_params, scored

KIND, ALIAS = "penult.kind", "penult.alias."  # tags; after the second comes the alias's name
FILES = (layout.REPORT, layout.HEAD, layout.HEAD_ARRAYS)

Say = Callable[[str], None]


def track_run(store: str | PurePath, run_id: str, options: TrackOptions, say: Say = lambda _: None) -> str | None:
    """Write a comparison or a training as an MLflow run, from its record; one that has its run there gets no other.

    The run has the winner's parameters and scores, the report and the head. A comparison has a child run per family,
    and per feature set if several were compared: the best row of the leaderboard. Then the aliases' tags are renewed.

    Args:
        store: that holds the run.
        run_id: its id.
        options: where to; nothing is written without a ``uri``.
        say: called with a line if something went wrong.

    Returns:
        What went wrong, in one sentence; None if nothing did.
    """
    opened = FeatureStore(store)
    folder = opened.run_folder(run_id)

    def write(experiment: Experiment) -> None:
        experiment.write(entry_of(opened, RunRecord.read(folder)))
        mirror(experiment, opened.path)

    return attempt(options, f"the run {run_id}", write, say, size_of(folder / layout.HEAD_ARRAYS) or 0)


def track_aliases(store: str | PurePath, options: TrackOptions, say: Say = lambda _: None) -> str | None:
    """Renew the aliases' tags, see ``mirror``; arguments and answer are those of ``track_run``."""
    path = FeatureStore(store).path
    return attempt(options, "the aliases", lambda experiment: mirror(experiment, path), say)


def mirror(experiment: Experiment, store: PurePath) -> None:
    """Let each alias be a tag of the runs that made the head that it points at, with the time since when it does.

    Heads of other stores keep their tags.
    """
    for name in aliases.names(store):
        moves = aliases.history(store, name)
        experiment.mark(ALIAS + name, moves[-1].moved, moves[-1].head_id, {move.head_id for move in moves})


def entry_of(store: FeatureStore, record: RunRecord) -> Entry:
    """Return the MLflow run of a comparison or a training; ``Experiment.write`` makes runs of its children."""
    told, asked, folder = record.result, record.parameters, store.run_folder(record.run_id)
    winner = told.get("winner", told)
    board = told.get("leaderboard") or [{**told, "class_weight": asked.get("class_weight")}]
    chosen = told.get("chosen", 0)
    common = {
        "label_set": asked["label_set"],
        **{f"split.{part}": asked[key] for part, key in (("val", "val"), ("test", "test"), ("seed", "split_seed"))},
        "seeds": ", ".join(map(str, asked.get("seeds") or [asked.get("seed")])),
        "chosen_by": told.get("chosen_by"),
    }
    n = {f"n.{part}": count for part, count in told["n"].items()}
    children = []
    for rank, row in _best(board) if "leaderboard" in told else ():
        name = " ".join(filter(None, [row["head"], row.get("feature_set")]))
        note = row.get("error") or row.get("note") or ""
        tags = {RUN_ID: record.run_id, ROW: str(rank), KIND: record.kind, NAME: name, NOTE: note}
        metrics = _metrics(row) | n | (_tested(told, winner) if rank == 1 + chosen else {})
        children.append(
            Entry(tags, _params(store, row, told) | common, metrics, started=_time(record), failed="error" in row)
        )
    return Entry(
        {
            **{RUN_ID: record.run_id, HEAD_ID: record.run_id, KIND: record.kind, NAME: record.run_id},
            NOTE: "\n\n".join(told["notes"]),
        },
        _params(store, board[chosen], told) | common,
        _metrics(board[chosen]) | n | _tested(told, winner),
        [storage_of(folder).local(folder / name) for name in FILES if is_file(folder / name)],
        children,
        _time(record),
    )


def _best(board: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the first row per family and feature set, with its number from 1."""
    seen = set()
    for rank, row in enumerate(board, 1):
        if (key := (row["head"], row.get("feature_set"))) not in seen:
            seen.add(key)
            yield rank, row


def _params(store: FeatureStore, row: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    feature_set = row.get("feature_set") or told["feature_set"]
    known = feature_set in store.sets()
    return head_params(row["head"], row["params"]) | {
        "class_weight": row["class_weight"] or "none",
        "views": row.get("views"),
        "feature_set": feature_set,
        "fingerprint": store.spec(feature_set).fingerprint() if known else None,
    }


def _metrics(row: Mapping[str, Any]) -> dict[str, float | None]:
    return scored("val", row["val"], row["val_ci"]) | {
        "fit_seconds": row["fit_seconds"],
        "p_value": row.get("p_value"),
    }


def _tested(told: Mapping[str, Any], winner: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what the test split said of the winner."""
    calibration = winner["calibration"] or {}
    return {
        **scored("test", winner["test"], winner["test_ci"]),
        **{f"test.{name}": value for name, value in winner["metrics"].items() if name != "top1"},
        "baseline": told["baseline"],
        **{f"calibration.{name}": calibration.get(name) for name in ("temperature", "ece_before", "ece_after")},
    }


def _time(record: RunRecord) -> datetime:
    return datetime.fromisoformat(record.started)
