"""The header ``penult.json``: the store's format version, and each table's version and rows after the last commit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from featurestore import layout
from featurestore.concurrency import side_by_side
from featurestore.errors import FormatError, StoreCorrupt, StoreNotFound
from featurestore.runs import utc_now
from featurestore.storage.files import (
    SEAL,
    is_file,
    read_json,
    replace_sealed,
    sealed,
    token_of,
    unsealed,
    write_sealed,
)
from featurestore.storage.table import Table

FORMAT_VERSION = 2  # 2: labels have sources; 1 is read, and upgraded by the first run that writes
READABLE = (1, 2)


def create(store: PurePath, unknown_origin: bool = False) -> None:
    """Write the header of a new store; ``unknown_origin``: the store may hold images whose source no row names."""
    told = {"format_version": FORMAT_VERSION, "created": utc_now(), "tables": {}}
    write_sealed(layout.header(store), told | ({"unknown_origin": True} if unknown_origin else {}))


def bring_up(store: PurePath) -> None:
    """Upgrade the header to this format version; an older penult then refuses to open the store."""
    token, told = token_of(layout.header(store)), read(store)
    if told["format_version"] != FORMAT_VERSION:
        told |= {"format_version": FORMAT_VERSION, "unknown_origin": True}
        replace_sealed(layout.header(store), told, token)


def read(store: PurePath) -> dict[str, Any]:
    """Return the header of a store.

    Raises:
        StoreNotFound: the folder is not a store.
        FormatError: a newer penult wrote the store.
        StoreCorrupt: the header is damaged.
    """
    path = layout.header(store)
    try:
        told = read_json(path)
    except StoreCorrupt:
        if is_file(path):
            raise
        raise StoreNotFound(
            f"There is no penult store at {store}: `penult embed SOURCE --store {store}` makes one."
        ) from None
    if not isinstance(told, dict) or "tables" not in told or type(told.get("format_version")) is not int:
        raise StoreCorrupt(f"Expected in {path}: format_version and tables. Got: {str(told)[:80]}.")
    if told["format_version"] not in READABLE:  # before the seal, which a newer penult may compute otherwise
        for version in READABLE:
            ours = {name: value for name, value in told.items() if name != SEAL} | {"format_version": version}
            if told.get(SEAL) == sealed(ours)[SEAL]:
                raise StoreCorrupt(f"Expected in {path}: format version {version}. Got: {told['format_version']}.")
        raise FormatError(
            f"{store} has format version {told['format_version']}, this penult reads up to {FORMAT_VERSION}: "
            "install a newer penult."
        )
    told = unsealed(path, told)
    tables = told["tables"]
    good = isinstance(tables, dict) and all(
        isinstance(last, dict) and all(type(last.get(word)) is int for word in ("version", "rows"))
        for last in tables.values()
    )
    if not good:
        raise StoreCorrupt(f"Expected in {path}: version and rows of each table. Got: something else.")
    return told


def check(store: PurePath) -> None:
    """Compare the tables with the versions and rows in the header.

    Raises:
        StoreCorrupt: a table is missing or older, or has other rows at the same version; also see ``read``.
    """
    list(side_by_side(lambda last: _check_table(Table(store / last[0]), last[1]), list(read(store)["tables"].items())))


def _check_table(table: Table, last: dict[str, int]) -> None:
    with table.lease():
        if not table.exists():
            raise StoreCorrupt(f"Expected: a table {table.path} at version {last['version']}. Got: none.")
        now = table.state()
    if now["version"] < last["version"] or (now["version"] == last["version"] and now["rows"] != last["rows"]):
        raise StoreCorrupt(
            f"Expected: {table.path} at version {last['version']} or later with {last['rows']} rows. "
            f"Got: version {now['version']} with {now['rows']} rows; `penult doctor` brings back what can be had."
        )


def remember(
    store: PurePath, tables: Iterable[Table], last_set: str | None = None, last_run: str | None = None
) -> None:
    """Note the state of tables, so that a later loss is noticed, and the set and run that were written last."""
    token, told = token_of(layout.header(store)), read(store)
    if last_set:
        told["last_set"] = last_set
    if last_run:
        told["last_run"] = max(last_run, told.get("last_run", ""))
    noted = list(tables)
    states = side_by_side(lambda table: table.state(), noted)
    told["tables"] |= dict(zip((table.path.relative_to(store).as_posix() for table in noted), states, strict=True))
    replace_sealed(layout.header(store), told, token)
