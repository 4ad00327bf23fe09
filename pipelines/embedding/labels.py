"""Labels, splits and groups that people give: imported without embedding anything, and withdrawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
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
from pipelines.embedding.membership import changes, largest_and_smallest
from pipelines.sources import corpus

ROWS_PER_BATCH = 10_000
EXAMPLES = 10
NOTHING_SAID = pa.table({name: pa.array([], pa.string()) for name in ("uri", *COLUMNS, "run_id")})


@dataclass
class LabelResult:
    """What an import changed; ``examples`` are (uri, old label, new label).

    Attributes:
        rows: of the file; each is one of the next three.
        added: images of which nothing was said before.
        changed: images whose label, split or group is another now.
        unchanged: images that have what they had.
        unknown: images that the catalog does not have.
        labels: how often the file gives each label; of very many the most and the least frequent.
        class_count: how many labels it gives.
        unlabelled: rows of the file that give none.
        splits: how often the file gives each split.
        changes: how many images went from which label to which.
        columns: of the file: what was taken from which column.
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
        """The object that ``penult label --json`` prints."""
        return asdict(self)


def import_labels(file: str, store: str | Path, label_set: str = "default", *, withdraw: bool = False) -> LabelResult:
    """Say what images are, over what their sources say; or take back what was said so.

    Each column speaks for itself: one that the file lacks, or an empty cell, leaves what was said before. Withdrawn are
    the columns that the file has, whatever its cells hold, or everything where it has a column of paths alone.

    Args:
        file: CSV, TSV or Parquet with a column ``path`` or ``uri`` and any of ``label``, ``split``, ``group``.
        store: an existing store.
        label_set: which set of labels to change.
        withdraw: take back what people said of the images that the file names; what sources say counts again.

    Raises:
        SourceError: the manifest cannot be read.
        StoreNotFound, StoreLocked: the store.
    """
    check_label_set(label_set)
    listing = corpus.list_source(file)
    if listing.kind != "manifest":
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
    """What people say after a run: its file, read again, over what they said before.

    Args:
        people: uri, label, split, group, and run_id, of the run in which the row became what it is; see NOTHING_SAID.
        record: of an import or a withdrawal.

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
    """The columns of a file that are withdrawn: those that it has, or all where it has paths alone."""
    return [name for name in COLUMNS if name in listing.columns] or list(COLUMNS)


def _read(listing: corpus.Source, result: LabelResult) -> pa.Table:
    """The file's rows: uri, label, split, group."""
    batches, labels, splits = [], Counter[str](), Counter[str]()
    for entries in chunks(listing):
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
    """What people say from now on of the file's images, where that is not what they said before.

    Args:
        given: the file's rows.
        people: what people said before: uri, label, split, group.
        taken_back: columns that are withdrawn; none to add what the file gives.
        run_id: of the run that says so, another column of the rows.
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
    """Rows of people (uri, label, split, group, run_id) as statements, schema LABELS."""
    n = len(rows)
    for name, value in (("label_set", label_set), ("source", PEOPLE)):
        rows = rows.append_column(name, pa.array([value] * n, pa.string()))
    return rows.append_column("listed", pa.nulls(n, pa.bool_())).select(LABELS.names).cast(LABELS).to_batches()


def _compare(uris: pa.ChunkedArray, before: pa.Table, after: pa.Table, result: LabelResult) -> None:
    """Count what counted before and counts now of some images."""
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
    """Bool (n,): where two columns differ; nothing equals nothing."""
    same = pc.or_(pc.fill_null(pc.equal(a, b), False), pc.and_(pc.is_null(a), pc.is_null(b)))
    return ~np.asarray(same, bool)


def chunks(listing: corpus.Source) -> Iterator[list[corpus.Entry]]:
    """A listing, some entries at a time."""
    entries = iter(listing)
    while chunk := list(islice(entries, ROWS_PER_BATCH)):
        yield chunk
