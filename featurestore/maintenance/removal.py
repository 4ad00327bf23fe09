"""Forget images that no source lists any more: delete their features, catalog rows and source rows.

A removed image keeps all of these at first, so that it costs nothing if it comes back. Labels that people gave it are
never deleted.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.index import contains
from featurestore.runs import time_of
from featurestore.schema import OK, key_array, keys_of
from featurestore.storage.fragments import Replaced
from featurestore.store import FeatureStore

GONE = "listed = false"


def forget_removed(store: FeatureStore, older_than: float) -> int:
    """Forget the images that were removed some time ago; the lock must be held and no journal be pending.

    The features are deleted first: an image with a catalog row but no features is embedded again if it comes back. The
    row that says that the image was removed is deleted last, so that the next run completes one that was killed.

    Args:
        store: an open store.
        older_than: least number of seconds since an image was removed.

    Returns:
        How many images were forgotten.
    """
    uris = _removed_before(store, datetime.now(UTC) - timedelta(seconds=older_than))
    if len(uris):
        contents = Replaced(key_array(_only_of(store, uris)), column="sha256")
        for name in store.sets():
            store.table(name).exchange([], contents)
        store.catalog.exchange([], Replaced(uris))
        store.labels.exchange([], Replaced(uris, GONE))
    return len(uris)


def _removed_before(store: FeatureStore, time: datetime) -> pa.Array:
    """Return the uris of images that no source has listed since a time."""
    removed = store.removed_uris()
    if not len(removed):
        return removed
    began = {run.run_id: datetime.fromisoformat(run.started) for run in store.runs()}
    rows = store.labels.read(["uri", "run_id"], GONE)
    rows = rows.filter(pc.is_in(rows.column("uri"), value_set=removed))
    last = rows.group_by("uri").aggregate([("run_id", "max")])
    runs = pc.unique(last.column("run_id_max")).to_pylist()
    old = [run for run in runs if (when := began.get(run) or time_of(run)) is not None and when < time]
    return last.filter(pc.is_in(last.column("run_id_max"), value_set=pa.array(old, pa.string()))).column("uri")


def _only_of(store: FeatureStore, uris: pa.ChunkedArray) -> np.ndarray:
    """Return the contents that only these images have: S32 (n,), sorted and unique."""
    own = store.catalog.read(["uri", "sha256"], f"status = '{OK}'")
    is_own = pc.is_in(own.column("uri"), value_set=uris)
    contents = np.unique(keys_of(own.column("sha256").filter(is_own)))
    others = np.unique(keys_of(own.column("sha256").filter(pc.invert(is_own))))
    return contents[~contains(others, contents)]
