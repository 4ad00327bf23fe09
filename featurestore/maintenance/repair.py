"""Repair a damaged store from its own files: the first part of `penult doctor`.

Damaged files are put aside under ``STORE/damaged``, never deleted. A table whose newest manifest is lost goes back to
the version before it. Then all intact rows that files on the disk still hold are put back; if several rows have one
key, that of the newest run. Rows that no file holds are lost; restoring them is up to the caller.

``STORE/repair.json`` holds the plan of the repair, from before the first change until ``finish``. A repair that was
killed starts again from it, and gives the same result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore import canary, header, layout
from featurestore.errors import StoreCorrupt, StoreNotFound
from featurestore.index import DIGEST, row_digests
from featurestore.journal import pending
from featurestore.labels import with_origin
from featurestore.maintenance.verify import REPAIR, Finding, damaged_files, damaged_pieces, tables_of, verify
from featurestore.runs import RunRecord, utc_now
from featurestore.schema import CATALOG, KEY_BYTES, LABELS, intact, row_keys, spec_of
from featurestore.spec import VIEWS_SUFFIX
from featurestore.storage import ledger
from featurestore.storage.base import storage_of
from featurestore.storage.files import delete, exists, flush, listed, make_folder, read_sealed, write_sealed
from featurestore.storage.fragments import Piece
from featurestore.storage.ledger import Ledger
from featurestore.storage.table import Table

SCHEMAS = {layout.CATALOG: CATALOG, layout.LABELS: LABELS}
KEYS = {layout.CATALOG: ["uri"], layout.LABELS: ["uri", "label_set", "source"]}
NO_ROWS = ("_transactions/", layout.LEDGER)  # prefixes of the paths of files that no row depends on
ROW_KEY = f"S{KEY_BYTES + 2}"  # dtype of ``row_keys``
RESTORED = "restored"  # run id given to rows whose own run id may be damaged


@dataclass
class Repair:
    """What was done to a table, a journal or the header.

    Attributes:
        table: its path in the store.
        put_aside: files that were put aside, relative to ``table``; "." is all of it.
        back_to: the version that the table went back to, or None.
        restored: number of rows that were restored, from other files or from their sources.
        lost: number of rows that were not restored.
    """

    table: str
    put_aside: list[str] = field(default_factory=list)
    back_to: int | None = None
    restored: int = 0
    lost: int = 0


@dataclass
class Plan:
    """What a repair still has to do, kept in ``repair.json``.

    Attributes:
        rows: number of rows that each table to be rebuilt had; 0 if unknown.
        lost: tables with rows that no file holds; for a feature set also the lost contents, if all are known.
        last_set: the feature set that was written last.
    """

    rows: dict[str, int]
    lost: dict[str, list[str]]
    last_set: str | None


def repair(store: PurePath) -> tuple[Plan | None, list[Repair]]:
    """Repair a store's header, tables and journals; its lock must be held.

    Returns:
        The plan, which is in force until ``finish``, or None if nothing was damaged; and what was done.
    """
    told, aside = _header(store), aside_of(store)
    done = {one.table: one for one in (*_journals(store, aside), *_notes(store, aside))}
    findings = list(verify(store))
    if not findings:
        return None, list(done.values())
    plan = _plan(store, told, findings)
    write_sealed(store / REPAIR, asdict(plan))
    for name, table in tables_of(store).items():
        if name in plan.rows or _within(name, findings):
            _mend(table, name in plan.rows, aside / name, done.setdefault(name, Repair(name)))
    if told is None:
        done[layout.HEADER] = Repair(layout.HEADER, ["."])
        put_aside(store / layout.HEADER, aside / layout.HEADER)
        header.create(store, unknown_origin=True)
    else:
        write_sealed(store / layout.HEADER, told | {"tables": {}})
    tables = tables_of(store)
    header.remember(store, tables.values(), plan.last_set)
    for name, rows in plan.rows.items():
        missing = rows - (tables[name].count() if name in tables else 0)
        if missing > 0 or not rows:
            done.setdefault(name, Repair(name)).lost = max(missing, 0)
            images = {image for finding in _within(name, findings) for image in finding.rows}
            plan.lost[name] = sorted(images) if len(images) == missing and name not in plan.lost else []
    plan.rows = {}
    write_sealed(store / REPAIR, asdict(plan))
    for staging in pending(store):
        if staging.feature_set is not None and layout.table_name(staging.feature_set) not in tables:
            name = staging.folder.relative_to(store).as_posix()
            done[name] = Repair(name, ["."])
            put_aside(staging.folder, aside / name)
    return plan, list(done.values())


def finish(store: PurePath, plan: Plan) -> None:
    """End a repair, after the caller has restored what it can; the store's lock must be held."""
    header.remember(store, [], plan.last_set)
    delete(store / REPAIR)
    flush(store)


def aside_of(store: PurePath) -> PurePath:
    """Return the folder, named by the time now, in which damaged files are put aside."""
    return store / layout.ASIDE / utc_now().replace(":", "")


def put_aside(path: PurePath, to: PurePath) -> None:
    """Move a file, a folder or a link out of the way, durably; do nothing if it does not exist."""
    storage = storage_of(path)
    if storage.stat(path, follow=False) is None:
        return
    while storage.stat(to, follow=False) is not None:
        to = to.with_name(f"{to.name}~")
    storage.move(path, to)


def _journals(store: PurePath, aside: PurePath) -> Iterator[Repair]:
    """Put aside the damaged files of journals; the shards they belong to count as never written."""
    for staging in pending(store):
        name = staging.folder.relative_to(store).as_posix()
        if files := [path.relative_to(staging.folder).as_posix() for path in staging.damaged()]:
            for file in files:
                put_aside(staging.folder / file, aside / name / file)
            yield Repair(name, files)


def _notes(store: PurePath, aside: PurePath) -> Iterator[Repair]:
    """Put aside ledgers and canaries that cannot be read, as they make their tables unreadable; both are made anew."""
    for name, table in tables_of(store).items():
        damaged = []
        for note, read in ((layout.LEDGER, ledger.read), (layout.CANARY, canary.read)):
            try:
                read(table.path)
            except StoreCorrupt:
                put_aside(table.path / note, aside / name / note)
                damaged.append(note)
        if damaged:
            yield Repair(name, damaged)


def _header(store: PurePath) -> dict[str, Any] | None:
    try:
        return header.read(store)
    except (StoreCorrupt, StoreNotFound):
        return None


def _plan(store: PurePath, told: dict[str, Any] | None, findings: Sequence[Finding]) -> Plan:
    """Return the plan for the damage found, together with the plan of a repair that was killed."""
    last = told["tables"] if told else {}
    plan = _begun(store) or Plan({}, {}, told.get("last_set") if told else _newest_set(store))
    for name in {*last, *tables_of(store)}:
        if not all(finding.path.startswith(NO_ROWS, len(name) + 1) for finding in _within(name, findings)):
            rows = max(ledger.read(store / name).rows, last.get(name, {}).get("rows", 0))
            plan.rows[name] = max(rows, plan.rows.get(name, 0))
    return plan


def _within(name: str, findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings of one table."""
    return [finding for finding in findings if f"{finding.path}/".startswith(f"{name}/")]


def _begun(store: PurePath) -> Plan | None:
    """Return the plan of a repair that was killed, or None; all tables, if the plan cannot be read."""
    if not exists(store / REPAIR):
        return None
    try:
        told = read_sealed(store / REPAIR, required=True)
        rows = {name: int(count) for name, count in told["rows"].items()}
        lost = {name: [bytes.fromhex(image).hex() for image in images] for name, images in told["lost"].items()}
        return Plan(rows, lost, told["last_set"])
    except (StoreCorrupt, AttributeError, KeyError, TypeError, ValueError):
        return Plan(dict.fromkeys(tables_of(store), 0), {}, _newest_set(store))


def _newest_set(store: PurePath) -> str | None:
    """Return the feature set that was written last, according to the run records."""
    for path in reversed(listed(store / layout.RUNS)):
        if not path.match("*-embed-*"):
            continue
        try:
            name = str(RunRecord.read(path).result["feature_set"])
        except (StoreCorrupt, StoreNotFound, KeyError):
            continue
        if not name.endswith(VIEWS_SUFFIX):
            return name
    return None


def _mend(table: Table, rebuild: bool, aside: PurePath, done: Repair) -> None:
    """Put aside the damaged files of a table; with ``rebuild``, collect its rows from the files that are left."""

    def take_out(file: str) -> None:
        put_aside(table.path / file, aside / file)
        done.put_aside.append(file)

    known = ledger.read(table.path)
    bad = damaged_files(table, known)
    salvage = [file for file in bad if file.startswith("data/") and not table.sealed]  # their rows have checksums
    for file in bad:
        if file not in salvage:
            take_out(file)
    while table.exists() and not _opens(table):
        take_out(table.versions()[max(table.versions())])
    if table.exists() and max(table.versions()) < known.version:
        done.back_to = max(table.versions())
    make_folder(table.path)
    there = {file: sha256 for file, sha256 in known.files.items() if exists(table.path / file)}
    ledger.write(table.path, Ledger(files=there))  # without a version: the next may get the lost one's number
    if not table.exists():
        if (schema := _schema_of(table)) is None:
            take_out(".")
            return
        table.create(schema)
    if rebuild:
        done.restored = _rebuild(table, known, bad)
    for file in salvage:
        take_out(file)
    table.note()


def _opens(table: Table) -> bool:
    try:
        table.pieces(max(table.versions()))
    except StoreCorrupt:
        return False
    return True


def _schema_of(table: Table) -> pa.Schema | None:
    """Return the schema of a table without a manifest; for a feature set, read it from the data files."""
    if (schema := SCHEMAS.get(table.path.name)) is not None:
        return schema
    for file in table.data_files():
        try:
            schema = next(table.file_rows([file])).schema
            if spec_of(schema).set_name == table.path.stem:
                return schema
        except (StoreCorrupt, StoreNotFound, StopIteration):  # a damaged file of a missing table
            continue
    return None


def _rebuild(table: Table, known: Ledger, bad: Collection[str]) -> int:
    """Replace damaged fragments by the rows that files still hold; return how many rows were restored.

    Intact fragments stay, except those with a row that a newer row replaces.
    """
    pieces = table.pieces()
    whole = [piece for piece in pieces if not {*piece.data, *piece.deletions} & {*bad}]
    broken = {piece.id for piece, *_ in damaged_pieces(table, whole)}
    whole = [piece for piece in whole if piece.id not in broken]
    held = {file for piece in whole for file in piece.data}
    there = set(table.data_files())
    used = {file for file in known.files if file.startswith("data/")} if known.files else there
    used |= {file for piece in pieces for file in piece.data}
    files = sorted(used & there - held)
    if table.sealed and not all(_reads(table, file) for file in used - held):
        files = []  # their rows may be older than the lost rows

    def of_files() -> Iterator[pa.RecordBatch]:
        for file in files:
            yield from _file_rows(table, file, file in bad)

    keep = _chosen(table, chain(_rows(table, whole), of_files()))
    ends = np.cumsum([piece.rows for piece in whole], dtype=int)
    masks = np.split(keep, ends)  # the last mask is for the files
    changing = [(piece, mask) for piece, mask in zip(whole, masks, strict=False) if not mask.all()]
    staying = {piece.id for piece in whole} - {piece.id for piece, _ in changing}

    def rows() -> Iterator[pa.RecordBatch]:
        mask = np.concatenate([np.zeros(0, bool), *(mask for _, mask in changing)])
        yield from _filtered(_rows(table, [piece for piece, _ in changing]), mask)
        yield from _filtered(of_files(), masks[-1])

    table.swap([piece.id for piece in pieces if piece.id not in staying], table.stage(rows()))
    return int(masks[-1].sum())


def _rows(table: Table, pieces: Sequence[Piece]) -> Iterator[pa.RecordBatch]:
    return table.fragment_rows([piece.id for piece in pieces]) if pieces else iter(())


def _filtered(batches: Iterable[pa.RecordBatch], mask: np.ndarray) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in batches:
        yield batch.filter(pa.array(mask[start : start + batch.num_rows]))
        start += batch.num_rows


def _reads(table: Table, file: str) -> bool:
    try:
        for _ in table.file_rows([file]):
            pass
    except StoreCorrupt:
        return False
    return True


def _file_rows(table: Table, file: str, damaged: bool) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a data file that can be read and match their checksums, if they have any."""
    schema = table.schema
    try:
        for batch in table.file_rows([file]):
            if not table.sealed:
                if batch.schema.metadata != schema.metadata:  # the file is another feature set's
                    return
                batch = batch.filter(pa.array(intact(batch)))
            if damaged:  # the run id has no checksum
                ids = pa.array([RESTORED] * batch.num_rows, pa.string())
                batch = batch.set_column(batch.schema.get_field_index("run_id"), schema.field("run_id"), ids)
            yield (with_origin(batch) if schema.names == LABELS.names else batch).cast(schema)
    except (StoreCorrupt, KeyError, TypeError, ValueError):  # Arrow's errors are among them
        return


def _chosen(table: Table, batches: Iterable[pa.RecordBatch]) -> np.ndarray:
    """Return which rows to keep, bool (n,): one per key.

    For images and labels it is the row of the newest run, which replaced the others. For features all rows of a key are
    equal. Views after the first lost view of a content are dropped too: embedding makes all views from there on.
    """
    if not table.sealed:
        keys = [row_keys(batch.column("sha256"), batch.column("view")) for batch in batches]
        return _up_to_gaps(np.concatenate([np.zeros(0, ROW_KEY), *keys]), spec_of(table.schema).first_view)
    digests, runs, numbers = [np.zeros(0, DIGEST)], [np.zeros(0, np.int32)], dict[str, int]()
    for batch in batches:
        columns = (batch.column(name).to_pylist() for name in KEYS[table.path.name])
        digests.append(row_digests(zip(*columns, strict=True)))
        names = batch.column("run_id").to_pylist()
        runs.append(np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int32))
    ages = np.argsort(np.argsort(list(numbers)))  # run ids sort by time
    return _newest(np.concatenate(digests), ages[np.concatenate(runs)])


def _newest(keys: np.ndarray, ages: np.ndarray) -> np.ndarray:
    """Return which rows to keep, bool (n,): per key the one with the highest age; if equal, the first."""
    order = np.lexsort((-np.arange(len(keys)), ages, keys))
    last = np.ones(len(keys), bool)
    last[:-1] = keys[order][1:] != keys[order][:-1]
    keep = np.zeros(len(keys), bool)
    keep[order[last]] = True
    return keep


def _up_to_gaps(keys: np.ndarray, first_view: int) -> np.ndarray:
    """Return which rows to keep, bool (n,): the first row per key of ``row_keys`` if no view before it is missing."""
    unique, at = np.unique(keys, return_index=True)  # by content, then by view
    raw = unique.view(np.uint8).reshape(-1, KEY_BYTES + 2)
    views = raw[:, KEY_BYTES:].copy().view(">i2").reshape(-1)
    begins = np.ones(len(unique), bool)
    begins[1:] = (raw[1:, :KEY_BYTES] != raw[:-1, :KEY_BYTES]).any(axis=1)
    numbers = np.arange(len(unique))
    since = numbers - np.maximum.accumulate(np.where(begins, numbers, 0))
    keep = np.zeros(len(keys), bool)
    keep[at[views == first_view + since]] = True
    return keep
