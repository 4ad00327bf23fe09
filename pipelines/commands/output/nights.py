"""What a night of `penult retrain` did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featurestore.options import size_text
from pipelines.commands.output.console import say, table


def night(outcome: Mapping[str, Any]) -> None:
    """Print what a night came to, or what it would do."""
    if outcome["decision"] == "planned":
        _planned(outcome)
        return
    if outcome["repeated"]:
        say(f"The night of {outcome['date']} was done before; this is what it came to.")
    embedded, labels, n = outcome["embed"], outcome["labels"], outcome["n"]
    say(
        f"{embedded['new'] + embedded['changed']:,} files new or changed, {embedded['embedded']:,} embedded, "
        f"{embedded['failed']:,} failed, {embedded['removed']:,} removed; {labels['added']:,} labels new, "
        f"{labels['changed']:,} changed."
    )
    table(
        [
            {"check": check["name"], "value": _number(check["value"]), "limit": _number(check["limit"])}
            | {"status": check["status"], "reason": check["reason"]}
            for check in outcome["checks"]
            if check["status"] != "ok"
        ]
    )
    for who in ("champion", "challenger"):
        if head := outcome[who]:  # the champion is that before tonight
            score = (
                "not scored"
                if head["score"] is None
                else "{:.1%} ({:.1%} to {:.1%})".format(head["score"], *head["ci"])
            )
            say(f"{who.capitalize()}: {head['head_id']}, {score}.")
    if n:
        say(f"Images: {n['train']:,} train, {n['val']:,} val, {n['test']:,} test; {n['classes']:,} classes.")
    for note in outcome["notes"]:
        say(f"Note: {note}")
    say(f"{outcome['date']}: {outcome['decision']}. {outcome['reason']}")
    if outcome["published"]:
        say(f"Published: {outcome['published']}")
    if outcome["report"]:
        say(f"Report: {outcome['report']}")


def night_row(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return a night that has not ended as a row of the table of runs."""
    outcome = f"{told['date']} not finished: {told.get('error', 'it is under way, or was killed')}"
    return {"run": told["run_id"], "started": told["started"], "outcome": outcome, "set": ""}


def _planned(outcome: Mapping[str, Any]) -> None:
    cost = outcome["plan"]
    seconds = (
        "unknown, as nothing was embedded before" if cost["seconds"] is None else f"about {cost['seconds']:,.0f} s"
    )
    say(f"{outcome['date']}: {cost['files']:,} of {cost['seen']:,} files to embed; time: {seconds}.")
    if cost["fits"] is not None:
        say(f"{cost['fits']:,} heads to fit; those that were fitted before on the same images are looked up.")
    say(f"New on the disk: about {size_text(cost['bytes'])}. Nothing was done.")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
