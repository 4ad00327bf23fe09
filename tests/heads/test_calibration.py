"""Calibration against scikit-learn's curve and against probabilities that are right by construction."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.calibration import calibration_curve

from heads.evaluation.calibration import TARGETS, abstain, expected_calibration_error, reliability
from heads.evaluation.metrics import wilson

# Few different values, so that many are equal, and values at the edges of bins.
CONFIDENCES = st.one_of(st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 0.6, 0.8, 1.0]), st.floats(0, 1))


@st.composite
def answers(draw, smallest=1):
    n = draw(st.integers(smallest, 60))
    confidence = draw(hnp.arrays(np.float64, n, elements=CONFIDENCES))
    return confidence, draw(hnp.arrays(bool, n))


@given(answers(), st.integers(1, 20))
def test_reliability_is_scikit_learns(both, bins):
    confidence, right = both
    table = reliability(confidence, right, bins)
    if right.any() and not right.all():  # its labels must be of both kinds
        accuracy, said = calibration_curve(right, confidence, n_bins=bins)
        np.testing.assert_allclose([row["accuracy"] for row in table], accuracy)
        np.testing.assert_allclose([row["confidence"] for row in table], said)
    assert sum(row["n"] for row in table) == len(right)
    for row in table:
        assert row["low"] - 1e-12 <= row["confidence"] <= row["high"] + 1e-12 and row["n"] > 0
    json.dumps(table)


@given(answers(), st.integers(1, 20))
def test_the_error_is_between_the_whole_and_the_worst_bin(both, bins):
    confidence, right = both
    error = expected_calibration_error(confidence, right, bins)
    worst = max(abs(row["confidence"] - row["accuracy"]) for row in reliability(confidence, right, bins))
    assert abs(confidence.mean() - right.mean()) - 1e-9 <= error <= worst + 1e-9
    assert expected_calibration_error(confidence, right, 1) == pytest.approx(abs(confidence.mean() - right.mean()))


def test_the_error_of_a_worked_example():
    """Three bins of four rows: off by 0.1, 0.15 and 0, of weight 1/2, 1/4 and 1/4."""
    confidence = np.array([0.1, 0.1, 0.4, 1.0])
    right = np.array([False, False, True, True])
    expected = (2 * 0.1 + 0.6 + 0) / 4
    assert expected_calibration_error(confidence, right, 3) == pytest.approx(expected)
    assert expected_calibration_error(confidence[:0], right[:0]) == 0 and reliability(confidence[:0], right[:0]) == []


def test_bins_are_told_with_their_ends():
    confidence = np.array([0.0, 0.25, 0.5, 0.5, 0.7, 1.0])
    right = np.array([False, True, True, False, False, True])
    assert reliability(confidence, right, 4) == [
        {"low": 0.0, "high": 0.25, "confidence": 0.125, "accuracy": 0.5, "n": 2},
        {"low": 0.25, "high": 0.5, "confidence": 0.5, "accuracy": 0.5, "n": 2},
        {"low": 0.5, "high": 0.75, "confidence": 0.7, "accuracy": 0.0, "n": 1},
        {"low": 0.75, "high": 1.0, "confidence": 1.0, "accuracy": 1.0, "n": 1},
    ]


def test_there_are_15_bins_and_three_targets():
    confidence = np.arange(0.5, 300) / 300
    right = np.arange(300) % 7 < 5
    table = reliability(confidence, right)
    assert [row["n"] for row in table] == [20] * 15 and table == reliability(confidence, right, 15)
    error = expected_calibration_error(confidence, right)
    assert (
        error == expected_calibration_error(confidence, right, 15) != expected_calibration_error(confidence, right, 16)
    )
    rows = abstain(confidence, right, confidence, right)
    assert tuple(row["target"] for row in rows) == TARGETS == (0.9, 0.95, 0.99)


def test_probabilities_that_are_meant_have_no_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 100_000)
    right = rng.random(100_000) < confidence
    assert expected_calibration_error(confidence, right) < 0.01
    assert expected_calibration_error(confidence**0.2, right) > 0.2


@given(answers(0), answers(0))
def test_the_threshold_is_the_lowest_that_reaches_the_target(val, test):
    """Against every threshold that could be, tried one by one."""
    for row in abstain(*val, *test, targets=(0.5, 0.9)):
        confidence, right = val
        good = [t for t in {0.0, *confidence.tolist()} if np.any(confidence >= t)]
        good = [t for t in good if right[confidence >= t].mean() >= row["target"]]
        if not good:
            assert {row[key] for key in row if key != "target"} == {None}
            continue
        assert row["threshold"] == min(good)
        assert row["val_coverage"] == pytest.approx(np.mean(confidence >= row["threshold"]))
        answered = test[0] >= row["threshold"]
        assert row["n"] == answered.sum()
        assert row["coverage"] == (pytest.approx(answered.mean()) if len(answered) else 0)
        if row["n"]:
            assert row["accuracy"] == pytest.approx(test[1][answered].mean())
            assert row["accuracy_ci"] == list(wilson(row["accuracy"], row["n"]))
        else:
            assert row["accuracy"] is row["accuracy_ci"] is None
        json.dumps(row)


def test_rows_of_equal_confidence_are_answered_together():
    """The right one of two equals cannot be had alone, whichever comes first."""
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        confidence, right = np.array([0.9, 0.9, 0.5])[order], np.array([True, False, False])[order]
        (row,) = abstain(confidence, right, confidence, right, targets=(0.9,))
        assert row["threshold"] is None
        (row,) = abstain(confidence, right, confidence, right, targets=(0.5,))
        assert (row["threshold"], row["n"], row["accuracy"]) == (0.9, 2, 0.5)


def test_all_is_answered_where_all_may_be():
    val, test = np.array([0.8, 0.9]), np.array([0.1, 0.2])
    (row,) = abstain(val, np.array([True, True]), test, np.array([False, True]), targets=(0.99,))
    assert (row["threshold"], row["coverage"], row["accuracy"]) == (0.0, 1.0, 0.5)
