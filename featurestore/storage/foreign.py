"""Lance tables that are not the store's: they are read as they are, by the numbers of their rows."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import lance
import pyarrow as pa

from featurestore.storage.base import storage_of
from featurestore.storage.files import stat
from featurestore.storage.versions import Versions

ROWS_AT_ONCE = 32  # of a column that may be large: Lance takes many rows for little more than one
KEPT = 3
ROWS_PER_BATCH = 10_000


class ForeignTable:
    """The version of a Lance table that was the latest when this was made. Threads may share it.

    Attributes:
        schema: of all its columns.
        count: how many rows it has; deleted ones do not count.
        token: its version, and when that was written, in ns.

    Raises:
        OSError: there is no table, or it is damaged.
    """

    def __init__(self, path: PurePath) -> None:
        self.token = token_of(path)
        with _damage():
            self._table = lance.dataset(storage_of(path).uri(path), version=self.token[0])
            self.schema, self.count = self._table.schema, self._table.count_rows()
        self._lock = threading.Lock()
        self._block = functools.lru_cache(KEPT)(self._take)

    def cells(self, columns: Sequence[str]) -> Iterator[list[Any]]:
        """Yield the Arrow arrays of these columns, batch by batch, in the order of the rows."""
        batches = self._table.to_batches(columns=list(columns), batch_size=ROWS_PER_BATCH)
        while True:
            with _damage():
                batch = next(batches, None)
            if batch is None:
                return
            yield [batch.column(name) for name in columns]

    def image(self, column: str, row: int) -> bytes | None:
        """Return the bytes in a column of binaries or of structs with the field ``bytes``; None where they are null.

        Raises:
            OSError: the table is damaged.
        """
        with self._lock:  # one thread reads a block for all
            value = self._block(column, row // ROWS_AT_ONCE)[row % ROWS_AT_ONCE].as_py()
        return value["bytes"] if isinstance(value, dict) else value

    def _take(self, column: str, block: int) -> pa.ChunkedArray:
        first = block * ROWS_AT_ONCE
        with _damage():
            return self._table.take(list(range(first, min(first + ROWS_AT_ONCE, self.count))), columns=[column])[0]


def token_of(path: PurePath) -> tuple[int, int]:
    """Return the latest version of a table and when it was written, in ns; (-1, 0) if there is no table."""
    versions = Versions(path).versions()
    version = max(versions, default=-1)
    found = stat(path / versions[version]) if versions else None
    return (version, found.modified_ns) if found else (-1, 0)


@contextmanager
def _damage() -> Iterator[None]:
    """Turn what Lance raises on a damaged table, Rust panics included, into OSError."""
    try:
        yield
    except BaseException as error:  # PanicException is not a subclass of Exception and cannot be imported
        if not isinstance(error, ValueError | RuntimeError) and type(error).__name__ != "PanicException":
            raise
        raise OSError(str(error).partition("\n")[0]) from error
