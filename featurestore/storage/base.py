"""The protocol of a storage, and the table that says which storage holds a location.

A location is a pure path: it can be joined, named and shown, but not opened. Its type decides which storage holds it:
a ``pathlib.Path`` lies on a local disk. A new storage is a class with these methods and a type of path of its own.
``location`` makes the path from what users write.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePath
from typing import Protocol

from featurestore.errors import StoreError, UsageError


@dataclass(frozen=True)
class Stat:
    """What a storage tells of a location without reading it.

    Attributes:
        kind: "file", "folder", "link", or "other", such as a pipe.
        size: bytes.
        modified_ns: when it was last written to, in nanoseconds since 1970.
        token: changes whenever the file is replaced; for ``replace`` and for caches.
    """

    kind: str
    size: int
    modified_ns: int
    token: str


@dataclass(frozen=True)
class Wanted:
    """A file of which a copy is wanted: what was told of it, and its sha256 in hex if that is known."""

    stat: Stat
    sha256: str | None = None


class Storage(Protocol):
    """Where the files of a store lie. Every write is whole or not at all, and kept through a power cut once it returns.

    Raises, in all methods:
        StoreCorrupt: what is there is not what a store has there: a link to itself, a folder in place of a file.
        StoreError: the storage refuses; one sentence says why and what to do.

    Attributes:
        grace: for how long it keeps what a reader may still need, as it cannot tell whether somebody reads.
        links: whether there are links.
    """

    grace: timedelta
    links: bool

    def stat(self, path: PurePath, follow: bool = True) -> Stat | None:
        """Return what is at a location, or None; ``follow`` links, or tell of the link itself."""

    def stats(self, folder: PurePath, names: Collection[str]) -> dict[str, Stat]:
        """Return what is at the names below a folder that are there, as ``stat`` does; in few requests."""

    def open(self, path: PurePath) -> AbstractContextManager[io.BufferedIOBase]:
        """Open a file for reading at random; refuse anything else in its place, such as a pipe."""

    def write(self, path: PurePath, durable: bool = True) -> AbstractContextManager[Path]:
        """Yield a temporary local path; its file replaces ``path`` at the end of the block."""

    def create(self, path: PurePath, data: bytes) -> bool:
        """Write a file unless there is one; return whether this call wrote it. Of racing calls one wins."""

    def replace(self, path: PurePath, data: bytes, token: str | None) -> bool:
        """Write a file if its token is still ``token`` (None: if there is none); return whether this call wrote it."""

    def list(self, folder: PurePath) -> list[PurePath]:
        """Return what is in a folder, sorted; nothing if there is no folder."""

    def walk(self, folder: PurePath) -> Iterator[tuple[PurePath, Stat]]:
        """Yield all files and links below a folder; do not follow links."""

    def delete(self, path: PurePath) -> None:
        """Delete a file, a link, or a folder with all that is in it; do nothing if it does not exist."""

    def move(self, path: PurePath, to: PurePath) -> None:
        """Move a file, a link or a folder to where nothing is."""

    def make_folder(self, path: PurePath) -> None:
        """Make a folder and those above it; do nothing if it exists."""

    def flush(self, path: PurePath, missing_ok: bool = False) -> None:
        """Make sure that a file that something else wrote, or the names in a folder, survive a power cut."""

    def lock(self, path: PurePath, holder: str) -> AbstractContextManager[str | None]:
        """Lock a file while the block runs; yield None, or the name of the holder if somebody else has it.

        Raises:
            StoreError: the storage cannot keep two writers apart.
        """

    def confirm(self, path: PurePath) -> None:
        """Make sure, before a commit below ``path``, that this process has not lost a lock that it holds there.

        Raises:
            StoreLocked: it has, to another run.
        """

    def lease(self, folder: PurePath, alone: bool = False) -> AbstractContextManager[bool]:
        """Hold a folder while the block runs, together with others or ``alone``; yield whether it is held.

        Meanwhile the storage may tell of the folder what was there when it first looked, see ``changed``.
        """

    def changed(self, path: PurePath) -> None:
        """Look again at what is there: something else, such as Lance, has written below a location."""

    def uri(self, path: PurePath) -> str:
        """Return the location as Lance wants it."""

    def options(self, path: PurePath) -> dict[str, str]:
        """Return what Lance must know to open the location: endpoint and credentials."""

    def refusal(self, error: BaseException, path: PurePath) -> StoreError | None:
        """Return what an error of Lance says of the storage, such as a server that is away; None if it is the table's.

        What only the network broke must not be taken for damage, and repaired.
        """

    def copies(self, folder: PurePath, wanted: Mapping[str, Wanted], make: bool) -> Path | None:
        """Return a local folder from which these files below ``folder`` are read faster, by the same names.

        None where they are read as they are: on a disk, where no copies are kept, and where a copy is missing and none
        is to be made (``make``). What is read from a copy had the digest that was wanted.
        """

    def local(self, path: PurePath) -> Path:
        """Return an absolute local path at which a file can be read, by libraries that read nothing else."""


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_STORAGES: dict[type[PurePath], Storage] = {}
_SCHEMES: dict[str, type[PurePath]] = {}


def register(kind: type[PurePath], storage: Storage, *schemes: str) -> None:
    """Let a storage hold the locations of a type of path, to which URIs of these schemes lead."""
    _STORAGES[kind] = storage
    _SCHEMES.update(dict.fromkeys(schemes, kind))


def location(named: str | PurePath) -> PurePath:
    """Return what users write as a location: a path on a local disk, unless it begins with a scheme such as ``s3://``.

    Raises:
        UsageError: no storage has the scheme, or nothing follows it.

    Example:
        >>> location("photos.store").name, str(location("s3://photos/store"))
        ('photos.store', 's3://photos/store')
    """
    if isinstance(named, PurePath):
        return named
    if not (begin := _SCHEME.match(named)):
        return Path(named)
    if begin[1] not in _SCHEMES or not named[begin.end() :].strip("/"):
        places = ", ".join(f"{scheme}://bucket/prefix" for scheme in _SCHEMES)
        raise UsageError(f"Expected: a folder, or a place such as {places}. Got: {named}.")
    return _SCHEMES[begin[1]](named)


def storage_of(path: PurePath) -> Storage:
    """Return the storage that holds a location.

    Example:
        >>> storage = storage_of(Path("photos.store"))
        >>> storage.uri(Path("/data/photos.store")), storage.stat(Path("/nothing is here"))
        ('/data/photos.store', None)
    """
    return _STORAGES[type(path)]
