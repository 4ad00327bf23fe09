"""Kernel machines: logistic regression and support vector machine in the features of a Gaussian kernel.

Nyström's features make them linear heads, solved by the sweep engine: see ``heads.solvers.kernels``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.base import Problem, check_param, dense_layer, is_count, is_number
from heads.families.base import Family
from heads.families.linear import LinearHead, checked_C, climb
from heads.solvers.kernels import Kernel, KernelRows, all_squared_distances, gaussian, squared_distances
from heads.solvers.sweep import CROSS_ENTROPY, SQUARED_HINGE, LabelledRows, Loss

SCALE = "scale"
LANDMARKS = 1024
MAX_LANDMARKS = 4096  # an eigendecomposition takes cubic time
MAX_WORK = 3e9  # rows × (features + 3 × landmarks + passes × classes): about a minute for both grids on two cores
PASSES = 365  # of both grids, on features of a CNN


@dataclass(frozen=True)
class KernelHead(LinearHead):
    """A kernel machine: ``scores = exp(-gamma * squared distances of X to landmarks) @ coef + intercept``.

    Arrays: ``landmarks`` (m, d) standardised, ``gamma`` (), ``coef`` (m, c), ``intercept`` (c,).
    """

    def _scores(self, X: np.ndarray) -> np.ndarray:
        kernel = gaussian(squared_distances(X, self.arrays["landmarks"]), self.arrays["gamma"].item())
        return super()._scores(kernel)

    def to_layers(self, keras: Any, X: Any) -> Any:
        """Return layers for the kernel and one Dense layer of it; none can be trained further."""
        landmarks, ops = self.arrays["landmarks"], keras.ops
        squared = ops.sum(X * X, axis=1, keepdims=True) + dense_layer(
            keras, "landmarks", X, -2 * landmarks.T, np.square(landmarks).sum(axis=1)
        )
        return super().to_layers(keras, ops.exp(-self.arrays["gamma"].item() * ops.relu(squared)))

    @property
    def layer_arrays(self) -> list[tuple[str, str]]:
        """None: training would move the landmarks too."""
        return []


def kernel_of(C: float, gamma: float | str, landmarks: int) -> Kernel:
    """Return the kernel that a family's parameters ask for.

    Args:
        C: says nothing to it.
        gamma: a number, "scale" for ``1 / (d * variance of the landmarks)``, or a multiple of it such as "0.3 scale".
        landmarks: how many training rows stand for all.

    Raises:
        UsageError: a parameter is invalid.
    """
    checked_C(C)
    value = _number(gamma)
    wanted = 'a number above 0, "scale", or a multiple of it such as "0.3 scale"'
    check_param(is_number(value) and value > 0, "gamma", gamma, wanted)
    wanted = f"a whole number above 0, up to {MAX_LANDMARKS:,}"
    check_param(is_count(landmarks, MAX_LANDMARKS), "landmarks", landmarks, wanted)
    return Kernel(float(value), isinstance(gamma, str), landmarks)


def _number(gamma: Any) -> Any:
    """Return the multiple of the scale that a text names, 0 for a text that names none; anything else as it is."""
    if not isinstance(gamma, str):
        return gamma
    *number, unit = gamma.split() or [""]
    try:
        return float(*number or "1") if unit == SCALE else 0
    except (TypeError, ValueError):
        return 0


def fit_kernel_logreg(problem: Problem, **params: Any) -> dict[str, np.ndarray]:
    """Fit a multinomial logistic regression with an L2 penalty in the features of a kernel."""
    return _fit(problem, CROSS_ENTROPY, **params)


def fit_kernel_svm(problem: Problem, **params: Any) -> dict[str, np.ndarray]:
    """Fit one-vs-rest support vector machines with squared hinge loss in the features of a kernel."""
    return _fit(problem, SQUARED_HINGE, **params)


def _fit(problem: Problem, loss: Loss, **params: Any) -> dict[str, np.ndarray]:
    kernel, X = kernel_of(**params), problem.X
    features = kernel.features(X[kernel.choose(len(X))])
    squared = all_squared_distances(X.__getitem__, len(X), features.landmarks)
    made = KernelRows.in_memory(features, squared)
    fit = climb(LabelledRows(made.rows, problem.y, problem.n_classes), loss, params["C"], problem.class_weight)
    return made.machine(fit.coef, fit.intercept)


def _is_slow(rows: int, classes: int, _to_score: int, width: int) -> bool:
    return rows * (width + 3 * LANDMARKS + PASSES * classes) > MAX_WORK


KERNEL_LOGREG = Family(
    "multinomial logistic regression in the features of a Gaussian kernel",
    fit_kernel_logreg,
    KernelHead,
    defaults={"C": 100.0, "gamma": "0.3 scale", "landmarks": LANDMARKS},
    grid=tuple({"C": C} for C in (30.0, 100.0, 300.0)),
    check=kernel_of,
    loss=CROSS_ENTROPY,
    kernel=kernel_of,
    C=lambda C, gamma, landmarks: C,
    is_slow=_is_slow,
)

KERNEL_SVM = Family(
    "support vector machine with a Gaussian kernel, one against the rest",
    fit_kernel_svm,
    KernelHead,
    defaults={"C": 3.0, "gamma": "0.3 scale", "landmarks": LANDMARKS},
    grid=tuple({"C": C, "gamma": gamma} for gamma in ("0.3 scale", "scale") for C in (1.0, 3.0, 10.0)),
    check=kernel_of,
    loss=SQUARED_HINGE,
    kernel=kernel_of,
    C=lambda C, gamma, landmarks: C,
    is_slow=_is_slow,
)
