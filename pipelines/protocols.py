"""Evaluate stored features by a published protocol, and keep a run record in the store; no head is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from featurestore.runs import RunRecord, utc_now
from featurestore.splits import SPLITS
from featurestore.store import FeatureStore
from heads.protocols import table
from pipelines.options import FitData
from pipelines.training import left_out, load_datasets


def evaluate(
    store: str | PurePath, protocol: str, data: FitData = FitData(), sets: Sequence[str] = ()
) -> dict[str, Any]:
    """Evaluate features by a protocol; return the object that ``penult compare --protocol NAME --json`` prints.

    Args:
        store: where the store is.
        protocol: one of ``heads.protocols.table.PROTOCOLS``.
        data: the labels and the split.
        sets: several feature sets, each evaluated on the images that all of them hold, instead of the set of ``data``.

    Raises:
        HeadError, UsageError: there is no such protocol, or it cannot be followed with these labels.
        StoreError: the store or its features cannot be read.
    """
    data.check()
    known = table.find(protocol)
    opened, started = FeatureStore(store), utc_now()
    datasets = load_datasets(opened, data, sets, None)
    done = {dataset.feature_set: table.evaluate(dataset, protocol) for dataset in datasets}
    first = datasets[0]
    counts = {split: int(np.sum(first.splits == split)) for split in SPLITS}
    run_id = opened.new_run_id("protocol")
    outcome = {
        "run_id": run_id,
        "protocol": protocol,
        "about": known.about,
        "paper": known.paper,
        "code": known.code,
        "scores": [{"feature_set": name} | row for name, of_set in done.items() for row in of_set.rows],
        "n": counts | {"classes": len(np.unique(first.y))},
        "seconds": {name: of_set.seconds for name, of_set in done.items()},
        "notes": list(dict.fromkeys(note for of_set in done.values() for note in of_set.notes)),
        **left_out(first),
        **({"feature_set": first.feature_set} if len(done) == 1 else {}),
    }
    asked = {"protocol": protocol, "sets": list(sets)}
    RunRecord(run_id, "protocol", started, asked | data.to_json(), outcome).write(opened.run_folder(run_id))
    return outcome
