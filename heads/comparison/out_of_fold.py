"""What a fast head predicts for rows that it has not seen: nested cross-validation of a logistic regression."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import numpy as np

from featurestore.dataset import Dataset
from featurestore.errors import HeadError
from heads import registry
from heads.base import Head
from heads.comparison.tables import Prepared, Table
from heads.families.linear import LinearProblem, fit_many
from heads.solvers.sweep import LabelledRows

HEAD = "logreg"
FOLDS = 5
MIN_FOLDS = 3  # one is predicted, one chooses C, and one is fitted


def out_of_fold(dataset: Dataset, folds: int = FOLDS) -> np.ndarray:
    """Return a prediction for each row, str (n,), by a logistic regression that saw neither the row nor its group.

    The C of each fold is chosen on the other folds, one by one, by fits that left out both: no row has a say in the
    head that predicts it (Varma & Simon 2006, "Bias in error estimation when using cross-validation for model
    selection", BMC Bioinformatics 7:91). All fits share their passes over the rows, as those of a comparison do.

    Args:
        dataset: the rows, in memory.
        folds: how many parts the rows are cut into, as ``Dataset.folds`` cuts them.

    Raises:
        HeadError: the rows have fewer than two classes, or lie in fewer than ``MIN_FOLDS`` folds.
    """
    table = Table({"train": dataset, "val": dataset}, folds)
    assert table.groups is not None
    there = np.unique(table.groups).tolist()
    classes, y = np.unique(dataset.y, return_inverse=True)
    if len(classes) < 2 or len(there) < MIN_FOLDS:
        raise HeadError(
            f"Expected: images of at least two classes, in at least {MIN_FOLDS} folds. Got: {len(classes)} in "
            f"{len(there)}: label more images, or in more groups."
        )
    prepared, Cs = table.rows(), [point["C"] for point in registry.family(HEAD).grid[::2]]
    data = LabelledRows(prepared.rows, y[prepared.order], len(classes), table.groups[prepared.order])
    left_out = [*combinations(there, 2), *((fold,) for fold in there)]
    problems = [LinearProblem(C, None, folds) for folds in left_out for C in Cs]
    family = registry.family(HEAD)
    assert family.loss is not None
    right: dict[int, dict[float, int]] = {fold: defaultdict(int) for fold in there}
    predicted: dict[tuple[int, float], np.ndarray] = {}
    rows = {fold: np.flatnonzero(table.groups == fold) for fold in there}
    for fit in fit_many(data, family.loss, problems):
        problem = problems[fit.problem]
        head = _head(prepared, classes, problem.C, fit.coef, fit.intercept)
        for fold in problem.left_out:
            said = head.predict(dataset.X[rows[fold]])
            for other in problem.left_out:
                if other != fold:
                    right[other][problem.C] += int(np.sum(said == dataset.y[rows[fold]]))
            if len(problem.left_out) == 1:
                predicted[fold, problem.C] = said
    answer = np.empty_like(dataset.y)
    for fold in there:
        best = max(Cs, key=lambda C: right[fold][C])  # of equals the smallest
        answer[rows[fold]] = predicted[fold, best]
    return answer


def _head(prepared: Prepared, classes: np.ndarray, C: float, coef: np.ndarray, intercept: np.ndarray) -> Head:
    return registry.family(HEAD).head(HEAD, {"C": C}, classes, prepared.arrays(coef, intercept))
