"""The logical date in a recipe's texts: {date}, or {date:FORMAT} as in {date:%Y/%m/%d}; other braces stay."""

from __future__ import annotations

import re
from datetime import date

from featurestore.errors import UsageError

CODES = "aAbBdGjmuUVwWyY"  # of strftime, those that say something about a date
_PLACEHOLDER = re.compile(r"\{date(?::([^{}]*))?\}")
_FORMAT = re.compile(rf"(?:[^%\0]|%[{CODES}%])*")


def checked(text: str) -> str:
    """Return a text as it is.

    Raises:
        UsageError: a {date:FORMAT} in it says nothing about a date, or does not end.
    """
    for found in re.finditer(r"\{date:([^{}]*\}?)", text):
        form = found[1].removesuffix("}")
        if form == found[1] or not _FORMAT.fullmatch(form) or not re.search(f"%[{CODES}]", form.replace("%%", "")):
            raise UsageError(
                "Expected: {date} or {date:FORMAT} with codes of strftime for a date, such as {date:%Y/%m/%d}. "
                f"Got: {found[0]!r}."
            )
    return text


def with_date(text: str, day: date) -> str:
    """Return a text that ``checked`` lets pass with the date in place of {date} and {date:FORMAT}."""
    return _PLACEHOLDER.sub(lambda found: day.isoformat() if found[1] is None else day.strftime(found[1]), text)
