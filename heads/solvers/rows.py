"""Training rows as solvers of linear heads see them: standardised, in the eigenbasis of their covariance, in blocks.

In that basis the Hessian of a linear head is nearly diagonal and the penalty ``||W||²`` is what it was. With fewer rows
in memory than features there are as many axes as rows: those along which no row differs need no weight.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from featurestore.errors import HeadError
from heads.base import floored, standardise

MOST_ROTATED = 4096  # an eigendecomposition grows with the cube: wider problems stay in their own basis
LEAST_VARIANCE = 1e-9  # of the largest
MAKERS = 2  # threads that make blocks of what another reads
AHEAD = 4  # blocks that are read while others are worked on
IN_CACHE = 64  # rows that are widened at a time
BASIS_ROWS = 4096  # of a sample that are in float32 at a time
LEAST_SAMPLED = 50  # rows a feature; from a smaller sample's solutions the way is too long

T = TypeVar("T")
Block = tuple[slice, np.ndarray]  # which rows, and float32 (b, k + 1) with a last column of ones


@dataclass(frozen=True)
class Basis:
    """Where rows are seen from.

    Attributes:
        mean, scale: float32 (d,), of the raw features.
        axes: float32 (d, r), orthonormal columns; None is the identity.
        variances: float32 (r,), of the standardised rows along the axes.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray | None
    variances: np.ndarray

    def rotate(self, X: np.ndarray) -> np.ndarray:
        """Raw X (n, d) → float32 (n, r + 1), the last column 1 for the intercept."""
        Z = standardise(X, self.mean, self.scale)
        out = np.ones((len(X), len(self.variances) + 1), np.float32)
        if self.axes is None:
            out[:, :-1] = Z
        else:
            np.matmul(Z, self.axes, out=out[:, :-1])
        return out

    def weights(self, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """W (c, r + 1) as ``coef`` (d, c) and ``intercept`` (c,) of standardised features."""
        coef = W[:, :-1] if self.axes is None else W[:, :-1] @ self.axes.T
        return np.ascontiguousarray(coef.T), W[:, -1].copy()


class Rows(Protocol):
    """n rows for many passes. Weights W (K, r + 1) of the basis become those of the blocks' columns by ``lower``;
    ``lift`` is its adjoint, which brings gradients back."""

    basis: Basis
    n: int
    sample: Sample | None
    room: int

    def blocks(self, size: int) -> Iterator[Block]:
        """One pass, at most ``size`` rows at a time."""
        ...

    def lower(self, W: np.ndarray) -> np.ndarray:
        """W (K, r + 1) → (K, k + 1)."""
        ...

    def lift(self, G: np.ndarray) -> np.ndarray:
        """G (K, k + 1) → (K, r + 1)."""
        ...


class MemoryRows:
    """Rows in memory, rotated once."""

    sample: Sample | None = None
    room: int = 0

    def __init__(self, X: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> None:
        """``X`` float32 (n, d), raw."""
        self.n = len(X)
        Z = standardise(X, mean, scale)
        axes = _axes(Z)
        rotated = Z if axes is None else Z @ axes
        self.basis = Basis(mean, scale, axes, _above_zero(np.einsum("ij,ij->j", rotated, rotated) / self.n))
        self._rotated = np.ones((self.n, rotated.shape[1] + 1), np.float32)
        self._rotated[:, :-1] = rotated

    def blocks(self, size: int) -> Iterator[Block]:
        """Consecutive rows, ``size`` at a time."""
        for start in range(0, self.n, size):
            rows = slice(start, min(start + size, self.n))
            yield rows, self._rotated[rows]

    def lower(self, W: np.ndarray) -> np.ndarray:
        """The blocks are in the basis already."""
        return W

    def lift(self, G: np.ndarray) -> np.ndarray:
        """The blocks are in the basis already."""
        return G


class StreamedRows:
    """Rows that are read anew on every pass; it is the weights that are rotated."""

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
            read: starts a pass: it gives raw features (b, d) in pieces, always in the same order.
            n: how many rows that are.
            basis: where they are seen from.
            sample: some of them, in memory.
            room: bytes that problems which are solved together may take.
        """
        self._read, self.n, self.basis, self.sample, self.room = read, n, basis, sample, room

    @classmethod
    def surveyed(cls, read: Callable[[], Iterator[np.ndarray]], n: int, sampled: int, room: int = 0) -> StreamedRows:
        """Rows with the basis of a random sample of them, found in one pass. A large sample is kept, see ``Sample``.

        Raises:
            HeadError: features that are not finite.
        """
        at = np.sort(np.random.default_rng(0).permutation(n)[:sampled])
        mean, scale, held = _survey(read(), n, at)
        width = len(mean)
        some = cls(lambda: iter([held]), len(at), Basis(mean, scale, None, np.ones(width, np.float32)))
        some.basis = basis = _basis(some)
        enough = len(at) >= LEAST_SAMPLED * width
        return cls(read, n, basis, Sample(some, at) if enough else None, room)

    def blocks(self, size: int) -> Iterator[Block]:
        """Centred rows, at most ``size`` at a time, made ready in threads."""
        return _ahead(self._parts(size), self._centred)

    def _parts(self, size: int) -> Iterator[Block]:
        at = 0
        for X in self._read():
            for start in range(0, len(X), size):
                part = X[start : start + size]
                yield slice(at, at + len(part)), part
                at += len(part)

    def _centred(self, raw: Block) -> Block:
        rows, part = raw
        block = np.empty((len(part), part.shape[1] + 1), np.float32)
        block[:, -1] = 1
        _subtract(part, self.basis.mean, block[:, :-1])
        return rows, block

    def lower(self, W: np.ndarray) -> np.ndarray:
        """Weights of rotated features → weights of centred ones."""
        coef = W[:, :-1] if self.basis.axes is None else W[:, :-1] @ self.basis.axes.T
        return np.concatenate([coef / self.basis.scale, W[:, -1:]], axis=1)

    def lift(self, G: np.ndarray) -> np.ndarray:
        """Gradients by weights of centred features → gradients by rotated ones."""
        coef = G[:, :-1] / self.basis.scale
        return np.concatenate([coef if self.basis.axes is None else coef @ self.basis.axes, G[:, -1:]], axis=1)


@dataclass(frozen=True)
class Sample:
    """Some of streamed rows, in memory in their stored dtype and seen from the same basis; ``at`` int (m,): which."""

    rows: StreamedRows
    at: np.ndarray


def _survey(pieces: Iterator[np.ndarray], n: int, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean and the scale of n rows, float32 (d,), and those of them ``at`` sorted places, as stored.

    Squares are summed about the mean of the first piece, or a small variance would drown beside a large mean.
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


def _basis(some: StreamedRows) -> Basis:
    """The basis of rows, given their mean and scale; all axes: other rows may have directions that these have not."""
    mean, scale = some.basis.mean, some.basis.scale
    whole = len(mean) <= MOST_ROTATED
    covariance = np.zeros((len(mean),) * (2 if whole else 1))
    for _, block in some.blocks(BASIS_ROWS):
        Z = block[:, :-1] / scale
        covariance += (Z.T @ Z if whole else np.square(Z).sum(axis=0)) / some.n
    if not whole:
        return Basis(mean, scale, None, _above_zero(covariance))
    variances, axes = np.linalg.eigh(covariance)
    return Basis(mean, scale, axes.astype(np.float32), _above_zero(variances))


def _subtract(X: np.ndarray, mean: np.ndarray, out: np.ndarray) -> None:
    """X (b, d) less ``mean`` into float32 ``out``.

    numpy widens float16 at a quarter of the speed of this table, as it does so number by number.
    """
    if X.dtype != np.float16:
        np.subtract(X, mean, out=out, dtype=np.float32)
        return
    for start in range(0, len(X), IN_CACHE):
        rows = slice(start, start + IN_CACHE)
        np.subtract(np.take(_widened(), X[rows].view(np.uint16), mode="clip"), mean, out=out[rows])


@functools.cache
def _widened() -> np.ndarray:
    """Every float16 as float32, by its bits."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def _ahead(items: Iterator[T], make: Callable[[T], T]) -> Iterator[T]:
    """What is made of each item, a few made in threads before they are asked for."""

    def made(item: Future[T | None]) -> T | None:
        read = item.result()
        return None if read is None else make(read)

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(MAKERS) as makers:
        waiting = deque(makers.submit(made, reader.submit(next, items, None)) for _ in range(AHEAD))
        while (ready := waiting.popleft().result()) is not None:
            waiting.append(makers.submit(made, reader.submit(next, items, None)))
            yield ready


def _axes(Z: np.ndarray) -> np.ndarray | None:
    """The axes of standardised rows (n, d), float32 (d, min(n, d)); None where that is too many.

    With n < d the eigenvectors come from the smaller ``Z Zᵀ``: ``v = Zᵀ u``, the largest variance first, made
    orthonormal by QR: those of small variance are not by themselves, and the penalty needs it.
    """
    n, d = Z.shape
    if min(n, d) > MOST_ROTATED:
        return None
    wide = n < d
    _, vectors = np.linalg.eigh((Z @ Z.T if wide else Z.T @ Z).astype(np.float64))
    vectors = vectors[:, ::-1].astype(np.float32)
    return np.linalg.qr(Z.T @ vectors)[0] if wide else vectors


def _above_zero(variances: np.ndarray) -> np.ndarray:
    """Above 0, so that steps of L-BFGS stay finite along directions that no row has."""
    return np.maximum(variances, max(float(variances.max()), 1e-30) * LEAST_VARIANCE).astype(np.float32)
