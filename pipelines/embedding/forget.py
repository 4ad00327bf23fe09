"""Remove a source from a store: `penult forget`."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import pyarrow as pa

from featurestore import labels
from featurestore.errors import UsageError
from featurestore.runs import RunRecord, utc_now
from featurestore.store import FeatureStore
from pipelines.sources.corpus import source_uri


def forget(store: str | PurePath, source: str | None, *, unknown_origin: bool = False) -> dict[str, Any]:
    """Forget which images a source lists; return the object that ``penult forget --json`` prints.

    Args:
        store: the store's folder.
        source: the source as it was given to ``penult embed``, or its URI; it need not exist any more.
        unknown_origin: instead of a source, forget the images whose source an older penult did not note.

    Raises:
        UsageError: the store does not know this source.
        StoreNotFound: there is no store in this folder.
        StoreLocked: another run holds the store's lock.
    """
    if (source is None) != unknown_origin:
        raise UsageError("Name one source, or give --unknown-origin.")
    opened = FeatureStore(store)
    with opened.lock():
        opened.recover()
        uri = None if source is None else _known(opened, source)
        started, run_id = utc_now(), opened.new_run_id("forget")
        present = opened.removed_uris()
        rows = list(_listed(opened, uri))
        opened.commit_labels(run_id, [labels.removals(batch, run_id) for batch in rows])
        images = len(pa.chunked_array([batch.column("uri") for batch in rows], pa.string()).unique())
        result = {
            "run_id": run_id,
            "source": uri,
            "images": images,
            "removed": len(opened.removed_uris()) - len(present),
        }
        RunRecord(run_id, "forget", started, {"source": source}, result).write(opened.run_folder(run_id))
    return result


def _known(store: FeatureStore, source: str) -> str:
    """Return the URI of a source, given as a URI or as for ``penult embed``; raise UsageError if it is unknown."""
    known = [uri for uri in store.sources() if uri is not None]
    for uri in (source, source_uri(source)):
        if uri in known:
            return uri
    there = f"one of {', '.join(sorted(known))}" if known else "of which it has none"
    raise UsageError(f"Expected: a source of this store, {there}. Got: {source}.")


def _listed(store: FeatureStore, uri: str | None) -> list[pa.RecordBatch]:
    """Read the rows (uri, label_set, source) of the images that a source lists, or whose origin is unknown (None)."""
    columns = ["uri", "label_set", "source"]
    if uri is not None:
        return list(store.labels.scan(columns, f"listed = true AND {labels.said_by(uri)}"))
    bare = labels.unlabelled(store.catalog.read(["uri", "run_id"]), store.labels.read(["uri"], labels.OF_SOURCES))
    return [*store.labels.scan(columns, labels.OF_UNKNOWN_ORIGIN), *bare.select(columns).to_batches()]
