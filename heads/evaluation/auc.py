"""The area under the ROC curve, with an interval."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from heads.evaluation.metrics import wilson


def auc(positive: np.ndarray, scores: np.ndarray, confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Return the area under the ROC curve and its interval.

    The area is the share of pairs of a positive and another row in which the positive one has the higher score; equal
    scores count half. Its variance is that of DeLong, DeLong & Clarke-Pearson 1988, "Comparing the areas under two or
    more correlated receiver operating characteristic curves" (Biometrics 44:837-845): from each row's own share of
    pairs. Sorting gives these in O(n log n), as in Sun & Xu 2014, "Fast implementation of DeLong's algorithm" (IEEE
    Signal Processing Letters 21:1389-1393). If no share differs from another, as where every pair is in order, or if a
    side has one row, the interval is Wilson's for as many trials as the smaller side has rows.

    Args:
        positive: bool (n,), at least one true and one false.
        scores: (n,), finite, higher for rows that are more likely positive.
        confidence: of the interval.

    Example:
        >>> area, (low, high) = auc(np.array([True, True, True, False, False]), np.array([3, 2, 1, 1, 0]))
        >>> round(area, 3), round(low, 3), round(high, 3)
        (0.917, 0.686, 1.0)
    """
    of_positive = _shares_below(scores[positive], scores[~positive])
    of_other = 1 - _shares_below(scores[~positive], scores[positive])
    value, fewest = float(of_positive.mean()), min(len(of_positive), len(of_other))
    if fewest == 1 or np.ptp(of_positive) == np.ptp(of_other) == 0:
        return value, wilson(value, fewest, confidence)
    variance = of_positive.var(ddof=1) / len(of_positive) + of_other.var(ddof=1) / len(of_other)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance)
    return value, (max(0.0, value - half), min(1.0, value + half))


def _shares_below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each score (m,) the share of ``others`` (n,) below it, equal ones by half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / (2 * len(others))
