"""Claim: the estimators of ``heads.estimators`` choose C in a small part of the time that scikit-learn takes.

On the digits everything is run. On the larger features the others are timed on ``--folds`` of the five folds and every
``--every``-th value of C, and scaled up; they are then spared the last fit to all rows, and penult is not. The excess
is that of a chosen model's objective over the one that penult reaches with the same C.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC

from benchmarks.compare import half_norm, sum_of_losses
from benchmarks.report import show
from heads.estimators import SweepLinearSVC, SweepLogisticRegressionCV
from heads.solvers.sweep import CROSS_ENTROPY, SQUARED_HINGE, Loss

FOLDS = 5
CORES = os.cpu_count()
Make = Callable[[Sequence[float], Any, bool], Any]  # a peer of these values of C and splits, with the last fit or not


def logistic_cv(**options: Any) -> Make:
    fixed = {"l1_ratios": (0,), "use_legacy_attributes": False, "scoring": "accuracy", "n_jobs": CORES}
    return lambda Cs, cv, refit: LogisticRegressionCV(Cs=list(Cs), cv=cv, refit=refit, **fixed, **options)


def grid_of_svc(**options: Any) -> Make:
    return lambda Cs, cv, refit: GridSearchCV(
        LinearSVC(random_state=0, **options), {"C": list(Cs)}, cv=cv, refit=refit, n_jobs=CORES
    )


PEERS: dict[Loss, tuple[type, dict[str, Make]]] = {
    CROSS_ENTROPY: (
        SweepLogisticRegressionCV,
        {
            "LogisticRegressionCV()": logistic_cv(),
            "LogisticRegressionCV(tol=1e-6, max_iter=10_000)": logistic_cv(tol=1e-6, max_iter=10_000),
        },
    ),
    SQUARED_HINGE: (SweepLinearSVC, {"GridSearchCV(LinearSVC())": grid_of_svc()}),
}


def features(n: int, d: int, c: int, spread: float = 0.12) -> tuple[np.ndarray, np.ndarray]:
    """Classes around means of their own, along directions whose sizes fall off as those of a CNN's features do.

    ``spread`` is the deviation of the means, beside noise of 1.
    """
    random = np.random.default_rng(0)
    y = random.integers(0, c, n)
    X = random.normal(size=(c, d))[y] * spread + random.normal(size=(n, d))
    axes = np.linalg.qr(random.normal(size=(d, d)))[0]
    return ((X * np.arange(1, d + 1) ** -0.5 * 10) @ axes).astype(np.float32), y


def timed(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what was not reached is in the table
        model.fit(X, y)
    return time.perf_counter() - began


def objective(loss: Loss, model: Any, C: float, X: np.ndarray, y: np.ndarray) -> float:
    """``C Σ loss + ||coef||² / 2`` of more than two classes."""
    scores = X.astype(float) @ model.coef_.T + model.intercept_
    return C * sum_of_losses(loss, scores, y) + half_norm(loss, model.coef_, model.intercept_)


def race(loss: Loss, what: str, X: np.ndarray, y: np.ndarray, Cs: Sequence[float], every: int, folds: int) -> None:
    """One table: penult over all values and folds; each peer on some of them, scaled up."""
    sweep, peers = PEERS[loss]
    splits = list(StratifiedKFold(FOLDS).split(X, y))
    some, whole = Cs[every // 2 :: every], every == 1 and folds == FOLDS
    ours = sweep(Cs=Cs, cv=splits)
    seconds, fits = timed(ours, X, y), len(Cs) * FOLDS
    accuracy = float(ours.scores_.mean(axis=0).max())
    rows = [row(sweep.__name__ + "()", fits, seconds, seconds, accuracy, "0")]
    for name, make in peers.items():
        peer = make(some, splits[:folds], whole)
        spent = timed(peer, X, y) * fits / (len(some) * folds)
        excess = accuracy = None
        if whole:
            C = peer.C_ if loss is CROSS_ENTROPY else peer.best_params_["C"]
            chosen = peer if loss is CROSS_ENTROPY else peer.best_estimator_
            same = sweep(Cs=[C], cv=splits).fit(X, y)
            excess = objective(loss, chosen, C, X, y) / objective(loss, same, C, X, y) - 1
            accuracy = float(np.mean(peer.scores_, axis=0).max()) if loss is CROSS_ENTROPY else peer.best_score_
        rows.append(row(name, len(some) * folds, spent, seconds, accuracy, "" if excess is None else f"{excess:.0e}"))
        print(rows[-1], file=sys.stderr)
    n, d = X.shape
    show(f"{what}: {len(Cs)} values of C × {FOLDS} folds, {n:,} × {d:,} features, {int(y.max()) + 1} classes", rows)


def row(who: str, fits: int, spent: float, ours: float, accuracy: float | None, excess: str) -> dict[str, Any]:
    return {
        "who": who,
        "fits timed": fits,
        "seconds for all": round(spent, 2),
        "against penult": f"{spent / ours:.1f}×",
        "accuracy": "" if accuracy is None else f"{accuracy:.4f}",
        "excess of the objective": excess,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--folds", type=int, default=1, help="how many of the five folds the others are timed on")
    parser.add_argument("--every", type=int, default=4, help="… and only every so many values of C")
    arguments = parser.parse_args()
    digits, labels = load_digits(return_X_y=True)
    X, y = features(arguments.rows, arguments.width, arguments.classes)
    for loss, name, Cs in (
        (CROSS_ENTROPY, "Logistic regression", np.logspace(-4, 4, 10)),
        (SQUARED_HINGE, "Linear support vector machine", np.logspace(-5, 0, 10)),
    ):
        race(loss, f"{name}, digits", digits / 16, labels, Cs, 1, FOLDS)
        race(loss, f"{name}, synthetic", X, y, Cs, arguments.every, arguments.folds)


if __name__ == "__main__":
    main()
