"""Checks of values that users give: numbers within limits, and allowed names."""

from __future__ import annotations

import math
import operator
import re

from featurestore.errors import UsageError

MAX_SEED = 2**63 - 1  # splits hash a seed as eight bytes; folds use the one bit that seeds leave free


def check_count(option: str, value: object, low: int, high: int) -> None:
    """Raise UsageError unless the value is a whole number within limits.

    Raises:
        UsageError: the message names the option and both limits.
    """
    try:
        good = not isinstance(value, bool) and low <= operator.index(value) <= high  # type: ignore[arg-type]
    except TypeError:
        good = False
    if not good:
        raise UsageError(f"Expected: {option}, a whole number from {low:,} to {high:,}. Got: {value}.")


def check_seed(option: str, value: object) -> None:
    """Raise UsageError unless the value is a seed that penult's random generators take.

    Raises:
        UsageError: the value is not a whole number from 0 to ``MAX_SEED``.
    """
    check_count(option, value, 0, MAX_SEED)


def check_amount(option: str, value: float, least: float = 0.0) -> None:
    """Raise UsageError for a number of seconds or bytes that is negative, not finite, or below ``least``.

    Raises:
        UsageError: the message names the option.
    """
    if not least <= value < math.inf:
        raise UsageError(f"Expected: {option}, a number of at least {least:g}. Got: {value}.")


def check_label_set(name: str) -> None:
    """Raise UsageError unless a label set may have this name."""
    if not re.fullmatch(r"[\w.-]{1,64}", name):
        raise UsageError(
            f"Expected: a label set named with up to 64 letters, digits, '.', '_' or '-'. Got: {name[:100]!r}."
        )
