"""Support vector machine with a Gaussian (RBF) kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.base import Head, Problem, check_param, dense_layer, is_number
from heads.families.base import Family


@dataclass(frozen=True)
class RBFHead(Head):
    """A support vector machine with an RBF kernel: one-vs-one machines over shared support vectors.

    Arrays: ``vectors`` (s, d) standardised, grouped by class; ``ends`` (c,), where each class's group ends;
    ``dual`` (c - 1, s), the weights of each vector in the machines of its class against the other classes, in class
    order; ``intercept`` (c (c - 1) / 2,), per pair of classes; ``gamma`` ().
    """

    def _scores(self, X: np.ndarray) -> np.ndarray:
        """Score by votes, ties broken by the sum of margins squashed below one vote.

        This is the ``ovr`` decision function of scikit-learn's SVC, whose argmax is what SVC predicts with
        ``break_ties=True``.
        """
        kernel = self._kernel(X.astype(np.float64))
        groups = np.split(np.arange(kernel.shape[1]), self.arrays["ends"][:-1])
        parts = [kernel[:, group] @ self.arrays["dual"][:, group].T for group in groups]  # each (n, c - 1)
        c = len(self.classes)
        votes, margins = np.zeros((len(X), c)), np.zeros((len(X), c))
        pairs = ((i, j) for i in range(c) for j in range(i + 1, c))
        for (i, j), intercept in zip(pairs, self.arrays["intercept"], strict=True):
            margin = parts[i][:, j - 1] + parts[j][:, i] + intercept  # above 0: a vote for i, else for j
            margins[:, i] += margin
            margins[:, j] -= margin
            votes[:, i] += margin >= 0
            votes[:, j] += margin < 0
        if c == 2:
            return margins
        return votes + margins / (3 * (np.abs(margins) + 1))

    def to_layers(self, keras: Any, X: Any) -> Any:
        """Return layers for the one-vs-one machines, their votes and margins; none can be trained further."""
        ops = keras.ops
        vectors, dual, ends = self.arrays["vectors"], self.arrays["dual"], self.arrays["ends"]
        squared = ops.sum(X * X, axis=1, keepdims=True) + dense_layer(
            keras, "vectors", X, -2 * vectors.T, (vectors**2).sum(axis=1)
        )
        kernel = ops.exp(-self.arrays["gamma"].item() * ops.relu(squared))
        c = len(self.classes)
        i, j = np.triu_indices(c, 1)  # the pairs of classes, in the order of ``intercept``
        starts = [0, *ends[:-1]]
        parts = [
            dense_layer(keras, f"machines{k}", kernel[:, start:end], dual[:, start:end].T, np.zeros(c - 1))
            for k, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
        columns = ops.concatenate(parts, axis=1)  # c - 1 columns per class: its machines against the other classes
        margin = ops.take(columns, i * (c - 1) + j - 1, axis=1) + ops.take(columns, j * (c - 1) + i, axis=1)
        margin = margin + self.arrays["intercept"].astype(np.float32)
        pairs = np.arange(len(i))
        won, lost = np.zeros((2, len(i), c), np.float32)
        won[pairs, i] = lost[pairs, j] = 1
        margins = margin @ (won - lost)
        if c == 2:
            return margins
        first = ops.cast(margin >= 0, "float32")
        votes = first @ won + (1 - first) @ lost
        return votes + margins / (3 * (ops.abs(margins) + 1))

    def _kernel(self, X: np.ndarray) -> np.ndarray:
        """Return ``exp(-gamma * squared distance)`` to each support vector, float64 (n, s)."""
        vectors = self.arrays["vectors"].astype(np.float64)
        squared = (X**2).sum(axis=1)[:, None] + (vectors**2).sum(axis=1) - 2 * (X @ vectors.T)
        return np.exp(-self.arrays["gamma"] * np.maximum(squared, 0))


def check_rbf_svm(C: float, gamma: float | str) -> None:
    """Raise UsageError for invalid parameters of a support vector machine."""
    check_param(is_number(C) and C > 0, "C", C, "a number above 0")
    good_gamma = gamma == "scale" or (is_number(gamma) and float(gamma) > 0)
    check_param(good_gamma, "gamma", gamma, 'a number above 0 or "scale"')


def fit_rbf_svm(problem: Problem, *, C: float, gamma: float | str) -> dict[str, np.ndarray]:
    """Fit scikit-learn's SVC; ``gamma`` is a number or "scale", which is ``1 / (d * variance of X)``."""
    from sklearn.svm import SVC

    check_rbf_svm(C, gamma)
    width = 1 / (problem.X.shape[1] * problem.X.var(dtype=np.float64)) if gamma == "scale" else gamma
    model = SVC(C=C, gamma=width, class_weight=problem.class_weight, break_ties=True, cache_size=500)
    model.fit(problem.X, problem.y)
    sign = -1 if problem.n_classes == 2 else 1  # with two classes, scikit-learn flips the sign of libsvm's
    return {
        "vectors": model.support_vectors_.astype(np.float32),  # exact: X is float32
        "ends": np.cumsum(model.n_support_),
        "dual": sign * model.dual_coef_,
        "intercept": sign * model.intercept_,
        "gamma": np.float64(width),
    }


RBF_SVM = Family(
    "exact support vector machine with a Gaussian kernel: for up to some thousand rows, only tried if it is named",
    fit_rbf_svm,
    RBFHead,
    defaults={"C": 10.0, "gamma": "scale"},
    grid=({"C": 1.0}, {"C": 10.0}),
    check=check_rbf_svm,
    C=lambda C, gamma: C,
    searched=False,
)
