"""Lines, tables and progress on stderr, and how values are written in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROWS_SHOWN = 12  # of a list that may be long
LINE_SECONDS = 10  # between progress lines if stderr is not a terminal

_console = Console(stderr=True, highlight=False, soft_wrap=True)
if not _console.is_terminal:
    _console.width = 200  # lines of a log should not be wrapped


def say(text: str) -> None:
    """Print one plain line."""
    _console.print(escape(text))


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) that shows progress: as a bar on a terminal, else as a line every 10 seconds."""
    if _console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=_console, transient=True) as progress:
            task = progress.add_task(what, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
        return
    began = last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            say(f"{what}: {done:,} of {total:,}, {done / (now - began):.1f} per second")

    yield line


def table(rows: Sequence[Mapping[str, Any]], limit: int | None = None) -> None:
    """Print rows with the same keys as a table."""
    if not rows:
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name, value in rows[0].items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        grid.add_column(name.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows[:limit]:
        grid.add_row(*(escape(_text(value)) for value in row.values()))
    _console.print(grid)
    if limit and len(rows) > limit:
        say(f"… and {len(rows) - limit} more")


def place(source: str | None) -> str:
    """Return a source's URI in the form that people use: a plain path for a ``file://`` URI."""
    return "unknown origin" if source is None else unquote(source.removeprefix("file://"), errors="backslashreplace")


def size_of(size: float) -> str:
    """Return a number of bytes in words, such as "1.5 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return _short(value)
    if isinstance(value, list | tuple):
        return "×".join(map(str, value))
    return "" if value is None else str(value)


def _short(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in parameters.items()) or "no parameters"
