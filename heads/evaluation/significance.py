"""Tests of whether one head is better than another on the same rows, and their correction for many heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Return the two-sided p-value of two heads being equally good, from the rows that only one of them gets right.

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions", Psychometrika
    12:153-157, in its exact form: if the heads are equally good, either is equally likely to be right on each such row.
    The p-value is 1 without such rows.

    Args:
        right_a: bool (n,), the rows that one head predicts right.
        right_b: bool (n,), those of the other head, in the same order.

    Example:
        >>> a, b = np.ones(100, bool), np.arange(100) >= 8  # the second head gets eight rows wrong
        >>> round(mcnemar(a, b), 4)
        0.0078
    """
    from scipy.special import bdtr  # scipy.stats has the test itself, but takes a second to import

    a, b = int(np.sum(right_a & ~right_b)), int(np.sum(~right_a & right_b))
    return min(1.0, 2 * float(bdtr(min(a, b), a + b, 0.5))) if a + b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for how many there are, in their order.

    Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6:65-70: of
    m tests, the chance that any true hypothesis gets a corrected value below α is at most α.

    Example:
        >>> [round(p, 4) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    p, m = np.asarray(p_values, np.float64), len(p_values)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(m)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(m, 0, -1)))
    return corrected.tolist()
