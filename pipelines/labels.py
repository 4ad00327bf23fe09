"""Labels, splits and groups: side data of the images, imported without embedding anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import SourceError
from featurestore.known import Known, text_digests
from featurestore.runs import RunRecord, new_run_id, utc_now
from featurestore.schema import LABELS
from featurestore.store import LABELLED, FeatureStore, check_label_set
from pipelines import sources

ROWS_A_BATCH = 10_000
EXAMPLES = 10


@dataclass
class LabelResult:
    """What an import changed; ``examples`` are (uri, old label, new label)."""

    run_id: str
    label_set: str
    rows: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    unknown: int = 0  # rows whose image is not in the catalog
    labels: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object that ``penult label --json`` prints."""
        return asdict(self)


def import_labels(file: str, store: str | Path, label_set: str = "default") -> LabelResult:
    """Import labels, splits and groups from a manifest; rows of uris that it does not name stay as they are.

    Args:
        file: CSV, TSV or Parquet with a column ``path`` or ``uri`` and any of ``label``, ``split``, ``group``.
        store: an existing store.
        label_set: which set of labels to change.

    Raises:
        SourceError: the manifest cannot be read.
        StoreNotFound, StoreLocked: the store.
    """
    check_label_set(label_set)
    listing = sources.list_source(file)
    if listing.kind != "manifest":
        raise SourceError(f"Expected: a .csv, .tsv or .parquet file with labels. Got: {file}, a {listing.kind}.")
    opened = FeatureStore(store)
    started = utc_now()
    with opened.lock():
        opened.recover()
        result = LabelResult(new_run_id("label"), label_set)
        known = opened.known_labels(label_set)
        catalog = opened.catalog.read(["uri"]).column("uri")
        batches, names = [], Counter[str]()
        entries = iter(listing)
        while chunk := list(islice(entries, ROWS_A_BATCH)):
            result.rows += len(chunk)
            names.update(entry.label for entry in chunk if entry.label is not None)
            uris = pa.array([entry.uri for entry in chunk], pa.string())
            result.unknown += int(pc.sum(pc.invert(pc.is_in(uris, value_set=catalog))).as_py() or 0)
            batches.append(changed_labels(chunk, known, label_set, result.run_id))
        result.labels = dict(names.most_common())
        touched = pa.Table.from_batches(batches, LABELS)
        old = _labels_of(opened, label_set, touched.column("uri"))
        result.changed, result.added = len(old), touched.num_rows - len(old)
        result.unchanged = result.rows - touched.num_rows
        new = dict(zip(touched.column("uri").to_pylist(), touched.column("label").to_pylist(), strict=True))
        result.examples = [(uri, label, new[uri]) for uri, label in list(old.items())[:EXAMPLES]]
        opened.commit_labels(result.run_id, [batch for batch in batches if batch.num_rows])
        record = RunRecord(result.run_id, "label", started, {"file": file, "label_set": label_set}, result.to_json())
        record.write(opened.run_folder(result.run_id))
    return result


def changed_labels(entries: list[sources.Entry], known: Known, label_set: str, run_id: str) -> pa.RecordBatch:
    """Label rows (schema LABELS) for the entries whose label, split or group is new or another than before."""
    said = [e for e in entries if (e.label, e.split, e.group) != (None, None, None)]
    states = known.lookup(text_digests(e.uri for e in said), text_digests((e.label, e.split, e.group) for e in said))
    fresh = [entry for entry, state in zip(said, states, strict=True) if state != LABELLED]
    rows = [(e.uri, e.label, e.split, e.group, label_set, run_id) for e in fresh]
    columns = zip(*rows, strict=True) if rows else [[] for _ in LABELS]
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, LABELS, strict=True)], schema=LABELS
    )


def _labels_of(store: FeatureStore, label_set: str, uris: pa.ChunkedArray) -> dict[str, str | None]:
    """The present label of each of ``uris`` that has a row."""
    rows = store.label_rows(label_set)
    rows = rows.filter(pc.is_in(rows.column("uri"), value_set=uris))
    return dict(zip(rows.column("uri").to_pylist(), rows.column("label").to_pylist(), strict=True))
