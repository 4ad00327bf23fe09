"""Linear heads: logistic regression, the linear support vector machine and ridge, all solved by the sweep engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.base import ClassWeight, Head, Problem, check_param, class_weights, dense_layer, is_number
from heads.families.base import HALF_DECADES, Family
from heads.solvers.rows import MemoryRows
from heads.solvers.sweep import (
    CROSS_ENTROPY,
    SQUARED,
    SQUARED_HINGE,
    TOLERANCE,
    LabelledRows,
    Loss,
    Path,
    fits_together,
    solve,
    solve_from_sample,
)

LADDER = 10.0  # a large C is reached in factors of this: the solution for a smaller C is a better start than zero
LADDER_FROM = 1e-3


@dataclass(frozen=True)
class LinearHead(Head):
    """A linear head: ``scores = X @ coef + intercept`` with ``coef`` (d, c) and ``intercept`` (c,)."""

    def _scores(self, X: np.ndarray) -> np.ndarray:
        return X @ self.arrays["coef"] + self.arrays["intercept"]

    def to_layers(self, keras: Any, X: Any) -> Any:
        """Return one Dense layer."""
        return dense_layer(keras, "dense0", X, self.arrays["coef"], self.arrays["intercept"])

    @property
    def layer_arrays(self) -> list[tuple[str, str]]:
        """The names for its one layer."""
        return [("coef", "intercept")]


@dataclass(frozen=True)
class LinearProblem:
    """One of many fits to the same rows: C above 0, class weight as of ``class_weights``, groups of rows left out."""

    C: float
    class_weight: ClassWeight = None
    left_out: tuple[int, ...] = ()


@dataclass(frozen=True)
class LinearFit:
    """A solved problem: its number, ``coef`` (d, c), ``intercept`` (c,), seconds; see ``sweep.Solution`` for others."""

    problem: int
    coef: np.ndarray
    intercept: np.ndarray
    seconds: float
    passes: int
    converged: bool


def fit_many(
    data: LabelledRows,
    loss: Loss,
    problems: Sequence[LinearProblem],
    start: tuple[np.ndarray, np.ndarray] | None = None,
    tolerance: float = TOLERANCE,
) -> Iterator[LinearFit]:
    """Fit many linear heads in shared passes over the rows; yield each as soon as it is solved.

    Args:
        data: the rows to fit; ``coef`` and ``intercept`` apply to their standardised features.
        loss: of one family.
        problems: the fits to make.
        start: ``coef`` (d, c) and ``intercept`` (c,) of a fit that is close to them.
        tolerance: relative limit of the objective's estimated distance from its minimum.
    """
    groups: dict[tuple[ClassWeight, tuple[int, ...]], dict[float, int]] = {}
    for i, problem in enumerate(problems):
        groups.setdefault((problem.class_weight, problem.left_out), {})[problem.C] = i
    fitted = {left_out: data.y[data.fitted(left_out)] for _, left_out in groups}
    W = None if start is None else data.rows.basis.of_weights(*start)
    paths = [
        Path(tuple(sorted(Cs)), class_weights(fitted[left_out], data.n_classes, weight), left_out, W)
        for (weight, left_out), Cs in groups.items()
    ]
    numbers = [[Cs[C] for C in path.Cs] for path, Cs in zip(paths, groups.values(), strict=True)]
    began = time.perf_counter()
    way = solve_from_sample if fits_together(data, paths) else solve
    for solution in way(data, loss, paths, tolerance):
        now = time.perf_counter()
        coef, intercept = data.rows.basis.weights(solution.W)
        yield LinearFit(
            numbers[solution.path][solution.at], coef, intercept, now - began, solution.passes, solution.converged
        )
        began = time.perf_counter()


def fit_logreg(problem: Problem, **params: float) -> dict[str, np.ndarray]:
    """Fit a multinomial logistic regression with an L2 penalty; ``1 / C`` is the penalty's weight."""
    return _fit(problem, CROSS_ENTROPY, checked_C(**params))


def fit_svm(problem: Problem, **params: float) -> dict[str, np.ndarray]:
    """Fit a one-vs-rest linear support vector machine with squared hinge loss, as scikit-learn's LinearSVC."""
    return _fit(problem, SQUARED_HINGE, checked_C(**params))


def fit_ridge(problem: Problem, **params: float) -> dict[str, np.ndarray]:
    """Fit one-vs-rest least squares with an L2 penalty of weight ``alpha``, as scikit-learn's RidgeClassifier."""
    return _fit(problem, SQUARED, C_of_alpha(**params))


def checked_C(C: float) -> float:
    """Return C, the weight of the loss relative to ``||W||² / 2``.

    Raises:
        UsageError: C is not a number above 0.
    """
    check_param(is_number(C) and C > 0, "C", C, "a number above 0")
    return C


def C_of_alpha(alpha: float) -> float:
    """Return the C for which ``C Σ loss + ||W||² / 2`` and ``Σ loss + alpha ||W||²`` have the same minimum in W.

    Raises:
        UsageError: alpha is not a number above 0.
    """
    check_param(is_number(alpha) and alpha > 0, "alpha", alpha, "a number above 0")
    return 1 / (2 * alpha)


def climb(data: LabelledRows, loss: Loss, C: float, class_weight: ClassWeight) -> LinearFit:
    """Fit one head; a large C is reached from smaller ones."""
    Cs = [C]
    while Cs[0] > LADDER_FROM * LADDER and loss is not SQUARED:
        Cs.insert(0, Cs[0] / LADDER)
    *_, last = fit_many(data, loss, [LinearProblem(value, class_weight) for value in Cs])
    return last


def _fit(problem: Problem, loss: Loss, C: float) -> dict[str, np.ndarray]:
    width = problem.X.shape[1]
    rows = MemoryRows(problem.X, np.zeros(width, np.float32), np.ones(width, np.float32))
    fit = climb(LabelledRows(rows, problem.y, problem.n_classes), loss, C, problem.class_weight)
    return {"coef": fit.coef, "intercept": fit.intercept}


LOGREG = Family(
    "multinomial logistic regression: calibrated, hard to beat",
    fit_logreg,
    LinearHead,
    defaults={"C": 0.01},
    grid=tuple({"C": C} for C in HALF_DECADES[4:15]),
    check=checked_C,
    loss=CROSS_ENTROPY,
    C=checked_C,
)

SVM = Family(
    "linear support vector machine, one against the rest",
    fit_svm,
    LinearHead,
    defaults={"C": 0.001},
    grid=tuple({"C": C} for C in HALF_DECADES[:11]),
    check=checked_C,
    loss=SQUARED_HINGE,
    C=checked_C,
)

RIDGE = Family(
    "ridge regression on the classes: solved in one step",
    fit_ridge,
    LinearHead,
    defaults={"alpha": 1000.0},
    grid=tuple({"alpha": alpha} for alpha in (100000.0, 30000.0, 10000.0, 3000.0, 1000.0, 300.0, 100.0)),
    check=C_of_alpha,
    loss=SQUARED,
    C=C_of_alpha,
)
