"""The gain of one backbone over another on a sample, with an interval that holds for other samples too."""

from __future__ import annotations

import numpy as np

from heads.evaluation.difference import Interval, top1_gain

WIDER = 1.2


def gain_of(
    y: np.ndarray, new: np.ndarray, old: np.ndarray, groups: np.ndarray | None, confidence: float
) -> tuple[float, Interval]:
    """Return the difference of two backbones' accuracies, and its interval.

    The interval is that of ``top1_gain``, ``WIDER`` times as wide. That one takes the heads as given, and another
    sample would give other heads: cross-validation has no unbiased estimate of how much that adds (Bengio & Grandvalet
    2004, "No unbiased estimator of the variance of k-fold cross-validation", Journal of Machine Learning Research
    5:1089-1105). In the simulations of ``benchmarks.trials`` gains varied by 1.03 to 1.24 times what the interval
    assumes, most where all images are of 100 groups; with this factor 1 to 4 % of the trials had an interval that
    missed.

    Args:
        y: str (n,), the classes.
        new, old: str (n,), out-of-fold predictions with either backbone.
        groups: str (n,), images of one group are not independent; None if all are.
        confidence: of the interval.
    """
    value, (low, high) = top1_gain(y, new, old, groups, confidence)
    return value, (max(-1.0, value - WIDER * (value - low)), min(1.0, value + WIDER * (high - value)))
