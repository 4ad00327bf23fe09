"""Training rows for the solvers of linear heads: standardised, in the eigenbasis of their covariance, in blocks.

In that basis the Hessian of a linear head is nearly diagonal, and the penalty ``||W||²`` is unchanged. If the rows in
memory are fewer than the features, there are only as many axes as rows: weights along the others would stay 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from featurestore.errors import HeadError
from featurestore.schema import widened
from heads.base import floored, slices, standardise
from heads.solvers.blas import one_blas_thread

MAX_ROTATED = 4096  # axes; an eigendecomposition takes cubic time, so wider problems are not rotated
LEAST_VARIANCE = 1e-9  # relative to the largest
MAKERS = 2  # threads that turn pieces into blocks, while another thread reads
AHEAD = 4  # blocks that are read in advance
BASIS_ROWS = 4096  # of a sample, converted to float32 at a time
LEAST_SAMPLED = 50  # rows per feature; solutions of a smaller sample are too far from those of all rows

T = TypeVar("T")
Block = tuple[slice, np.ndarray]  # the rows' numbers, and float32 (b, k + 1) whose last column is ones


@dataclass(frozen=True)
class Basis:
    """A linear map of raw features: standardise, then rotate to ``axes``.

    Attributes:
        mean, scale: float32 (d,), of the raw features.
        axes: float32 (d, r), orthonormal columns; None stands for the identity.
        variances: float32 (r,), of the standardised rows along the axes.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray | None
    variances: np.ndarray

    def rotate(self, X: np.ndarray) -> np.ndarray:
        """Map raw X (n, d) to float32 (n, r + 1); the last column is 1, for the intercept."""
        Z = standardise(X, self.mean, self.scale)
        out = np.ones((len(X), len(self.variances) + 1), np.float32)
        if self.axes is None:
            out[:, :-1] = Z
        else:
            np.matmul(Z, self.axes, out=out[:, :-1])
        return out

    def weights(self, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return W (c, r + 1) as ``coef`` (d, c) and ``intercept`` (c,) of standardised features."""
        coef = W[:, :-1] if self.axes is None else W[:, :-1] @ self.axes.T
        return np.ascontiguousarray(coef.T), W[:, -1].copy()

    def of_weights(self, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        """Return the W, float32 (c, r + 1), of which ``weights`` are these, or are closest to these along the axes."""
        W = coef.T if self.axes is None else coef.T @ self.axes
        return np.concatenate([W, intercept[:, None]], axis=1).astype(np.float32)


class Rows(Protocol):
    """The training rows, n of them, to be read in many passes.

    The columns of the blocks may differ from the axes of the basis: ``lower`` maps weights W (K, r + 1) of the basis
    to weights of the blocks' columns, and ``lift``, its adjoint, maps gradients back.
    """

    basis: Basis
    n: int
    sample: Sample | None
    room: int

    def blocks(self, size: int) -> Iterator[Block]:
        """Yield the rows of one pass, at most ``size`` at a time."""
        ...

    def lower(self, W: np.ndarray) -> np.ndarray:
        """Map weights (K, r + 1) of the basis to weights (K, k + 1) of the blocks' columns."""
        ...

    def lift(self, G: np.ndarray) -> np.ndarray:
        """Map gradients (K, k + 1) by the latter weights to gradients (K, r + 1) by the former."""
        ...


class MemoryRows:
    """Rows in memory, rotated once to the axes of the basis."""

    sample: Sample | None = None
    room: int = 0

    def __init__(self, X: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> None:
        """``X`` float32 (n, d), raw."""
        self.n = len(X)
        Z = standardise(X, mean, scale)
        axes = _axes(Z)
        rotated = Z if axes is None else Z @ axes
        self.basis = Basis(mean, scale, axes, above_zero(np.einsum("ij,ij->j", rotated, rotated) / self.n))
        self._rotated = np.ones((self.n, rotated.shape[1] + 1), np.float32)
        self._rotated[:, :-1] = rotated

    @classmethod
    def rotated(cls, rotated: np.ndarray, basis: Basis) -> MemoryRows:
        """Return rows that are in the basis already, float32 (n, r + 1) whose last column is 1."""
        made = cls.__new__(cls)
        made.n, made.basis, made._rotated = len(rotated), basis, rotated
        return made

    def blocks(self, size: int) -> Iterator[Block]:
        """Yield consecutive rows, at most ``size`` at a time."""
        return ((rows, self._rotated[rows]) for rows in slices(self.n, size))

    def lower(self, W: np.ndarray) -> np.ndarray:
        """Return W: the blocks are in the basis already."""
        return W

    def lift(self, G: np.ndarray) -> np.ndarray:
        """Return G: the blocks are in the basis already."""
        return G


class StreamedRows:
    """Rows that are read anew on every pass. The weights are rotated instead of the rows, which are only centred."""

    def __init__(
        self,
        read: Callable[[], Iterator[np.ndarray]],
        n: int,
        basis: Basis,
        sample: Sample | None = None,
        room: int = 0,
    ) -> None:
        """
        Args:
            read: starts a pass; yields raw features (b, d) in pieces, always in the same order.
            n: the number of rows in a pass.
            basis: the basis of the weights.
            sample: some of the rows, in memory.
            room: bytes that all problems solved together may take.
        """
        self._read, self.n, self.basis, self.sample, self.room = read, n, basis, sample, room

    @classmethod
    def surveyed(cls, read: Callable[[], Iterator[np.ndarray]], n: int, sampled: int, room: int = 0) -> StreamedRows:
        """Return rows with the basis of a random sample of them, read in one pass; a large enough sample is kept.

        Args:
            read: see ``__init__``.
            n: the number of rows in a pass.
            sampled: the most rows to sample.
            room: see ``__init__``.

        Raises:
            HeadError: features that are not finite.
        """
        at = np.sort(np.random.default_rng(0).permutation(n)[:sampled])
        mean, scale, held = _survey(read(), n, at)
        basis, sample = of_sample(mean, scale, held, at)
        return cls(read, n, basis, sample, room)

    def blocks(self, size: int) -> Iterator[Block]:
        """Yield centred rows, at most ``size`` at a time, prepared in threads."""
        return _ahead(self._parts(size), self._centred)

    def _parts(self, size: int) -> Iterator[Block]:
        at = 0
        for X in self._read():
            for rows in slices(len(X), size):
                yield slice(at + rows.start, at + rows.stop), X[rows]
            at += len(X)

    def _centred(self, raw: Block) -> Block:
        rows, part = raw
        block = np.empty((len(part), part.shape[1] + 1), np.float32)
        block[:, -1] = 1
        _subtract(part, self.basis.mean, block[:, :-1])
        return rows, block

    def lower(self, W: np.ndarray) -> np.ndarray:
        """Map weights of rotated features to weights of centred ones."""
        coef = W[:, :-1] if self.basis.axes is None else W[:, :-1] @ self.basis.axes.T
        return np.concatenate([coef / self.basis.scale, W[:, -1:]], axis=1)

    def lift(self, G: np.ndarray) -> np.ndarray:
        """Map gradients by weights of centred features to gradients by weights of rotated ones."""
        coef = G[:, :-1] / self.basis.scale
        return np.concatenate([coef if self.basis.axes is None else coef @ self.basis.axes, G[:, -1:]], axis=1)


@dataclass(frozen=True)
class Sample:
    """A sample of streamed rows, in memory in their stored dtype, in the same basis; ``at`` int (m,): their numbers."""

    rows: StreamedRows
    at: np.ndarray


def _survey(pieces: Iterator[np.ndarray], n: int, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean and the scale of n rows, float32 (d,), and the rows ``at`` sorted numbers, as stored.

    Squares are summed about the mean of the first piece: with a large mean, a small variance would be lost to rounding.
    """
    start, held = 0, []
    for piece in pieces:
        if start == 0:
            with np.errstate(invalid="ignore"):
                about = _finite(piece.mean(axis=0, dtype=np.float32))
            total, squares = np.zeros(len(about)), np.zeros(len(about))
        X = np.empty(piece.shape, np.float32)
        _subtract(piece, about, X)
        total += _finite(X).sum(axis=0, dtype=np.float64)
        squares += np.square(X).sum(axis=0, dtype=np.float64)
        first, last = np.searchsorted(at, (start, start + len(piece)))
        held.append(piece[at[first:last] - start])
        start += len(piece)
    assert start == n
    deviations = np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0))
    return (about + total / n).astype(np.float32), floored(deviations), np.concatenate(held)


def _finite(X: np.ndarray) -> np.ndarray:
    if not np.isfinite(X).all():
        raise HeadError("Expected: finite features. Got: NaN or infinity. Embed these images anew.")
    return X


def of_sample(mean: np.ndarray, scale: np.ndarray, held: np.ndarray, at: np.ndarray) -> tuple[Basis, Sample | None]:
    """Return the basis of sampled rows, and the sample if it is large enough."""
    some = StreamedRows(lambda: iter([held]), len(at), Basis(mean, scale, None, np.ones(len(mean), np.float32)))
    some.basis = basis = _basis(some)
    return basis, Sample(some, at) if len(at) >= LEAST_SAMPLED * len(mean) else None


def _basis(some: StreamedRows) -> Basis:
    """Return the basis of sampled rows, given mean and scale; with all d axes, as other rows may vary along any."""
    mean, scale = some.basis.mean, some.basis.scale
    whole = len(mean) <= MAX_ROTATED
    covariance = np.zeros((len(mean),) * (2 if whole else 1))
    for _, block in some.blocks(BASIS_ROWS):
        Z = block[:, :-1] / scale
        covariance += (Z.T @ Z if whole else np.square(Z).sum(axis=0)) / some.n
    if not whole:
        return Basis(mean, scale, None, above_zero(covariance))
    with one_blas_thread():  # LAPACK's threads wait for each other: beside other work, ten times as long and more
        variances, axes = np.linalg.eigh(covariance)
    return Basis(mean, scale, axes.astype(np.float32), above_zero(variances))


def centred(X: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return X (b, d) less ``mean`` as float32."""
    out = np.empty(X.shape, np.float32)
    _subtract(X, mean, out)
    return out


def _subtract(X: np.ndarray, mean: np.ndarray, out: np.ndarray) -> None:
    """Write X (b, d), in a stored dtype, less ``mean`` into float32 ``out``."""
    for rows, wide in widened(X):
        np.subtract(wide, mean, out=out[rows])


def _ahead(items: Iterator[T], make: Callable[[T], T]) -> Iterator[T]:
    """Yield ``make(item)`` for each item, a few of them made in threads in advance."""

    def made(item: Future[T | None]) -> T | None:
        read = item.result()
        return None if read is None else make(read)

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(MAKERS) as makers:
        waiting = deque(makers.submit(made, reader.submit(next, items, None)) for _ in range(AHEAD))
        while (ready := waiting.popleft().result()) is not None:
            waiting.append(makers.submit(made, reader.submit(next, items, None)))
            yield ready


def _axes(Z: np.ndarray) -> np.ndarray | None:
    """Return the axes of standardised rows (n, d), float32 (d, min(n, d)); None above ``MAX_ROTATED`` axes.

    With n < d the axes come from the eigenvectors u of the smaller ``Z Zᵀ``: ``v = Zᵀ u``, the largest variance first.
    QR makes them orthonormal, as the penalty requires: those of small variance are not, because of rounding.
    """
    n, d = Z.shape
    if min(n, d) > MAX_ROTATED:
        return None
    wide = n < d
    gram = (Z @ Z.T if wide else Z.T @ Z).astype(np.float64)
    with one_blas_thread():  # see _basis
        _, vectors = np.linalg.eigh(gram)
    vectors = vectors[:, ::-1].astype(np.float32)
    return np.linalg.qr(Z.T @ vectors)[0] if wide else vectors


def above_zero(variances: np.ndarray) -> np.ndarray:
    """Return the variances, raised above 0: steps of L-BFGS stay finite along axes on which no row varies."""
    return np.maximum(variances, max(float(variances.max()), 1e-30) * LEAST_VARIANCE).astype(np.float32)
