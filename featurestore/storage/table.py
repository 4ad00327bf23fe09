"""Lance tables with strict, idempotent commits. The only module that imports lance or lancedb.

A commit is a compare-and-append: it lands once for one run id, however often it is tried, and never on
top of a version other than the one it looked at. Lance itself promises neither (a plain Append rebases, and
repeats if it is sent twice), never calls fsync, overlooks a data file's last write that fails, has no checksums and
opens a manifest of zeros as an empty table; all of it is closed here and in the ledger. Seen on pylance 14.0.2.
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
KEPT_VERSIONS = 3  # the latest, and what `penult doctor` may go back to
HINT, MOST_HINT_BYTES = "_versions/latest_version_hint.json", 4096
MOST_VERSIONS = 2**64 - 1  # a manifest is named by its distance from it, so that the newest sorts first


@dataclass(frozen=True)
class Piece:
    """A fragment of a table: its number, its rows with and without those deleted, its files relative to the table."""

    id: int
    physical_rows: int
    rows: int
    data: list[str]
    deletions: list[str]


class Replaced(NamedTuple):
    """Rows that others take the place of: those with one of some values in a column, where a condition (SQL) holds."""

    values: pa.Array
    where: str | None = None
    column: str = "uri"


class Pin:
    """A version of a table whose files stay as long as this object is there."""

    def __init__(self, table: Table) -> None:
        lease = table.lease()
        lease.__enter__()
        weakref.finalize(self, lease.__exit__, None, None, None)
        self.version = table.version


class Table:
    """One Lance dataset under ``path``; opened anew at each read, so it always sees the latest version.

    ``sealed``: its files are compared with the ledger before rows are read, as these carry no checksums.
    """

    def __init__(self, path: Path, sealed: bool = True) -> None:
        self.path, self.sealed = path, sealed

    @property
    def _uri(self) -> str:
        """Where it is, for Lance, which takes a relative ``a:b`` for a place on the net."""
        return str(self.path.absolute())

    def exists(self) -> bool:
        """Whether a dataset was created here."""
        return bool(self.versions())

    @property
    def unborn(self) -> bool:
        """Whether nothing is here but what a run leaves that dies while it makes the table."""
        return not (self.exists() or (self.path / layout.LEDGER).exists() or listed(self.path / "data"))

    def versions(self) -> dict[int, str]:
        """The manifests that are there: their files, relative to the table, by version; the latest last."""
        names = [path.name for path in listed(self.path / "_versions") if path.suffix == ".manifest"]
        numbers = {int(stem): name for name in names if (stem := name.removesuffix(".manifest")).isdecimal()}
        found = {MOST_VERSIONS - n if n > MOST_VERSIONS // 2 else n: f"_versions/{name}" for n, name in numbers.items()}
        return dict(sorted(found.items()))

    def create(self, schema: pa.Schema) -> None:
        """Create an empty table; nothing happens where it exists.

        Raises:
            StoreCorrupt: it exists with another schema.
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
            self.check_schema(schema)  # another run was faster
            return
        self._fsync_version(began)
        fsync(self.path.parent)
        self.note()

    def check_schema(self, expected: pa.Schema) -> None:
        """Raise StoreCorrupt where the table's columns are not those of ``expected``."""
        actual = self.schema
        if actual.names != expected.names or any(actual.field(f.name).type != f.type for f in expected):
            raise StoreCorrupt(f"Expected in {self.path}: columns {expected.names}. Got: {actual.names}.")

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema with its metadata."""
        with self._reading(), self.lease():
            return self._open().schema

    def columns(self, version: int | None = None) -> list[str]:
        """Names of the columns that a version has, by default the latest."""
        with self._reading(), self.lease():
            return list(self._open(version).schema.names)

    @property
    def version(self) -> int:
        """The latest version; it grows by at least one per commit."""
        with self.lease():
            return self._open().version

    def state(self) -> dict[str, int]:
        """Version and number of rows, read together."""
        with self._reading(), self.lease():
            dataset = self._open()
            return {"version": dataset.version, "rows": dataset.count_rows()}

    def count(self, condition: str | None = None) -> int:
        """Number of rows, where ``condition`` (SQL) holds if given."""
        with self._reading(), self.lease():
            return self._checked().count_rows(filter=condition)

    def scan(
        self,
        columns: list[str],
        condition: str | None = None,
        version: int | None = None,
        batch_rows: int = 8192,
    ) -> Iterator[pa.RecordBatch]:
        """Stream columns of all rows where ``condition`` (SQL) holds, at a pinned version if given."""
        with self._reading(), self.lease():
            scanner = self._checked(version).scanner(columns=columns, filter=condition, batch_size=batch_rows)
            yield from scanner.to_batches()

    def read(self, columns: list[str], condition: str | None = None, version: int | None = None) -> pa.Table:
        """Like ``scan``, as one table in memory."""
        with self._reading(), self.lease():
            return self._checked(version).scanner(columns=columns, filter=condition).to_table()

    def has_run(self, run_id: str) -> bool:
        """Whether rows of this run have been committed."""
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
            except BaseException as error:  # lance would turn it into a bare OSError
                failure.append(error)
                raise

        reader = pa.RecordBatchReader.from_batches(schema, guarded())
        with self._writing(failure):
            fragments = write_fragments(
                reader,
                self._uri,
                schema=schema,
                mode="append",
                data_storage_version=DATA_STORAGE_VERSION,
                data_cache_bytes=WRITE_BUFFER_BYTES // len(schema),  # a column
            )
        staged = []
        for fragment in fragments:
            if problem := self._missing(fragment):  # Lance overlooks it when the last write fails
                raise StoreError(f"{problem}: make room there, then run the same command again.")
            digests = {}
            for name in _data_names(fragment):
                fsync(self.path / name)
                digests[name] = sha256_of(self.path / name)
            staged.append(json.dumps({"fragment": fragment.to_json(), "sha256": digests}))
        if staged:
            fsync(self.path / "data")
            fsync(self.path)  # the first fragment makes the folder
        return staged

    def staged_columns(self, staged: str, columns: list[str]) -> Iterator[list[pa.Array]]:
        """Read columns of a staged fragment, a chunk at a time, in order."""
        for batch in self._staged_batches(staged, columns):
            yield [batch.column(name) for name in columns]

    def restage(self, staged: str, keep: pa.Array) -> list[str]:
        """Write a staged fragment again with only the rows where ``keep`` (bool, one per row) is true."""

        def kept() -> Iterator[pa.RecordBatch]:
            start = 0
            for batch in self._staged_batches(staged, self.schema.names):
                yield batch.filter(keep.slice(start, batch.num_rows)).cast(self.schema)
                start += batch.num_rows

        return self.stage(kept())

    def staged_damage(self, staged: str, whole: bool = False) -> str | None:
        """What is wrong with a staged fragment's files: missing or of another size; ``whole`` compares digests too."""
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
        """Add staged fragments as one new version, once for a run id.

        Two committers of one run may race. Only if a third run replaces every row of it between them does the second
        not see that it was there: the store's lock keeps them apart.

        Args:
            run_id: value of the ``run_id`` column of the staged rows; if it is there already, nothing happens.
            staged: fragments from ``stage``.
            replaces: present rows that go in the same version.

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
                self.note(staged)  # the commit may have landed without it
                return False
            with self._writing():
                operation = _addition(dataset, [_fragment(text) for text in staged], gone)
            if self._land(operation, dataset.version, staged):
                return True
        raise StoreError(f"Other writers keep changing {self.path}: stop them, then run this again.")

    def widen(self, schema: pa.Schema) -> None:
        """Give the table the columns that ``schema`` has more at its end, empty in all rows; no data file is written.

        Raises:
            StoreError: another writer was faster.
        """
        with self._reading():
            dataset = self._checked()
        present = [fragment.metadata for fragment in dataset.get_fragments()]
        operation = lance.LanceOperation.Merge(present, LanceSchema.from_pyarrow(schema))
        if dataset.schema.names != schema.names and not self._land(operation, dataset.version, []):
            raise StoreError(f"Another writer changes {self.path}: stop it, then run this again.")

    def exchange(self, staged: list[str], gone: Replaced) -> int:
        """Put staged fragments in the place of rows, in a version of its own; how many rows went.

        Raises:
            StoreError: another writer was faster.
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
        """The fragments of a version, by default the latest."""
        with self._reading(), self.lease():
            fragments = [fragment.metadata for fragment in self._open(version).get_fragments()]
        return [Piece(f.id, f.physical_rows, f.num_rows, _data_names(f), _deletion_names(f)) for f in fragments]

    def swap(self, gone: list[int], staged: list[str], version: int | None = None) -> None:
        """Put staged fragments in the place of others, as these were in a version, by default the latest.

        Raises:
            StoreError: another writer was faster.
        """
        operation = lance.LanceOperation.Update(
            removed_fragment_ids=gone, updated_fragments=[], new_fragments=[_fragment(text) for text in staged]
        )
        if (gone or staged) and not self._land(operation, version or self.version, staged):
            raise StoreError(f"Another writer changes {self.path}: stop it, then run this again.")

    def file_rows(self, names: list[str], columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Rows of data files, whether or not a version has them, deleted ones included.

        Raises:
            StoreCorrupt: a file cannot be read.
        """
        from lance.file import LanceFileReader

        with self._reading():
            for name in names:
                yield from LanceFileReader(f"{self._uri}/{name}", columns=columns).read_all().to_batches()

    def fragment_rows(self, ids: list[int], version: int | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of some fragments of a version, by default the latest."""
        with self._reading(), self.lease():
            dataset = self._checked(version, ids)
            yield from dataset.scanner(fragments=[dataset.get_fragment(id) for id in ids]).to_batches()

    def cleanup(self, staged_too: bool = False) -> int | None:
        """Remove old versions and what only they hold; bytes freed, or None: somebody reads, and nothing was removed.

        ``staged_too``: and files that no version has named yet; there must be no journal left that names them.
        """
        with self._alone() as alone, self._reading():
            if not alone:
                return None
            stats = self._open().cleanup_old_versions(
                retain_versions=KEPT_VERSIONS, delete_unverified=staged_too, error_if_tagged_old_versions=False
            )
        freed = int(stats.bytes_removed)
        if staged_too:  # Lance keeps those of a dead commit while the version stays that it was made from
            named = {name for version in self.versions() for piece in self.pieces(version) for name in piece.deletions}
            for path in listed(self.path / "_deletions"):
                if f"_deletions/{path.name}" not in named:
                    freed += path.stat().st_size
                    path.unlink()
        self.note()
        return freed

    def note(self, staged: Iterable[str] = ()) -> None:
        """Bring the ledger up to the latest version, where it is not."""
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
            with suppress(StoreCorrupt):  # another writer's, who was too late
                files[name] = digests.get(name) or sha256_of(self.path / name)
        ledger.write(self.path, ledger.Ledger(max(versions), self._open().count_rows(), files))

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Within, ``cleanup`` takes nothing away."""
        with self._flock(fcntl.LOCK_SH):
            yield

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether nobody holds a lease; within, nobody gets one."""
        with self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
            yield held

    @contextmanager
    def _flock(self, how: int) -> Iterator[bool]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError:
            yield False  # reading it says what is wrong
            return
        try:
            try:
                fcntl.flock(descriptor, how)
                held = True
            except OSError:  # busy, or a file system that cannot lock a folder: then nothing is cleaned up
                held = False
            yield held
        finally:
            os.close(descriptor)

    def _land(self, operation: Any, read_version: int, staged: list[str]) -> bool:
        """Commit one operation on top of the version it was made for, or not at all; flush and note it."""
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
        """The dataset, its files compared with the ledger: deletions always, the data of a sealed table.

        ``ids`` limits it to some fragments.
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
        """Which data file of a fragment is not there, or has another size: Lance would wait for it, or read it all."""
        for file, name in zip(fragment.files, _data_names(fragment), strict=True):
            size = size_of(self.path / name)
            if size is None or (file.file_size_bytes and size != file.file_size_bytes):
                return f"Expected: {self.path / name} of {file.file_size_bytes} bytes. Got: {size}"
        return None

    def _open(self, version: int | None = None) -> Any:
        """One version, the latest by default: never what Lance takes for it when a manifest is damaged."""
        with self._reading():
            known, versions = ledger.read(self.path), self.versions()  # in this order: the ledger may be the older
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
        """Turn what lance raises when it cannot write into its cause, or else into an error for people."""
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
        """Turn what lance raises on a damaged file, its Rust panics among it, into an error for people."""
        try:
            yield
        except BaseException as error:  # a PanicException is no Exception and cannot be imported
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
        """Flush what a commit that began at ``since_ns`` (wall clock) has written beside the data."""
        for name in ("_deletions", "_transactions", "_versions"):
            folder = self.path / name
            if folder.is_dir():
                for path in folder.iterdir():
                    with suppress(FileNotFoundError):  # another writer's temporary file, or its attempt that lost
                        if path.stat().st_mtime_ns >= since_ns - CLOCK_SLACK_NS:
                            fsync(path, missing_ok=True)
                fsync(folder)
        fsync(self.path)


def _of_run(run_id: str) -> str:
    return f"run_id = '{run_id}'"


def _fragment(staged: str) -> FragmentMetadata:
    told = json.loads(staged)
    return FragmentMetadata.from_json(json.dumps(told.get("fragment", told)))  # older journals hold it bare


def _digests(staged: str) -> dict[str, str]:
    return dict(json.loads(staged).get("sha256", {}))


def _data_names(fragment: FragmentMetadata) -> list[str]:
    """Its data files, relative to the table.

    Raises:
        StoreCorrupt: one is outside of it.
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
    """What lance says, without the places in its source and how they were come to."""
    said = str(error).split(", /")[0].splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r'(External error: |Wrapped error: |task \d+ panicked with message )+"?([^"]*)"?', r"\2", said)[:300]


def _addition(dataset: Any, new: list[FragmentMetadata], gone: dict[int, list[str]]) -> Any:
    """The operation that adds fragments and takes rows away, their addresses by fragment, made for one version only.

    A Merge conflicts with whatever else was committed since. It may not take fragments away, so where rows go it is
    an Update, which conflicts with whoever has touched the same fragments since: another committer of this run has.
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
    """Addresses of the present rows that are to go, by fragment."""
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
