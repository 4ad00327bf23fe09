"""McNemar's exact test against scipy's binomial test, and what must hold of any test."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from heads.evaluation.significance import mcnemar


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
