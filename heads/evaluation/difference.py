"""Scores with their intervals, and whether one head is better than another on the same images.

Where images are independent, top-1 has closed forms. Other metrics, and groups of images that belong together, are
resampled: the bootstrap draws images, or whole groups, with replacement (Efron & Tibshirani 1993, "An introduction to
the bootstrap"). Images of one group thus count as one observation, however many they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from heads.evaluation.metrics import wilson
from heads.evaluation.significance import mcnemar

CONFIDENCE = 0.95
RESAMPLES = 2000
CHUNK_NUMBERS = 1 << 21  # draws that are made at a time: 16 MiB

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """How much better one head is than another, as differences of shares.

    Attributes:
        value: the score of the one less the score of the other.
        ci: the 95 % interval of ``value``.
        p_value: two-sided, of both being equally good.
        step: what an improvement must exceed where the same test images decide again and again, see
            ``paired_difference``.
    """

    value: float
    ci: Interval
    p_value: float
    step: float


@dataclass(frozen=True)
class Tally:
    """What the metrics are made from: numbers of images per class, each (…, c), over the same leading axes."""

    right: np.ndarray
    support: np.ndarray
    called: np.ndarray


def _top1(tally: Tally) -> np.ndarray:
    return tally.right.sum(axis=-1) / tally.support.sum(axis=-1)


def _macro_f1(tally: Tally) -> np.ndarray:
    return _mean_share(2 * tally.right, tally.support + tally.called)


def _mean_recall(tally: Tally) -> np.ndarray:
    return _mean_share(tally.right, tally.support)


def _mean_share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return the mean of ``part / whole`` (…, c) over the classes that occur."""
    return (part / np.maximum(whole, 1)).sum(axis=-1) / np.maximum((whole > 0).sum(axis=-1), 1)


METRICS: Mapping[str, Callable[[Tally], np.ndarray]] = {
    "top1": _top1,
    "macro_f1": _macro_f1,  # as metrics.macro_f1
    "mean_recall": _mean_recall,  # as metrics.balanced_accuracy
}


def paired_difference(
    metric: str,
    y: np.ndarray,
    new: np.ndarray,
    old: np.ndarray,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Difference:
    """Compare the predictions of two heads for the same images.

    Top-1 without groups has the adjusted Wald interval of Bonett & Price 2012, "Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data" (Journal of Educational and Behavioral Statistics
    37:479-488), and McNemar's exact p-value. The interval counts one more image that only the new head gets right and
    one more that only the old one does: it has a width even if all predictions agree. Else interval and p-value come
    from the bootstrap; where no resample differs from another, the interval is the former, of as many images as there
    are groups. The p-value of ten groups or fewer cannot be small, however alike they are.

    The step is the parameter-free one of the Ladder (Blum & Hardt 2015, "The Ladder: a reliable leaderboard for machine
    learning competitions", arXiv:1502.04585): the standard deviation of the differences between the two heads' losses
    per image, divided by ``sqrt(n)``. That is the standard error of ``value``, and so the bootstrap's standard
    deviation is the step of the other metrics.

    Args:
        metric: a key of ``METRICS``.
        y: str (n,), the classes; n > 0.
        new: str (n,), the predictions of the head that should be better.
        old: str (n,), those of the other head.
        groups: str (n,), images of one group are not independent; None if all are.
        seed: of the bootstrap.

    Example:
        >>> y = np.repeat(["cat", "dog"], 50)
        >>> new, old = y.copy(), y.copy()
        >>> new[:2], old[40:55] = "dog", "fox"
        >>> difference = paired_difference("top1", y, new, old)
        >>> difference.value, [round(end, 3) for end in difference.ci], round(difference.p_value, 4)
        (0.13, [0.047, 0.207], 0.0023)
    """
    if metric == "top1" and groups is None:
        return _difference_of_shares(new == y, old == y)
    resampled = _Resampled.of(metric, y, (new, old), groups, seed)
    value, draws, units = float(np.subtract(*resampled.value)), np.subtract(*resampled.draws), resampled.units
    low, high = _interval(draws, units)
    if low == high:
        low, high = _bonett_price(units * max(value, 0), units * max(-value, 0), units)
    return Difference(value, (low, high), _p_value(draws, units), float(draws.std()))


def top1_gain(
    y: np.ndarray,
    new: np.ndarray,
    old: np.ndarray,
    groups: np.ndarray | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Return the difference of top-1 and its interval, as ``paired_difference`` does, at another confidence.

    Args:
        y, new, old, groups, seed: see ``paired_difference``.
        confidence: of the interval, such as 0.95.
    """
    value = float(np.mean(new == y) - np.mean(old == y))
    if groups is None:
        gained, lost = int(np.sum((new == y) & (old != y))), int(np.sum((old == y) & (new != y)))
        return value, _bonett_price(gained, lost, len(y), confidence)
    resampled = _Resampled.of("top1", y, (new, old), groups, seed)
    low, high = _interval(np.subtract(*resampled.draws), resampled.units, confidence)
    if low == high:
        units = resampled.units
        low, high = _bonett_price(units * max(value, 0), units * max(-value, 0), units, confidence)
    return value, (low, high)


def score_of(
    metric: str, y: np.ndarray, predicted: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> tuple[float, Interval]:
    """Return the score of predictions and its 95 % interval: Wilson's for top-1 without groups, else the bootstrap's.

    Where no resample differs from another, such as if every prediction is right, the interval is Wilson's for as many
    trials as there are images, or groups. See ``paired_difference`` for the arguments.
    """
    if metric == "top1" and groups is None:
        value = float(np.mean(predicted == y))
        return value, wilson(value, len(y), CONFIDENCE)
    resampled = _Resampled.of(metric, y, (predicted,), groups, seed)
    value = float(resampled.value[0])
    low, high = _interval(resampled.draws[0], resampled.units)
    return value, (low, high) if low < high else wilson(value, resampled.units, CONFIDENCE)


def recalls(y: np.ndarray, predicted: np.ndarray) -> dict[str, tuple[float, int]]:
    """Return the recall of each class of y, str (n,), and the number of its images."""
    classes, codes, support = np.unique(y, return_inverse=True, return_counts=True)
    right = np.bincount(codes[predicted == y], minlength=len(classes))
    return {str(name): (float(r / n), int(n)) for name, r, n in zip(classes, right, support, strict=True)}


def _difference_of_shares(new: np.ndarray, old: np.ndarray) -> Difference:
    """Compare two heads by the images that each gets right, bool (n,)."""
    n, gained, lost = len(new), int(np.sum(new & ~old)), int(np.sum(old & ~new))
    value = (gained - lost) / n
    variance = (gained + lost - n * value**2) / max(n - 1, 1)
    return Difference(value, _bonett_price(gained, lost, n), mcnemar(new, old), math.sqrt(variance / n))


def _bonett_price(gained: float, lost: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of ``(gained - lost) / n``, see ``paired_difference``."""
    more, less = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    half = z * math.sqrt((more + less - (more - less) ** 2) / (n + 2))
    return max(-1.0, more - less - half), min(1.0, more - less + half)


@dataclass(frozen=True)
class _Resampled:
    """The metric of each of h heads on the images, ``value`` (h,), and on the resamples, ``draws`` (h, RESAMPLES)."""

    value: np.ndarray
    draws: np.ndarray
    units: int

    @classmethod
    def of(
        cls, metric: str, y: np.ndarray, heads: tuple[np.ndarray, ...], groups: np.ndarray | None, seed: int
    ) -> _Resampled:
        """Resample images, or groups, so that all heads are scored on the same ones."""
        unit_of_row = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
        units = int(unit_of_row.max()) + 1
        counts = _counts(y, heads, unit_of_row)

        def scores(drawn: np.ndarray) -> np.ndarray:
            tallies = (drawn @ counts).reshape(len(drawn), len(heads), 3, -1)
            return METRICS[metric](Tally(*np.moveaxis(tallies, 2, 0))).T

        size = max(CHUNK_NUMBERS // max(counts.shape), 1)
        draws = [scores(drawn) for drawn in _drawn(units, size, seed)]
        return cls(scores(np.ones((1, units)))[:, 0], np.concatenate(draws, axis=1), units)


def _counts(y: np.ndarray, heads: tuple[np.ndarray, ...], unit_of_row: np.ndarray) -> Any:
    """Return the tally of each unit, a sparse matrix (units, h * 3 * c): most units have few classes."""
    from scipy.sparse import csr_matrix

    classes, codes = np.unique(np.concatenate([y, *heads]), return_inverse=True)
    true, *predicted = codes.reshape(1 + len(heads), -1)
    rows: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    for said in predicted:
        for some in (said == true, slice(None)):
            rows.append(unit_of_row[some])
            columns.append(len(classes) * len(columns) + true[some])
        rows.append(unit_of_row)
        columns.append(len(classes) * len(columns) + said)
    at = np.concatenate(rows), np.concatenate(columns)
    shape = int(unit_of_row.max()) + 1, len(classes) * len(columns)
    return csr_matrix((np.ones(len(at[0])), at), shape)


def _drawn(units: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each unit is in a resample, float64 (b, units), b at most ``size`` and RESAMPLES in all."""
    random = np.random.default_rng(seed)
    for start in range(0, RESAMPLES, size):
        b = min(size, RESAMPLES - start)
        drawn = random.integers(units, size=(b, units)) + units * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * units).reshape(b, units).astype(np.float64)


def _interval(draws: np.ndarray, units: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval between percentiles of resampled values (b,), further out the fewer units there are.

    The expanded percentile interval of Hesterberg 2015, "What teachers should know about the bootstrap"
    (arXiv:1411.5279): resamples vary by ``sqrt((n - 1) / n)`` too little, and Student's t replaces the normal.
    """
    if units == 1:
        return float(draws[0]), float(draws[0])
    from scipy.special import stdtrit

    z = math.sqrt(units / (units - 1)) * float(stdtrit(units - 1, (1 - confidence) / 2))
    low, high = np.quantile(draws, [NormalDist().cdf(z), NormalDist().cdf(-z)])
    return float(low), float(high)


def _p_value(draws: np.ndarray, units: int) -> float:
    """Return the two-sided p-value of a resampled difference (b,): it is below 0.05 where ``_interval`` is beside 0."""
    if units == 1:
        return 1.0
    from scipy.special import stdtr

    beyond = min(int(np.sum(draws <= 0)), int(np.sum(draws >= 0)))
    z = NormalDist().inv_cdf(min((beyond + 1) / (len(draws) + 1), 0.5))
    return 2 * float(stdtr(units - 1, z / math.sqrt(units / (units - 1))))
