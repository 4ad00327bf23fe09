"""The significance test of whether one head is better than another on the same rows."""

from __future__ import annotations

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
    from scipy.stats import binomtest

    a, b = int(np.sum(right_a & ~right_b)), int(np.sum(~right_a & right_b))
    return float(binomtest(a, a + b).pvalue) if a + b else 1.0
