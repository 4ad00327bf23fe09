"""What users give: numbers within limits and harmless names, or one sentence that says which."""

from __future__ import annotations

import math
import operator
import re

from featurestore.errors import UsageError

MAX_SEED = 2**63 - 1  # splits hash it as eight bytes, of which folds use one bit


def check_count(option: str, value: object, low: int, high: int) -> None:
    """Refuse what is no whole number within limits.

    Raises:
        UsageError: it names the option and both limits.
    """
    try:
        good = not isinstance(value, bool) and low <= operator.index(value) <= high  # type: ignore[arg-type]
    except TypeError:
        good = False
    if not good:
        raise UsageError(f"Expected: {option}, a whole number from {low:,} to {high:,}. Got: {value}.")


def check_seed(option: str, value: object) -> None:
    """Refuse what no random generator of penult takes.

    Raises:
        UsageError: it is no whole number from 0 to ``MAX_SEED``.
    """
    check_count(option, value, 0, MAX_SEED)


def check_amount(option: str, value: float, least: float = 0.0) -> None:
    """Refuse a number of seconds or bytes that is negative, not finite, or below ``least``.

    Raises:
        UsageError: it names the option.
    """
    if not least <= value < math.inf:
        raise UsageError(f"Expected: {option}, a number of at least {least:g}. Got: {value}.")


def check_label_set(name: str) -> None:
    """Raise UsageError for what no label set may be called."""
    if not re.fullmatch(r"[\w.-]{1,64}", name):
        raise UsageError(
            f"Expected: a label set named with up to 64 letters, digits, '.', '_' or '-'. Got: {name[:100]!r}."
        )
