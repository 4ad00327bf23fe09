"""Bring back what can be had of a damaged store: the first part of `penult doctor`.

What is damaged is put aside under ``STORE/damaged``, never deleted. A table whose newest manifest is lost goes back to
the version before it. Then all intact rows that files on the disk still hold are put back, of each key the one of the
newest run. What no file holds is lost, and up to the caller.

``STORE/repair.json`` says from before the first change until ``finish`` which tables are in hand and how many rows
they had: killed anywhere, a repair begins anew and ends as it would have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore import header, ledger
from featurestore.errors import StoreCorrupt, StoreError, StoreNotFound
from featurestore.files import fsync, read_sealed, write_sealed
from featurestore.ledger import Ledger
from featurestore.runs import RunRecord, utc_now
from featurestore.schema import CATALOG, LABELS, spec_of
from featurestore.spec import VIEWS_SUFFIX
from featurestore.staging import pending
from featurestore.tables import Table
from featurestore.upkeep import ASIDE
from featurestore.verify import REPAIR, damaged_files, rows_hold, tables_of, verify

SCHEMAS = {"catalog.lance": CATALOG, "labels.lance": LABELS}
KEYS = {"catalog.lance": ["uri"], "labels.lance": ["uri", "label_set"]}
NO_ROWS = ("_transactions/", ledger.NAME)  # beginnings of the paths of files that no row depends on
RESTORED = "restored"  # the run id of rows whose own may be damaged


@dataclass
class Repair:
    """What was done to a table, a journal or the header.

    Attributes:
        table: its path in the store.
        put_aside: files, relative to it; "." is all of it.
        back_to: the version that it went back to, where it did.
        restored: rows that were put back from files that were damaged in part, or that no version had any more.
        lost: rows that no file holds.
    """

    table: str
    put_aside: list[str] = field(default_factory=list)
    back_to: int | None = None
    restored: int = 0
    lost: int = 0


@dataclass
class Plan:
    """What a repair has in hand.

    Attributes:
        tables: how many rows each table had whose rows may be damaged; None where nothing says it.
        last_set: the feature set that was written last.
    """

    tables: dict[str, int | None]
    last_set: str | None

    def lost(self, store: Path) -> dict[str, int | None]:
        """How many rows tables lack now; None where nothing says it. Those that lack none are left out."""
        tables = tables_of(store)
        now = {name: tables[name].count() if name in tables else 0 for name in self.tables}
        lost = {name: None if rows is None else rows - now[name] for name, rows in self.tables.items()}
        return {name: rows for name, rows in lost.items() if rows is None or rows > 0}


def repair(store: Path) -> tuple[Plan | None, list[Repair]]:
    """Repair a store's header, tables and journals; its lock is held.

    Returns:
        What is in hand until ``finish``, None where nothing was damaged; and what was done.
    """
    aside = aside_of(store)
    done = {one.table: one for one in (*_journals(store, aside), *_ledgers(store, aside))}
    found = [finding.path for finding in verify(store)]
    if not found:
        return None, list(done.values())
    told = _header(store)
    plan = _plan(store, told, found)
    write_sealed(store / REPAIR, asdict(plan))
    for name, table in tables_of(store).items():
        if name in plan.tables or any(path.startswith(f"{name}/") for path in found):
            _mend(table, name in plan.tables, aside / name, done.setdefault(name, Repair(name)))
    if told is None:
        done["."] = Repair(".", [header.NAME])
        put_aside(store / header.NAME, aside / header.NAME)
        header.create(store)
    else:
        write_sealed(store / header.NAME, told | {"tables": {}})
    tables = tables_of(store)
    header.remember(store, tables.values(), plan.last_set)
    for staging in pending(store):
        if staging.feature_set is not None and f"features/{staging.feature_set}.lance" not in tables:
            name = staging.folder.relative_to(store).as_posix()
            done[name] = Repair(name, ["."])
            put_aside(staging.folder, aside / name)
    for name, lost in plan.lost(store).items():
        done.setdefault(name, Repair(name)).lost = lost or 0
    return plan, list(done.values())


def finish(store: Path, plan: Plan) -> None:
    """Say that a repair has ended, and what its caller brought back is there; the store's lock is held."""
    header.remember(store, [], plan.last_set)
    (store / REPAIR).unlink()
    fsync(store)


def aside_of(store: Path) -> Path:
    """Where what is damaged is put now."""
    return store / ASIDE / utc_now().replace(":", "")


def put_aside(path: Path, to: Path) -> None:
    """Move a file or a folder out of the way, durably; nothing happens where there is none."""
    if not path.exists():
        return
    while to.exists():
        to = to.with_name(f"{to.name}~")
    to.parent.mkdir(parents=True, exist_ok=True)
    path.rename(to)
    fsync(path.parent)
    fsync(to.parent)


def _journals(store: Path, aside: Path) -> Iterator[Repair]:
    """Put aside the damaged files of journals; what they stand for counts as never written."""
    for staging in pending(store):
        name = staging.folder.relative_to(store).as_posix()
        if files := [path.relative_to(staging.folder).as_posix() for path in staging.damaged()]:
            for file in files:
                put_aside(staging.folder / file, aside / name / file)
            yield Repair(name, files)


def _ledgers(store: Path, aside: Path) -> Iterator[Repair]:
    """Put aside the ledgers that cannot be read, and that nothing else can be read with."""
    for name, table in tables_of(store).items():
        try:
            ledger.read(table.path)
        except StoreError:
            put_aside(table.path / ledger.NAME, aside / name / ledger.NAME)
            yield Repair(name, [ledger.NAME])


def _header(store: Path) -> dict[str, Any] | None:
    try:
        return header.read(store)
    except (StoreCorrupt, StoreNotFound):
        return None


def _plan(store: Path, told: dict[str, Any] | None, found: list[str]) -> Plan:
    """What is to be done where damage was found, beside what a repair that was killed had in hand."""
    last = told["tables"] if told else {}
    plan = _begun(store) or Plan({}, told.get("last_set") if told else _newest_set(store))
    for name in {*last, *tables_of(store)}:
        files = [path.removeprefix(f"{name}/") for path in found if f"{path}/".startswith(f"{name}/")]
        if any(not file.startswith(NO_ROWS) for file in files):
            known = [ledger.read(store / name).rows, last.get(name, {}).get("rows", 0)]
            plan.tables.setdefault(name, max(known) or None)
    return plan


def _begun(store: Path) -> Plan | None:
    """What a repair that was killed had in hand; that is everything if it cannot be read any more."""
    if not (store / REPAIR).exists():
        return None
    try:
        return Plan(**read_sealed(store / REPAIR, required=True))
    except (StoreError, TypeError):
        return Plan(dict.fromkeys(tables_of(store)), _newest_set(store))


def _newest_set(store: Path) -> str | None:
    """The feature set that was written last, as the runs' records tell it."""
    for path in sorted((store / "runs").glob("*/run.json"), reverse=True):
        try:
            record = RunRecord.read(path.parent)
        except StoreError:
            continue
        name = str(record.result.get("feature_set", VIEWS_SUFFIX)) if record.kind == "embed" else VIEWS_SUFFIX
        if not name.endswith(VIEWS_SUFFIX):
            return name
    return None


def _mend(table: Table, rebuild: bool, aside: Path, done: Repair) -> None:
    """Take out of a table what is damaged, and with ``rebuild`` put its rows together again."""

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
    table.path.mkdir(exist_ok=True)
    ledger.write(table.path, Ledger(files={file: known.files[file] for file in known.files if _is_there(table, file)}))
    if not table.exists():
        schema = _schema_of(table)
        if schema is None:
            take_out(".")
            return
        table.create(schema)
    if rebuild:
        done.restored = _rebuild(table, known, bad)
    for file in salvage:
        take_out(file)
    table.note()


def _is_there(table: Table, file: str) -> bool:
    return (table.path / file).exists()


def _opens(table: Table) -> bool:
    try:
        table.pieces(max(table.versions()))
    except StoreError:
        return False
    return True


def _schema_of(table: Table) -> pa.Schema | None:
    """The schema of a table without a manifest: its data files tell it too."""
    for path in sorted((table.path / "data").glob("*.lance")):
        try:
            schema = next(table.file_rows([f"data/{path.name}"])).schema
            if table.path.name in SCHEMAS or spec_of(schema).set_name == table.path.stem:
                return SCHEMAS.get(table.path.name, schema)
        except (StoreError, StopIteration):
            continue
    return SCHEMAS.get(table.path.name)


def _rebuild(table: Table, known: Ledger, bad: dict[str, str]) -> int:
    """Put the rows that files hold in the place of damaged fragments; how many came back.

    Intact fragments stay as they are, unless rows of them are to go.
    """
    pieces = table.pieces()
    whole = [piece for piece in pieces if bad.keys().isdisjoint(piece.data) and rows_hold(table, piece)]
    held = {file for piece in whole for file in piece.data}
    named = known.files or {f"data/{path.name}": "" for path in (table.path / "data").glob("*.lance")}
    named = {**named, **{file: "" for piece in pieces for file in piece.data}}
    files = [f for f in named if f.startswith("data/") and f not in held and _is_there(table, f)]
    sources = [partial(table.fragment_rows, [piece.id]) for piece in whole]
    sources += [partial(_file_rows, table, file, file not in bad) for file in files]
    keys, runs = zip(*(_keys_and_runs(table, source()) for source in sources), strict=True)
    ...
