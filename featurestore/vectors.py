"""Vectors that stay in the store because they do not fit in memory: each pass reads them again, in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from featurestore.schema import vectors_of, widened


@dataclass(frozen=True)
class StoredVectors:
    """n vectors of one feature set, at one version of the set.

    Attributes:
        scan: starts a pass over the set; yields checked batches, always in the same order.
        numbers: int64 (m,), for each row of a pass the number of its vector, or -1 if it is not one of the n.
        n, width: number of vectors, and their width.
        memory_limit: bytes of memory that code working with the vectors should use at most.
    """

    scan: Callable[[], Iterator[pa.RecordBatch]]
    numbers: np.ndarray
    n: int
    width: int
    memory_limit: int

    @property
    def order(self) -> np.ndarray:
        """Numbers of the vectors in the order in which a pass yields them, int64 (n,)."""
        return self.numbers[self.numbers >= 0]

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield the vectors in one pass, in the order of ``order``: (b, width), in the stored dtype."""
        start = 0
        for batch in self.scan():
            wanted = self.numbers[start : start + batch.num_rows] >= 0
            start += batch.num_rows
            if wanted.any():
                vectors = vectors_of(batch.column("vector"))
                yield vectors if wanted.all() else vectors[wanted]

    def take(self, rows: np.ndarray | slice) -> StoredVectors:
        """Return some of the vectors, by number (each once), mask or slice."""
        rows = np.arange(self.n)[rows]
        numbers = np.full(self.n + 1, -1)  # the last entry is for rows that were not among the n vectors
        numbers[rows] = np.arange(len(rows))
        return replace(self, numbers=numbers[self.numbers], n=len(rows))

    def read(self) -> np.ndarray:
        """Return all vectors in memory, float32 (n, width)."""
        X, order, start = np.empty((self.n, self.width), np.float32), self.order, 0
        for piece in self.pieces():
            for _, wide in widened(piece):
                X[order[start : start + len(wide)]] = wide
                start += len(wide)
        return X
