"""The few-shot evaluation of big_vision: least squares with an L2 penalty on some images per class, in closed form.

Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words" (arXiv:2010.11929), describes it.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve

from featurestore.splits import TEST, TRAIN
from heads.base import CHUNK_ROWS, slices
from heads.evaluation.metrics import top_k
from heads.protocols.base import Parts, Protocol, Row

SHOTS = (1, 5, 10, 25)
SEEDS = 3  # draws: of the seeds 0, 1 and 2
PENALTY = 2.0**10
BIAS = 100.0  # a constant feature, so large that its weight is hardly penalised
LEAST_DEVIATION = 1e-5  # added to each


def few_shots(parts: Parts) -> tuple[list[Row], list[str]]:
    """Score fits to a few training rows per class on test: the mean over three draws, their range, and each of them."""
    train, test = parts[TRAIN], parts[TEST]
    classes, labels = np.unique(train.y, return_inverse=True)
    of_seeds = [draws(labels, len(classes), seed) for seed in range(SEEDS)]
    rows, notes = [], []
    for shots in SHOTS:
        drawn = [np.concatenate([of_class[:shots] for of_class in of_seed]) for of_seed in of_seeds]
        scores = [_scores(train.X[rows], labels[rows], len(classes), test.X) for rows in drawn]
        top1 = [top_k(test.y, each, classes) for each in scores]
        rows.append(
            {"shots": shots, "top1": float(np.mean(top1)), "top1_range": [min(top1), max(top1)], "top1_by_seed": top1}
        )
        if fewer := int((np.bincount(labels) < shots).sum()):
            notes.append(f"{shots} shots: {fewer} of {len(classes)} classes have fewer images, and gave all of theirs.")
    return rows, notes


def draws(labels: np.ndarray, c: int, seed: int) -> list[np.ndarray]:
    """Return the rows of each class, int (m,), in an order of which the first few are the shots.

    Args:
        labels: int (n,), below c.
        c: number of classes.
        seed: another one, another order.
    """
    random = np.random.default_rng(seed)
    return [random.permutation(np.flatnonzero(labels == of_class)) for of_class in range(c)]


def _scores(X: np.ndarray, y: np.ndarray, c: int, X_test: np.ndarray) -> np.ndarray:
    """Return the scores of test rows, float64 (m, c), by a fit to X (n, d) and y int (n,); whichever of n and d is
    smaller is the size of the system that is solved."""
    mean, deviation = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64) + LEAST_DEVIATION

    def prepared(rows: np.ndarray) -> np.ndarray:
        return np.pad((rows - mean) / deviation, ((0, 0), (0, 1)), constant_values=BIAS)

    Z, targets = prepared(X), 2.0 * np.eye(c)[y] - 1
    if len(Z) >= Z.shape[1]:
        W = solve(Z.T @ Z + PENALTY * np.eye(Z.shape[1]), Z.T @ targets, assume_a="pos")
    else:
        W = Z.T @ solve(Z @ Z.T + PENALTY * np.eye(len(Z)), targets, assume_a="pos")
    return np.concatenate([prepared(X_test[rows]) @ W for rows in slices(len(X_test), CHUNK_ROWS)])


FEWSHOT = Protocol(
    "least squares on 1, 5, 10 and 25 images per class",
    "Dosovitskiy et al. 2020, An Image is Worth 16x16 Words, arXiv:2010.11929",
    "big_vision/evaluators/fewshot_lsr.py of google-research/big_vision at commit "
    "0127fb6b337ee2a27bf4e54dea79cff176527356",
    few_shots,
)
