"""The two evaluations of DINOv2 on frozen features without augmentation: logistic regression and k nearest neighbours.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision" (arXiv:2304.07193).
"""

from __future__ import annotations

import warnings

import numpy as np

from featurestore.errors import HeadError
from featurestore.splits import TEST, TRAIN, VAL
from heads.base import CHUNK_ROWS, slices, softmax
from heads.protocols.base import Parts, Protocol, Row, accuracies, unit_length

PAPER = "Oquab et al. 2023, DINOv2: Learning Robust Visual Features without Supervision, arXiv:2304.07193"
COMMIT = "facebookresearch/dinov2 at commit b8931f7bf91576930313be2c6d6af376033b35f0"

CS = (10 ** np.linspace(-6, 5, 45)).tolist()
HELD_OUT = 10  # without validation images, one training image in this many chooses C
NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
SIMILARITIES = 1 << 25  # held at a time, float32


def logistic_regression(parts: Parts) -> tuple[list[Row], list[str]]:
    """Choose C on validation, of equal ones the smallest; fit that to train and validation, and score it on test.

    The features are as they are stored. Without validation rows, a random tenth of train chooses C.

    Raises:
        HeadError: too few rows to choose C on, or none to fit.
    """
    from sklearn.exceptions import ConvergenceWarning  # only here: scikit-learn's import takes a while

    from heads.estimators import SweepLogisticRegressionCV

    train, val, test = parts[TRAIN], parts[VAL], parts[TEST]
    X, y = np.concatenate([train.X, val.X]), np.concatenate([train.y, val.y])
    chooses = np.arange(len(train), len(X))
    if not len(val):
        chooses = np.random.default_rng(0).permutation(len(train))[: len(train) // HELD_OUT]
    if not len(chooses):
        raise HeadError(
            f"There are no validation images to choose C on, and fewer than {HELD_OUT} training images: label more."
        )
    model = SweepLogisticRegressionCV(Cs=CS, cv=[(np.setdiff1d(np.arange(len(X)), chooses), chooses)])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            model.fit(X, y)
        except ValueError as error:
            raise HeadError(f"The logistic regression cannot be fitted. {error}") from None
    scores = accuracies(test.y, model.predict_log_proba(test.X), model.classes_)
    unsolved = [str(warning.message) for warning in told if issubclass(warning.category, ConvergenceWarning)]
    return [{"C": model.C_} | scores], [f"{message.partition(':')[0]}." for message in unsolved]


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
