"""Features of a Gaussian kernel by Nyström's method: a linear head of them is a kernel machine.

Williams & Seeger 2001, "Using the Nyström Method to Speed Up Kernel Machines", NIPS 13. Some training rows, the
landmarks L, stand for all: the features of a row x are ``k(x, L) V Λ^-½``, where ``V Λ Vᵀ`` is the landmarks' kernel.
Inner products of features are the kernel between landmarks, and so between all rows if every row is a landmark.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from featurestore.errors import HeadError
from featurestore.machine import available_cores
from heads.base import slices
from heads.solvers.blas import one_blas_thread
from heads.solvers.rows import Basis, MemoryRows, Rows, StreamedRows, above_zero, centred, of_sample

LEAST_EIGENVALUE = 1e-8  # of the landmarks' kernel, relative to the largest; below, float32 has more noise than signal
BLOCK_ROWS = 1024  # mapped at a time by a thread
PIECE_ROWS = 4096  # read at a time
BASIS_ROWS = 16_384  # the most whose features decide the basis of rows in memory
MOST_GAMMA = 1e20  # the kernel of equal rows is 1 and of others 0; times a squared distance it still is a float32

Read = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Kernel:
    """A Gaussian kernel ``exp(-gamma ||x - z||²)`` of standardised features; fits with the same one share features.

    Attributes:
        gamma: above 0.
        scaled: whether ``gamma`` is in units of ``1 / (d * variance of the landmarks)``.
        landmarks: how many training rows are landmarks; all of them if there are fewer.
    """

    gamma: float
    scaled: bool
    landmarks: int

    def choose(self, n: int) -> np.ndarray:
        """Return which of n training rows are landmarks, int (m,): drawn at random, always the same."""
        return np.random.default_rng(0).permutation(n)[: self.landmarks]

    def features(self, landmarks: np.ndarray) -> KernelFeatures:
        """Return the features for landmarks, float32 (m, d), standardised."""
        variance = float(landmarks.var(dtype=np.float64))
        unit = 1 / (landmarks.shape[1] * variance) if self.scaled and variance > 0 else 1.0
        gamma = min(self.gamma * unit, MOST_GAMMA)
        own = landmarks.astype(np.float64)
        with one_blas_thread():  # LAPACK's threads wait for each other: beside other work, ten times as long and more
            values, vectors = np.linalg.eigh(gaussian(squared_distances(own, own), gamma))
        kept = values > LEAST_EIGENVALUE * values[-1]
        vectors, roots = vectors[:, kept], np.sqrt(values[kept])
        centre = vectors.mean(axis=0) * roots
        return KernelFeatures(landmarks, gamma, (vectors / roots).astype(np.float32), centre.astype(np.float32))


@dataclass(frozen=True)
class KernelFeatures:
    """The r features of a kernel with m landmarks.

    Attributes:
        landmarks: float32 (m, d), standardised.
        gamma: of the kernel.
        axes: float32 (m, r), ``V Λ^-½``.
        centre: float32 (r,), the mean of the landmarks' features.
    """

    landmarks: np.ndarray
    gamma: float
    axes: np.ndarray
    centre: np.ndarray

    def of(self, squared: np.ndarray) -> np.ndarray:
        """Return the features of rows whose squared distances to the landmarks are (n, m), float32 (n, r)."""
        return gaussian(squared, self.gamma) @ self.axes


@dataclass(frozen=True)
class KernelRows:
    """Training rows as the features of a kernel, centred, for sweeps."""

    rows: Rows
    features: KernelFeatures

    @classmethod
    def in_memory(cls, features: KernelFeatures, squared: np.ndarray) -> KernelRows:
        """Return rows whose squared distances to the landmarks are float32 (n, m); takes as much memory once more."""
        n, r = len(squared), features.axes.shape[1]
        some = squared[:: -(-n // BASIS_ROWS)]
        X = np.empty((len(some), r), np.float32)

        def map_some(rows: slice) -> None:
            X[rows] = features.of(some[rows]) - features.centre

        in_threads(map_some, len(some))
        with one_blas_thread():
            axes = np.linalg.eigh((X.T @ X).astype(np.float64))[1].astype(np.float32)
            whole, centre = features.axes @ axes, features.centre @ axes
        rotated, parts = np.ones((n, r + 1), np.float32), {}

        def map_all(rows: slice) -> None:
            rotated[rows, :-1] = block = gaussian(squared[rows], features.gamma) @ whole - centre
            parts[rows.start] = np.einsum("ij,ij->j", block, block)

        in_threads(map_all, n)
        variances = above_zero(sum(parts[start] for start in sorted(parts)) / np.float32(n))
        basis = Basis(features.centre, np.ones(r, np.float32), axes, variances)
        return cls(MemoryRows.rotated(rotated, basis), features)

    @classmethod
    def streamed(cls, features: KernelFeatures, plain: StreamedRows, read: Read, sampled: int) -> KernelRows:
        """Return rows that are mapped once, into a temporary file that each pass reads.

        Args:
            features: of the kernel.
            plain: the rows, with the mean and the scale of raw features.
            read: starts a pass; yields raw features (b, d) in pieces.
            sampled: the most rows to sample.

        Raises:
            HeadError: there is no room for the file.
        """
        at = np.sort(np.random.default_rng(0).permutation(plain.n)[:sampled])
        stored, held = StoredFeatures(features.axes.shape[1]), []
        for start, block in _mapped(features, plain, read()):
            stored.append(block)
            first, last = np.searchsorted(at, (start, start + len(block)))
            held.append(block[at[first:last] - start])
        with one_blas_thread():
            basis, sample = of_sample(features.centre, np.ones_like(features.centre), np.concatenate(held), at)
        return cls(StreamedRows(stored.read, plain.n, basis, sample, plain.room), features)

    def machine(self, coef: np.ndarray, intercept: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of a head, from ``coef`` (r, c) and ``intercept`` (c,) of the centred features."""
        return {
            "landmarks": self.features.landmarks,
            "gamma": np.asarray(self.features.gamma),
            "coef": self.features.axes @ coef,
            "intercept": intercept - self.features.centre @ coef,
        }

    def weights(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ``coef`` (r, c) and ``intercept`` (c,) of which ``machine`` has made arrays."""
        landmarks = self.features.landmarks
        kernel = gaussian(squared_distances(landmarks, landmarks), self.features.gamma)
        coef = self.features.axes.T @ (kernel @ arrays["coef"])
        return coef, arrays["intercept"] + self.features.centre @ coef


class StoredFeatures:
    """Features in a temporary file, as float16, which ends with this object."""

    def __init__(self, width: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it is open as long as this object lives)
        self._width = width
        weakref.finalize(self, self._file.close)

    def append(self, X: np.ndarray) -> None:
        """Add float16 rows (b, width).

        Raises:
            HeadError: there is no room.
        """
        try:
            self._file.write(X.data)
            self._file.flush()
        except OSError as error:
            with suppress(OSError):  # it tries to write once more
                self._file.close()
            raise HeadError(
                f"The kernel's features of all training rows do not fit in {tempfile.gettempdir()} ({error.strerror}): "
                "set TMPDIR to a folder with more room, or lower landmarks."
            ) from error

    def read(self) -> Iterator[np.ndarray]:
        """Yield all rows in pieces, float16 (b, width)."""
        size, at = 2 * self._width * PIECE_ROWS, 0
        while data := os.pread(self._file.fileno(), size, at):
            yield np.frombuffer(data, np.float16).reshape(-1, self._width)
            at += len(data)


def _mapped(
    features: KernelFeatures, plain: StreamedRows, pieces: Iterator[np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield raw pieces as features, float16 (b, r), each with the number of its first row."""
    mean, scale, start = plain.basis.mean, plain.basis.scale, 0
    for piece in pieces:
        out = np.empty((len(piece), features.axes.shape[1]), np.float16)

        def work(rows: slice, piece: np.ndarray = piece, out: np.ndarray = out) -> None:
            out[rows] = features.of(squared_distances(centred(piece[rows], mean) / scale, features.landmarks))

        in_threads(work, len(piece))
        yield start, out
        start += len(piece)


def squared_distances(X: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean distances of rows (n, d) to landmarks (m, d), (n, m)."""
    squared = X @ landmarks.T
    squared *= -2
    squared += np.einsum("ij,ij->i", X, X)[:, None]
    squared += np.einsum("ij,ij->i", landmarks, landmarks)
    return np.maximum(squared, 0, out=squared)


def all_squared_distances(read: Callable[[slice], np.ndarray], n: int, landmarks: np.ndarray) -> np.ndarray:
    """Return those of n rows, float32 (n, m), made in threads; ``read`` returns a slice of the rows, standardised."""
    out = np.empty((n, len(landmarks)), np.float32)

    def work(rows: slice) -> None:
        out[rows] = squared_distances(read(rows), landmarks)

    in_threads(work, n)
    return out


def gaussian(squared: np.ndarray, gamma: float) -> np.ndarray:
    """Return ``exp(-gamma * squared)``."""
    out = squared * squared.dtype.type(-gamma)
    return np.exp(out, out=out)


def in_threads(work: Callable[[slice], None], n: int) -> None:
    """Call ``work`` with slices of n rows in threads, in each of which BLAS has one."""
    with one_blas_thread(), ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(work, slices(n, BLOCK_ROWS)))
