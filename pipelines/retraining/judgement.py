"""From tonight's data to a decision: what changed, the data checks, the comparison, the contest, the aliases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from featurestore import aliases, layout
from featurestore.dataset import Dataset
from featurestore.errors import PenultError
from featurestore.runs import RunRecord
from featurestore.snapshot import NO_LABEL, Snapshot, short_keys
from featurestore.storage.files import exists
from featurestore.store import FeatureStore
from heads import artifact
from pipelines.options import CompareOptions, FitData
from pipelines.retraining import ingestion
from pipelines.retraining.checks import Evidence, run_checks
from pipelines.retraining.contest import Champion, Contest, hold
from pipelines.retraining.decision import decide
from pipelines.retraining.night import Work
from pipelines.retraining.options import BLOCKED, PROMOTED
from pipelines.stored_heads import promote
from pipelines.training import ON_DISK, compare_heads, load_dataset

CHALLENGER = "challenger"
BY = "penult retrain"


@dataclass(frozen=True)
class Judgement:
    """What a night decided, why, the parts of its outcome that say so, and the contest if there was one."""

    decision: str
    reason: str
    told: dict[str, Any]
    contest: Contest | None = None


def judge(work: Work, embedded: dict[str, Any]) -> Judgement:
    """Check the data, compare heads, hold the contest, decide, and move the aliases.

    Raises:
        HeadError, StoreError, UsageError: see ``pipelines.training.compare_heads``.
    """
    night, recipe, feature_set = work.night, work.recipe, embedded["feature_set"]
    champion = _rival(work)
    data = FitData(feature_set, recipe.labels.label_set, recipe.compare.data.split)
    dataset = load_dataset(work.store, data, ON_DISK)
    labels = night.step("labels", partial(_changed_labels, work, dataset))
    checks = night.step("checks", partial(_checks, work, dataset, embedded, champion))
    unscored = None if champion is None else {"head_id": champion.head_id, "score": None, "ci": None}
    told = {"labels": labels, "checks": checks, "champion": unscored}
    if wrong := [check for check in checks if check["status"] == "block"]:
        return Judgement(BLOCKED, " ".join(f"{check['name']}: {check['reason']}" for check in wrong), told)
    notes = night.step("embed for the champion", partial(ingestion.embed_for, work, champion, feature_set))
    compared = night.step("compare", partial(_compare, work, replace(recipe.compare, data=data)))
    head, _ = artifact.load(work.store.run_folder(compared["winner"]["head_id"]))
    contest = hold(work.store, dataset, head, champion, recipe.promote.min_test_images)
    verdict = night.step("decide", partial(_verdict, work, contest, compared["winner"], champion))
    _move_aliases(work, verdict)
    told |= {"n": compared["n"], "notes": [*notes, *compared["notes"], *contest.notes], **verdict["scores"]}
    return Judgement(verdict["decision"], verdict["reason"], told, contest)


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
        for step in ("embed for the champion", "decide", "publish"):
            steps.pop(step, None)
    return None if current is None else Champion.load(work.store, current)


def _changed_labels(work: Work, dataset: Dataset) -> dict[str, int]:
    """Count the images with a new label, and those with another one, since the last night that compared heads."""
    before = np.full(len(dataset), NO_LABEL)
    for night in reversed(work.earlier):
        challenger = (night.outcome or {}).get("challenger")
        if challenger and (snapshot := _snapshot(work.store, challenger["head_id"])) is not None:
            before = snapshot.labels(short_keys(dataset.keys))
            break
    known = before != NO_LABEL
    return {"added": int((~known).sum()), "changed": int((known & (before != dataset.y)).sum())}


def _snapshot(store: FeatureStore, head_id: str) -> Snapshot | None:
    """Return the images that a head was made from; None if that is not known any more."""
    try:
        _, meta = artifact.load(store.run_folder(head_id))
        return Snapshot.read(store.run_folder(head_id), str(meta.get("labelled")))
    except PenultError:
        return None


def _checks(work: Work, dataset: Dataset, embedded: dict[str, Any], champion: Champion | None) -> list[dict[str, Any]]:
    snapshot = None if champion is None else champion.snapshot
    new_files = embedded["new"] + embedded["changed"]
    evidence = Evidence(dataset, snapshot, new_files, embedded["failed"], ingestion.failed_files(work))
    return run_checks(work.recipe.checks, evidence)


def _compare(work: Work, options: CompareOptions) -> dict[str, Any]:
    """Compare heads as a run of their own; an attempt that was killed after its record was written is not repeated."""
    store, steps = work.store, work.night.told["steps"]
    if "compare run" not in steps:
        work.night.note(**{"compare run": store.new_run_id("compare")})
    folder = store.run_folder(steps["compare run"])
    if exists(folder / layout.RECORD):
        return RunRecord.read(folder).result
    with work.console.bar("compare") as progress:
        return compare_heads(str(store.path), options, progress, run_id=folder.name)


def _verdict(work: Work, contest: Contest, winner: dict[str, Any], champion: Champion | None) -> dict[str, Any]:
    """Return the decision, its reason, and the scores as they stand in the night's outcome."""
    rule, date = work.recipe.promote, work.recipe.date.isoformat()
    later = champion is not None and champion.date is not None and champion.date > date
    obstacle = f"The champion is of a later date, {champion.date}." if later and champion else None
    found = decide(rule, contest.ballot, obstacle, contest.unfit)
    before = None
    if champion is not None:
        before = {"head_id": champion.head_id, "score": None, "ci": None} | (found.champion or {})
    test = {"metric": rule.metric, "rule": rule.rule, "margin": rule.margin, "decisions": 1 + _decisions(work)}
    scores = {
        "champion": before,
        "challenger": {name: winner[name] for name in ("head_id", "head", "params")} | found.challenger,
        "difference": found.difference,
        "test": test | found.parts,
    }
    return {"decision": found.decision, "reason": found.reason, "scores": scores}


def _decisions(work: Work) -> int:
    """Return how often the test split has decided in earlier nights of this recipe."""
    tests = [(night.outcome or {}).get("test") or {} for night in work.earlier]
    return max((test["decisions"] for test in tests if test), default=0)


def _move_aliases(work: Work, verdict: dict[str, Any]) -> None:
    """Point the aliases where the verdict says; the challenger's only forward in time."""
    challenger, date = verdict["scores"]["challenger"], work.recipe.date.isoformat()
    moves = aliases.history(work.store.path, CHALLENGER)
    is_late = bool(moves) and moves[-1].date is not None and moves[-1].date > date
    names = ([] if is_late else [CHALLENGER]) + ([aliases.CHAMPION] if verdict["decision"] == PROMOTED else [])
    for name in names:
        promote(
            work.store,
            challenger["head_id"],
            name,
            reason=verdict["reason"],
            date=date,
            run_id=work.night.run_id,
            score=challenger["score"],
            by=BY,
        )
