"""Lines, tables and progress on stderr, as text for people or as JSON, and how values are written in them."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import unquote

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featurestore.errors import UsageError
from pipelines import signals

ROWS_SHOWN = 12  # of a list that may be long
LINE_SECONDS = 10  # between progress lines if stderr is not a terminal


_console = Console(stderr=True, highlight=False, soft_wrap=True)
if not _console.is_terminal:
    _console.width = 200  # lines of a log should not be wrapped


def log_as(form: str) -> None:
    """Write all that follows on stderr as "text", or as "json": one object per line.

    Each object has ``time`` (ISO 8601, UTC), ``level`` (info, warning or error), and ``message``, a table's ``row``, or
    a progress ``what``, ``done`` and ``total``. So do warnings of the logger ``penult`` and the last line of an error.

    Raises:
        UsageError: no such form.
    """
    global _log
    if form not in LOGS:
        raise UsageError(f"Expected: --log-format {' or '.join(LOGS)}. Got: {form!r}.")
    _log.end()
    _log = LOGS[form]
    _log.begin()


def say(text: str) -> None:
    """Print one plain line."""
    _log.line(text)


def bar(what: str) -> AbstractContextManager[Report]:
    """Yield a callback (done, total) that shows progress: as a bar on a terminal, else as a line every 10 seconds."""
    return _log.bar(what)


def table(rows: Sequence[Mapping[str, Any]], limit: int | None = None) -> None:
    """Print rows with the same keys as a table."""
    if not rows:
        return
    _log.rows(rows[:limit])
    if limit and len(rows) > limit:
        say(f"… and {len(rows) - limit} more")


class Report(Protocol):
    """Shows progress."""

    def __call__(self, done: int, total: int, workers: int = 0) -> None:
        """Show what is done of what is to do, and how many workers of a cluster are at it, if there are any."""


class Log(Protocol):
    """One way to write on stderr."""

    def begin(self) -> None:
        """Set up what else writes on stderr."""

    def end(self) -> None:
        """Undo what ``begin`` did."""

    def line(self, text: str) -> None:
        """Write one line."""

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write at least one row, all with the same keys."""

    def bar(self, what: str) -> AbstractContextManager[Report]:
        """Yield what shows progress."""


class TextLog:
    """For people: plain lines, aligned tables, and bars where there is a terminal."""

    def begin(self) -> None:
        """Nothing to do: the logger and the last line are text."""

    end = begin

    def line(self, text: str) -> None:
        """Write a line as it is, without colours or markup."""
        _console.print(escape(text))

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a table; numbers stand at the right."""
        grid = Table(box=None, pad_edge=False, header_style="bold")
        for name, value in rows[0].items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            grid.add_column(name.replace("_", " "), justify="right" if number else "left", overflow="fold")
        for row in rows:
            grid.add_row(*(escape(_text(value)) for value in row.values()))
        _console.print(grid)

    @contextmanager
    def bar(self, what: str) -> Iterator[Report]:
        """Show a bar on a terminal, else write lines now and then."""
        if not _console.is_terminal:
            yield _now_and_then(
                lambda done, total, rate, workers: self.line(
                    f"{what}: {done:,} of {total:,}, {rate:.1f} per second{_by(workers)}"
                )
            )
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        pace = TextColumn("{task.fields[pace]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), pace, TimeRemainingColumn())
        with Progress(*columns, console=_console, transient=True) as progress:
            task, began = progress.add_task(what, total=None, pace=""), time.monotonic()

            def report(done: int, total: int, workers: int = 0) -> None:
                rate = done / max(time.monotonic() - began, 1e-9)
                progress.update(task, completed=done, total=total, pace=f"{rate:.0f} per second{_by(workers)}")

            yield report


class JsonLog(logging.Handler):
    """For programs: one object per line, in ASCII whatever the locale; also handles the records of a logger."""

    def begin(self) -> None:
        """Take over the logger and the last line of an error."""
        LOGGER.addHandler(self)
        LOGGER.propagate = False
        signals.farewell = lambda text: _json("error", message=text)

    def end(self) -> None:
        """Give them back."""
        LOGGER.removeHandler(self)
        LOGGER.propagate = True
        signals.farewell = signals.TEXT

    def emit(self, record: logging.LogRecord) -> None:
        """Write what a logger was told."""
        _write(_json(record.levelname.lower(), message=record.getMessage()))

    def line(self, text: str) -> None:
        """Write a message."""
        _write(_json("info", message=text))

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write an object per row."""
        for row in rows:
            _write(_json("info", row=dict(row)))

    @contextmanager
    def bar(self, what: str) -> Iterator[Report]:
        """Write an object now and then, on a terminal too."""

        def write(done: int, total: int, _rate: float, workers: int) -> None:
            _write(_json("info", what=what, done=done, total=total, **({"workers": workers} if workers else {})))

        yield _now_and_then(write)


LOGGER = logging.getLogger("penult")
LOGS: dict[str, Log] = {"text": TextLog(), "json": JsonLog()}
_log = LOGS["text"]


def place(source: str | None) -> str:
    """Return a source's URI in the form that people use: a plain path for a ``file://`` URI."""
    return "unknown origin" if source is None else unquote(source.removeprefix("file://"), errors="backslashreplace")


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return _short(value)
    if isinstance(value, list | tuple):
        return "×".join(map(str, value))
    return "" if value is None else str(value)


def _short(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in parameters.items()) or "no parameters"


def _now_and_then(report: Callable[[int, int, float, int], None]) -> Report:
    """Return what reports every 10 seconds, with how many were done per second."""
    began = last = time.monotonic()

    def progress(done: int, total: int, workers: int = 0) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            report(done, total, done / (now - began), workers)

    return progress


def _by(workers: int) -> str:
    return f", {workers:,} worker{'s' if workers > 1 else ''}" if workers else ""


def _json(level: str, **told: Any) -> str:
    whole = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, **told}
    text = json.dumps(whole, default=str, skipkeys=True)
    return json.dumps(json.loads(text, parse_constant=lambda _: None))  # NaN is null: JSON has no such number


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # at once, as other threads write too
    sys.stderr.flush()
