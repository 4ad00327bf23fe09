"""One MLflow run per night, for those who look at their experiments there. Never ends the night."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from pipelines.options import TrackOptions
from pipelines.tracking.client import HEAD_ID, NAME, NOTE, RUN_ID, Entry, Experiment, attempt, head_params, scored
from pipelines.tracking.heads import mirror


def track(options: TrackOptions, outcome: dict[str, Any], store: PurePath, say: Callable[[str], None]) -> str | None:
    """Write a night as an MLflow run: its parameters, scores and decision. A night that has its run gets no other.

    Args:
        options: where to; nothing is written without a ``uri``.
        outcome: of the night.
        store: whose aliases become tags, see ``pipelines.tracking.heads.mirror``.
        say: called with a line if something went wrong.

    Returns:
        What went wrong, in one sentence; None if nothing did.
    """

    def write(experiment: Experiment) -> None:
        experiment.write(entry_of(outcome))
        mirror(experiment, store)

    return attempt(options, "the night", write, say)


def entry_of(outcome: dict[str, Any]) -> Entry:
    """Return what the MLflow run of a night holds."""
    return Entry(_tags(outcome), _params(outcome), _metrics(outcome))


def _tags(outcome: dict[str, Any]) -> dict[str, str]:
    tags = {
        RUN_ID: outcome["run_id"],
        "penult.date": outcome["date"],
        "penult.decision": outcome["decision"],
        NAME: f"{outcome['recipe']} {outcome['date']}",
        NOTE: outcome["reason"],
    }
    heads = (("penult.champion", "champion"), ("penult.challenger", "challenger"), (HEAD_ID, "challenger"))
    return tags | {tag: outcome[who]["head_id"] for tag, who in heads if outcome[who]}


def _params(outcome: dict[str, Any]) -> dict[str, Any]:
    """Return what was asked for: the recipe, the rule, and the challenger's family with its parameters."""
    challenger, test = outcome["challenger"] or {}, outcome["test"] or {}
    return {
        "recipe": outcome["recipe"],
        **{name: test.get(name) for name in ("rule", "metric", "margin")},
        **head_params(challenger.get("head"), challenger.get("params", {})),
    }


def _metrics(outcome: dict[str, Any]) -> dict[str, float | None]:
    """Return the scores, from 0 to 1, with the ends of their intervals, and the numbers of images and classes."""
    told: dict[str, float | None] = {f"n.{name}": count for name, count in (outcome["n"] or {}).items()}
    for who, key in (("champion", "score"), ("challenger", "score"), ("difference", "value")):
        part = outcome[who] or {}
        told |= scored(who, part.get(key), part.get("ci"))
    return told | {"p_value": (outcome["difference"] or {}).get("p_value")}
