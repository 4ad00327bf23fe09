"""The class ``Option`` for fields that become options of the command line, and parsers of amounts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from featurestore.errors import UsageError

AMOUNT = r"([0-9]+(?:\.[0-9]+)?)\s*"
TIME_UNITS = {  # seconds: all names of the unit; not months, whose length varies
    1: ("s", "sec", "secs", "second", "seconds"),
    60: ("m", "min", "mins", "minute", "minutes"),
    3600: ("h", "hr", "hrs", "hour", "hours"),
    86_400: ("d", "day", "days"),
    7 * 86_400: ("w", "week", "weeks"),
}
SECONDS = {name: seconds for seconds, names in TIME_UNITS.items() for name in names}
MAX_SECONDS = 1000 * 365 * 86_400
BYTES = {"mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}
MAX_BYTES = 2**60


@dataclass(frozen=True)
class Option:
    """Makes a field an option of the command line; stands beside the field's type, in ``Annotated``.

    Attributes:
        help: what the option does, in one sentence.
        flag: the flag on the command line, if it is not the field's name.
        parse: makes the value from its text, if the type alone does not say how; raises UsageError.
        metavar: name of the value in the help text.
        many: whether the text is values with commas between them, which a recipe may write as a list.

    Example:
        >>> from typing import Annotated
        >>> @dataclass(frozen=True)
        ... class WaitOptions:
        ...     patience: Annotated[float, Option("Give up after this.", parse=seconds, metavar="TIME")] = 60.0
    """

    help: str
    flag: str | None = None
    parse: Callable[[str], Any] | None = None
    metavar: str | None = None
    many: bool = False


def share(text: str) -> float:
    """Parse a share below 1, such as 0.1 or 10%; ``text`` may also be a number, the default."""
    digits = str(text).strip()
    in_percent = digits.endswith("%")
    try:
        number = float(digits.removesuffix("%")) / (100 if in_percent else 1)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1:
        is_percentage = 1 <= number < 100 and not in_percent
        percent = f" For {digits} percent say {digits}% or {number / 100:g}." if is_percentage else ""
        raise UsageError(f"Expected: a share below 1, such as 0.1 or 10%. Got: {text or 'nothing'}.{percent}")
    return number


def seconds(text: str) -> float:
    """Parse a time into seconds: 90, or amounts with units, such as 90s, 30min, 2 days or 2d12h."""
    written = str(text).strip()
    if re.fullmatch(AMOUNT, written):
        written += "s"
    parts = re.findall(rf"{AMOUNT}([a-z]+)\s*", written)
    whole = re.fullmatch(rf"(?:{AMOUNT}[a-z]+\s*)+", written)
    if not whole or any(unit not in SECONDS for _, unit in parts):
        raise UsageError(f"Expected: a time such as 90s, 30min, 12h, 2d or 1w. Got: {text or 'nothing'}.")
    total = sum(float(amount) * SECONDS[unit] for amount, unit in parts)
    if total > MAX_SECONDS:
        raise UsageError(f"Expected: a time of at most a thousand years. Got: {text}.")
    return total


def time_text(amount: float) -> str:
    """Return seconds as ``seconds`` parses them, such as 1h30m."""
    parts, left = [], amount
    for unit in sorted(TIME_UNITS, reverse=True):
        count = left // unit if unit > 1 else round(left, 3)
        left -= count * unit
        if count:
            parts.append(f"{count:.15g}{TIME_UNITS[unit][0]}")
    return "".join(parts) or "0s"


def size_text(size: float) -> str:
    """Return a number of bytes in words, such as "1.5 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def budget(text: str) -> float:
    """Parse a time into seconds, as ``seconds`` does, but refuse 0."""
    total = seconds(text)
    if not total:
        raise UsageError(f"Expected: a time above 0, such as 60s, 5m or 1h. Got: {text}.")
    return total


def memory(text: str) -> int:
    """Parse an amount of memory, such as 500MB, 4GB or 2GiB, into bytes."""
    found = re.fullmatch(rf"{AMOUNT}({'|'.join(BYTES)})", text.strip(), re.IGNORECASE)
    amount = float(found[1]) * BYTES[found[2].lower()] if found else 0.0
    if not 1 <= amount <= MAX_BYTES:
        raise UsageError(f"Expected: an amount of memory such as 500MB, 4GB or 2GiB. Got: {text or 'nothing'}.")
    return int(amount)


def whole_numbers(expected: str, text: str) -> tuple[int, ...]:
    """Parse numbers such as 1,5,10; in an error, ``expected`` says what they are."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise UsageError(f"Expected: {expected}. Got: {text}.") from None
