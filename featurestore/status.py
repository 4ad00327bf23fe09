"""What a store holds, counted: for ``penult status``."""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.dataset import hex_ids
from featurestore.known import contains
from featurestore.labels import COLUMNS
from featurestore.schema import FAILED, OK, keys_of
from featurestore.store import FeatureStore

EXAMPLES = 5
LAST_RUNS = 5


def status(store: FeatureStore) -> dict[str, Any]:
    """Count a store's sets, images, failures, labels, runs and bytes; the object that ``status --json`` prints."""
    with store.whole() as at:
        version = at.get("labels.lance")
        said = {name: store.label_rows(name, version) for name in _label_sets(store, version)}
        catalog = store.catalog.read(["uri", "sha256", "status", "error_type"], version=at.get("catalog.lance"))
        removed, listed = store.removed_uris(version), store.source_rows(version)
    labels = {name: _saying(rows) for name, rows in said.items()}
    labels = {name: n for name, n in sorted(labels.items(), key=lambda item: -item[1]) if n}
    differing = {name: _differing(store, name) for name in labels}
    sources = _sources(listed, catalog)
    catalog = _present(catalog, removed)
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
        "versions": {t.path.name: t.version for t in (store.catalog, store.labels)},
        "bytes": _bytes_on_disk(store.path),
    }


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    counted = {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}
    return dict(sorted(counted.items(), key=lambda item: -item[1]))


def failed_files(store: FeatureStore) -> list[dict[str, str]]:
    """The images that are listed and could not be read: uri, error_type and error."""
    with store.whole() as at:
        columns = ["uri", "error_type", "error"]
        failed = store.catalog.read(columns, f"status = '{FAILED}'", at.get("catalog.lance"))
        return _present(failed, store.removed_uris(at.get("labels.lance"))).sort_by("uri").to_pylist()


def _label_sets(store: FeatureStore, version: int | None) -> list[str]:
    return pc.unique(store.labels.read(["label_set"], version=version).column("label_set")).to_pylist()


def _saying(rows: pa.Table) -> int:
    """How many rows give a label, a split or a group."""
    silent = [pc.is_null(rows.column(name)) for name in COLUMNS]
    return rows.num_rows - int(pc.sum(functools.reduce(pc.and_, silent)).as_py() or 0)


def _present(catalog: pa.Table, removed: pa.Array) -> pa.Table:
    """The rows of images that a source still lists."""
    return catalog.filter(pc.invert(pc.is_in(catalog.column("uri"), value_set=removed))) if len(removed) else catalog


def _sources(listed: pa.Table, catalog: pa.Table) -> list[dict[str, Any]]:
    """What each source lists, has listed and could not read; the last is of unknown origin, where there is one."""
    failed = catalog.filter(pc.equal(catalog.column("status"), FAILED)).column("uri")
    is_failed = pc.is_in(listed.column("uri"), value_set=failed)
    listed = listed.append_column("failed", pc.and_(is_failed, listed.column("listed")))
    listed = listed.append_column("removed", pc.invert(listed.column("listed")))
    counts = listed.group_by("source").aggregate([(name, "sum") for name in ("listed", "removed", "failed")])
    rows = {
        row["source"]: {name: row[f"{name}_sum"] for name in ("listed", "removed", "failed")}
        for row in counts.to_pylist()
    }
    if without := catalog.num_rows - len(pc.unique(listed.column("uri"))):  # an older penult's, without a label
        unknown = rows.setdefault(None, {"listed": 0, "removed": 0, "failed": 0})
        unknown["listed"] += without
    names = sorted(rows, key=lambda name: (name is None, name))
    return [{"source": name, **rows[name]} for name in names]


def _set(store: FeatureStore, name: str, contents: np.ndarray) -> dict[str, Any]:
    spec, table = store.spec(name), store.table(name)
    keys = store.content_keys(name)
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
        "views": round(table.count() / rows, 2) if spec.augmentation and rows else 0,
        "coverage": float(contains(keys, contents).mean()) if len(contents) else 0.0,
        "version": table.version,
        "bytes": _bytes_on_disk(table.path),
    }


def _differing(store: FeatureStore, label_set: str) -> dict[str, Any]:
    """Contents whose copies carry different labels; the ambiguous ones are left out of training."""
    found = store.labelled(label_set)
    return {
        "contents": len(found.differing),
        "ambiguous": len(found.ambiguous),
        "examples": hex_ids(found.differing[:EXAMPLES]).tolist(),
    }


def _bytes_on_disk(path: Path) -> int:
    """Size in bytes of all files under ``path``; a run may take some away meanwhile."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118  # pathlib costs more than the call
    return total
