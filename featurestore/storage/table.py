"""Lance tables with strict, idempotent commits.

A commit is a compare-and-append: it takes effect once per run id, however often it is tried, and only on top of the
version that it read. Lance itself promises neither: a plain Append rebases, and adds its rows again if sent twice.
Lance also overlooks a failed last write to a data file. Seen on pylance 14.0.2.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import lance
import pyarrow as pa
from lance.fragment import FragmentMetadata, write_fragments
from lance.schema import LanceSchema

from featurestore.errors import StoreCorrupt, StoreError
from featurestore.storage import ledger
from featurestore.storage.base import Stat, storage_of
from featurestore.storage.files import delete, flush, listed, measured, size_of, stats
from featurestore.storage.fragments import Replaced, addition, data_names, digests_of, fragment_of, rows_of
from featurestore.storage.versions import Versions

DATA_STORAGE_VERSION = "2.2"  # what LanceDB 0.40 opens
MAX_COMMIT_TRIES = 20
WRITE_BUFFER_BYTES = 16 * 2**20
KEPT_VERSIONS = 3  # the latest, and those that `penult doctor` may go back to


class Pin:
    """A version of a table whose files are kept as long as this object exists."""

    def __init__(self, table: Table) -> None:
        lease = table.lease()
        lease.__enter__()
        weakref.finalize(self, lease.__exit__, None, None, None)
        self.version = table.version


class Table(Versions):
    """One Lance dataset under ``path``; opened again at each read, so it always sees the latest version."""

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
            with self.writing():
                lance.write_dataset(
                    schema.empty_table(),
                    self.uri,
                    data_storage_version=DATA_STORAGE_VERSION,
                    storage_options=self.options,
                )
        except StoreError:
            if not self.exists():
                raise
            self.check_schema(schema)  # another run created it first
            return
        with self.lease():
            self.flush_version(began)
            flush(self.path.parent)
            self.note()

    def check_schema(self, expected: pa.Schema) -> None:
        """Raise StoreCorrupt unless the table's columns are those of ``expected``."""
        actual = self.schema
        if actual.names != expected.names or any(actual.field(f.name).type != f.type for f in expected):
            raise StoreCorrupt(f"Expected in {self.path}: columns {expected.names}. Got: {actual.names}.")

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema with its metadata."""
        with self.reading(), self.lease():
            return self.shown().schema

    def columns(self, version: int | None = None) -> list[str]:
        """Return the names of the columns of a version, by default the latest."""
        with self.reading(), self.lease():
            return list(self.shown(version).schema.names)

    def state(self) -> dict[str, int]:
        """Return version and number of rows, read together."""
        with self.reading(), self.lease():
            dataset = self.shown()
            return {"version": dataset.version, "rows": dataset.count_rows()}

    def count(self, condition: str | None = None) -> int:
        """Return the number of rows for which ``condition`` (SQL) holds, by default of all."""
        with self.reading(), self.lease():
            return self.readable(copied=self.sealed).count_rows(filter=condition)

    def scan(
        self,
        columns: list[str],
        condition: str | None = None,
        version: int | None = None,
        batch_rows: int = 8192,
        few: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        """Stream columns of all rows for which ``condition`` (SQL) holds, at a version, by default the latest.

        ``few``: it holds for few rows, so that the rest of them need not be brought here.
        """
        with self.reading(), self.lease():
            dataset = self.readable(version, self._mostly(columns) and not few)
            scanner = dataset.scanner(columns=columns, filter=condition, batch_size=batch_rows)
            yield from scanner.to_batches()

    def read(self, columns: list[str], condition: str | None = None, version: int | None = None) -> pa.Table:
        """Return what ``scan`` streams as one table in memory."""
        with self.reading(), self.lease():
            dataset = self.readable(version, self._mostly(columns))
            return dataset.scanner(columns=columns, filter=condition).to_table()

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
        with self.writing(failure):
            fragments = write_fragments(
                reader,
                self.uri,
                schema=schema,
                mode="append",
                data_cache_bytes=WRITE_BUFFER_BYTES // len(schema),  # per column
                storage_options=self.options,
            )
        staged = [json.dumps({"fragment": one.to_json(), "sha256": self._digests(one)}) for one in fragments]
        if staged:
            flush(self.path / "data")
            flush(self.path)  # the first fragment creates the folder
        return staged

    def _digests(self, fragment: FragmentMetadata) -> dict[str, str]:
        """Return the sha256 of a new fragment's files, in hex; raise StoreError if one is not whole."""
        found, digests = {}, {}
        for name in data_names(fragment):
            flush(self.path / name, missing_ok=True)
            with suppress(StoreCorrupt):
                digests[name], size = measured(self.path / name)
                found[name] = Stat("file", size, 0, "")
        if problem := self.missing(fragment, found):  # Lance overlooks a failed last write
            raise StoreError(f"{problem}: make room there, then run the same command again.")
        return digests

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
        fragment, digests = fragment_of(staged), digests_of(staged)
        found = stats(self.path, names := data_names(fragment))
        if problem := self.missing(fragment, found):
            return problem
        for name in names:
            if whole and name in digests:
                problem = ledger.damage(self.path / name, digests[name], found.get(name))
                if problem is not None:
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
            with self.reading(), self.lease():
                dataset = self.checked()
                done = not staged or dataset.count_rows(filter=_of_run(run_id)) > 0
                gone = {} if done else rows_of(dataset, replaces)
            if done:
                self.note(staged)  # a writer may have died between its commit and its note
                return False
            with self.writing():
                operation = addition(dataset, [fragment_of(text) for text in staged], gone)
            if self.land(operation, dataset.version, staged):
                return True
        raise StoreError(f"Other writers keep changing {self.path}: stop them, then run this again.")

    def widen(self, schema: pa.Schema) -> None:
        """Add the columns that only ``schema`` has, at its end; they are null in all rows. No data file is written.

        Raises:
            StoreError: another writer committed first.
        """
        with self.reading(), self.lease():
            dataset = self.checked()
        present = [fragment.metadata for fragment in dataset.get_fragments()]
        operation = lance.LanceOperation.Merge(present, LanceSchema.from_pyarrow(schema))
        if dataset.schema.names != schema.names and not self.land(operation, dataset.version, []):
            raise StoreError(f"Another writer changes {self.path}: stop it, then run this again.")

    def exchange(self, staged: list[str], gone: Replaced) -> int:
        """Replace rows by staged fragments in one new version; return how many rows were removed.

        Raises:
            StoreError: another writer committed first.
        """
        with self.reading(), self.lease():
            dataset = self.checked()
            rows = rows_of(dataset, [gone])
        with self.writing():
            operation = addition(dataset, [fragment_of(text) for text in staged], rows)
        if (rows or staged) and not self.land(operation, dataset.version, staged):
            raise StoreError(f"Another writer changes {self.path}: stop it, then run this again.")
        return sum(map(len, rows.values()))

    # -- upkeep: the caller holds the store's lock -----------------------------------------------------------------

    def swap(self, gone: list[int], staged: list[str], version: int | None = None) -> None:
        """Replace the fragments ``gone`` of a version, by default the latest, by staged ones.

        Raises:
            StoreError: another writer committed first.
        """
        operation = lance.LanceOperation.Update(
            removed_fragment_ids=gone, updated_fragments=[], new_fragments=[fragment_of(text) for text in staged]
        )
        if (gone or staged) and not self.land(operation, version or self.version, staged):
            raise StoreError(f"Another writer changes {self.path}: stop it, then run this again.")

    def data_files(self) -> list[str]:
        """Return the paths of all data files in the table's folder, relative to it, needed by a version or not."""
        return [f"data/{path.name}" for path in listed(self.path / "data") if path.suffix == ".lance"]

    def file_rows(self, names: list[str], columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of data files, deleted rows included, whether or not a version refers to the files.

        Raises:
            StoreCorrupt: a file cannot be read.
        """
        from lance.file import LanceFileReader

        with self.reading():
            for name in names:
                reader = LanceFileReader(f"{self.uri}/{name}", self.options, columns)
                yield from reader.read_all().to_batches()

    def fragment_rows(self, ids: list[int], version: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of some fragments of a version, by default the latest."""
        with self.reading(), self.lease():
            dataset = self.checked(version, ids)
            yield from dataset.scanner(fragments=[dataset.get_fragment(id) for id in ids]).to_batches()

    def cleanup(self, staged_too: bool = False) -> int | None:
        """Remove old versions and the files that only they refer to; return the bytes freed.

        If somebody is reading the table, nothing is removed and the result is None. ``staged_too`` also removes files
        that no version refers to yet; no journal may be left that names them.
        """
        with self.alone() as alone, self.reading():
            if not alone:
                return None
            storage = storage_of(self.path)
            storage.confirm(self.path)
            stats = self.open().cleanup_old_versions(
                storage.grace, KEPT_VERSIONS, delete_unverified=staged_too, error_if_tagged_old_versions=False
            )
            storage.changed(self.path)
        freed = int(stats.bytes_removed)
        if staged_too:  # Lance keeps a dead commit's deletion files as long as the version it started from
            named = {name for version in self.versions() for piece in self.pieces(version) for name in piece.deletions}
            for path in listed(self.path / "_deletions"):
                if f"_deletions/{path.name}" not in named:
                    freed += size_of(path) or 0
                    delete(path)
        self.note()
        return freed

    def _mostly(self, columns: Sequence[str]) -> bool:
        """Return whether these columns hold most of the bytes, as vectors do; those of sealed files are read anyway."""
        return self.sealed or any(pa.types.is_fixed_size_list(f.type) for f in self.schema if f.name in columns)

    def _staged_batches(self, staged: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        return self.file_rows(data_names(fragment_of(staged)), columns)


def _of_run(run_id: str) -> str:
    return f"run_id = '{run_id}'"
