"""What more rows would bring: a power law through the errors at fewer.

Hestness et al. 2017, "Deep learning scaling is predictable, empirically" (arXiv:1712.00409); Viering & Loog 2022, "The
shape of learning curves: a review" (IEEE TPAMI), who find it the best of the simple laws, and warn of trusting any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LEAST_POINTS = 4  # one more than the law has parameters
EXPONENTS = np.linspace(0.005, 2, 400)
RESAMPLES = 1000
Z = 1.96  # half a 95 % interval, in standard deviations


class PowerLaw(NamedTuple):
    """``error = a + b * n ** -c``, with a and b from 0 and c from 0 to 2, each float or float (r,)."""

    a: Any
    b: Any
    c: Any

    def error(self, n: Any) -> Any:
        """The error at n rows, between 0 and 1."""
        return np.clip(self.a + self.b * np.power(n, -self.c, dtype=np.float64), 0, 1)


def power_law(n: np.ndarray, error: np.ndarray) -> PowerLaw:
    """The least squares fit of ``error ≈ a + b * n ** -c``.

    For a given c it is linear in a and b, and where one of them would be negative it is 0; every c of a fine grid is
    tried, so that there is no start to choose and no local minimum to end in.

    Args:
        n: (m,), numbers of rows.
        error: (m,), or (r, m) for r fits at once.
    """
    n, errors = np.asarray(n, np.float64), np.atleast_2d(np.asarray(error, np.float64))
    power = (n / n.max()) ** -EXPONENTS[:, None]  # (k, m); relative, as n ** -2 of millions is next to nothing
    mean = errors.mean(axis=1)[:, None]  # (r, 1)
    centred = power - power.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1)
    b = np.maximum(errors @ centred.T / np.where(spread > 0, spread, 1), 0)  # (r, k)
    a = mean - b * power.mean(axis=1)
    alone = errors @ power.T / (power**2).sum(axis=1)  # b where a is 0
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
    """The accuracy to expect at n rows, by the law through the points of a learning curve.

    The interval is rough: 95 % of the laws through points that were moved by normal errors of the size of their own
    intervals, each point by one of its own and all of them by a common one, as they are scored on the same rows.

    Args:
        points: "n", rows that were fitted; "val", accuracy; "val_ci", its 95 % interval.
        n: rows to expect it at.
        seed: of the resampling.

    Returns:
        "n", "val", "low" and "high"; None with fewer than four different numbers of rows.
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
