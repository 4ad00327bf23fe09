"""McNemar's exact test against scipy's binomial test, and what must hold of any test."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from heads.evaluation.significance import holm, mcnemar


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 99), st.integers(0, 99))
def test_it_is_the_binomial_test_of_the_discordant_rows(a_alone, b_alone, both, neither):
    a = np.repeat([True, False, True, False], [a_alone, b_alone, both, neither])
    b = np.repeat([False, True, True, False], [a_alone, b_alone, both, neither])
    expected = binomtest(a_alone, a_alone + b_alone, 0.5).pvalue if a_alone + b_alone else 1
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(expected)


def test_published_values():
    """9 to 1 of ten: twice the 11 / 1024 of a tail."""
    a, b = np.repeat([True, False], [9, 1]), np.repeat([False, True], [9, 1])
    assert mcnemar(a, b) == pytest.approx(22 / 1024)
    assert mcnemar(a, a) == mcnemar(a[:0], a[:0]) == 1


@given(st.lists(st.floats(0, 1), max_size=12))
def test_the_correction_is_holms(p_values):
    """A hypothesis falls at a level if it falls in Holm's procedure: from the smallest p-value, until one does not."""
    corrected = holm(p_values)
    assert len(corrected) == len(p_values)
    for level in (0.001, 0.01, 0.05, 0.3, 0.9):
        fallen = set()
        for rank, at in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[at] * (len(p_values) - rank) > level:
                break
            fallen.add(int(at))
        assert {at for at, p in enumerate(corrected) if p <= level} == fallen


def test_the_correction_s_published_values():
    """Holm 1979, of four tests."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1] and holm([0.02]) == [0.02] and holm([]) == []
