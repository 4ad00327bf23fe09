"""The rows of a Parquet file, wherever it lies: a column of images is read forward and in pieces."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from pipelines.sources.base import Blob
from pipelines.sources.blobs import BlobFile

BUFFER_BYTES = 2**20  # read at once; a page of Parquet that is larger is read whole
BATCH_BYTES = 8 * 2**20
MAX_BATCH_ROWS = 1024
KEPT_BATCHES = 3  # threads that read in the order of the rows are never farther apart
ROWS_PER_BATCH = 10_000  # of columns that hold no images


class ParquetRows:
    """An open Parquet file, see ``rows.Rows``.

    A row's image costs what lies before it in its row group, which nothing tells how to skip, but rows that are read in
    their order cost no more than one pass over the file. Threads may share it.
    """

    def __init__(self, opening: AbstractContextManager[Blob]) -> None:
        with ExitStack() as closing:
            blob = closing.enter_context(opening)
            self._file = parquet.ParquetFile(
                pa.PythonFile(BlobFile(blob), mode="r"), buffer_size=BUFFER_BYTES, pre_buffer=False
            )
            self._closing = closing.pop_all()
        self.schema, self.count = self._file.schema_arrow, self._file.metadata.num_rows
        self.token = blob.size, blob.mtime_ns
        sizes = (self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups))
        self._starts = [0, *itertools.accumulate(sizes)]  # of each row group, and the end
        self._columns: dict[str, _Column] = {}
        self._lock = threading.Lock()

    def cells(self, columns: Sequence[str]) -> Iterator[list[Any]]:
        """Yield the Arrow arrays of these columns, batch by batch."""
        for batch in self._file.iter_batches(ROWS_PER_BATCH, columns=list(columns), use_threads=False):
            yield [batch.column(name) for name in columns]

    def image(self, column: str, row: int) -> bytes | None:
        """Return the bytes in a row of a column; None where they are null."""
        with self._lock:
            if column not in self._columns:
                self._columns[column] = _Column(self._file, self._starts, self.schema.field(column))
            value = self._columns[column].cell(row)
        found = value.as_py()
        return found["bytes"] if isinstance(found, dict) else found


class _Column:
    """A column that is read forward from the start of a row group, in batches of which the last few are kept."""

    def __init__(self, file: parquet.ParquetFile, starts: list[int], field: pa.Field) -> None:
        self._file, self._starts = file, starts
        self._path = f"{field.name}.bytes" if pa.types.is_struct(field.type) else field.name
        self._kept: deque[tuple[int, Any]] = deque(maxlen=KEPT_BATCHES)  # (first row, Arrow array)
        self._ahead: Iterator[pa.RecordBatch] = iter(())
        self._group = -1  # which row group they are of
        self._next = 0  # the first row of the next batch
        self._damage: dict[int, tuple[int, str]] = {}  # per row group: the first row that it hides

    def cell(self, row: int) -> Any:
        """Return the Arrow scalar of a row."""
        for first, array in self._kept:
            if first <= row < first + len(array):
                return array[row - first]
        group = bisect.bisect_right(self._starts, row) - 1
        damaged_from, damage = self._damage.get(group, (self._starts[-1], ""))
        if row >= damaged_from:
            raise pa.ArrowInvalid(damage)
        if group != self._group or row < self._next:
            self._begin(group)
        return self._forward_to(row)

    def _forward_to(self, row: int) -> Any:
        try:
            for batch in self._ahead:
                first, array = self._next, batch.column(0)
                self._kept.append((first, array))
                self._next += len(array)
                if row < self._next:
                    return array[row - first]
            raise pa.ArrowInvalid(f"the file ends before row {row}")
        except (OSError, ValueError, pa.ArrowException) as error:
            self._damage[self._group] = self._next, str(error)
            self._group = -1
            raise

    def _begin(self, group: int) -> None:
        held = self._file.metadata.row_group(group)
        size = sum(
            held.column(i).total_uncompressed_size
            for i in range(held.num_columns)
            if held.column(i).path_in_schema == self._path
        )
        rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * held.num_rows // max(size, 1)))
        self._group, self._next = group, self._starts[group]
        self._ahead = self._file.iter_batches(rows, row_groups=[group], columns=[self._path], use_threads=False)
