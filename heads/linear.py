"""Linear heads: logistic regression and the linear support vector machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from heads.head import Head, Problem, check_param, is_count, is_number


@dataclass(frozen=True)
class LinearHead(Head):
    """``scores = X @ coef + intercept`` with ``coef`` (d, c) and ``intercept`` (c,)."""

    def _scores(self, X: np.ndarray) -> np.ndarray:
        return X @ self.arrays["coef"] + self.arrays["intercept"]


def fit_logreg(problem: Problem, *, C: float, max_iter: int) -> dict[str, np.ndarray]:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS; ``1 / C`` is the penalty's weight."""
    from sklearn.linear_model import LogisticRegression

    _check(C, max_iter)
    model = LogisticRegression(C=C, max_iter=max_iter, class_weight=problem.class_weight)
    model.fit(problem.X, problem.y)
    return _columns(model.coef_, model.intercept_)


def fit_svm(problem: Problem, *, C: float, max_iter: int) -> dict[str, np.ndarray]:
    """One-vs-rest linear support vector machine with squared hinge loss (liblinear)."""
    from sklearn.svm import LinearSVC

    _check(C, max_iter)
    model = LinearSVC(
        C=C,
        max_iter=max_iter,
        dual=True,  # for small C a few passes are enough, also where n > d
        tol=1e-3,
        class_weight=problem.class_weight,
        random_state=problem.seed,
    )
    model.fit(problem.X, problem.y)
    return _columns(model.coef_, model.intercept_)


def _check(C: float, max_iter: int) -> None:
    check_param(is_number(C) and C > 0, "C", C, "a number above 0")
    check_param(is_count(max_iter), "max_iter", max_iter, "a whole number above 0")


def _columns(coef: np.ndarray, intercept: np.ndarray) -> dict[str, np.ndarray]:
    """Turn scikit-learn's (c, d) into (d, c), and its one row for two classes into two columns.

    For two classes scikit-learn's probability is ``sigmoid(s)``, which is the softmax of ``(-s/2, s/2)``.
    """
    if len(coef) == 1:
        coef = np.concatenate([-coef / 2, coef / 2])
        intercept = np.concatenate([-intercept / 2, intercept / 2])
    return {"coef": np.ascontiguousarray(coef.T), "intercept": intercept}
