"""The night: embed, labels, checks, compare, champion against challenger, publish; idempotent by recipe and date."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from featurestore import aliases, layout
from featurestore.dataset import Dataset
from featurestore.errors import Interrupted, PenultError, StoreLocked
from featurestore.runs import RunRecord
from featurestore.snapshot import NO_LABEL, Snapshot, short_keys
from featurestore.storage.files import exists, write_text
from featurestore.storage.lock import waiting
from featurestore.store import FeatureStore
from heads import artifact
from pipelines import signals
from pipelines.options import CompareOptions, FitData
from pipelines.retraining import ingestion
from pipelines.retraining.checks import Evidence, run_checks
from pipelines.retraining.contest import Champion, Contest, disagreements, hold
from pipelines.retraining.decision import KEPT, PROMOTED, decide
from pipelines.retraining.night import KIND, Console, Night, Work, night_lock, nights, state_of
from pipelines.retraining.notification import notify
from pipelines.retraining.options import RetrainOptions
from pipelines.retraining.page import write_page
from pipelines.retraining.planning import plan
from pipelines.retraining.publishing import publish, published
from pipelines.retraining.recipe import read_recipe
from pipelines.retraining.retention import tidy
from pipelines.retraining.tracking import track
from pipelines.stored_heads import promote
from pipelines.training import compare_heads, load_dataset

BLOCKED, UNCHANGED, FAILED = "blocked", "unchanged", "failed"
CHALLENGER = "challenger"
ON_DISK = 1  # byte of memory for features: they stay in the store until some rows are asked for
BY = "penult retrain"
MOST_DISAGREEMENTS = 24  # images per kind


def retrain(
    recipe: str | Path,
    store: str | Path,
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
        if not isinstance(error, Interrupted | StoreLocked):
            notify(work.recipe.notify, _outcome(work, FAILED, str(error)), work.console.say)
        raise


def _night(work: Work) -> dict[str, Any]:
    night, recipe = work.night, work.recipe
    embedded = night.step("embed", lambda: ingestion.embed_sources(work))
    notes = night.step("import", lambda: ingestion.import_files(work))
    if (last := _last_if_unchanged(work)) is not None:
        reason = f"Nothing has changed since the night of {last['date']}."
        return _recorded(work, _outcome(work, UNCHANGED, reason, embed=embedded, notes=notes, **_carried(last)))
    champion = _rival(work)
    feature_set = embedded["feature_set"]
    data = FitData(feature_set, recipe.labels.label_set, recipe.compare.data.split)
    dataset = load_dataset(work.store, data, ON_DISK)
    told = {"embed": embedded, "labels": night.step("labels", lambda: _changed_labels(work, dataset))}
    told["checks"] = night.step("checks", lambda: _checks(work, dataset, embedded, champion))
    if wrong := [check for check in told["checks"] if check["status"] == "block"]:
        reason = " ".join(f"{check['name']}: {check['reason']}" for check in wrong)
        return _recorded(work, _outcome(work, BLOCKED, reason, notes=notes, **told), page=True)
    notes = notes + night.step("embed for champion", lambda: ingestion.embed_for(work, champion, feature_set))
    compared = night.step("compare", lambda: _compare(work, replace(recipe.compare, data=data)))
    told |= {"n": compared["n"], "notes": [*notes, *compared["notes"]]}
    verdict, contest = _decide(work, dataset, compared, champion)
    _move_aliases(work, verdict, champion)
    published = night.step("publish", lambda: _publish(work))
    outcome = _outcome(work, verdict["decision"], verdict["reason"], published=published, **told, **verdict["scores"])
    outcome["notes"] += contest.notes
    return _recorded(work, outcome, contest, page=True)


def _last_if_unchanged(work: Work) -> dict[str, Any] | None:
    """Return the outcome of the recipe's last night if it decided and nothing has changed since then, else None."""
    same = [night for night in _earlier(work) if night.told["digest"] == work.recipe.digest]
    if not same or same[-1].told.get("state") != _state(work):
        return None
    outcome = same[-1].outcome or {}
    return outcome if outcome["decision"] in (PROMOTED, KEPT, UNCHANGED) else None


def _carried(last: dict[str, Any]) -> dict[str, Any]:
    """Return what an unchanged night takes over from the last one: the numbers of images, and the champion's score."""
    champion = last["champion"]
    if last["decision"] == PROMOTED:
        champion = {name: last["challenger"][name] for name in ("head_id", "score", "ci")}
    return {"n": last["n"], "champion": champion}


def _rival(work: Work) -> Champion | None:
    """Return the champion that tonight's head stands against.

    A night that was killed after its decision has perhaps moved the alias already: it stands by its decision. If
    somebody else has moved it, the night decides anew.
    """
    steps, current = work.night.told["steps"], aliases.resolve(work.store.path, aliases.CHAMPION)
    if (noted := steps.get("decide")) is not None:
        before = (noted["scores"]["champion"] or {}).get("head_id")
        if current in (before, noted["scores"]["challenger"]["head_id"]):
            return None if before is None else Champion.load(work.store, before)
        del steps["decide"]
    return None if current is None else Champion.load(work.store, current)


# -- steps ------------------------------------------------------------------------------------------------------------


def _changed_labels(work: Work, dataset: Dataset) -> dict[str, int]:
    """Count the images with a new label, and those with another one, since the last night that compared heads."""
    before = np.full(len(dataset), NO_LABEL)
    for night in reversed(_earlier(work)):
        challenger = (night.outcome or {}).get("challenger")
        if challenger and (snapshot := _snapshot(work.store, challenger["head_id"])) is not None:
            before = snapshot.labels(short_keys(dataset.keys))
            break
    known = before != NO_LABEL
    return {"added": int((~known).sum()), "changed": int((known & (before != dataset.y)).sum())}


def _checks(work: Work, dataset: Dataset, embedded: dict[str, Any], champion: Champion | None) -> list[dict[str, Any]]:
    snapshot = None if champion is None else champion.snapshot
    new_files = embedded["new"] + embedded["changed"]
    evidence = Evidence(dataset, snapshot, new_files, embedded["failed"], ingestion.failed_files(work))
    checks = run_checks(work.recipe.checks, evidence)
    for check in checks:
        if check["status"] != "ok":
            work.console.say(f"{check['status'].capitalize()}: {check['name']}: {check['reason']}")
    return checks


def _compare(work: Work, options: CompareOptions) -> dict[str, Any]:
    """Compare heads as a run of their own; an attempt that was killed after its record was written is not repeated."""
    store, steps = work.store, work.night.told["steps"]
    if "compare run" not in steps:
        work.night.note(**{"compare run": store.new_run_id("compare")})
    folder = store.run_folder(steps["compare run"])
    if exists(folder / layout.RECORD):
        return RunRecord.read(folder).result
    with work.console.bar("compare") as progress:
        return compare_heads(store.path, options, progress, run_id=folder.name)


def _decide(
    work: Work, dataset: Dataset, compared: dict[str, Any], champion: Champion | None
) -> tuple[dict[str, Any], Contest]:
    """Hold the contest and decide; a decision that was made before stands."""
    rule, winner = work.recipe.promote, compared["winner"]
    head, _ = artifact.load(work.store.run_folder(winner["head_id"]))
    contest = hold(work.store, dataset, head, champion, rule.min_test_images)

    def verdict() -> dict[str, Any]:
        later = champion is not None and champion.date is not None and champion.date > work.recipe.date.isoformat()
        obstacle = f"The champion is of a later date, {champion.date}." if later and champion else None
        found = decide(rule, contest.ballot, obstacle, contest.unfit)
        test = {"metric": rule.metric, "rule": rule.rule, "margin": rule.margin, "decisions": _decisions(work)}
        before = None
        if champion is not None:
            before = {"head_id": champion.head_id, **(found.champion or {"score": None, "ci": None})}
        named = {name: winner[name] for name in ("head_id", "head", "params")}
        scores = {
            "champion": before,
            "challenger": named | found.challenger,
            "difference": found.difference,
            "test": test | found.parts,
        }
        return {"decision": found.decision, "reason": found.reason, "scores": scores}

    return work.night.step("decide", verdict), contest


def _decisions(work: Work) -> int:
    """Return how often the test split has decided, tonight included, in the nights of this recipe."""
    counts = [(night.outcome or {}).get("test") or {} for night in _earlier(work)]
    return 1 + max((test.get("decisions", 0) for test in counts), default=0)


def _move_aliases(work: Work, verdict: dict[str, Any], champion: Champion | None) -> None:
    """Point the aliases where the verdict says; the challenger's only forward in time."""
    challenger, date = verdict["scores"]["challenger"], work.recipe.date.isoformat()
    moves = aliases.history(work.store.path, CHALLENGER)
    names = [] if moves and moves[-1].date is not None and moves[-1].date > date else [CHALLENGER]
    names += [aliases.CHAMPION] if verdict["decision"] == PROMOTED else []
    for name in names:
        why = {"reason": verdict["reason"], "date": date, "run_id": work.night.run_id, "by": BY}
        promote(work.store, challenger["head_id"], name, score=challenger["score"], **why)


def _publish(work: Work) -> str | None:
    """Publish the champion unless it is published; return where it is, None if nothing is published."""
    options, champion = work.recipe.publish, aliases.resolve(work.store.path, aliases.CHAMPION)
    if options.to is None or champion is None:
        return None
    name = f"{work.recipe.date.isoformat()}-{champion}"
    if published(options.to) == champion:
        return str(Path(options.to) / "current")
    return publish(work.store.path, champion, options, name, work.recipe.keep.exports, work.console.say)


def _recorded(
    work: Work, outcome: dict[str, Any], contest: Contest | None = None, *, page: bool = False
) -> dict[str, Any]:
    """Write the night's record, and its report if there is a ``page`` to show; return the outcome."""
    folder = work.store.run_folder(work.night.run_id)
    if page:
        found = None if contest is None else disagreements(contest, MOST_DISAGREEMENTS)
        earlier = [night.outcome for night in _earlier(work) if night.outcome is not None]
        outcome["report"] = str(folder / layout.REPORT)
        write_page(folder / layout.REPORT, outcome, earlier, found)
    asked = {"recipe": str(work.recipe.path), "date": outcome["date"], "digest": work.recipe.digest}
    RunRecord(work.night.run_id, KIND, work.night.told["started"], asked, outcome).write(folder)
    return outcome


def _close(work: Work) -> None:
    """Tell those who want to know, remove what is old, and note that nothing is left to do; once per night."""
    night = work.night
    if night.outcome is None or "state" in night.told:
        return
    notify(work.recipe.notify, night.outcome, work.console.say)
    track(work.recipe.track, night.outcome, work.console.say)
    tidy(work.store, work.recipe.keep, tables=night.outcome["decision"] != UNCHANGED)
    night.close(_state(work))


# -- helpers ----------------------------------------------------------------------------------------------------------


def _outcome(work: Work, decision: str, reason: str, **told: Any) -> dict[str, Any]:
    """Return the outcome of a night; what is not told is empty."""
    empty = {
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
    took = work.night.told["seconds"]
    return {
        "run_id": work.night.run_id,
        "recipe": work.recipe.name,
        "date": work.recipe.date.isoformat(),
        "repeated": False,
        "decision": decision,
        "reason": reason,
        **empty,
        **told,
        "seconds": took | {"total": round(sum(took.values()), 3)},
        "runs": ingestion.all_runs(work),
    }


def _earlier(work: Work) -> list[Night]:
    """Return the nights of this recipe that began before tonight and have ended, oldest first."""
    return [
        night
        for night in nights(work.store.path)
        if night.told["recipe"] == work.recipe.name and night.run_id < work.night.run_id and night.outcome is not None
    ]


def _state(work: Work) -> dict[str, Any]:
    return state_of(work.store, aliases.resolve(work.store.path, aliases.CHAMPION))


def _snapshot(store: FeatureStore, head_id: str) -> Snapshot | None:
    """Return the images that a head was made from; None if that is not known any more."""
    try:
        _, meta = artifact.load(store.run_folder(head_id))
        return Snapshot.read(store.run_folder(head_id), str(meta.get("labelled")))
    except PenultError:
        return None
