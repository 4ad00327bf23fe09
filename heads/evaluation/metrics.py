"""Scores of predictions: pure functions of numpy arrays.

They are written out, though scikit-learn has most of them: its import takes more than half as long as all of ``penult
train``, and its ``top_k_accuracy_score`` orders equal scores otherwise and refuses classes that a head lacks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


def top_k(y: np.ndarray, scores: np.ndarray, classes: np.ndarray, k: int = 1) -> float:
    """Return the share of rows whose true class is among the k highest scores; equal scores rank in class order.

    Args:
        y: str (n,), n > 0. A class that is not in ``classes`` counts as a miss.
        scores: (n, c).
        classes: str (c,), sorted.
        k: at least 1.
    """
    column = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    own = scores[np.arange(len(y)), column][:, None]
    before = (scores > own) | ((scores == own) & (np.arange(len(classes)) < column[:, None]))
    return float(np.mean((before.sum(axis=1) < k) & (classes[column] == y)))


def wilson(share: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of a share of n independent trials.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22:209-212.

    Example:
        >>> [round(end, 3) for end in wilson(0.9, 100)]
        [0.826, 0.945]
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def confusion(y: np.ndarray, predicted: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Count rows by true class (down) and predicted class (across), int64 (c, c).

    Args:
        y: str (n,), all in ``classes``.
        predicted: str (n,), all in ``classes``.
        classes: str (c,), sorted.
    """
    c = len(classes)
    cells = np.searchsorted(classes, y) * c + np.searchsorted(classes, predicted)
    return np.bincount(cells, minlength=c * c).reshape(c, c)


@dataclass(frozen=True)
class PerClass:
    """Scores per class, each (c,); a share of no rows is 0."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def per_class(matrix: np.ndarray) -> PerClass:
    """Return precision, recall, F1 and support (number of rows) per class, from a confusion matrix."""
    right, support, called = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return PerClass(
        precision=_share(right, called),
        recall=_share(right, support),
        f1=_share(2 * right, support + called),
        support=support,
    )


def macro_f1(matrix: np.ndarray) -> float:
    """Return the mean F1 of the classes that occur, as a true or as a predicted class."""
    occurs = (matrix.sum(axis=0) + matrix.sum(axis=1)) > 0
    return float(per_class(matrix).f1[occurs].mean())


def balanced_accuracy(matrix: np.ndarray) -> float:
    """Return the mean recall of the classes that have rows."""
    scores = per_class(matrix)
    return float(scores.recall[scores.support > 0].mean())


def summary(y: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Return top1, top5 (with more than five classes), macro_f1 and balanced_accuracy of n > 0 rows."""
    matrix = confusion(y, classes[scores.argmax(axis=1)], np.union1d(classes, y))
    values = {"top1": top_k(y, scores, classes)}
    if len(classes) > 5:
        values["top5"] = top_k(y, scores, classes, 5)
    return values | {"macro_f1": macro_f1(matrix), "balanced_accuracy": balanced_accuracy(matrix)}


def confusion_order(matrix: np.ndarray) -> np.ndarray:
    """Return an order of the classes, int (c,), in which those that are often confused are close together.

    Average linkage on the shares confused either way, its leaves ordered to keep neighbours close (Bar-Joseph et al.
    2001, "Fast optimal leaf ordering for hierarchical clustering").

    Args:
        matrix: (c, c), see ``confusion``; c of at least 2.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    confused = shares + shares.T
    np.fill_diagonal(confused, 0)
    distance = confused.max() - confused
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance), "average", optimal_ordering=True))


@dataclass(frozen=True)
class Curve:
    """Points of a curve, ``x`` and ``y`` (k,), and the area below it."""

    x: np.ndarray
    y: np.ndarray
    area: float


def roc(positive: np.ndarray, scores: np.ndarray) -> Curve:
    """Return the receiver operating characteristic: true positive rate over false positive rate, and its area (AUC).

    Args:
        positive: bool (n,), at least one true and one false.
        scores: (n,), higher for rows that are more likely positive; equal scores make one point.
    """
    hits, called = _thresholds(positive, scores)
    x = np.r_[0, (called - hits) / np.sum(~positive)]
    y = np.r_[0, hits / np.sum(positive)]
    return Curve(x, y, float(np.trapezoid(y, x)))


def precision_recall(positive: np.ndarray, scores: np.ndarray) -> Curve:
    """Return precision over recall, from the highest score down; its area is the average precision.

    The average precision is ``Σ (Δ recall) · precision``, as scikit-learn's ``average_precision_score``, without
    interpolation, which would be too optimistic (Davis & Goadrich 2006, "The relationship between Precision-Recall and
    ROC curves"). Arguments are those of ``roc``.
    """
    hits, called = _thresholds(positive, scores)
    recall, precision = hits / np.sum(positive), hits / called
    return Curve(recall, precision, float(np.sum(np.diff(recall, prepend=0) * precision)))


def _thresholds(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each different score, highest first, the number of positive rows and of all rows that reach it."""
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1]
    return np.cumsum(positive[order])[last], last + 1


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
