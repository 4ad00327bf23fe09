"""Remove what earlier nights left, beyond what the recipe keeps; never what a champion or an unfinished night needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from featurestore import aliases, layout
from featurestore.maintenance.gc import collect
from featurestore.maintenance.verify import tables_of
from featurestore.runs import RunRecord
from featurestore.storage.files import delete, exists
from featurestore.store import FeatureStore
from pipelines.retraining.night import nights
from pipelines.retraining.options import KeepOptions

UNFINISHED_SECONDS = 7 * 86_400  # as `penult gc` waits by default


def tidy(store: FeatureStore, keep: KeepOptions, *, tables: bool = True) -> list[str]:
    """Remove old nights with their heads and records, old versions of tables, the oldest outcomes of fits.

    Kept are the newest ``keep.runs`` nights, every head that an alias points at, and the last ``keep.versions`` heads
    that were the champion. Of the runs of removed nights, the newest record per source and feature set stays, as
    `penult doctor` needs it, and so does every record of imported labels. Runs that are no night's are not touched.
    Without ``tables``, for a night that wrote none, only nights are looked at.

    Returns:
        The ids of the runs that were removed.
    """
    with store.lock():
        removed = list(_removed(store, keep))
        if not tables:
            return removed
        store.recover()
        store.remember()  # readers open the versions noted here, so note the newest before old ones are removed
        collect(store.path, list(tables_of(store.path).values()), UNFINISHED_SECONDS)
        store.remember()
    return removed


def _removed(store: FeatureStore, keep: KeepOptions) -> Iterator[str]:
    ended = [night for night in nights(store.path) if night.outcome is not None]
    if len(ended) <= keep.runs:
        return
    protected = set(_heads_in_use(store, keep.versions))
    newest = {_purpose(run): run.run_id for run in store.runs() if run.kind == "embed"}
    protected |= set(newest.values())
    for night in ended[: -keep.runs]:
        outcome = night.outcome or {}
        head_id = (outcome.get("challenger") or {}).get("head_id")
        made = [run_id for run_id in (*outcome["runs"], head_id, night.run_id) if run_id]
        for run_id in made:
            if run_id not in protected and exists(layout.run(store.path, run_id)):
                delete(layout.run(store.path, run_id))
                yield run_id
        if protected.isdisjoint(made):  # else it is looked at again, until nobody needs what it made
            night.remove()


def _heads_in_use(store: FeatureStore, versions: int) -> Iterator[str]:
    """Yield the heads that aliases point at, and the last ones that were the champion."""
    yield from filter(None, (aliases.resolve(store.path, name) for name in aliases.names(store.path)))
    champions = dict.fromkeys(move.head_id for move in reversed(aliases.history(store.path, aliases.CHAMPION)))
    yield from list(champions)[: versions + 1]


def _purpose(run: RunRecord) -> tuple[Any, Any]:
    return run.parameters.get("source"), run.result.get("feature_set")
