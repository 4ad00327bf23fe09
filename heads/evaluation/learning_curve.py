"""Extrapolation of learning curves: a power law through the errors predicts the accuracy with more training rows.

Hestness et al. 2017, "Deep learning scaling is predictable, empirically" (arXiv:1712.00409); Viering & Loog 2022, "The
shape of learning curves: a review" (IEEE TPAMI), who find it the best of the simple laws, and warn of trusting any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LEAST_POINTS = 4  # one more than the parameters of the law
EXPONENTS = np.linspace(0.005, 2, 400)
RESAMPLES = 1000
Z = 1.96  # half a 95 % interval, in standard deviations


class PowerLaw(NamedTuple):
    """The law ``error = a + b * n ** -c`` with a, b at least 0 and c from 0 to 2, each a float or float (r,)."""

    a: Any
    b: Any
    c: Any

    def error(self, n: Any) -> Any:
        """Return the error at n rows, between 0 and 1."""
        return np.clip(self.a + self.b * np.power(n, -self.c, dtype=np.float64), 0, 1)


def power_law(n: np.ndarray, error: np.ndarray) -> PowerLaw:
    """Fit ``error ≈ a + b * n ** -c`` by least squares.

    For a given c the law is linear in a and b; if one of them would be negative, it is 0. Every c of a fine grid is
    tried, so that the fit needs no start and cannot end in a local minimum.

    Args:
        n: (m,), numbers of rows.
        error: (m,), or (r, m) for r fits at once.
    """
    n, errors = np.asarray(n, np.float64), np.atleast_2d(np.asarray(error, np.float64))
    power = (n / n.max()) ** -EXPONENTS[:, None]  # (k, m); relative: n ** -2 is nearly 0 for n of millions
    mean = errors.mean(axis=1)[:, None]  # (r, 1)
    centred = power - power.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1)
    b = np.maximum(errors @ centred.T / np.where(spread > 0, spread, 1), 0)  # (r, k)
    a = mean - b * power.mean(axis=1)
    alone = errors @ power.T / (power**2).sum(axis=1)  # b if a is 0
    b, a = np.where(a < 0, alone, b), np.maximum(a, 0)
    # Σ (error - a - b power)², without its (r, k, m) terms
    loss = len(n) * a**2 + 2 * a * b * power.sum(axis=1) + b**2 * (power**2).sum(axis=1)
    loss -= 2 * (a * errors.sum(axis=1)[:, None] + b * (errors @ power.T))
    best = loss.argmin(axis=1)
    rows = np.arange(len(errors))
    c = EXPONENTS[best]
    law = (a[rows, best], b[rows, best] * n.max() ** c, c)
    return PowerLaw(*law) if np.ndim(error) == 2 else PowerLaw(*(float(value[0]) for value in law))


def expect(points: Sequence[Mapping[str, Any]], n: int, seed: int = 0) -> dict[str, Any] | None:
    """Return the accuracy to expect at n rows, by the law through the points of a learning curve.

    The interval is rough. The points are moved by normal errors of the size of their own intervals: each point by an
    error of its own, and all by a common one, as they are scored on the same rows. The interval holds the middle 95 %
    of the accuracies by the laws through the moved points.

    Args:
        points: each has "n", the number of rows that were fitted; "val", the accuracy; "val_ci", its 95 % interval.
        n: the number of rows to extrapolate to.
        seed: of the resampling.

    Returns:
        "n", "val", and its interval "low" and "high"; None with fewer than four different numbers of rows.
    """
    sizes = np.array([point["n"] for point in points])
    if len(np.unique(sizes)) < LEAST_POINTS:
        return None
    errors = 1 - np.array([point["val"] for point in points])
    deviations = np.array([(point["val_ci"][1] - point["val_ci"][0]) / (2 * Z) for point in points])
    draw = np.random.default_rng(seed)
    noise = draw.normal(size=(RESAMPLES, len(points))) + draw.normal(size=(RESAMPLES, 1))
    moved = np.clip(errors + deviations * noise, 0, 1)
    val = 1 - float(power_law(sizes, errors).error(n))
    low, high = np.quantile(1 - power_law(sizes, moved).error(n), [0.025, 0.975])
    return {"n": n, "val": val, "low": min(val, float(low)), "high": max(val, float(high))}
