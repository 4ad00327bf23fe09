"""The power law against curves that are one, against scipy, and against what a learning curve then does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from heads.evaluation import learning_curve
from heads.evaluation.learning_curve import EXPONENTS, expect, power_law
from heads.evaluation.metrics import wilson

SIZES = np.array([100, 180, 320, 560, 1000])


@given(st.floats(0, 0.3), st.floats(0.5, 4), st.integers(20, 300))
def test_a_power_law_is_found_again(a, b, at):
    c = EXPONENTS[at]
    law = power_law(SIZES, a + b * SIZES**-c)
    assert (law.a, law.b, law.c) == pytest.approx((a, b, c), abs=1e-4, rel=1e-3)
    assert law.error(2000) == pytest.approx(min(a + b * 2000**-c, 1), abs=1e-6)


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_it_is_the_least_squares_fit(errors):
    """No exponent of the grid does better with scipy's non-negative least squares."""
    law = power_law(SIZES, np.array(errors))
    assert law.a >= 0 and law.b >= 0 and 0 < law.c <= 2
    loss = np.sum((law.a + law.b * SIZES**-law.c - errors) ** 2)
    best = min(nnls(np.stack([np.ones(5), (SIZES / 1000) ** -c], axis=1), errors)[1] ** 2 for c in EXPONENTS[::4])
    assert loss <= best + 1e-9


def test_many_fits_at_once_are_each_their_own():
    errors = np.random.default_rng(0).uniform(0, 0.5, (7, 5))
    together = power_law(SIZES, errors)
    for i, row in enumerate(errors):
        alone = power_law(SIZES, row)
        assert (together.a[i], together.b[i], together.c[i]) == pytest.approx(tuple(alone))


def curve(accuracies, rows=1000):
    return [{"n": int(n), "val": val, "val_ci": wilson(val, rows)} for n, val in zip(SIZES, accuracies, strict=False)]


def test_more_rows_are_expected_to_help_where_they_did():
    points = curve(1 - (0.02 + 2 * SIZES**-0.5))
    told = expect(points, 2000)
    assert told["n"] == 2000 and told["val"] == pytest.approx(1 - (0.02 + 2 * 2000**-0.5))
    assert points[-1]["val"] < told["val"] and told["low"] < told["val"] < told["high"]
    assert expect(points, 2000) == told != expect(points, 2000, seed=1)
    assert expect(points[:3], 2000) is None and expect([points[0]] * 5, 2000) is None and expect([], 2000) is None


def test_a_flat_or_perfect_curve_stays_so():
    told = expect(curve([0.8] * 5), 2000)
    assert told["val"] == pytest.approx(0.8) and told["low"] < 0.8 < told["high"] < 0.9
    perfect = expect(curve([1.0] * 5), 2000)
    assert perfect["val"] == perfect["high"] == 1 and perfect["low"] > 0.99
    worse = expect(curve([0.9, 0.8, 0.7, 0.6, 0.5]), 2000)
    assert worse["val"] == pytest.approx(0.7)  # more rows do no harm: the mean


def test_the_interval_is_narrower_with_more_validation_rows():
    accuracies = 1 - (0.02 + 2 * SIZES**-0.5)
    few, many = (expect(curve(accuracies, rows), 2000) for rows in (100, 10_000))
    assert many["high"] - many["low"] < 0.3 * (few["high"] - few["low"])


def test_the_interval_holds_what_comes(monkeypatch):
    """Heads scored on the same 500 rows, each row with its own difficulty: at least nine of ten intervals."""
    monkeypatch.setattr(learning_curve, "RESAMPLES", 100)  # each of the hundred intervals is rough enough
    rng = np.random.default_rng(0)
    held = []
    for _ in range(100):
        a, b, c, difficulty = rng.uniform(0, 0.1), rng.uniform(0.5, 2), rng.uniform(0.2, 0.6), rng.random(500)
        told = expect(curve([np.mean(difficulty > a + b * n**-c) for n in SIZES], 500), 2000)
        held.append(told["low"] <= 1 - (a + b * 2000**-c) <= told["high"])
    assert np.mean(held) >= 0.9


def test_the_interval_is_that_of_many_laws_through_points_with_errors():
    """With errors drawn here: each point's own, of the size of its interval, and one of all."""
    points = [
        {"n": int(n), "val": val, "val_ci": (val - 0.01 * i, val + 0.03 * i)}
        for i, (n, val) in enumerate(zip(SIZES, 1 - (0.05 + 2 * SIZES**-0.5), strict=True), start=1)
    ]
    rng, laws = np.random.default_rng(9), 3000
    noise = rng.normal(size=(laws, 5)) + rng.normal(size=(laws, 1))
    sizes = 0.04 * np.arange(1, 6) / (2 * 1.96)
    moved = np.clip(1 - np.array([point["val"] for point in points]) + sizes * noise, 0, 1)
    low, high = np.quantile(1 - power_law(SIZES, moved).error(2000), [0.025, 0.975])
    told = [expect(points, 2000, seed) for seed in range(3)]
    assert np.mean([one["low"] for one in told]) == pytest.approx(low, abs=0.006)
    assert np.mean([one["high"] for one in told]) == pytest.approx(high, abs=0.006)
    assert high - low > 0.1 and told[0] == expect(points, 2000)
    assert expect(points[:4], 2000) is not None and expect([*points[:3], points[0]], 2000) is None


def test_errors_are_between_0_and_1_and_exponents_up_to_2():
    assert (EXPONENTS[0], EXPONENTS[-1], len(EXPONENTS)) == (0.005, 2.0, 400)
    assert power_law(SIZES, 1e6 * SIZES**-3.0).c == 2.0
    assert power_law(SIZES, 0.5 + 0.001 * SIZES**0.5).b == 0
    law = power_law(SIZES, 0.01 + 4 * SIZES**-0.5)
    assert law.error(1) == 1 and law.error(10**9) == pytest.approx(0.01, abs=1e-3)
    assert law.error(np.array([1, 400])) == pytest.approx([1, 0.21], abs=1e-3)
