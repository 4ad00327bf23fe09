"""Counts of what a store holds, for ``penult status``."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore import layout
from featurestore.dataset import hex_ids
from featurestore.index import contains
from featurestore.schema import FAILED, OK, keys_of
from featurestore.storage.base import storage_of
from featurestore.store import FeatureStore

EXAMPLES = 5
LAST_RUNS = 5


def status(store: FeatureStore) -> dict[str, Any]:
    """Count a store's sets, images, failures, labels, runs and bytes: the object that ``status --json`` prints."""
    with store.whole() as at:
        version, of_catalog = at.get(layout.LABELS), at.get(layout.CATALOG)
        labels = {name: store.count_labels(name, version) for name in _label_sets(store, version)}
        labels = {name: n for name, n in sorted(labels.items(), key=lambda item: -item[1]) if n}
        removed = store.removed_uris(version)
        catalog = _present(store, ["sha256", "status", "error_type"], None, removed, of_catalog)
        failed_uris = _present(store, ["uri"], f"status = '{FAILED}'", removed, of_catalog).column("uri")
        sources = _sources(store, failed_uris, version)
        differing = {name: _differing(store, name) for name in labels}
        versions = {t.path.name: t.version for t in (store.catalog, store.labels)}
    ok = catalog.filter(pc.equal(catalog.column("status"), OK))
    contents = np.unique(keys_of(ok.column("sha256")))
    failed = catalog.filter(pc.equal(catalog.column("status"), FAILED))
    runs = store.runs()
    return {
        "store": str(store.path),
        "sets": [_set(store, name, contents) for name in store.sets()],
        "catalog": {"ok": ok.num_rows, "failed": failed.num_rows, "contents": len(contents), "removed": len(removed)},
        "sources": sources,
        "failures": _counts(failed.column("error_type")),
        "labels": labels,
        "differing_labels": differing,
        "runs": {
            "count": len(runs),
            "last": [{"run_id": r.run_id, "kind": r.kind, "started": r.started} for r in runs[-LAST_RUNS:]],
        },
        "versions": versions,
        "bytes": _bytes_on_disk(store.path),
    }


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Count how often each value occurs, the most frequent first."""
    counted = {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}
    return dict(sorted(counted.items(), key=lambda item: -item[1]))


def failed_files(store: FeatureStore) -> list[dict[str, str]]:
    """Return the listed images that could not be read: uri, error_type and error."""
    with store.whole() as at:
        columns, removed = ["uri", "error_type", "error"], store.removed_uris(at.get(layout.LABELS))
        failed = _present(store, columns, f"status = '{FAILED}'", removed, at.get(layout.CATALOG))
    return failed.sort_by("uri").to_pylist()


def _label_sets(store: FeatureStore, version: int | None) -> list[str]:
    return pc.unique(store.labels.read(["label_set"], version=version).column("label_set")).to_pylist()


def _present(
    store: FeatureStore, columns: list[str], condition: str | None, removed: pa.Array, version: int | None
) -> pa.Table:
    """Return columns of the catalog, without the rows of images that no source lists any more."""
    if not len(removed):
        return store.catalog.read(columns, condition, version)
    rows = store.catalog.read([*{"uri": None, **dict.fromkeys(columns)}], condition, version)
    return rows.filter(pc.invert(pc.is_in(rows.column("uri"), value_set=removed))).select(columns)


def _sources(store: FeatureStore, failed: pa.ChunkedArray, version: int | None) -> list[dict[str, Any]]:
    """Count per source the images listed, no longer listed, and failed; an unknown source, if any, comes last."""
    counts = store.sources(version)
    failures = store.listed_by(failed, version) if len(failed) else {}
    if unnamed := store.count_unnamed():
        listed, once = counts.get(None, (0, 0))
        counts[None] = (listed + unnamed, once)
    names = sorted(counts, key=lambda name: (name is None, name))
    return [
        {"source": name, "listed": counts[name][0], "removed": counts[name][1], "failed": failures.get(name, 0)}
        for name in names
    ]


def _set(store: FeatureStore, name: str, contents: np.ndarray) -> dict[str, Any]:
    with (table := store.table(name)).lease():
        spec, keys = store.spec(name), store.content_keys(name)
        version, every, size = table.version, table.count() if spec.augmentation else 0, _bytes_on_disk(table.path)
    rows = len(keys)
    return {
        "name": name,
        "fingerprint": spec.fingerprint(),
        "backbone": spec.backbone,
        "layer": spec.layer,
        "pooling": spec.pooling,
        "input_size": spec.preprocessing.input_size,
        "precision": spec.precision,
        "dtype": spec.dtype,
        "width": spec.width,
        "rows": rows,
        "views": round(every / rows, 2) if spec.augmentation and rows else 0,
        "coverage": float(contains(keys, contents).mean()) if len(contents) else 0.0,
        "version": version,
        "bytes": size,
    }


def bytes_of_set(store: FeatureStore, name: str) -> int:
    """Return what a feature set's table takes, in bytes."""
    with (table := store.table(name)).lease():
        return _bytes_on_disk(table.path)


def _differing(store: FeatureStore, label_set: str) -> dict[str, Any]:
    """Count the contents whose copies have different labels; the ambiguous ones are left out of training."""
    found = store.labelled(label_set)
    return {
        "contents": len(found.differing),
        "ambiguous": len(found.ambiguous),
        "examples": hex_ids(found.differing[:EXAMPLES]).tolist(),
    }


def _bytes_on_disk(path: PurePath) -> int:
    """Return the size in bytes of all files under ``path``."""
    return sum(found.size for _, found in storage_of(path).walk(path))
