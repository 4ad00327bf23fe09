"""Is one head better than another on the same rows, or was it luck?"""

from __future__ import annotations

import numpy as np


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Two-sided p-value that two heads are equally good, from the rows that one of them alone gets right.

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions", Psychometrika
    12:153-157, in its exact form: each such row is as likely to be the one's as the other's. 1 without any.

    Args:
        right_a: bool (n,), the rows that the one predicts right.
        right_b: bool (n,), those of the other, in the same order.
    """
    from scipy.stats import binomtest

    a, b = int(np.sum(right_a & ~right_b)), int(np.sum(~right_a & right_b))
    return float(binomtest(a, a + b).pvalue) if a + b else 1.0
