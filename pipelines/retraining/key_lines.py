"""The lines of a TOML file on which its tables and keys stand, which tomllib does not tell."""

from __future__ import annotations

import tomllib
from typing import Any

MAX_LINES = 500  # of one statement: each is read once per line that it has

Lines = dict[tuple[str, ...], int | None]


def key_lines(text: str) -> Lines:
    """Return the first line, from 1 on, of each table and key of valid TOML, by its path such as ("embed", "layer").

    The text is cut into statements, the shortest runs of lines that are TOML by themselves. A key has the line on which
    its statement begins. It has None where that may be wrong: a later key of an inline table that takes several lines.
    What comes after a statement of more than ``MAX_LINES`` lines is left out.
    """
    found: Lines = {}
    lines = text.replace("\r\n", "\n").split("\n")
    table: tuple[str, ...] = ()
    start = 0
    while start < len(lines) and (statement := _statement(lines, start)):
        told, end = statement
        if lines[start].lstrip(" \t").startswith("["):
            table = _record(found, told, (), start + 1, whole=True)
        else:
            _record(found, told, table, start + 1, whole=end == start + 1)
        start = end
    return found


def _statement(lines: list[str], start: int) -> tuple[dict[str, Any], int] | None:
    """Return what the statement that begins on a line says, and the line after its last; None if it is too long."""
    for end in range(start + 1, min(start + MAX_LINES, len(lines)) + 1):
        try:
            return tomllib.loads("\n".join(lines[start:end])), end
        except (ValueError, RecursionError):
            continue
    return None


def _record(found: Lines, told: Any, at: tuple[str, ...], line: int | None, whole: bool) -> tuple[str, ...]:
    """Note the lines of a statement's keys, and return the path of the first; ``whole``: it has no other line."""
    path = at
    for number, (key, value) in enumerate(told.items()):
        own = line if whole or number == 0 else None
        found.setdefault((*at, key), own)
        deepest = _record(found, value, (*at, key), own, whole) if isinstance(value, dict) else (*at, key)
        path = path if number else deepest
    return path
