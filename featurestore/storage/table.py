"""Lance tables with strict, idempotent commits. The only module that imports lance or lancedb.

A commit is a compare-and-append: it takes effect once per run id, however often it is tried, and only on top of the
version that it read. Lance itself promises neither: a plain Append rebases, and adds its rows again if sent twice.
Lance also never calls fsync, overlooks a failed last write to a data file, has no checksums and opens a manifest of
zeros as an empty table. This module and the ledger make up for all of these. Seen on pylance 14.0.2.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lance
import pyarrow as pa
import pyarrow.compute as pc
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata, write_fragments
from lance.schema import LanceSchema

from featurestore import layout
from featurestore.errors import StoreCorrupt, StoreError, StoreNotFound
from featurestore.storage import ledger
from featurestore.storage.files import fsync, listed, sha256_of, size_of, trouble

DATA_STORAGE_VERSION = "2.2"  # what LanceDB 0.40 opens
MAX_COMMIT_TRIES = 20
WRITE_BUFFER_BYTES = 16 * 2**20
CLOCK_SLACK_NS = 2_000_000_000  # file times are coarser than the clock
KEPT_VERSIONS = 3  # the latest, and those that `penult doctor` may go back to
HINT, MOST_HINT_BYTES = "_versions/latest_version_hint.json", 4096
MAX_VERSIONS = 2**64 - 1  # a manifest's name is this minus its version, so that the newest sorts first


@dataclass(frozen=True)
class Piece:
    """A fragment of a table: its number, its rows with and without deleted ones, its files relative to the table."""

    id: int
    physical_rows: int
    rows: int
    data: list[str]
    deletions: list[str]


class Replaced(NamedTuple):
    """Rows to be replaced: those with one of ``values`` in ``column`` for which the condition ``where`` (SQL) holds."""

    values: pa.Array
    where: str | None = None
    column: str = "uri"


class Pin:
    """A version of a table whose files are kept as long as this object exists."""

    def __init__(self, table: Table) -> None:
        lease = table.lease()
        lease.__enter__()
        weakref.finalize(self, lease.__exit__, None, None, None)
        self.version = table.version


class Table:
    """One Lance dataset under ``path``; opened again at each read, so it always sees the latest version.

    ``sealed``: its rows carry no checksums, so its files are compared with the ledger before rows are read.
    """

    def __init__(self, path: Path, sealed: bool = True) -> None:
        self.path, self.sealed = path, sealed

    @property
    def _uri(self) -> str:
        """Absolute path for Lance, which would take a relative ``a:b`` for a URL."""
        return str(self.path.absolute())

    def exists(self) -> bool:
        """Return whether a dataset was created here."""
        return bool(self.versions())

    @property
    def unborn(self) -> bool:
        """Whether there is at most what a run leaves behind if it dies while it creates the table."""
        return not (self.exists() or (self.path / layout.LEDGER).exists() or listed(self.path / "data"))

    def versions(self) -> dict[int, str]:
        """Return the existing manifests by version, the latest last; their paths are relative to the table."""
        names = [path.name for path in listed(self.path / "_versions") if path.suffix == ".manifest"]
        numbers = {int(stem): name for name in names if (stem := name.removesuffix(".manifest")).isdecimal()}
        found = {MAX_VERSIONS - n if n > MAX_VERSIONS // 2 else n: f"_versions/{name}" for n, name in numbers.items()}
        return dict(sorted(found.items()))

    def create(self, schema: pa.Schema) -> None:
        """Create an empty table; do nothing if it exists.

        Raises:
            StoreCorrupt: the table exists with another schema.
        """
        if self.exists():
            self.check_schema(schema)
            return
        began = time.time_ns()
        try:
            with self._writing():
                lance.write_dataset(schema.empty_table(), self._uri, data_storage_version=DATA_STORAGE_VERSION)
        except StoreError:
            if not self.exists():
                raise
            self.check_schema(schema)  # another run created it first
            return
        self._fsync_version(began)
        fsync(self.path.parent)
        self.note()

    def check_schema(self, expected: pa.Schema) -> None:
        """Raise StoreCorrupt unless the table's columns are those of ``expected``."""
        actual = self.schema
        if actual.names != expected.names or any(actual.field(f.name).type != f.type for f in expected):
            raise StoreCorrupt(f"Expected in {self.path}: columns {expected.names}. Got: {actual.names}.")

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema with its metadata."""
        with self._reading(), self.lease():
            return self._open().schema

    def columns(self, version: int | None = None) -> list[str]:
        """Return the names of the columns of a version, by default the latest."""
        with self._reading(), self.lease():
            return list(self._open(version).schema.names)

    @property
    def version(self) -> int:
        """The latest version; it grows by at least one per commit."""
        with self.lease():
            return self._open().version

    def state(self) -> dict[str, int]:
        """Return version and number of rows, read together."""
        with self._reading(), self.lease():
            dataset = self._open()
            return {"version": dataset.version, "rows": dataset.count_rows()}

    def count(self, condition: str | None = None) -> int:
        """Return the number of rows for which ``condition`` (SQL) holds, by default of all."""
        with self._reading(), self.lease():
            return self._checked().count_rows(filter=condition)

    def scan(
        self,
        columns: list[str],
        condition: str | None = None,
        version: int | None = None,
        batch_rows: int = 8192,
    ) -> Iterator[pa.RecordBatch]:
        """Stream columns of all rows for which ``condition`` (SQL) holds, at a version, by default the latest."""
        with self._reading(), self.lease():
            scanner = self._checked(version).scanner(columns=columns, filter=condition, batch_size=batch_rows)
            yield from scanner.to_batches()

    def read(self, columns: list[str], condition: str | None = None, version: int | None = None) -> pa.Table:
        """Return what ``scan`` streams as one table in memory."""
        with self._reading(), self.lease():
            return self._checked(version).scanner(columns=columns, filter=condition).to_table()

    def has_run(self, run_id: str) -> bool:
        """Return whether rows of this run have been committed."""
        return bool(self.count(_of_run(run_id)))

    def stage(self, batches: Iterable[pa.RecordBatch]) -> list[str]:
        """Write rows as fragments that no version refers to yet, flushed to the disk; return them as JSON.

        ``batches`` streams: memory stays bounded. An exception raised by the iterable is raised again here.
        """
        schema = self.schema
        failure: list[BaseException] = []

        def guarded() -> Iterator[pa.RecordBatch]:
            try:
                yield from batches
            except BaseException as error:  # lance would turn it into a plain OSError
                failure.append(error)
                raise

        reader = pa.RecordBatchReader.from_batches(schema, guarded())
        with self._writing(failure):
            fragments = write_fragments(
                reader,
                self._uri,
                schema=schema,
                mode="append",
                data_cache_bytes=WRITE_BUFFER_BYTES // len(schema),  # per column
            )
        staged = []
        for fragment in fragments:
            if problem := self._missing(fragment):  # Lance overlooks a failed last write
                raise StoreError(f"{problem}: make room there, then run the same command again.")
            digests = {}
            for name in _data_names(fragment):
                fsync(self.path / name)
                digests[name] = sha256_of(self.path / name)
            staged.append(json.dumps({"fragment": fragment.to_json(), "sha256": digests}))
        if staged:
            fsync(self.path / "data")
            fsync(self.path)  # the first fragment creates the folder
        return staged

    def staged_columns(self, staged: str, columns: list[str]) -> Iterator[list[pa.Array]]:
        """Read columns of a staged fragment in order, one batch at a time."""
        for batch in self._staged_batches(staged, columns):
            yield [batch.column(name) for name in columns]

    def restage(self, staged: str, keep: pa.Array) -> list[str]:
        """Write a staged fragment again, with only the rows for which ``keep`` (bool, one per row) is true."""

        def kept() -> Iterator[pa.RecordBatch]:
            start = 0
            for batch in self._staged_batches(staged, self.schema.names):
                yield batch.filter(keep.slice(start, batch.num_rows)).cast(self.schema)
                start += batch.num_rows

        return self.stage(kept())

    def staged_damage(self, staged: str, whole: bool = False) -> str | None:
        """Return what is wrong with a staged fragment's files: missing or of another size; ``whole``: digests too."""
        fragment, digests = _fragment(staged), _digests(staged)
        if problem := self._missing(fragment):
            return problem
        for name in _data_names(fragment):
            if whole and name in digests and (problem := ledger.damage(self.path / name, digests[name])):
                return problem
        return None

    def commit(
        self,
        run_id: str,
        staged: list[str],
        replaces: Sequence[Replaced] = (),
    ) -> bool:
        """Add staged fragments as one new version, once per run id.

        Two processes may try to commit the same run at once. The second one sees the rows of the first, unless a third
        run replaces all of them in between; the store's lock prevents that.

        Args:
            run_id: value of the ``run_id`` column of the staged rows; if the table has such rows, nothing happens.
            staged: fragments from ``stage``.
            replaces: stored rows that are removed in the same version.

        Returns:
            Whether this call made the version.

        Raises:
            StoreError: other writers won the race too many times.
        """
        for _ in range(MAX_COMMIT_TRIES):
            with self._reading():
                dataset = self._checked()
                done = not staged or dataset.count_rows(filter=_of_run(run_id)) > 0
                gone = {} if done else _rows_of(dataset, replaces)
            if done:
                self.note(staged)  # a writer may have died between its commit and its note
                return False
            with self._writing():
                operation = _addition(dataset, [_fragment(text) for text in staged], gone)
            if self._land(operation, dataset.version, staged):
                return True
        raise StoreError(f"Other writers keep changing {self.path}: stop them, then run this again.")

    def widen(self, schema: pa.Schema) -> None:
        """Add the columns that only ``schema`` has, at its end; they are null in all rows. No data file is written.

        Raises:
            StoreError: another writer committed first.
        """
        with self._reading():
            dataset = self._checked()
        present = [fragment.metadata for fragment in dataset.get_fragments()]
        operation = lance.LanceOperation.Merge(present, LanceSchema.from_pyarrow(schema))
        if dataset.schema.names != schema.names and not self._land(operation, dataset.version, []):
            raise StoreError(f"Another writer changes {self.path}: stop it, then run this again.")

    def exchange(self, staged: list[str], gone: Replaced) -> int:
        """Replace rows by staged fragments in one new version; return how many rows were removed.

        Raises:
            StoreError: another writer committed first.
        """
        with self._reading():
            dataset = self._checked()
            rows = _rows_of(dataset, [gone])
        with self._writing():
            operation = _addition(dataset, [_fragment(text) for text in staged], rows)
        if (rows or staged) and not self._land(operation, dataset.version, staged):
            raise StoreError(f"Another writer changes {self.path}: stop it, then run this again.")
        return sum(map(len, rows.values()))

    # -- upkeep: the caller holds the store's lock -----------------------------------------------------------------

    def pieces(self, version: int | None = None) -> list[Piece]:
        """Return the fragments of a version, by default the latest."""
        with self._reading(), self.lease():
            fragments = [fragment.metadata for fragment in self._open(version).get_fragments()]
        return [Piece(f.id, f.physical_rows, f.num_rows, _data_names(f), _deletion_names(f)) for f in fragments]

    def swap(self, gone: list[int], staged: list[str], version: int | None = None) -> None:
        """Replace the fragments ``gone`` of a version, by default the latest, by staged ones.

        Raises:
            StoreError: another writer committed first.
        """
        operation = lance.LanceOperation.Update(
            removed_fragment_ids=gone, updated_fragments=[], new_fragments=[_fragment(text) for text in staged]
        )
        if (gone or staged) and not self._land(operation, version or self.version, staged):
            raise StoreError(f"Another writer changes {self.path}: stop it, then run this again.")

    def file_rows(self, names: list[str], columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of data files, deleted rows included, whether or not a version refers to the files.

        Raises:
            StoreCorrupt: a file cannot be read.
        """
        from lance.file import LanceFileReader

        with self._reading():
            for name in names:
                yield from LanceFileReader(f"{self._uri}/{name}", columns=columns).read_all().to_batches()

    def fragment_rows(self, ids: list[int], version: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some fragments of a version, by default the latest."""
        with self._reading(), self.lease():
            dataset = self._checked(version, ids)
            yield from dataset.scanner(fragments=[dataset.get_fragment(id) for id in ids]).to_batches()

    def cleanup(self, staged_too: bool = False) -> int | None:
        """Remove old versions and the files that only they refer to; return the bytes freed.

        If somebody is reading the table, nothing is removed and the result is None. ``staged_too`` also removes files
        that no version refers to yet; no journal may be left that names them.
        """
        with self._alone() as alone, self._reading():
            if not alone:
                return None
            stats = self._open().cleanup_old_versions(
                retain_versions=KEPT_VERSIONS, delete_unverified=staged_too, error_if_tagged_old_versions=False
            )
        freed = int(stats.bytes_removed)
        if staged_too:  # Lance keeps a dead commit's deletion files as long as the version it started from
            named = {name for version in self.versions() for piece in self.pieces(version) for name in piece.deletions}
            for path in listed(self.path / "_deletions"):
                if f"_deletions/{path.name}" not in named:
                    freed += path.stat().st_size
                    path.unlink()
        self.note()
        return freed

    def note(self, staged: Iterable[str] = ()) -> None:
        """Update the ledger to the latest version if it is behind."""
        known, versions = ledger.read(self.path), self.versions()
        there = {name for name in known.files if (self.path / name).exists()}
        if known.version == max(versions) and len(there) == len(known.files):
            return
        transactions = (f"_transactions/{path.name}" for path in (self.path / "_transactions").glob("*.txn"))
        names = there.union(versions.values(), transactions)
        names |= {name for piece in self.pieces() for name in piece.data + piece.deletions}
        digests = {name: digest for text in staged for name, digest in _digests(text).items()} | known.files
        files = {}
        for name in sorted(names):
            with suppress(StoreCorrupt):  # a file of another writer whose commit lost
                files[name] = digests.get(name) or sha256_of(self.path / name)
        ledger.write(self.path, ledger.Ledger(max(versions), self._open().count_rows(), files))

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep ``cleanup`` from removing anything while the block runs."""
        with self._flock(fcntl.LOCK_SH):
            yield

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Yield whether nobody holds a lease; while the block runs, nobody gets one."""
        with self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
            yield held

    @contextmanager
    def _flock(self, how: int) -> Iterator[bool]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError:
            yield False  # reading the table will raise the error
            return
        try:
            try:
                fcntl.flock(descriptor, how)
                held = True
            except OSError:  # busy, or the file system cannot lock folders: then nothing is cleaned up
                held = False
            yield held
        finally:
            os.close(descriptor)

    def _land(self, operation: Any, read_version: int, staged: list[str]) -> bool:
        """Commit an operation on the version it was made for, flush and note it; return False if another was first."""
        began, hint = time.time_ns(), self.path / HINT
        if (size_of(hint) or 0) > MOST_HINT_BYTES:
            hint.unlink(missing_ok=True)  # Lance reads it whole, whatever its size
        try:
            with self._writing():
                lance.LanceDataset.commit(self._uri, operation, read_version=read_version, max_retries=0)
        except CommitConflictError:
            return False
        self._fsync_version(began)
        self.note(staged)
        return True

    def _checked(self, version: int | None = None, ids: Sequence[int] | None = None) -> Any:
        """Open a version and compare its files with the ledger: deletion files always, data files if it is sealed.

        ``ids`` limits the check to some fragments.
        """
        dataset = self._open(version)
        fragments = [fragment.metadata for fragment in dataset.get_fragments()]
        fragments = [fragment for fragment in fragments if ids is None or fragment.id in ids]
        for fragment in fragments:
            if problem := self._missing(fragment):
                raise StoreCorrupt(f"{problem}; `penult doctor` brings back what can be had.")
        ledger.check(self.path, [name for f in fragments for name in _deletion_names(f)])
        names = [name for f in fragments for name in _data_names(f)]
        if self.sealed:
            ledger.check(self.path, names)
        return dataset

    def _missing(self, fragment: FragmentMetadata) -> str | None:
        """Return which data file is missing or has the wrong size: Lance would wait for it, or read all of it."""
        for file, name in zip(fragment.files, _data_names(fragment), strict=True):
            size = size_of(self.path / name)
            if size is None or (file.file_size_bytes and size != file.file_size_bytes):
                return f"Expected: {self.path / name} of {file.file_size_bytes} bytes. Got: {size}"
        return None

    def _open(self, version: int | None = None) -> Any:
        """Open a version, by default the latest; unlike Lance, refuse a manifest that is damaged or lost."""
        with self._reading():
            known, versions = ledger.read(self.path), self.versions()  # in this order: the ledger may be older
            if not versions:
                raise OSError("no manifest")
            number = max(versions) if version is None else version
            if number < known.version and version is None:
                raise StoreCorrupt(
                    f"Expected: {self.path} at version {known.version} or later. Got: version {number}; "
                    "`penult doctor` brings back what can be had."
                )
            ledger.check(self.path, [versions[number]] if number in versions else [])
            return lance.dataset(self._uri, version=number)

    @contextmanager
    def _writing(self, causes: Sequence[BaseException] = ()) -> Iterator[None]:
        """Turn an OSError of lance into the first of ``causes``, or else into a StoreError for users."""
        try:
            yield
        except CommitConflictError:  # an OSError too
            raise
        except OSError as error:
            if causes:
                raise causes[0] from None
            raise StoreError(trouble(error, self.path)) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what lance raises on a damaged file, Rust panics included, into a StoreError for users."""
        try:
            yield
        except BaseException as error:  # PanicException is not a subclass of Exception and cannot be imported
            if not isinstance(error, (ValueError, OSError)) and type(error).__name__ != "PanicException":
                raise
            if not self.exists():
                raise StoreNotFound(f"There is no table {self.path}.") from error
            raise StoreCorrupt(
                f"Expected: a readable Lance table at {self.path}. Got: {_first_words(error)}; "
                "`penult doctor` brings back what can be had."
            ) from error

    def _staged_batches(self, staged: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        return self.file_rows(_data_names(_fragment(staged)), columns)

    def _fsync_version(self, since_ns: int) -> None:
        """Flush the files, apart from data files, of a commit that began at ``since_ns`` (wall clock)."""
        for name in ("_deletions", "_transactions", "_versions"):
            folder = self.path / name
            if folder.is_dir():
                for path in folder.iterdir():
                    with suppress(FileNotFoundError):  # another writer's temporary file or failed attempt
                        if path.stat().st_mtime_ns >= since_ns - CLOCK_SLACK_NS:
                            fsync(path, missing_ok=True)
                fsync(folder)
        fsync(self.path)


def _of_run(run_id: str) -> str:
    return f"run_id = '{run_id}'"


def _fragment(staged: str) -> FragmentMetadata:
    told = json.loads(staged)
    return FragmentMetadata.from_json(json.dumps(told.get("fragment", told)))  # older journals hold no digests


def _digests(staged: str) -> dict[str, str]:
    return dict(json.loads(staged).get("sha256", {}))


def _data_names(fragment: FragmentMetadata) -> list[str]:
    """Return the paths of a fragment's data files, relative to the table.

    Raises:
        StoreCorrupt: a file lies outside the table.
    """
    names = []
    for file in fragment.files:
        name = str(file.path)  # a property that costs 20 microseconds
        if Path(name).name != name or file.base_id is not None:
            raise StoreCorrupt(f"Expected: data files inside the table. Got: {name!r}.")
        names.append(f"data/{name}")
    return names


def _deletion_names(fragment: FragmentMetadata) -> list[str]:
    return [fragment.deletion_file.path(fragment.id)] if fragment.deletion_file else []


def _first_words(error: BaseException) -> str:
    """Return the message of a lance error, without source locations and nested error prefixes."""
    said = str(error).split(", /")[0].splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r'(External error: |Wrapped error: |task \d+ panicked with message )+"?([^"]*)"?', r"\2", said)[:300]


def _addition(dataset: Any, new: list[FragmentMetadata], gone: dict[int, list[str]]) -> Any:
    """Return the operation that adds fragments and removes rows; it is valid for one version only.

    ``gone`` holds the addresses of the rows to remove, by fragment. A Merge conflicts with every later commit, but it
    cannot remove fragments. If rows are removed, the operation is therefore an Update. It conflicts with every later
    commit that changed the same fragments, as another commit of this run would.
    """
    present = [fragment.metadata for fragment in dataset.get_fragments()]
    if not gone:
        return lance.LanceOperation.Merge(present + new, dataset.lance_schema)
    kept = {id: dataset.get_fragment(id).delete(f"_rowaddr IN ({','.join(rows)})") for id, rows in gone.items()}
    return lance.LanceOperation.Update(
        removed_fragment_ids=[id for id, fragment in kept.items() if fragment is None],
        updated_fragments=[fragment for fragment in kept.values() if fragment is not None],
        new_fragments=new,
    )


def _rows_of(dataset: Any, replaces: Sequence[Replaced]) -> dict[int, list[str]]:
    """Return the addresses of the stored rows to be replaced, by fragment."""
    found: dict[int, list[str]] = {}
    for fragment in dataset.get_fragments() if any(len(one.values) for one in replaces) else ():
        addresses = set[int]()
        for one in replaces:
            scanner = fragment.scanner(columns=[one.column], filter=one.where, with_row_address=True)
            for batch in scanner.to_batches():
                mask = pc.is_in(batch.column(one.column), value_set=one.values)
                addresses.update(batch.column("_rowaddr").filter(mask).to_pylist())
        if addresses:
            found[fragment.fragment_id] = [str(address) for address in sorted(addresses)]
    return found
