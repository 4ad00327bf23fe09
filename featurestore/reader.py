"""Vectors that stay in the store: what does not fit in memory is read anew, in pieces, as often as it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from featurestore.schema import vectors_of


@dataclass(frozen=True)
class StoredVectors:
    """n vectors of one feature set, at one version of it.

    Attributes:
        scan: starts a pass over the set: checked batches, always in the same order.
        numbers: int64 (m,), for each row that a pass gives which of the n vectors it is, or -1.
        n, width: their shape.
        memory_limit: bytes that whoever works with them should stay within.
    """

    scan: Callable[[], Iterator[pa.RecordBatch]]
    numbers: np.ndarray
    n: int
    width: int
    memory_limit: int

    @property
    def order(self) -> np.ndarray:
        """Int64 (n,): which vectors a pass gives, in its order."""
        return self.numbers[self.numbers >= 0]

    def pieces(self) -> Iterator[np.ndarray]:
        """One pass: vectors (b, width) in the stored dtype, in the order that ``order`` says."""
        start = 0
        for batch in self.scan():
            wanted = self.numbers[start : start + batch.num_rows] >= 0
            start += batch.num_rows
            if wanted.any():
                vectors = vectors_of(batch.column("vector"))
                yield vectors if wanted.all() else vectors[wanted]

    def take(self, rows: np.ndarray) -> StoredVectors:
        """Some of them, by number (each once) or mask."""
        rows = np.arange(self.n)[rows]
        numbers = np.full(self.n + 1, -1)  # the last for those that were not wanted before
        numbers[rows] = np.arange(len(rows))
        return replace(self, numbers=numbers[self.numbers], n=len(rows))

    def read(self) -> np.ndarray:
        """All of them, float32 (n, width)."""
        X, order, start = np.empty((self.n, self.width), np.float32), self.order, 0
        for piece in self.pieces():
            X[order[start : start + len(piece)]] = piece
            start += len(piece)
        return X
