"""Lance tables with strict, idempotent commits. The only module that imports lance or lancedb.

A commit is a compare-and-append: it lands once for one run id, however often it is tried, and never on
top of a version other than the one it looked at. Lance itself promises neither (a plain Append rebases, and
repeats if it is sent twice) and never calls fsync; both are closed here. Seen on pylance 14.0.2.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata, write_fragments

from featurestore.errors import StoreCorrupt, StoreError, StoreNotFound
from featurestore.files import fsync

DATA_STORAGE_VERSION = "2.2"  # what LanceDB 0.40 opens
MAX_COMMIT_TRIES = 20
WRITE_BUFFER_BYTES = 16 * 2**20
CLOCK_SLACK_NS = 2_000_000_000  # file times are coarser than the clock


class Table:
    """One Lance dataset under ``path``; opened anew at each read, so it always sees the latest version."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether a dataset was created here."""
        return any((self.path / "_versions").glob("*.manifest"))

    def create(self, schema: pa.Schema) -> None:
        """Create an empty table; nothing happens where it exists.

        Raises:
            StoreCorrupt: it exists with another schema.
        """
        if self.exists():
            self.check_schema(schema)
            return
        began = time.time_ns()
        lance.write_dataset(schema.empty_table(), self.path, data_storage_version=DATA_STORAGE_VERSION)
        self._fsync_version(began)
        fsync(self.path.parent)

    def check_schema(self, expected: pa.Schema) -> None:
        """Raise StoreCorrupt where the table's columns are not those of ``expected``."""
        actual = self.schema
        if actual.names != expected.names or any(actual.field(f.name).type != f.type for f in expected):
            raise StoreCorrupt(f"Expected in {self.path}: columns {expected.names}. Got: {actual.names}.")

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema with its metadata."""
        with self._reading():
            return self._open().schema

    @property
    def version(self) -> int:
        """The latest version; it grows by at least one a commit."""
        return self._open().version

    def state(self) -> dict[str, int]:
        """Version and number of rows, read together."""
        with self._reading():
            dataset = self._open()
            return {"version": dataset.version, "rows": dataset.count_rows()}

    def count(self, condition: str | None = None) -> int:
        """Number of rows, where ``condition`` (SQL) holds if given."""
        with self._reading():
            return self._open().count_rows(filter=condition)

    def scan(
        self,
        columns: list[str],
        condition: str | None = None,
        version: int | None = None,
        batch_rows: int = 8192,
    ) -> Iterator[pa.RecordBatch]:
        """Stream columns of all rows where ``condition`` (SQL) holds, at a pinned version if given."""
        with self._reading():
            scanner = self._open(version).scanner(columns=columns, filter=condition, batch_size=batch_rows)
            yield from scanner.to_batches()

    def read(self, columns: list[str], condition: str | None = None, version: int | None = None) -> pa.Table:
        """Like ``scan``, as one table in memory."""
        with self._reading():
            return self._open(version).scanner(columns=columns, filter=condition).to_table()

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
        try:
            fragments = write_fragments(
                reader,
                self.path,
                schema=schema,
                mode="append",
                data_storage_version=DATA_STORAGE_VERSION,
                data_cache_bytes=WRITE_BUFFER_BYTES // len(schema),  # a column
            )
        except OSError as error:
            if failure:
                raise failure[0] from None
            raise StoreError(f"Cannot write to {self.path}: {error}") from error
        written = [path for fragment in fragments for path in self._data_files(fragment)]
        for path in written:
            fsync(path)
        if written:
            fsync(self.path / "data")
        return [json.dumps(fragment.to_json()) for fragment in fragments]

    def staged_columns(self, staged: str, columns: list[str]) -> Iterator[list[pa.Array]]:
        """Read columns of a staged fragment, a chunk at a time, in order."""
        for batch in self._staged_batches(staged, columns):
            yield [batch.column(name) for name in columns]

    def restage(self, staged: str, keep: pa.Array) -> list[str]:
        """Write a staged fragment again with only the rows where ``keep`` (bool, one a row) is true."""

        def kept() -> Iterator[pa.RecordBatch]:
            start = 0
            for batch in self._staged_batches(staged, self.schema.names):
                yield batch.filter(keep.slice(start, batch.num_rows)).cast(self.schema)
                start += batch.num_rows

        return self.stage(kept())

    def check_staged(self, staged: list[str]) -> None:
        """Raise StoreCorrupt where a staged fragment's file is missing or has another size."""
        for text in staged:
            fragment = _fragment(text)
            for file, path in zip(fragment.files, self._data_files(fragment), strict=True):
                size = path.stat().st_size if path.exists() else None
                if size is None or (file.file_size_bytes and size != file.file_size_bytes):
                    raise StoreCorrupt(f"Expected: {path} of {file.file_size_bytes} bytes. Got: {size}.")

    def commit(
        self,
        run_id: str,
        staged: list[str],
        replaces: pa.Array | None = None,
        where: str | None = None,
    ) -> bool:
        """Add staged fragments as one new version, once for a run id.

        Args:
            run_id: value of the ``run_id`` column of the staged rows; if it is there already, nothing happens.
            staged: fragments from ``stage``.
            replaces: values of the column ``uri`` whose present rows go in the same version.
            where: SQL condition that limits which present rows may go.

        Returns:
            Whether this call made the version.

        Raises:
            StoreError: other writers won the race too many times.
        """
        for _ in range(MAX_COMMIT_TRIES):
            began, dataset = time.time_ns(), self._open()
            if not staged or dataset.count_rows(filter=_of_run(run_id)):
                return False
            operation = _addition(dataset, [_fragment(text) for text in staged], replaces, where)
            try:
                lance.LanceDataset.commit(self.path, operation, read_version=dataset.version, max_retries=0)
            except CommitConflictError:
                continue
            self._fsync_version(began)
            return True
        raise StoreError(f"Other writers keep changing {self.path}: stop them, then run this again.")

    def _open(self, version: int | None = None) -> Any:
        with self._reading():
            return lance.dataset(self.path, version=version)

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
            raise StoreCorrupt(f"Expected: a readable Lance table at {self.path}. Got: {error}") from error

    def _staged_batches(self, staged: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        from lance.file import LanceFileReader

        with self._reading():
            for path in self._data_files(_fragment(staged)):
                yield from LanceFileReader(str(path), columns=columns).read_all().to_batches()

    def _data_files(self, fragment: FragmentMetadata) -> list[Path]:
        return [self.path / "data" / Path(file.path).name for file in fragment.files]

    def _fsync_version(self, since_ns: int) -> None:
        """Flush what a commit that began at ``since_ns`` (wall clock) has written beside the data."""
        for name in ("_deletions", "_transactions", "_versions"):
            folder = self.path / name
            if folder.is_dir():
                for path in folder.iterdir():
                    with suppress(FileNotFoundError):  # another writer's temporary file
                        if path.stat().st_mtime_ns >= since_ns - CLOCK_SLACK_NS:
                            fsync(path)
                fsync(folder)
        fsync(self.path)


def _of_run(run_id: str) -> str:
    return f"run_id = '{run_id}'"


def _fragment(text: str) -> FragmentMetadata:
    return FragmentMetadata.from_json(text)


def _addition(dataset: Any, new: list[FragmentMetadata], replaces: pa.Array | None, where: str | None) -> Any:
    """The operation that adds fragments and takes away the rows of ``replaces``, made for one version only.

    A Merge conflicts with whatever else was committed since. It may not take fragments away, so where rows go it is
    an Update, which conflicts with whoever has touched the same fragments since: another committer of this run has.
    """
    present = [fragment.metadata for fragment in dataset.get_fragments()]
    gone = _rows_of(dataset, replaces, where) if replaces is not None and len(replaces) else {}
    if not gone:
        return lance.LanceOperation.Merge(present + new, dataset.lance_schema)
    kept = {id: dataset.get_fragment(id).delete(f"_rowaddr IN ({','.join(rows)})") for id, rows in gone.items()}
    return lance.LanceOperation.Update(
        removed_fragment_ids=[id for id, fragment in kept.items() if fragment is None],
        updated_fragments=[fragment for fragment in kept.values() if fragment is not None],
        new_fragments=new,
    )


def _rows_of(dataset: Any, uris: pa.Array, where: str | None) -> dict[int, list[str]]:
    """Addresses of the present rows of ``uris``, by fragment."""
    found: dict[int, list[str]] = {}
    for fragment in dataset.get_fragments():
        for batch in fragment.scanner(columns=["uri"], filter=where, with_row_address=True).to_batches():
            mask = pc.is_in(batch.column("uri"), value_set=uris)
            addresses = batch.column("_rowaddr").filter(mask).to_pylist()
            if addresses:
                found.setdefault(fragment.fragment_id, []).extend(map(str, addresses))
    return found
