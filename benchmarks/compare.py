"""Claim: a sweep of linear heads takes a small part of the time of as many fits, and ends at the same optimum.

Real features: all labelled images of a store and their stored views. The others are timed on ``--folds`` of the
five folds and every ``--every``-th value of C, as all of them would take an hour, and scaled up. An objective is
``C Σ loss + ||W||² / 2`` over the training rows of the first fold, and its excess that over the least of all.

    python examples/glyphs.py glyphs --classes 100 --faces 8
    penult embed glyphs/manifest.csv --store glyphs.store --input-size 112 --views 4 --rotation 10
    python -m benchmarks.compare --store glyphs.store
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import show
from featurestore import FeatureStore
from heads.base import standardisation, standardise
from heads.families.linear import LinearProblem, fit_many
from heads.solvers.rows import MemoryRows
from heads.solvers.sweep import CROSS_ENTROPY, SQUARED_HINGE, LabelledRows, Loss

FOLDS = 5
TIGHT = 1e-6
LOGREG_C = [float(C) for C in np.geomspace(1e-4, 1e1, 20)]
SVM_C = [float(C) for C in np.geomspace(1e-5, 1e-2, 7)]


def real_features(store: Path, rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features float32 (n, d) and codes int (n,) of the largest classes, views among them."""
    opened = FeatureStore(store)
    plain = opened.resolve(None)
    data = opened.dataset(plain)
    for name in opened.views_sets(plain):
        most = int(opened.view_counts(name)[1].max())
        data = data.with_views(*opened.views(name, data.keys, most))
    names, counts = np.unique(data.y, return_counts=True)
    kept = np.flatnonzero(np.isin(data.y, names[np.argsort(-counts)[:classes]]))
    kept = np.sort(np.random.default_rng(0).permutation(kept)[:rows])
    X = data.X[kept]
    return standardise(X, *standardisation(X)), np.unique(data.y[kept], return_inverse=True)[1]


def folds_of(n: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, FOLDS, n)


def sweep(
    X: np.ndarray, y: np.ndarray, loss: Loss, Cs: Sequence[float], folds: np.ndarray | None = None
) -> tuple[float, float, dict[float, float]]:
    """Seconds of all fits of all folds, the basis included; floating-point operations; the first fold's objectives."""
    began, (n, d) = time.perf_counter(), X.shape
    order = np.arange(n) if folds is None else np.argsort(folds, kind="stable")
    rows = MemoryRows(X[order], np.zeros(d, np.float32), np.ones(d, np.float32))
    parts = [()] if folds is None else [(fold,) for fold in range(FOLDS)]
    problems = [LinearProblem(C, None, left_out) for left_out in parts for C in Cs]
    fits = list(
        fit_many(
            LabelledRows(rows, y[order], int(y.max()) + 1, None if folds is None else folds[order]), loss, problems
        )
    )
    seconds = time.perf_counter() - began
    share = 1 if folds is None else 1 - 1 / FOLDS
    operations = 4.0 * n * share * (d + 1) * (int(y.max()) + 1) * sum(fit.passes for fit in fits)
    fitted = np.ones(n, bool) if folds is None else folds != 0
    objectives = {
        problems[fit.problem].C: problems[fit.problem].C
        * sum_of_losses(loss, X[fitted] @ fit.coef + fit.intercept, y[fitted])
        + half_norm(loss, fit.coef, fit.intercept)
        for fit in fits
        if problems[fit.problem].left_out in ((), (0,))
    }
    return seconds, operations, objectives


def sum_of_losses(loss: Loss, scores: np.ndarray, y: np.ndarray) -> float:
    """In float64."""
    scores = scores.astype(np.float64)
    if loss is CROSS_ENTROPY:
        top = scores.max(axis=1)
        return float((np.log(np.exp(scores - top[:, None]).sum(axis=1)) + top - scores[np.arange(len(y)), y]).sum())
    sign = np.where(y[:, None] == np.arange(scores.shape[1]), 1, -1)
    return float((np.maximum(0, 1 - sign * scores) ** 2).sum())


def half_norm(loss: Loss, coef: np.ndarray, intercept: np.ndarray) -> float:
    """The penalty; LinearSVC's has the intercept in it."""
    norm = (coef.astype(np.float64) ** 2).sum() + (
        loss.penalise_intercept and (intercept.astype(np.float64) ** 2).sum()
    )
    return float(norm / 2)


def grid_search(
    model: Any, loss: Loss, Cs: Sequence[float], X: np.ndarray, y: np.ndarray, splits: list[Any]
) -> tuple[float, dict[float, float]]:
    """Seconds of GridSearchCV on some splits, one process a core, and the first split's objectives."""
    from sklearn.model_selection import GridSearchCV

    grid = {"C": list(Cs)}
    search = GridSearchCV(
        model, grid, cv=splits, n_jobs=os.cpu_count(), refit=False, scoring=Parts(loss), return_train_score=True
    )
    began = time.perf_counter()
    search.fit(X, y)
    seconds = time.perf_counter() - began
    found = search.cv_results_
    columns = (found["param_C"], found["split0_train_loss"], found["split0_train_half_norm"])
    return seconds, {float(C): float(C) * total + norm for C, total, norm in zip(*columns, strict=True)}


class Parts:
    """A scorer that tells the parts of the objective, which GridSearchCV does not keep."""

    def __init__(self, loss: Loss) -> None:
        self.softmax = loss is CROSS_ENTROPY

    def __call__(self, model: Any, X: np.ndarray, y: np.ndarray) -> dict[str, float]:
        loss = CROSS_ENTROPY if self.softmax else SQUARED_HINGE
        scores = model.decision_function(X)
        return {
            "loss": sum_of_losses(loss, scores, y),
            "half_norm": half_norm(loss, model.coef_, model.intercept_),
            "accuracy": float((scores.argmax(axis=1) == y).mean()),
        }


def product_rate() -> float:
    """The machine's own rate of float32 matrix products, in operations per second."""
    a, b = (np.random.default_rng(0).standard_normal(shape, np.float32) for shape in ((8192, 1280), (1280, 4096)))
    a @ b
    began = time.perf_counter()
    for _ in range(5):
        a @ b
    return 5 * 2.0 * 8192 * 1280 * 4096 / (time.perf_counter() - began)


Peer = Callable[[list[Any], Sequence[float]], tuple[float, dict[float, float]]]


def race(
    name: str,
    loss: Loss,
    Cs: Sequence[float],
    peers: dict[str, Peer],
    X: np.ndarray,
    y: np.ndarray,
    every: int,
    timed: int,
) -> None:
    """One table: the sweep over all values and folds; each peer on every so many values and folds, scaled up."""
    folds = folds_of(len(y))
    splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(timed)]
    some = Cs[every // 2 :: every]
    seconds, _, objectives = sweep(X, y, loss, Cs, folds)
    taken = {"penult": (seconds, len(Cs) * FOLDS, objectives)}
    for peer, fit in peers.items():
        spent, found = fit(splits, some)
        fits = len(some) * timed
        taken[peer] = spent * len(Cs) * FOLDS / fits, fits, found
        print(f"{peer}: {fits} fits in {spent:.1f} s, penult all {len(Cs) * FOLDS} in {seconds:.1f} s", file=sys.stderr)
    least = {C: min(found[C] for _, _, found in taken.values() if C in found) for C in objectives}
    rows = []
    for who, (spent, fits, found) in taken.items():
        excess = [found[C] / least[C] - 1 for C in some if C in found]
        rows.append(
            {
                "who": who,
                "fits timed": fits,
                "seconds for all": round(spent, 1),
                "against penult": f"{spent / seconds:.0f}×",
                "worst excess of the objective": f"{max(excess):.1e}" if excess else "another objective",
            }
        )
    n, d = X.shape
    show(f"{name}: {len(Cs)} values of C × {FOLDS} folds, {n:,} × {d:,} features, {int(y.max()) + 1} classes", rows)


def logreg_peers(X: np.ndarray, y: np.ndarray) -> dict[str, Peer]:
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

    def path(splits: list[Any], Cs: Sequence[float]) -> tuple[float, dict[float, float]]:
        options = {
            "max_iter": 10_000,
            "tol": TIGHT,
            "n_jobs": os.cpu_count(),
            "use_legacy_attributes": False,
            "l1_ratios": (0,),  # the default, which warns
            "scoring": "accuracy",
        }
        began = time.perf_counter()
        LogisticRegressionCV(Cs=list(Cs), cv=splits, refit=False, **options).fit(X, y)
        return time.perf_counter() - began, {}

    def search(model: Any) -> Peer:
        return lambda splits, Cs: grid_search(model, CROSS_ENTROPY, Cs, X, y, splits)

    peers = {
        f"GridSearchCV(LogisticRegression(tol={tolerance:g}))": search(
            LogisticRegression(max_iter=10_000, tol=tolerance)
        )
        for tolerance in (1e-4, TIGHT)  # with the default it stops far from the optimum
    }
    if importlib.util.find_spec("sklearnex"):
        from sklearnex.linear_model import LogisticRegression as Intel

        peers["the same, scikit-learn-intelex"] = search(Intel(max_iter=10_000, tol=TIGHT))
    return peers | {"LogisticRegressionCV": path}


def svm_peers(X: np.ndarray, y: np.ndarray) -> dict[str, Peer]:
    from sklearn.svm import LinearSVC

    def linear(splits: list[Any], Cs: Sequence[float]) -> tuple[float, dict[float, float]]:
        return grid_search(LinearSVC(max_iter=10_000), SQUARED_HINGE, Cs, X, y, splits)

    def intel(splits: list[Any], Cs: Sequence[float]) -> tuple[float, dict[float, float]]:
        from sklearnex.svm import SVC

        began = time.perf_counter()
        for (fitted, _), C in product(splits, Cs):
            SVC(kernel="linear", C=C).fit(X[fitted], y[fitted])
        return time.perf_counter() - began, {}

    peers: dict[str, Peer] = {"GridSearchCV(LinearSVC)": linear}
    if importlib.util.find_spec("sklearnex"):
        peers["scikit-learn-intelex SVC(kernel='linear'), one against one"] = intel
    return peers


def named(peers: dict[str, Peer], parts: Sequence[str]) -> dict[str, Peer]:
    """The peers whose names have one of these parts in them."""
    found = {name: peer for name, peer in peers.items() if any(part in name for part in parts)}
    if not found:
        sys.exit(f"No peer's name has {' or '.join(parts)} in it. Peers: {'; '.join(peers)}.")
    return found


def growth(X: np.ndarray, y: np.ndarray) -> None:
    """One table: how the time grows, and how near the passes come to the machine's own rate."""
    rate, rows = product_rate(), []
    n, d, ten = len(X), X.shape[1], list(np.geomspace(1e-4, 1e1, 10))

    def row(what: str, X: np.ndarray, y: np.ndarray, Cs: Sequence[float], folds: np.ndarray | None = None) -> None:
        y = np.unique(y, return_inverse=True)[1]
        seconds, operations, _ = sweep(X, y, CROSS_ENTROPY, Cs, folds)
        fits = len(Cs) * (1 if folds is None else FOLDS)
        rows.append(
            {
                "what": what,
                "rows": f"{len(X):,}",
                "width": X.shape[1],
                "classes": int(y.max()) + 1,
                "fits": fits,
                "seconds": round(seconds, 2),
                "seconds a fit": round(seconds / fits, 3),
                "of the product rate": f"{operations / seconds / rate:.0%}",
            }
        )

    for part in (n // 4, n // 2, n):
        row("rows", X[:part], y[:part], ten)
    for width in (d // 4, d // 2):
        row("width", X[:, :width], y, ten)
    for classes in (10, 25, 50):
        some = y < classes
        row("classes", X[some], y[some], ten)
    for count in (1, 2, 5, 20, 40):
        row("values of C", X, y, list(np.geomspace(1e-4, 1e-1, count)) if count > 1 else [1e-1])
    row("folds", X, y, ten, folds_of(n))
    show(f"Growth of a logistic regression sweep; matrix products alone run at {rate / 1e9:.0f} GFLOP/s", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--folds", type=int, default=1, help="how many of the five folds the others are timed on")
    parser.add_argument("--every", type=int, default=4, help="… and only every so many values of C")
    parser.add_argument(
        "--peers", nargs="+", default=[""], help="only the others whose names have one of these in them"
    )
    parser.add_argument("--parts", nargs="+", default=["logreg", "svm", "growth"])
    arguments = parser.parse_args()
    X, y = real_features(arguments.store, arguments.rows, arguments.classes)
    if "logreg" in arguments.parts:
        peers = named(logreg_peers(X, y), arguments.peers)
        race("Logistic regression", CROSS_ENTROPY, LOGREG_C, peers, X, y, arguments.every, arguments.folds)
    if "svm" in arguments.parts:
        peers = named(svm_peers(X, y), arguments.peers)
        race("Linear SVM", SQUARED_HINGE, SVM_C, peers, X, y, arguments.every, arguments.folds)
    if "growth" in arguments.parts:
        growth(X, y)


if __name__ == "__main__":
    main()
