"""The two evaluations of DINOv2 on frozen features without augmentation: logistic regression and k nearest neighbours.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision" (arXiv:2304.07193).
"""

from __future__ import annotations

import numpy as np

from featurestore.errors import HeadError
from featurestore.splits import TEST, TRAIN, VAL
from heads.base import CHUNK_ROWS, slices, softmax
from heads.families.linear import LinearProblem, fit_many
from heads.protocols.base import Parts, Protocol, Row, accuracies, unit_length
from heads.solvers.rows import MemoryRows
from heads.solvers.sweep import CROSS_ENTROPY, LabelledRows

PAPER = "Oquab et al. 2023, DINOv2: Learning Robust Visual Features without Supervision, arXiv:2304.07193"
COMMIT = "facebookresearch/dinov2 at commit b8931f7bf91576930313be2c6d6af376033b35f0"

CS = (10 ** np.linspace(-6, 5, 45)).tolist()
HELD_OUT = 10  # without validation images, one training image in this many chooses C
TOLERANCE = 1e-9  # of a fit, relative to its objective: what is near a tie must fall as it does at the optimum
RUNGS = 4  # the last fit reaches its C in factors of 10
LARGEST = 1e12  # of the features: with more, a float32 could overflow
NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
SIMILARITIES = 1 << 25  # held at a time, float32


def logistic_regression(parts: Parts) -> tuple[list[Row], list[str]]:
    """Choose C on validation, of equal ones the smallest; fit that to train and validation, and score it on test.

    The features are as they are stored. Without validation rows, a random tenth of train chooses C.

    Raises:
        HeadError: too few rows to choose C on or to fit, or features that are too large.
    """
    train, val, test = parts[TRAIN], parts[VAL], parts[TEST]
    X, y = np.concatenate([train.X, val.X]), np.concatenate([train.y, val.y])
    chooses = np.arange(len(y)) >= len(train)
    if not len(val):
        chooses[np.random.default_rng(0).permutation(len(y))[: len(y) // HELD_OUT]] = True
    if not chooses.any() or len(np.unique(y[~chooses])) < 2:
        raise HeadError("There are too few images to choose C on some of them: label more, or give --val a share.")
    mean = X.mean(axis=0, dtype=np.float64)  # without it, float32 keeps more; only the intercepts move
    X = (X - mean).astype(np.float32)
    if not np.abs(X).max() <= LARGEST:
        raise HeadError(f"Expected: features up to {LARGEST:g}. Got: larger.")
    order = np.argsort(chooses, kind="stable")
    X, y, chooses = X[order], y[order], chooses[order]
    classes, labels = np.unique(y, return_inverse=True)
    rows = MemoryRows(X, np.zeros(X.shape[1], np.float32), np.ones(X.shape[1], np.float32))
    data = LabelledRows(rows, labels, len(classes), chooses.astype(int))

    problems = [LinearProblem(C, left_out=(1,)) for C in CS]
    right, unsolved = np.zeros(len(CS)), []
    for fit in fit_many(data, CROSS_ENTROPY, problems, tolerance=TOLERANCE):
        predicted = (X[chooses] @ fit.coef + fit.intercept).argmax(axis=1)
        right[fit.problem] = np.sum(predicted == labels[chooses])
        unsolved += [] if fit.converged else [CS[fit.problem]]
    chosen = CS[right.argmax()]
    ladder = [LinearProblem(chosen / 10**rung) for rung in range(RUNGS)]
    *_, last = fit_many(data, CROSS_ENTROPY, ladder, tolerance=TOLERANCE)
    unsolved += [] if last.converged else [chosen]
    scores = (test.X - mean).astype(np.float32) @ last.coef + last.intercept
    notes = [f"{len(unsolved)} fits did not converge, of C from {min(unsolved):g}."] if unsolved else []
    return [{"C": chosen} | accuracies(test.y, scores, classes)], notes


def nearest_neighbours(parts: Parts) -> tuple[list[Row], list[str]]:
    """Let the k training rows with the highest cosine similarity vote on each test row, by ``exp(similarity / 0.07)``.

    Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (arXiv:1805.01978), has
    the votes.

    Raises:
        HeadError: fewer training rows than the smallest k.
    """
    train, test = parts[TRAIN], parts[TEST]
    ks = [k for k in NEIGHBOURS if k <= len(train)]
    if not ks:
        raise HeadError(
            f"Expected: at least {NEIGHBOURS[0]} training images, the smallest k. Got: {len(train)}. Label more."
        )
    classes, labels = np.unique(train.y, return_inverse=True)
    vectors, queries = unit_length(train.X), unit_length(test.X)
    size = max(1, min(CHUNK_ROWS, SIMILARITIES // len(train)))
    blocks = [_votes(queries[rows] @ vectors.T, labels, len(classes), ks) for rows in slices(len(queries), size)]
    votes = [np.concatenate(of_k) for of_k in zip(*blocks, strict=True)]
    left_out = [str(k) for k in NEIGHBOURS if k not in ks]
    notes = [f"k of {' and '.join(left_out)}: left out, as train has {len(train):,} images."] if left_out else []
    return [{"k": k} | accuracies(test.y, of_k, classes) for k, of_k in zip(ks, votes, strict=True)], notes


def _votes(similarities: np.ndarray, labels: np.ndarray, c: int, ks: list[int]) -> list[np.ndarray]:
    """Return the votes for each class, float32 (b, c), of the k nearest rows, for each k of ascending ``ks``.

    Args:
        similarities: float32 (b, n).
        labels: int (n,), below c.
    """
    nearest = np.argpartition(-similarities, ks[-1] - 1, axis=1)[:, : ks[-1]]
    close = np.take_along_axis(similarities, nearest, axis=1)
    order = np.argsort(-close, axis=1, kind="stable")
    nearest, close = np.take_along_axis(nearest, order, axis=1), np.take_along_axis(close, order, axis=1)
    weights = softmax(close.astype(np.float64) / TEMPERATURE)
    cells = labels[nearest] + c * np.arange(len(nearest))[:, None]
    sums = (np.bincount(cells[:, :k].ravel(), weights[:, :k].ravel(), c * len(nearest)) for k in ks)
    return [of_k.reshape(len(nearest), c).astype(np.float32) for of_k in sums]


LOGREG = Protocol(
    "logistic regression, C of 45 values", PAPER, f"dinov2/eval/log_regression.py of {COMMIT}", logistic_regression
)
KNN = Protocol("k nearest neighbours, weighted votes", PAPER, f"dinov2/eval/knn.py of {COMMIT}", nearest_neighbours)
