"""Check every file and row of a store's tables and journals, even of tables that cannot be opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from featurestore import canary, header, layout
from featurestore.dataset import hex_ids
from featurestore.errors import StoreCorrupt, StoreNotFound
from featurestore.journal import pending
from featurestore.schema import intact, keys_of
from featurestore.storage import ledger
from featurestore.storage.base import storage_of
from featurestore.storage.files import exists, listed, sha256_of, size_of
from featurestore.storage.fragments import Piece
from featurestore.storage.ledger import Ledger
from featurestore.storage.table import Table

REPAIR = "repair.json"  # exists while a repair is under way
MAX_ROWS = 1000  # damaged rows that are named per finding

Progress = Callable[[int, int], None]  # MB done, MB in total
Read = Callable[[int], None]  # called with the number of bytes read


@dataclass(frozen=True)
class Finding:
    """One kind of damage: something that is not as it was written.

    Attributes:
        path: of the damaged file, or of the table or folder that lacks a file, relative to the store.
        problem: what is wrong with it.
        rows: contents whose features are damaged, sha256 in hex; at most ``MAX_ROWS``.
    """

    path: str
    problem: str
    rows: tuple[str, ...] = ()


def tables_of(store: PurePath) -> dict[str, Table]:
    """Return the tables of a store by their paths in it, including those that cannot be opened."""
    sets = [path for path in listed(store / layout.FEATURES) if path.suffix == layout.TABLE and not Table(path).unborn]
    names = [layout.CATALOG, layout.LABELS, *(f"{layout.FEATURES}/{path.name}" for path in sets)]
    return {name: Table(store / name, sealed=name in (layout.CATALOG, layout.LABELS)) for name in sorted(names)}


def is_store(path: PurePath) -> bool:
    """Return whether there is a store, however damaged."""
    return any(exists(path / name) for name in (layout.HEADER, layout.CATALOG))


def verify(store: PurePath, progress: Progress = lambda _done, _total: None) -> Iterator[Finding]:
    """Find all damage to a store's header, tables and journals. Memory stays bounded: rows stream.

    Args:
        store: its folder.
        progress: called after each part that was read.

    Raises:
        FormatError: a newer penult wrote the store.
    """
    try:
        told = header.read(store)["tables"]
    except (StoreCorrupt, StoreNotFound) as error:
        told = {}
        yield Finding(layout.HEADER, str(error))
    if exists(store / REPAIR):
        yield Finding(REPAIR, "a repair was begun and has not ended")
    tables, done = tables_of(store), 0
    total = sum(map(_size, tables.values()))

    def read(size: int) -> None:
        nonlocal done
        done += size
        progress(done // 10**6, max(total, done) // 10**6)

    for name in sorted(told.keys() - tables.keys()):
        yield Finding(name, "this table is gone")
    for name, table in tables.items():
        with table.lease():
            yield from verify_table(name, table, told.get(name), read)
    yield from verify_journals(store)


def verify_table(name: str, table: Table, last: Mapping[str, int] | None, read: Read) -> Iterator[Finding]:
    """Find all damage to one table.

    Args:
        name: its path in the store.
        table: the table; it need not open.
        last: a version and number of rows that the table once had, if known; the table may be at a later version.
        read: called with the number of bytes read.
    """
    try:
        canary.read(table.path)
    except StoreCorrupt as error:
        yield Finding(f"{name}/{layout.CANARY}", str(error))
    try:
        known = ledger.read(table.path)
    except StoreCorrupt as error:  # without the ledger nothing else can be checked
        yield Finding(f"{name}/{layout.LEDGER}", str(error))
        return
    newest = max(table.versions(), default=0)
    if not known.files and (last or newest > 1):  # the first version is empty, and its run may have died then
        yield Finding(f"{name}/{layout.LEDGER}", "it is gone: nothing says what the files of this table were")
    damaged = damaged_files(table, known, read)
    yield from (Finding(f"{name}/{file}", problem) for file, problem in damaged.items())
    before = max((known.version, known.rows), (last["version"], last["rows"]) if last else (0, 0))
    if newest < max(before[0], 1):
        yield Finding(name, f"it is at version {newest} and was at {before[0]}: a manifest is gone")
        return
    try:
        pieces = table.pieces()
    except StoreCorrupt as error:
        yield Finding(name, str(error))
        return
    if newest == before[0] and (rows := sum(piece.rows for piece in pieces)) != before[1]:
        yield Finding(name, f"it has {rows} rows and had {before[1]}")
    whole = []
    for piece in pieces:
        gone = [file for file in piece.data + piece.deletions if not exists(table.path / file)]
        yield from (Finding(f"{name}/{file}", "it is gone") for file in gone)
        whole += [] if gone else [piece]
    if not table.sealed:
        for piece, problem, images in damaged_pieces(table, whole, read):
            yield Finding(f"{name}/{piece.data[0]}", problem, images)


def verify_journals(store: PurePath) -> Iterator[Finding]:
    """Find all damage to the journals of dead runs, and to the fragments that they name."""
    for staging in pending(store):
        for path in staging.damaged():
            yield Finding(path.relative_to(store).as_posix(), "it is not what the run has written")
        if staging.feature_set is not None:
            table = Table(layout.features(store, staging.feature_set), sealed=False)
            for fragment in (fragment for entry in staging.entries() for fragment in entry.fragments):
                if problem := table.staged_damage(fragment, whole=True):
                    yield Finding(staging.folder.relative_to(store).as_posix(), problem)


def damaged_files(table: Table, known: Ledger, read: Read = lambda _: None) -> dict[str, str]:
    """Return the files of a table whose digest is not the ledger's: the problem by path relative to the table.

    Missing files are not included: files that no version needs are cleaned up.
    """
    damaged = {}
    for file, sha256 in known.files.items():
        path = table.path / file
        if not exists(path):
            continue
        read(size_of(path) or 0)
        try:
            if (actual := sha256_of(path)) != sha256:
                damaged[file] = f"its sha256 was {sha256[:12]} and is {actual[:12]}"
        except StoreCorrupt as error:
            damaged[file] = str(error)
    return damaged


def damaged_pieces(
    table: Table, pieces: Sequence[Piece], read: Read = lambda _: None
) -> Iterator[tuple[Piece, str, tuple[str, ...]]]:
    """Yield fragments that cannot be read completely or have rows with wrong checksums, each with problem and contents.

    The fragments are read in one pass; if something is wrong, each half is checked by itself, and so on: a table may
    have tens of thousands of fragments.
    """
    if not pieces or (wrong := _problem(table, pieces, read)) is None:
        return
    if len(pieces) == 1:
        yield pieces[0], *wrong
    else:
        middle = len(pieces) // 2
        yield from damaged_pieces(table, pieces[:middle], read)
        yield from damaged_pieces(table, pieces[middle:], read)


def _problem(table: Table, pieces: Sequence[Piece], read: Read) -> tuple[str, tuple[str, ...]] | None:
    images: list[str] = []
    damaged, rows, expected = 0, 0, sum(piece.rows for piece in pieces)
    try:
        for batch in table.fragment_rows([piece.id for piece in pieces]):
            rows += batch.num_rows
            read(batch.nbytes)
            if not table.sealed and len(at := (~intact(batch)).nonzero()[0]):
                damaged += len(at)
                images += hex_ids(keys_of(batch.column("sha256"))[at[: MAX_ROWS - len(images)]]).tolist()
    except (StoreCorrupt, ValueError) as error:  # an invalid Arrow array raises ValueError
        return str(error), tuple(images)
    if not damaged and rows == expected:
        return None
    return f"{damaged} of {expected} rows have a wrong checksum, {rows} could be read", tuple(images)


def _size(table: Table) -> int:
    """Return the bytes that verifying a table reads: all its files, and once more the rows that have checksums."""
    return (1 if table.sealed else 2) * sum(found.size for _, found in storage_of(table.path).walk(table.path))
