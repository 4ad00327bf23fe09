"""What a store holds, counted: for ``penult status``."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.dataset import hex_ids
from featurestore.schema import FAILED, OK
from featurestore.store import FeatureStore

EXAMPLES = 5
LAST_RUNS = 5


def status(store: FeatureStore) -> dict[str, Any]:
    """Count a store's sets, images, failures, labels, runs and bytes; the object that ``status --json`` prints."""
    with store.whole() as at:
        label_sets = store.labels.read(["label_set"], version=at.get("labels.lance")).column("label_set")
        labels = _counts(label_sets)
        differing = {name: _differing(store, name) for name in labels}
        catalog = store.catalog.read(["sha256", "status", "error_type"], version=at.get("catalog.lance"))
    ok = catalog.filter(pc.equal(catalog.column("status"), OK))
    contents = pc.count_distinct(ok.column("sha256")).as_py()
    failed = catalog.filter(pc.equal(catalog.column("status"), FAILED))
    runs = store.runs()
    return {
        "store": str(store.path),
        "sets": [_set(store, name, contents) for name in store.sets()],
        "catalog": {"ok": ok.num_rows, "failed": failed.num_rows, "contents": contents},
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


def _set(store: FeatureStore, name: str, contents: int) -> dict[str, Any]:
    spec, table = store.spec(name), store.table(name)
    rows = table.count(f"view = {spec.first_view}")
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
        "coverage": min(rows / contents, 1.0) if contents else 0.0,
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
