"""The night: embed, labels, checks, compare, champion against challenger, publish; idempotent by recipe and date.

What needs features or reports is imported only on a night on which something has changed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from featurestore import aliases, layout
from featurestore.errors import Interrupted, OutOfTime, PenultError, StoreLocked
from featurestore.runs import RunRecord
from featurestore.storage.lock import waiting
from featurestore.store import FeatureStore
from pipelines import signals
from pipelines.retraining import ingestion
from pipelines.retraining.night import KIND, Console, Night, Work, night_lock, state_of
from pipelines.retraining.options import BLOCKED, FAILED, PROMOTED, UNCHANGED, RetrainOptions
from pipelines.retraining.recipe import read_recipe
from pipelines.retraining.retention import tidy

if TYPE_CHECKING:
    from pipelines.retraining.contest import Contest

EMPTY: dict[str, Any] = {  # an outcome in which nothing was done
    "embed": None,
    "labels": {"added": 0, "changed": 0},
    "checks": [],
    "champion": None,
    "challenger": None,
    "difference": None,
    "test": None,
    "n": None,
    "notes": [],
    "report": None,
    "published": None,
}


def retrain(
    recipe: str | Path,
    store: str | PurePath,
    options: RetrainOptions = RetrainOptions(),
    console: Console = Console(),
) -> dict[str, Any]:
    """Do what a recipe says for one logical date; return the object that ``penult retrain --json`` prints.

    A night that has ended is not done again: its outcome is returned with ``"repeated": true``. One that was killed
    goes on after its last finished step.

    Args:
        recipe: the TOML file.
        store: the store's folder; it is made if it does not exist.
        options: the logical date, and what else is given beside the recipe.
        console: how to speak to people.

    Raises:
        UsageError: the recipe is invalid; nothing was done.
        TooManyFailures, TooManyRemoved: what was embedded is kept, and the night has not ended.
        StoreLocked: another run holds the store's lock, or another night is under way.
        SourceError, BackboneError, EngineError, HeadError, StoreError: see the jobs.
    """
    options.check()
    told = read_recipe(recipe, options.date or datetime.now(UTC).date())
    if options.plan:
        from pipelines.retraining.planning import plan

        return plan(store, told)
    with signals.time_limit(options.timeout), waiting(options.wait):
        opened = FeatureStore.create(store)
        with night_lock(opened.path):
            work = Work(opened, told, Night.begin(opened, told), console)
            repeated = work.night.outcome is not None
            if not repeated:
                work.night.end(_attempt(work))
            _close(work)
    return {**(work.night.outcome or {}), "repeated": repeated}


def _attempt(work: Work) -> dict[str, Any]:
    """Do a night's steps; if an error ends them, note it and tell those who want to know."""
    try:
        return _night(work)
    except (PenultError, OSError) as error:
        work.night.fail(str(error))
        if not isinstance(error, Interrupted | OutOfTime | StoreLocked):
            _notify(work, _outcome(work, FAILED, str(error)))
        raise


def _night(work: Work) -> dict[str, Any]:
    """Do the steps that were not done before; return the outcome, which the night's record holds."""
    embedded = work.night.step("embed", partial(ingestion.embed_sources, work))
    notes = work.night.step("import", partial(ingestion.import_files, work))
    if (last := _last_if_unchanged(work)) is not None:
        reason = f"Nothing has changed since the night of {last['date']}."
        return _recorded(work, _outcome(work, UNCHANGED, reason, embed=embedded, notes=notes, **_carried(last)))
    from pipelines.retraining.judgement import judge

    found = judge(work, embedded)
    told = found.told | {"embed": embedded, "notes": [*notes, *found.told.get("notes", [])]}
    if found.decision != BLOCKED:
        told["published"] = work.night.step("publish", partial(_publish, work))
    outcome = _outcome(work, found.decision, found.reason, **told)
    outcome["report"] = str(work.store.run_folder(work.night.run_id) / layout.REPORT)
    _write_page(work, outcome, found.contest)
    return _recorded(work, outcome)


def _last_if_unchanged(work: Work) -> dict[str, Any] | None:
    """Return the outcome of the recipe's last night if it decided and nothing has changed since then, else None."""
    same = [night for night in work.earlier if night.told["digest"] == work.recipe.digest]
    if not same or same[-1].told.get("state") != _state(work):
        return None
    outcome = same[-1].outcome or {}
    return None if outcome["decision"] == BLOCKED else outcome


def _carried(last: dict[str, Any]) -> dict[str, Any]:
    """Return what an unchanged night takes over from the last one: the numbers of images, and the champion's score."""
    champion = last["champion"]
    if last["decision"] == PROMOTED:
        champion = {name: last["challenger"][name] for name in ("head_id", "score", "ci")}
    return {"n": last["n"], "champion": champion}


def _publish(work: Work) -> str | None:
    """Publish the champion unless it is published; return where it is, None if nothing is published."""
    options, champion = work.recipe.publish, aliases.resolve(work.store.path, aliases.CHAMPION)
    if options.to is None or champion is None:
        return None
    from pipelines.retraining.publishing import publish, published

    if published(options.to) == champion:
        return str(Path(options.to) / "current")
    name = f"{work.recipe.date.isoformat()}-{champion}"
    return publish(str(work.store.path), champion, options, name, work.recipe.keep.exports, work.console.say)


def _write_page(work: Work, outcome: dict[str, Any], contest: Contest | None) -> None:
    from pipelines.retraining.page import write_page

    write_page(work.store, outcome, [night.outcome or {} for night in work.earlier], contest)


def _recorded(work: Work, outcome: dict[str, Any]) -> dict[str, Any]:
    """Write the night's record; return its outcome."""
    asked = {"recipe": str(work.recipe.path), "date": outcome["date"], "digest": work.recipe.digest}
    record = RunRecord(work.night.run_id, KIND, work.night.told["started"], asked, outcome)
    record.write(work.store.run_folder(work.night.run_id))
    return outcome


def _close(work: Work) -> None:
    """Tell those who want to know, remove what is old, and note that nothing is left to do; once per night."""
    night = work.night
    if night.outcome is None or "state" in night.told:
        return
    _notify(work, night.outcome)
    if work.recipe.track.uri is not None:
        from pipelines.retraining.tracking import track

        track(work.recipe.track, night.outcome, work.store.path, work.console.say)
    tidy(work.store, work.recipe.keep, tables=night.outcome["decision"] != UNCHANGED)
    night.close(_state(work))


def _notify(work: Work, outcome: dict[str, Any]) -> None:
    options = work.recipe.notify
    if options.command is not None or options.url is not None:
        from pipelines.retraining.notification import notify

        notify(options, outcome, work.console.say, str(work.store.path))


def _outcome(work: Work, decision: str, reason: str, **told: Any) -> dict[str, Any]:
    """Return the outcome of a night; what is not told is empty."""
    took = work.night.told["seconds"]
    return {
        "run_id": work.night.run_id,
        "recipe": work.recipe.name,
        "date": work.recipe.date.isoformat(),
        "repeated": False,
        "decision": decision,
        "reason": reason,
        **EMPTY,
        **told,
        "seconds": took | {"total": round(sum(took.values()), 3)},
        "runs": ingestion.runs_of(work),
    }


def _state(work: Work) -> dict[str, Any]:
    return state_of(work.store, aliases.resolve(work.store.path, aliases.CHAMPION))
