"""The ledger of a table: its version, its rows and the sha256 of every file, as they were after the last commit.

Lance has no checksums of its own. A manifest names files, so that a flipped bit in it may serve another table; the
ledger is beside it and says what each file was. A version above the ledger's is a commit whose writer died before it
could note it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

from featurestore import layout
from featurestore.errors import StoreCorrupt
from featurestore.storage.files import read_sealed, sha256_of, write_sealed

MOST_BYTES = 1 << 28  # about two million files


@dataclass(frozen=True)
class Ledger:
    """What a table was: ``files`` are sha256 in hex by path, relative to the table's folder."""

    version: int = 0
    rows: int = 0
    files: dict[str, str] = field(default_factory=dict)


def read(table: Path) -> Ledger:
    """The ledger of a table; an empty one where there is none, as in the stores of older versions.

    Raises:
        StoreCorrupt: it is damaged.
    """
    path = table / layout.LEDGER
    try:
        found = path.stat()
    except FileNotFoundError:
        return Ledger()
    except OSError as error:  # a link to itself, for one
        raise StoreCorrupt(f"Expected: a ledger at {path}. Got: {error.strerror}.") from error
    return _read(path, (found.st_ino, found.st_mtime_ns, found.st_size))


@lru_cache(maxsize=64)
def _read(path: Path, _state: tuple[int, int, int]) -> Ledger:
    told = read_sealed(path, required=True, limit=MOST_BYTES)
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


def write(table: Path, ledger: Ledger) -> None:
    """Replace the ledger of a table, durably."""
    write_sealed(table / layout.LEDGER, {"table": table.name, **asdict(ledger)}, MOST_BYTES)


def check(table: Path, names: list[str]) -> None:
    """Compare files with their digests; files that the ledger does not know pass. Each is read once per process.

    Raises:
        StoreCorrupt: one is missing or not what it was.
    """
    known = read(table).files
    for name in names:
        if name in known and (problem := damage(table / name, known[name])):
            raise StoreCorrupt(f"{problem}; `penult doctor` brings back what can be had.")


def damage(path: Path, sha256: str) -> str | None:
    """What is wrong with a file that should have this digest, or None."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return f"Expected: {path}. Got: no such file"
    actual = _sha256_of(path, (found.st_ino, found.st_mtime_ns, found.st_size))
    return None if actual == sha256 else f"Expected: {path} with sha256 {sha256[:12]}. Got: {actual[:12]}"


@lru_cache(maxsize=1 << 16)
def _sha256_of(path: Path, _state: tuple[int, int, int]) -> str:
    return sha256_of(path)
