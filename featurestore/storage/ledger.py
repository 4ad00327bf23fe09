"""The ledger of a table: its version, its number of rows and the sha256 of every file, after the last commit.

Lance has no checksums of its own. A manifest names the table's files, so a flipped bit in it may lead to other files.
The ledger lies in the table's folder and holds the digest of each file. If the table's version is above the ledger's,
the writer of that commit died before it could update the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import PurePath

from featurestore import layout
from featurestore.errors import StoreCorrupt
from featurestore.storage.base import Stat
from featurestore.storage.files import read_sealed, sha256_of, stat, write_sealed

MAX_BYTES = 1 << 28  # about two million files


@dataclass(frozen=True)
class Ledger:
    """State of a table; ``files`` maps paths, relative to the table's folder, to sha256 in hex."""

    version: int = 0
    rows: int = 0
    files: dict[str, str] = field(default_factory=dict)


def read(table: PurePath) -> Ledger:
    """Return the ledger of a table; an empty ledger if it has none, as in stores of older versions.

    Raises:
        StoreCorrupt: the ledger is damaged.
    """
    path = table / layout.LEDGER
    found = stat(path)
    return Ledger() if found is None else _read(path, found.token)


@lru_cache(maxsize=64)
def _read(path: PurePath, _token: str) -> Ledger:
    told = read_sealed(path, required=True, limit=MAX_BYTES)
    if told.get("table") != path.parent.name:
        raise StoreCorrupt(f"Expected: the ledger of {path.parent.name} in {path}. Got: another table's.")
    version, rows, files = (told.get(name) for name in ("version", "rows", "files"))
    if (
        type(version) is int
        and type(rows) is int
        and isinstance(files, dict)
        and set(map(type, files.values())) <= {str}
    ):
        return Ledger(version, rows, files)
    raise StoreCorrupt(f"Expected in {path}: version, rows and files. Got: something else.")


def write(table: PurePath, ledger: Ledger) -> None:
    """Replace the ledger of a table, durably."""
    write_sealed(table / layout.LEDGER, {"table": table.name, **asdict(ledger)}, MAX_BYTES)


def check(table: PurePath, names: Sequence[str], found: Mapping[str, Stat]) -> None:
    """Compare files with their digests. Files that are not in the ledger pass. Each file is read once per process.

    Args:
        table: its folder.
        names: of the files, relative to the table.
        found: what is at these names; see ``files.stats``.

    Raises:
        StoreCorrupt: a file is missing or has changed.
    """
    known = read(table).files
    for name in names:
        if name in known and (problem := damage(table / name, known[name], found.get(name))):
            raise StoreCorrupt(f"{problem}; `penult doctor` brings back what can be had.")


def damage(path: PurePath, sha256: str, found: Stat | None) -> str | None:
    """Return what is wrong with a file that should have this digest, or None; ``found`` is what is there."""
    if found is None:
        return f"Expected: {path}. Got: no such file"
    actual = digest(path, found.token)
    return None if actual == sha256 else f"Expected: {path} with sha256 {sha256[:12]}. Got: {actual[:12]}"


@lru_cache(maxsize=1 << 16)
def digest(path: PurePath, _token: str) -> str:
    """Return the sha256 of a file, in hex, read once per process while its token stays the same."""
    return sha256_of(path)
