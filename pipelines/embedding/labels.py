"""The import and the withdrawal of labels, splits and groups that people give: `penult label`, which embeds nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import SourceError
from featurestore.labels import COLUMNS, PEOPLE
from featurestore.limits import check_label_set
from featurestore.runs import RunRecord, utc_now
from featurestore.schema import LABELS
from featurestore.store import FeatureStore
from pipelines.concurrency import batched
from pipelines.embedding.membership import changes, largest_and_smallest
from pipelines.sources import corpus

ROWS_PER_BATCH = 10_000
EXAMPLES = 10
NOTHING_SAID = pa.table({name: pa.array([], pa.string()) for name in ("uri", *COLUMNS, "run_id")})


@dataclass
class LabelResult:
    """What an import changed; ``examples`` are (uri, old label, new label).

    Attributes:
        rows: number of rows in the file; each is counted in one of the next three.
        added: images that had no label, split or group before.
        changed: images that had one of them, and of which one is different now.
        unchanged: images whose label, split and group stay the same.
        unknown: images that are not in the catalog.
        labels: how often the file gives each label; if there are very many, only the most and the least frequent.
        class_count: how many different labels the file gives.
        unlabelled: rows of the file without a label.
        splits: how often the file gives each split.
        changes: how many images changed from one label to another, for each pair of labels.
        columns: the name of the file's column for each role.
    """

    run_id: str
    label_set: str
    rows: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    unknown: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    class_count: int = 0
    unlabelled: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # why images may be unknown, such as backslashes in paths

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``penult label --json`` prints."""
        return asdict(self)


def import_labels(
    file: str, store: str | PurePath, label_set: str = "default", *, withdraw: bool = False
) -> LabelResult:
    """Import labels, splits and groups from a file, which override those of the images' sources; or withdraw them.

    Label, split and group are independent. A column that the file lacks, or an empty cell, leaves the value as it was.
    A withdrawal covers the columns that the file has, whatever their cells hold; all three, if the file has only paths.

    Args:
        file: CSV, TSV or Parquet with a column ``path`` or ``uri`` and any of ``label``, ``split``, ``group``.
        store: the folder of an existing store.
        label_set: which label set to change.
        withdraw: remove the values that people gave for the file's images, so that those of the sources count again.

    Raises:
        SourceError: the file cannot be read.
        StoreNotFound: there is no store in this folder.
        StoreLocked: another run holds the store's lock.
    """
    check_label_set(label_set)
    listing = corpus.list_source(file)
    if not listing.is_label_file:
        raise SourceError(f"Expected: a .csv, .tsv or .parquet file with labels. Got: {file}, a {listing.kind}.")
    opened = FeatureStore(store)
    started = utc_now()
    with opened.lock():
        opened.recover()
        result = LabelResult(opened.new_run_id("label"), label_set)
        given = _read(listing, result)
        catalog = opened.catalog.read(["uri"]).column("uri")
        result.unknown = int(pc.sum(pc.invert(pc.is_in(given.column("uri"), value_set=catalog))).as_py() or 0)
        before = opened.label_rows(label_set)
        rows = _statements(given, opened.people_rows(label_set), _columns(listing) if withdraw else [], result.run_id)
        if rows.num_rows:
            opened.commit_labels(result.run_id, as_statements(rows, label_set))
        _compare(given.column("uri"), before, opened.label_rows(label_set), result)
        asked = {"file": file, "label_set": label_set, "withdraw": withdraw}
        record = RunRecord(result.run_id, "label", started, asked, result.to_json())
        record.write(opened.run_folder(result.run_id))
    return result


def said_after(people: pa.Table, record: RunRecord) -> pa.Table:
    """Return the rows of people after a label run: read its file again and apply it to their rows before the run.

    Args:
        people: the rows before the run: uri, label, split, group, and the run_id of the run that last changed the row.
            Begin with NOTHING_SAID.
        record: the record of an import or a withdrawal.

    Raises:
        SourceError: the file cannot be read any more.
    """
    asked = record.parameters
    listing = corpus.list_source(asked["file"])
    given = _read(listing, LabelResult(record.run_id, asked["label_set"]))
    rows = _statements(given, people, _columns(listing) if asked.get("withdraw") else [], record.run_id)
    others = people.filter(pc.invert(pc.is_in(people.column("uri"), value_set=rows.column("uri"))))
    return pa.concat_tables([others, rows])


def _columns(listing: corpus.Source) -> list[str]:
    """Return the columns that a file withdraws: those of label, split and group that it has, or all if it has none."""
    return [name for name in COLUMNS if name in listing.columns] or list(COLUMNS)


def _read(listing: corpus.Source, result: LabelResult) -> pa.Table:
    """Return the file's rows (uri, label, split, group), and count them in ``result``."""
    batches, labels, splits = [], Counter[str](), Counter[str]()
    for entries in batched(listing, ROWS_PER_BATCH):
        labels.update(entry.label for entry in entries if entry.label is not None)
        splits.update(entry.split for entry in entries if entry.split is not None)
        rows = [(e.uri, e.label, e.split, e.group) for e in entries]
        arrays = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        batches.append(pa.record_batch(arrays, names=["uri", *COLUMNS]))
    given = pa.Table.from_batches(batches)
    result.rows, result.labels, result.splits = given.num_rows, largest_and_smallest(labels), dict(splits)
    result.class_count, result.unlabelled = len(labels), result.rows - labels.total()
    result.columns, result.notes, result.problems = dict(listing.columns), list(listing.notes), list(listing.problems)
    return given


def _statements(given: pa.Table, people: pa.Table, taken_back: list[str], run_id: str) -> pa.Table:
    """Return the new rows of people (uri, label, split, group, run_id) for those of the file's images that change.

    Args:
        given: the file's rows.
        people: the rows of people before: uri, label, split, group.
        taken_back: the columns to withdraw; empty to add the file's values.
        run_id: the id of the run, for the column of this name.
    """
    old = people.take(pc.index_in(given.column("uri"), value_set=people.column("uri")))
    columns, changed = {"uri": given.column("uri")}, np.zeros(given.num_rows, bool)
    for name in COLUMNS:
        before = old.column(name)
        now = pc.coalesce(given.column(name), before)
        if taken_back:
            now = pa.chunked_array([pa.nulls(len(before), pa.string())]) if name in taken_back else before
        columns[name] = now
        changed |= _differ(before, now)
    columns["run_id"] = pa.array([run_id] * given.num_rows, pa.string())
    return pa.table(columns).filter(pa.array(changed))


def as_statements(rows: pa.Table, label_set: str) -> list[pa.RecordBatch]:
    """Return rows of people (uri, label, split, group, run_id) as statements (schema LABELS)."""
    n = len(rows)
    for name, value in (("label_set", label_set), ("source", PEOPLE)):
        rows = rows.append_column(name, pa.array([value] * n, pa.string()))
    return rows.append_column("listed", pa.nulls(n, pa.bool_())).select(LABELS.names).cast(LABELS).to_batches()


def _compare(uris: pa.ChunkedArray, before: pa.Table, after: pa.Table, result: LabelResult) -> None:
    """Count in ``result`` which images have other effective labels, splits or groups after the import than before."""
    old, new = (_of(uris, rows) for rows in (before, after))
    said_before = np.zeros(len(uris), bool)
    differs = np.zeros(len(uris), bool)
    for name in COLUMNS:
        said_before |= np.asarray(pc.is_valid(old.column(name)))
        differs |= _differ(old.column(name), new.column(name))
    result.changed = int((differs & said_before).sum())
    result.added = int((differs & ~said_before).sum())
    result.unchanged = result.rows - result.changed - result.added
    relabelled = pa.array(_differ(old.column("label"), new.column("label")) & said_before)
    columns = (uris, old.column("label"), new.column("label"))
    moved = [column.filter(relabelled) for column in columns]
    result.examples = list(zip(*(column.slice(0, EXAMPLES).to_pylist() for column in moved), strict=True))
    result.changes = changes(Counter(zip(*(column.to_pylist() for column in moved[1:]), strict=True)))


def _of(uris: pa.ChunkedArray, rows: pa.Table) -> pa.Table:
    return rows.select(COLUMNS).take(pc.index_in(uris, value_set=rows.column("uri")))


def _differ(a: pa.ChunkedArray, b: pa.ChunkedArray) -> np.ndarray:
    """Return where two columns differ, bool (n,); null equals null."""
    same = pc.or_(pc.fill_null(pc.equal(a, b), False), pc.and_(pc.is_null(a), pc.is_null(b)))
    return ~np.asarray(same, bool)
