"""The versions of a Lance dataset: opened strictly, committed on top of the version that was read, flushed and noted.

Lance itself never calls flush, has no checksums, opens a manifest of zeros as an empty table, and waits for a data file
that is cut. This module and the ledger make up for these. Seen on pylance 14.0.2.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import lance
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata

from featurestore import layout
from featurestore.concurrency import side_by_side
from featurestore.errors import StoreCorrupt, StoreError, StoreNotFound, trouble
from featurestore.storage import ledger
from featurestore.storage.base import Stat, Wanted, storage_of
from featurestore.storage.files import delete, exists, flush, listed, size_of, stats
from featurestore.storage.fragments import Piece, data_names, deletion_names, digests_of

CLOCK_SLACK_NS = 2_000_000_000  # file times are coarser than the clock
HINT, MOST_HINT_BYTES = "_versions/latest_version_hint.json", 4096
CONFLICTS = 3  # tries of a commit: a server may speak of a conflict where nobody else has written
MAX_OPEN = 4  # versions that a process keeps open, with what Lance caches of them: a command reads few tables, often
MAX_VERSIONS = 2**64 - 1  # a manifest's name is this minus its version, so that the newest sorts first


class _At(NamedTuple):
    """Where a version is: its number, the name of its manifest, and what is there."""

    number: int
    name: str
    stat: Stat | None


class Versions:
    """The versions of the Lance dataset under ``path``; each method looks at what is there now.

    ``sealed``: its rows carry no checksums, so its files are compared with the ledger before rows are read.
    """

    def __init__(self, path: PurePath, sealed: bool = True) -> None:
        self.path, self.sealed = path, sealed

    @property
    def uri(self) -> str:
        """The location as Lance wants it."""
        return storage_of(self.path).uri(self.path)

    @property
    def options(self) -> dict[str, str]:
        """What Lance must know to open it."""
        return storage_of(self.path).options(self.path)

    def exists(self) -> bool:
        """Return whether a dataset was created here."""
        return bool(self.versions())

    @property
    def unborn(self) -> bool:
        """Whether there is at most what a run leaves behind if it dies while it creates the table."""
        return not (self.exists() or exists(self.path / layout.LEDGER) or listed(self.path / "data"))

    def versions(self) -> dict[int, str]:
        """Return the existing manifests by version, the latest last; their paths are relative to the table."""
        names = [path.name for path in listed(self.path / "_versions") if path.suffix == ".manifest"]
        numbers = {int(stem): name for name in names if (stem := name.removesuffix(".manifest")).isdecimal()}
        found = {MAX_VERSIONS - n if n > MAX_VERSIONS // 2 else n: f"_versions/{name}" for n, name in numbers.items()}
        return dict(sorted(found.items()))

    @property
    def version(self) -> int:
        """The latest version; it grows by at least one per commit."""
        with self.reading(), self.lease():
            return int(self.shown().version)

    def pieces(self, version: int | None = None) -> list[Piece]:
        """Return the fragments of a version, by default the latest."""
        with self.reading(), self.lease():
            fragments = [fragment.metadata for fragment in self.shown(version).get_fragments()]
        return [Piece(f.id, f.physical_rows, f.num_rows, data_names(f), deletion_names(f)) for f in fragments]

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep ``cleanup`` from removing anything while the block runs."""
        with storage_of(self.path).lease(self.path):
            yield

    def alone(self) -> AbstractContextManager[bool]:
        """Yield whether nobody holds a lease; while the block runs, nobody gets one."""
        return storage_of(self.path).lease(self.path, alone=True)

    def land(self, operation: Any, read_version: int, staged: list[str]) -> bool:
        """Commit an operation on the version it was made for, flush and note it; return False if another was first."""
        began, hint = time.time_ns(), self.path / HINT
        if hint in listed(hint.parent) and (size_of(hint) or 0) > MOST_HINT_BYTES:
            delete(hint)  # Lance reads it whole, whatever its size
        storage_of(self.path).confirm(self.path)
        if not any(self._landed(operation, read_version) for _ in range(CONFLICTS)):
            return False
        with self.lease():  # so that a bucket is listed once for both
            self.flush_version(began)
            self.note(staged)
        return True

    def _landed(self, operation: Any, read_version: int) -> bool:
        """Commit an operation; return False if there was a conflict."""
        if max(self.versions(), default=0) != read_version:
            return False  # another was first
        try:
            with self.writing():
                lance.LanceDataset.commit(
                    self.open(read_version), operation, read_version, max_retries=0, storage_options=self.options
                )
        except CommitConflictError:
            return False
        return True

    def checked(self, version: int | None = None, ids: Sequence[int] | None = None) -> Any:
        """Open a version and compare its files with the ledger: deletion files always, data files if it is sealed.

        ``ids`` limits the check to some fragments.
        """
        dataset = self.open(version)
        fragments = [fragment.metadata for fragment in dataset.get_fragments()]
        data, deletions, found = self._files([f for f in fragments if ids is None or f.id in ids])
        ledger.check(self.path, deletions + (data if self.sealed else []), found)
        return dataset

    def readable(self, version: int | None = None, copied: bool = True) -> Any:
        """Open a version as ``checked`` does, for reading alone: where its storage is slow, from copies of its files.

        ``copied``: copies that are missing are made, as most of what is in the files is to be read.
        """
        at = self._at(version)
        data, deletions, found = self._files([fragment.metadata for fragment in self._shown(at).get_fragments()])
        folder = self._copies(at, found, copied)
        if folder is not None:
            return _dataset(str(folder), at.number, "".join(stat.token for stat in found.values()), ())
        ledger.check(self.path, deletions + (data if self.sealed else []), found)
        return self._opened(at)

    def shown(self, version: int | None = None) -> Any:
        """Open a version for its schema, numbers and fragments, not for its rows: a copy of the manifest will do."""
        return self._shown(self._at(version))

    def _files(self, fragments: Sequence[FragmentMetadata]) -> tuple[list[str], list[str], dict[str, Stat]]:
        """Return the data and the deletion files of fragments, and what is at these names; none may be missing."""
        data = [name for f in fragments for name in data_names(f)]
        deletions = [name for f in fragments for name in deletion_names(f)]
        found = stats(self.path, [*data, *deletions])
        for fragment in fragments:
            if problem := self.missing(fragment, found):
                raise StoreCorrupt(f"{problem}; `penult doctor` brings back what can be had.")
        return data, deletions, found

    def missing(self, fragment: FragmentMetadata, found: Mapping[str, Stat] | None = None) -> str | None:
        """Return which data file is missing or has the wrong size: Lance would wait for it, or read all of it."""
        names = data_names(fragment)
        found = stats(self.path, names) if found is None else found
        for file, name in zip(fragment.files, names, strict=True):
            there = found.get(name)
            size = there.size if there and there.kind == "file" else None
            if size is None or (file.file_size_bytes and size != file.file_size_bytes):
                return f"Expected: {self.path / name} of {file.file_size_bytes} bytes. Got: {size}"
        return None

    def open(self, version: int | None = None) -> Any:
        """Open a version, by default the latest; unlike Lance, refuse a manifest that is damaged or lost."""
        with self.reading():
            return self._opened(self._at(version))

    def _at(self, version: int | None) -> _At:
        """Return where a version is, by default the latest."""
        with self.reading():
            known, versions = ledger.read(self.path), self.versions()  # in this order: the ledger may be older
            if not versions:
                raise OSError("no manifest")
            number = max(versions) if version is None else version
            if number < known.version and version is None:
                raise StoreCorrupt(
                    f"Expected: {self.path} at version {known.version} or later. Got: version {number}; "
                    "`penult doctor` brings back what can be had."
                )
            if number not in versions:
                lance.dataset(self.uri, version=number, storage_options=self.options)  # raises Lance's own error
            name = versions[number]
            return _At(number, name, stats(self.path, [name]).get(name))

    def _opened(self, at: _At) -> Any:
        ledger.check(self.path, [at.name], {} if at.stat is None else {at.name: at.stat})
        return _dataset(self.uri, at.number, at.stat and at.stat.token, tuple(sorted(self.options.items())))

    def _shown(self, at: _At) -> Any:
        folder = self._copies(at, {}, make=True)
        return self._opened(at) if folder is None else _dataset(str(folder), at.number, at.stat and at.stat.token, ())

    def _copies(self, at: _At, found: Mapping[str, Stat], make: bool) -> Path | None:
        """Return a local folder with copies of a version's manifest and of other files, if there is to be one."""
        if at.stat is None:
            return None
        digests = ledger.read(self.path).files
        wanted = {name: Wanted(stat, digests.get(name)) for name, stat in {at.name: at.stat, **found}.items()}
        return storage_of(self.path).copies(self.path, wanted, make)

    @contextmanager
    def writing(self, causes: Sequence[BaseException] = ()) -> Iterator[None]:
        """Turn an OSError of lance into the first of ``causes``, or else into a StoreError for users."""
        try:
            yield
        except CommitConflictError:  # an OSError too
            raise
        except OSError as error:
            if causes:
                raise causes[0] from None
            refusal = storage_of(self.path).refusal(error, self.path)
            raise refusal or StoreError(trouble(error, self.path)) from error
        except ValueError as error:  # what a server refuses may be one of lance too
            if not causes and (refusal := storage_of(self.path).refusal(error, self.path)):
                raise refusal from error
            raise
        finally:
            storage_of(self.path).changed(self.path)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what lance raises on a damaged file, Rust panics included, into a StoreError for users."""
        try:
            yield
        except BaseException as error:  # PanicException is not a subclass of Exception and cannot be imported
            if not isinstance(error, (ValueError, OSError)) and type(error).__name__ != "PanicException":
                raise
            if refusal := storage_of(self.path).refusal(error, self.path):
                raise refusal from error
            if not self.exists():
                raise StoreNotFound(f"There is no table {self.path}.") from error
            raise StoreCorrupt(
                f"Expected: a readable Lance table at {self.path}. Got: {_first_words(error)}; "
                "`penult doctor` brings back what can be had."
            ) from error

    def flush_version(self, since_ns: int) -> None:
        """Flush the files, apart from data files, of a commit that began at ``since_ns`` (wall clock)."""
        for name in ("_deletions", "_transactions", "_versions"):
            folder = self.path / name
            names = [path.name for path in listed(folder)]
            for file, found in stats(folder, names).items():  # another writer's temporary file may be gone
                if found.modified_ns >= since_ns - CLOCK_SLACK_NS:
                    flush(folder / file, missing_ok=True)
            flush(folder, missing_ok=True)
        flush(self.path)

    def note(self, staged: Iterable[str] = ()) -> None:
        """Update the ledger to the latest version if it is behind."""
        with self.lease():
            if (state := self._behind(staged)) is not None:
                ledger.write(self.path, state)

    def _behind(self, staged: Iterable[str]) -> ledger.Ledger | None:
        """Return what the ledger should be; None if it is so."""
        known, versions = ledger.read(self.path), self.versions()
        there = set(stats(self.path, known.files))
        if known.version == max(versions) and len(there) == len(known.files):
            return None
        transactions = (f"_transactions/{path.name}" for path in listed(self.path / "_transactions"))
        names = there.union(versions.values(), (name for name in transactions if name.endswith(".txn")))
        dataset = self.open()
        for fragment in dataset.get_fragments():
            names.update(data_names(fragment.metadata), deletion_names(fragment.metadata))
        files = {name: digest for text in staged for name, digest in digests_of(text).items()} | known.files
        files = {name: digest for name, digest in files.items() if name in names}
        found = stats(self.path, names)
        unread = sorted(name for name in names if name not in files and name in found)
        digests = side_by_side(lambda name: self._digest(name, found[name]), unread)
        for name, digest in zip(unread, digests, strict=True):
            if digest is not None:
                files[name] = digest
        return ledger.Ledger(max(versions), dataset.count_rows(), dict(sorted(files.items())))

    def _digest(self, name: str, stat: Stat) -> str | None:
        """Return the sha256 of a file; None if it is gone, as one of another writer whose commit lost."""
        with suppress(StoreCorrupt):
            return ledger.digest(self.path / name, stat.token)
        return None


@lru_cache(maxsize=MAX_OPEN)
def _dataset(uri: str, version: int, _token: str | None, options: tuple[tuple[str, str], ...]) -> Any:
    """Open a version of a dataset once per process, for as long as its manifest is the same file."""
    return lance.dataset(uri, version=version, storage_options=dict(options))


def _first_words(error: BaseException) -> str:
    """Return the message of a lance error, without source locations and nested error prefixes."""
    said = str(error).split(", /")[0].splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r'(External error: |Wrapped error: |task \d+ panicked with message )+"?([^"]*)"?', r"\2", said)[:300]
