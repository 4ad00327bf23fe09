"""Copy a store to another place, file by file; a copy that was killed goes on where it was.

Each file's bytes are read back at the new place and compared with those that were read at the old one. The header is
written last: until then there is no store at the new place, only what a note says of the copy that is under way.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePath
from posixpath import normpath

from featurestore import header, layout
from featurestore.errors import StoreError, UsageError
from featurestore.maintenance.verify import Progress
from featurestore.storage.base import storage_of
from featurestore.storage.files import (
    delete,
    exists,
    make_folder,
    read_sealed,
    reading,
    replacing,
    sha256_of,
    size_of,
    write_sealed,
)
from featurestore.storage.lock import locked
from featurestore.store import FeatureStore

AT_ONCE = 8  # files; a bucket answers slowly
BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Copied:
    """What a copy came to: the files and bytes of the store, and those that were still missing at the new place."""

    files: int
    bytes: int
    copied_files: int
    copied_bytes: int


def copy_store(store: PurePath, to: PurePath, progress: Progress = lambda _done, _total: None) -> Copied:
    """Copy a store to a place where nothing is, or where a copy of it was begun; both are locked meanwhile.

    Shards that a dead run finished are committed first. What dead runs have left is not copied.

    Args:
        store: a store's folder.
        to: where the copy is to be.
        progress: called after each file, with the megabytes done and in total.

    Raises:
        UsageError: one place lies in the other.
        StoreNotFound, FormatError, StoreCorrupt: ``store`` cannot be opened, or a link lies in it.
        StoreLocked: another run holds the lock of one of the two.
        StoreError: something else is at the new place, or it does not keep what is written there.
    """
    here, there = (PurePath(normpath(storage_of(path).uri(path))) for path in (store, to))  # however they were typed
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UsageError(f"Expected: two places, neither within the other. Got: {store} and {to}.")
    opened = FeatureStore(store)
    with opened.lock():
        opened.recover()
        files = _files(store)
        make_folder(to)
        with locked(to):
            _begin(store, to)
            for path in _files(to).keys() - files.keys() - {layout.COPYING}:  # files that went since the copy was begun
                delete(to / path)
            copied = _copied(store, to, files, progress)
            delete(to / layout.COPYING)
    return Copied(len(files), sum(files.values()), len(copied), sum(copied))


def _files(store: PurePath) -> dict[str, int]:
    """Return the size in bytes of each file that a store consists of, by its path in the store."""
    found = {}
    for path, stat in storage_of(store).walk(store):
        name = path.relative_to(store).as_posix()
        if name == layout.LOCK or name.startswith(f"{layout.JOURNALS}/") or path.match(".*.tmp"):
            continue
        if stat.kind != "file":
            raise StoreError(f"{path} is no file but a {stat.kind}: put in its place what it leads to, or remove it.")
        found[name] = stat.size
    return found


def _begin(store: PurePath, to: PurePath) -> None:
    """Note what is copied to a place; raise StoreError if something else is there."""
    told = {"store": storage_of(store).uri(store), "created": header.read(store)["created"]}
    noted = exists(to / layout.COPYING)
    if exists(to / layout.HEADER) and not (noted and header.read(to) == header.read(store)):
        raise StoreError(f"There is a store at {to} already: name another place.")
    if noted:
        if read_sealed(to / layout.COPYING) != told:
            raise StoreError(f"At {to} is an unfinished copy of another store: delete it, or name another place.")
    elif there := _files(to):
        raise StoreError(f"{to} is not empty, {next(iter(there))} is there: name another place.")
    else:
        write_sealed(to / layout.COPYING, told)


def _copied(store: PurePath, to: PurePath, files: dict[str, int], progress: Progress) -> list[int]:
    """Copy what is missing, the header last; return the sizes of the files that were copied."""
    names = [name for name in files if name != layout.HEADER]
    for folder in {(to / name).parent for name in names}:
        make_folder(folder)

    def carry(name: str) -> bool:
        return _carry(store / name, to / name)

    copied, done, total = list[int](), 0, sum(files.values())
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = chain(pool.map(carry, names), map(carry, [layout.HEADER]))  # the last one only after all others
        for name, was_missing in zip([*names, layout.HEADER], outcomes, strict=True):
            done += files[name]
            copied += [files[name]] if was_missing else []
            progress(round(done / 1e6), round(total / 1e6))
    return copied


def _carry(path: PurePath, to: PurePath) -> bool:
    """Make a file's copy equal to it; return whether it was not yet.

    Raises:
        StoreError: what is read back is not what was written.
    """
    if size_of(to) == size_of(path) and sha256_of(to) == sha256_of(path):
        return False
    digest = hashlib.sha256()
    with reading(path) as file, replacing(to) as temporary, temporary.open("wb") as copy:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            copy.write(block)
    if (found := sha256_of(to)) != digest.hexdigest():
        raise StoreError(
            f"Expected: {to} as it was written, with sha256 {digest.hexdigest()[:12]}. Got: {found[:12]}: look after "
            "that disk or bucket, then run the same command again."
        )
    return True
