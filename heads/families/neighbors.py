"""Heads that need no optimisation: k nearest neighbours and nearest class mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from heads.base import CHUNK_ROWS, Head, Problem, check_param, is_count, slices
from heads.families.base import Family
from heads.families.linear import LinearHead

METRICS = ("cosine", "euclidean")
CLOSENESS = 1 << 23  # numbers held at a time, with their order 16 bytes each: 128 MiB
KNN_MAX_WORK = 1e13  # rows to score × training rows × features: about a minute


@dataclass(frozen=True)
class NeighborsHead(Head):
    """A k nearest neighbours head: its scores are shares of the votes of the k nearest training rows.

    Arrays: ``vectors`` (n, d), the training rows, of unit length for cosine; ``labels`` int (n,).
    """

    def _scores(self, X: np.ndarray) -> np.ndarray:
        size = max(1, CLOSENESS // len(self.arrays["vectors"]))
        return np.concatenate([self._votes(X[rows]) for rows in slices(len(X), size)] or [self._votes(X)])

    def _votes(self, X: np.ndarray) -> np.ndarray:
        vectors, k = self.arrays["vectors"], self.params["k"]
        closeness = X @ vectors.T  # ranks by cosine: vectors have length 1, and the length of X changes no order
        if self.params["metric"] == "euclidean":
            closeness -= np.einsum("ij,ij->i", vectors, vectors) / 2
        nearest = np.argpartition(-closeness, k - 1, axis=1)[:, :k]
        labels = self.arrays["labels"][nearest]
        return np.stack([(labels == i).mean(axis=1) for i in range(len(self.classes))], axis=1)

    def _probabilities(self, scores: np.ndarray) -> np.ndarray:
        return scores


def check_knn(k: int, metric: str) -> None:
    """Raise UsageError for parameters that are invalid for any training rows."""
    check_param(is_count(k), "k", k, "a whole number above 0")
    check_param(metric in METRICS, "metric", metric, " or ".join(METRICS))


def fit_knn(problem: Problem, *, k: int, metric: str) -> dict[str, np.ndarray]:
    """Keep the training rows; ``metric`` is "cosine" or "euclidean"."""
    check_knn(k, metric)
    check_param(k <= len(problem.X), "k", k, f"at most the {len(problem.X)} training rows")
    vectors = problem.X
    if metric == "cosine":
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(lengths == 0, 1, lengths)
    return {"vectors": vectors, "labels": problem.y.astype(np.int64)}


def fit_ncm(problem: Problem) -> dict[str, np.ndarray]:
    """Fit nearest class mean, by Euclidean distance, as a linear head.

    ``-|x - m|² / 2 = x·m - |m|²/2 - |x|²/2``, and the last term is the same for all classes.
    """
    X, members = problem.X, np.eye(problem.n_classes)
    sums = sum(X[rows].T.astype(np.float64) @ members[problem.y[rows]] for rows in slices(len(X), CHUNK_ROWS))
    means = sums / np.bincount(problem.y)  # (d, c)
    return {"coef": means, "intercept": -(means**2).sum(axis=0) / 2}


NCM = Family(
    "nearest class mean: no parameter, a sane lower bound",
    fit_ncm,
    LinearHead,
    defaults={},
    grid=({},),
    weighted=False,
)

KNN = Family(
    "k nearest neighbours: keeps every training row",
    fit_knn,
    NeighborsHead,
    defaults={"k": 5, "metric": "cosine"},
    grid=({"k": 10}, {"k": 3}),
    check=check_knn,
    votes=True,
    weighted=False,
    is_slow=lambda rows, _classes, to_score, width: to_score * rows * width > KNN_MAX_WORK,
)
