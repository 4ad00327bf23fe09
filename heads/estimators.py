"""Linear classifiers for scikit-learn that choose C by cross-validation: all values and folds share their passes.

They need no store: the features are an array. The objectives are scikit-learn's own, on the features as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import check_cv
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from heads.base import ClassWeight
from heads.families.linear import LinearFit, LinearProblem, fit_many
from heads.solvers.lbfgs import MAX_EVALUATIONS
from heads.solvers.rows import MemoryRows
from heads.solvers.sweep import CROSS_ENTROPY, SQUARED_HINGE, LabelledRows, Loss

LARGEST = 1e12  # of the features, and the ranges of C and of weights: with more, a float32 could overflow
C_RANGE = (1e-20, 1e30)
WEIGHT_RANGE = (1e-10, 1e10)
VALIDATED = 1e-7  # tolerance of the fits that are scored, relative to the objective: scores as scikit-learn's
EXACT = 1e-10  # that of the last fit: coefficients within some 1e-5 of the largest
RUNGS = 4  # the last fit reaches its C in factors of 10: from 0, a large one would be missed


class _Sweep(ClassifierMixin, BaseEstimator):
    """What both estimators do; their own docstrings describe it."""

    _loss: Loss

    def __init__(
        self,
        *,
        Cs: int | Sequence[float] = 10,
        cv: Any = None,
        class_weight: str | dict[Any, float] | None = None,
        scoring: Any = None,
        refit: bool = True,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.class_weight = class_weight
        self.scoring = scoring
        self.refit = refit

    def fit(self, X: Any, y: Any) -> Self:
        """Choose C by cross-validation, then fit to all rows.

        Args:
            X: array-like (n, d), finite. float32 stays float32, all else becomes float64.
            y: array-like (n,), labels of at least two classes.

        Raises:
            ValueError: parameters or data that cannot be fitted; the message says what to change.
        """
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Expected: labels of at least two classes. Got: one class, {self.classes_[0]!r}.")
        self.Cs_, weight = _grid(self.Cs), _weight(self.class_weight, self.classes_, y)
        folds, count = _folds(check_cv(self.cv, y, classifier=True).split(X, y), codes)
        order = np.argsort(folds, kind="stable")  # sorted by fold, the rows that a fit leaves out cost it no work
        X, y, folds = X[order], y[order], folds[order]
        rows, mean = _rows(X, centred=not self._loss.penalise_intercept)
        data = LabelledRows(rows, codes[order], len(self.classes_), folds)

        best = self._validate(data, count, weight, mean, X, y)
        if self.refit:
            self.C_ = float(self.Cs_[self.scores_.mean(axis=0).argmax()])
            rungs = [LinearProblem(self.C_ / 10**rung, weight) for rung in range(RUNGS)]
            *_, last = fit_many(replace(data, groups=None), self._loss, rungs, tolerance=EXACT)
            _warn([] if last.converged else [self.C_])
            return self._take([last], mean, X.dtype)
        self.C_ = float(self.Cs_[self.scores_.argmax(axis=1)].mean())
        return self._take(best, mean, X.dtype)

    def _validate(
        self, data: LabelledRows, count: int, weight: ClassWeight, mean: np.ndarray, X: np.ndarray, y: np.ndarray
    ) -> list[LinearFit]:
        """Fit and score every C on ``count`` splits; return each split's best fit, the smallest C of equal ones."""
        scorer = get_scorer(self.scoring or "accuracy")
        problems = [LinearProblem(float(C), weight, (fold,)) for fold in range(count) for C in self.Cs_]
        self.scores_ = np.full((count, len(self.Cs_)), -np.inf)
        self.n_iter_ = np.zeros(self.scores_.shape, int)
        tested = [slice(*np.searchsorted(data.group_of_row, (fold, fold + 1))) for fold in range(count)]
        best: dict[int, LinearFit] = {}
        unsolved = []
        for fit in fit_many(data, self._loss, problems, tolerance=VALIDATED):  # within a fold, C ascends
            fold, at = divmod(fit.problem, len(self.Cs_))
            model = type(self)()
            model.classes_, model.n_features_in_ = self.classes_, self.n_features_in_
            score = scorer(model._take([fit], mean, X.dtype), X[tested[fold]], y[tested[fold]])
            if score > self.scores_[fold].max() or fold not in best:
                best[fold] = fit
            self.scores_[fold, at], self.n_iter_[fold, at] = score, fit.passes
            unsolved += [] if fit.converged else [problems[fit.problem].C]
        _warn(unsolved)
        return [best[fold] for fold in range(count)]

    def _take(self, fits: Sequence[LinearFit], mean: np.ndarray, dtype: np.dtype) -> Self:
        """Predict with the mean of these fits, which were made to features less ``mean``."""
        coef = np.stack([fit.coef.T for fit in fits]).mean(axis=0, dtype=np.float64)
        intercept = np.stack([fit.intercept for fit in fits]).mean(axis=0, dtype=np.float64) - coef @ mean
        if self._loss.joint:  # what the classes have in common changes no probability; scikit-learn's sums are 0
            coef, intercept = coef - coef.mean(axis=0), intercept - intercept.mean()
        if len(coef) == 2:  # one row, of the second class
            both = 2 if self._loss.joint else 1
            coef, intercept = both * coef[1:], both * intercept[1:]
        self.coef_, self.intercept_ = coef.astype(dtype), intercept.astype(dtype)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores of X (n, d): float (n, c), or (n,) of the second of two classes."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of each row of X (n, d), as ``classes_`` has it, (n,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Score X (n, d) and its labels y (n,) by ``scoring``; rows may have weights (n,), if that takes them."""
        given = {} if sample_weight is None else {"sample_weight": sample_weight}
        return get_scorer(self.scoring or "accuracy")(self, X, y, **given)


class SweepLogisticRegressionCV(_Sweep):
    """Multinomial logistic regression with an L2 penalty; C is chosen by cross-validation.

    It minimises what scikit-learn's ``LogisticRegression`` minimises, ``C Σ w_i loss_i + ||coef||² / 2``, and stands
    for its ``LogisticRegressionCV``. The solver computes in float32, on all cores. It wants no tolerance and no limit
    of iterations.

    Args:
        Cs: the values of C to try, above 0; or how many, evenly spaced on a logarithmic scale from 1e-4 to 1e4.
        cv: a number of stratified folds (None: 5), a splitter of scikit-learn, or its splits. No row may be tested
            twice, and a split trains on all rows that it does not test: ``StratifiedKFold``, ``KFold``,
            ``PredefinedSplit``, one split of ``ShuffleSplit``. Repeated folds, several shuffled splits and
            ``TimeSeriesSplit`` are refused. For folds by group give ``cv=list(GroupKFold().split(X, y, groups))``.
        class_weight: None, "balanced" (by the training rows of each split, as ``GridSearchCV`` does), or a dict of
            the classes' weights, above 0.
        scoring: a scorer or its name; None for accuracy. ``score`` uses it too.
        refit: fit to all rows with the C of the best mean score; else average the best fit of each split.

    Attributes:
        classes_: (c,), sorted.
        Cs_: float64 (m,), ascending.
        scores_: float64 (k, m), of each split and C.
        C_: the chosen C, the smallest of equal ones; without ``refit`` the mean of those of the splits.
        coef_, intercept_: float (c, d) and (c,), of one row for two classes; float32 if the features were.
        n_iter_: int (k, m), passes over the rows.
        n_features_in_, feature_names_in_: d, and the names of the columns if X had any.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> model = SweepLogisticRegressionCV(Cs=[0.01, 0.1, 1.0]).fit(X[:1000], y[:1000])
        >>> model.C_
        0.1
        >>> model.predict(X[1000:1005]).tolist()
        [1, 4, 0, 5, 3]
    """

    _loss = CROSS_ENTROPY

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class for X (n, d), float (n, c)."""
        return softmax(self._logits(X), axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of ``predict_proba``."""
        return log_softmax(self._logits(X), axis=1)

    def _logits(self, X: Any) -> np.ndarray:
        scores = self.decision_function(X)
        return scores if scores.ndim == 2 else np.stack([np.zeros_like(scores), scores], axis=1)


class SweepLinearSVC(_Sweep):
    """Linear support vector machine, one class against the rest; C is chosen by cross-validation.

    It minimises what scikit-learn's ``LinearSVC`` minimises by default: the squared hinge loss and ``1 / (2 C)`` times
    the squares of all coefficients and of the intercept. It stands for ``GridSearchCV(LinearSVC(), {"C": Cs})``.
    Arguments and attributes are those of ``SweepLogisticRegressionCV``.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> SweepLinearSVC(Cs=[0.01, 0.1, 1.0]).fit(X, y).scores_.shape
        (5, 3)
    """

    _loss = SQUARED_HINGE


def _grid(Cs: Any) -> np.ndarray:
    """Return the values of C, float64 (m,), ascending."""
    if isinstance(Cs, int | np.integer) and not isinstance(Cs, bool) and Cs > 0:
        return np.logspace(-4, 4, int(Cs))
    grid = np.unique(np.asarray(Cs if np.ndim(Cs) == 1 else [], float))
    if not (len(grid) and _within(grid, C_RANGE)):
        least, most = C_RANGE
        raise ValueError(f"Cs: Expected: how many values, or a list of them, from {least:g} to {most:g}. Got: {Cs!r}.")
    return grid


def _weight(class_weight: str | dict[Any, float] | None, classes: np.ndarray, y: np.ndarray) -> ClassWeight:
    """Return the class weights as a ``LinearProblem`` has them."""
    if class_weight is None or class_weight == "balanced":
        return class_weight
    if not isinstance(class_weight, dict):
        raise ValueError(f'class_weight: Expected: None, "balanced" or a dict. Got: {class_weight!r}.')
    weights = compute_class_weight(class_weight, classes=classes, y=y)
    if not _within(weights, WEIGHT_RANGE):
        least, most = WEIGHT_RANGE
        raise ValueError(f"class_weight: Expected: numbers from {least:g} to {most:g}. Got: {class_weight!r}.")
    return tuple(weights.tolist())


def _within(values: np.ndarray, limits: tuple[float, float]) -> bool:
    """Return whether all values lie within the limits; NaN does not."""
    return bool(((values >= limits[0]) & (values <= limits[1])).all())


def _folds(splits: Iterable[tuple[np.ndarray, np.ndarray]], codes: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the split that tests each row, int (n,), and how many splits there are, which is where none tests it."""
    rows = np.arange(len(codes))
    folds = np.full(len(codes), -1)
    for number, (fitted, tested) in enumerate(splits):
        tested = rows[tested]
        if not np.array_equal(np.sort(rows[fitted]), np.setdiff1d(rows, tested)) or (folds[tested] >= 0).any():
            raise ValueError(
                "cv: Expected: splits that test no row twice and train on all rows that they do not test. "
                f"Split {number} does not: take StratifiedKFold, KFold or the splits of GroupKFold."
            )
        if len(np.unique(codes[fitted])) < 2:
            raise ValueError(f"cv: split {number} trains on one class only: shuffle the rows, or stratify the splits.")
        folds[tested] = number
    if folds.max() < 0:
        raise ValueError("cv: Expected: splits that test some rows. Got: none.")
    count = int(folds.max()) + 1
    return np.where(folds < 0, count, folds), count


def _rows(X: np.ndarray, centred: bool) -> tuple[MemoryRows, np.ndarray]:
    """Return X (n, d) for the solver, and the mean that was taken from it, float64 (d,).

    Centring keeps what float32 would lose of features far from 0. It moves the intercept, so that it must be free.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean = X.mean(axis=0, dtype=np.float64) if centred else np.zeros(X.shape[1])
        Z = np.subtract(X, mean, out=np.empty(X.shape, np.float32), casting="same_kind")
    if not max(Z.max(), -Z.min()) <= LARGEST:
        raise ValueError(f"Expected: features up to {LARGEST:g}. Got: larger. Scale them, say with StandardScaler.")
    return MemoryRows(Z, np.zeros(X.shape[1], np.float32), np.ones(X.shape[1], np.float32)), mean


def _warn(unsolved: Sequence[float]) -> None:
    """Warn of values of C whose problems were not solved, if there are any."""
    if unsolved:
        warnings.warn(
            f"{len(unsolved)} fits did not converge in {MAX_EVALUATIONS} passes, of C from {min(unsolved):g}: "
            "leave large values out of Cs, or scale the features, say with StandardScaler.",
            ConvergenceWarning,
            stacklevel=4,
        )
