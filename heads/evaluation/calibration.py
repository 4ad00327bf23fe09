"""Calibration of probabilities, and thresholds of confidence below which a head abstains.

Here a confidence is the probability of the predicted class, and a row is right if that is its true class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from heads.evaluation.metrics import wilson

TARGETS = (0.9, 0.95, 0.99)


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> list[dict[str, float]]:
    """Compare mean confidence and accuracy in bins of equal width from 0 to 1, ``low < confidence <= high``.

    Args:
        confidence: float (n,), from 0 to 1.
        right: bool (n,).
        bins: at least 1.

    Returns:
        For each bin with rows, from the lowest: "low", "high", the means "confidence" and "accuracy", and "n".
    """
    confidence = np.asarray(confidence, np.float64)
    edges = np.linspace(0, 1, bins + 1)
    index = np.searchsorted(edges[1:-1], confidence)
    n = np.bincount(index, minlength=bins)
    said, true = np.bincount(index, confidence, bins), np.bincount(index, right, bins)
    return [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            "confidence": float(said[i] / n[i]),
            "accuracy": float(true[i] / n[i]),
            "n": int(n[i]),
        }
        for i in np.flatnonzero(n)
    ]


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Return the mean distance of confidence and accuracy over bins, weighted by their rows; 0 without rows.

    Naeini, Cooper & Hauskrecht 2015, "Obtaining well calibrated probabilities using Bayesian binning" (AAAI), in the
    form of Guo et al. 2017, "On calibration of modern neural networks" (arXiv:1706.04599), with their 15 bins. See
    ``reliability`` for the arguments.
    """
    table = reliability(confidence, right, bins)
    return sum(row["n"] * abs(row["confidence"] - row["accuracy"]) for row in table) / max(len(confidence), 1)


def abstain(
    val_confidence: np.ndarray,
    val_right: np.ndarray,
    test_confidence: np.ndarray,
    test_right: np.ndarray,
    targets: Sequence[float] = TARGETS,
) -> list[dict[str, Any]]:
    """Return per target accuracy the lowest confidence threshold that reaches it on validation, and its test scores.

    Only rows whose confidence reaches the threshold are answered.

    Args:
        val_confidence: float (m,).
        val_right: bool (m,).
        test_confidence: float (n,).
        test_right: bool (n,).
        targets: accuracies to reach.

    Returns:
        For each of ``targets``: "target"; "threshold"; "val_coverage", the share of validation rows that are answered;
        and on test "coverage", the share of answered rows, "accuracy" of these, "accuracy_ci", its 95 % Wilson
        interval, and "n", their number. All but "target" are None if no threshold reaches the target on validation;
        accuracy and interval are also None if no test row is answered.
    """
    order = np.argsort(-val_confidence, kind="stable")
    ranked, answered = val_confidence[order], np.arange(1, len(order) + 1)
    last = np.append(ranked[1:] != ranked[:-1], True)[: len(order)]  # equal confidences are answered together
    accuracy = np.cumsum(val_right[order]) / answered

    def row(target: float) -> dict[str, Any]:
        at = np.flatnonzero(last & (accuracy >= target))
        names = ("threshold", "val_coverage", "coverage", "accuracy", "accuracy_ci", "n")
        if not len(at):
            return {"target": target, **dict.fromkeys(names)}
        threshold = 0.0 if at[-1] == len(order) - 1 else ranked[at[-1]]  # all of validation: answer all of test too
        right = test_right[test_confidence >= threshold]
        n, share = len(right), float(right.mean()) if len(right) else None
        values = (
            float(threshold),
            float(answered[at[-1]] / len(order)),
            n / max(len(test_right), 1),
            share,
            None if share is None else list(wilson(share, n)),
            n,
        )
        return {"target": target, **dict(zip(names, values, strict=True))}

    return [row(target) for target in targets]
