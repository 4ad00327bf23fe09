"""Images in the rows of a table: their URIs, and the tables that are open for reading them.

Such an image is named by the URI of its table, ``#``, the percent-encoded name of the column that holds its bytes,
``/``, and the number of its row, counted from 0: ``file:///data/train.parquet#image/123``. What follows ``#`` is told
from the name of a tar's member by the table's ending.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, unquote

import pyarrow as pa

from featurestore.errors import ImageError
from pipelines.sources.arrow_files import ArrowRows
from pipelines.sources.base import Entry, Place
from pipelines.sources.parquet_files import ParquetRows
from pipelines.sources.table_columns import holds_images
from pipelines.sources.uris import MAX_FILE_BYTES, path_of

MAX_OPEN = 4  # tables that are kept open
SECONDS_BETWEEN_CHECKS = 1.0  # of whether an open table is still the one that is there
DAMAGE = (OSError, ValueError, pa.ArrowException)  # ValueError: a name that is not UTF-8
_ROW = re.compile(r"(.+)/(0|[1-9][0-9]{0,17})", re.DOTALL)


class Rows(Protocol):
    """An open table.

    Attributes:
        schema: of all its columns, with the metadata.
        count: how many rows it has.
        token: its change token, see ``Place``.
    """

    schema: pa.Schema
    count: int
    token: tuple[int, int]

    def cells(self, columns: Sequence[str]) -> Iterator[list[Any]]:
        """Yield the Arrow arrays of these columns, batch by batch."""
        ...

    def image(self, column: str, row: int) -> bytes | None:
        """Return the bytes in a column of binaries or of structs with the field ``bytes``; None where they are null.

        Raises:
            ImageError, OSError, ValueError, pa.ArrowException: the cell is too large, or the table is damaged.
        """
        ...


class _Kind(NamedTuple):
    """One kind of table: how it is opened, and its change token without opening it, (-1, 0) if there is none."""

    open: Callable[[str, Place], Rows]
    token: Callable[[str, Place], tuple[int, int]]


def _file_token(uri: str, place: Place) -> tuple[int, int]:
    found = place.locate(uri)
    return found.size, found.mtime_ns


def _open_lance(uri: str, _: Place) -> Rows:
    from featurestore.storage.foreign import ForeignTable

    return ForeignTable(Path(path_of(uri)))


def _lance_token(uri: str, _: Place) -> tuple[int, int]:
    from featurestore.storage.foreign import token_of

    return token_of(Path(path_of(uri)))


_PARQUET = _Kind(lambda uri, place: ParquetRows(place.open(uri)), _file_token)
_ARROW = _Kind(lambda uri, place: ArrowRows(place.open(uri)), _file_token)
_LANCE = _Kind(_open_lance, _lance_token)
_KINDS = {".parquet": _PARQUET, ".arrow": _ARROW, ".feather": _ARROW, ".lance": _LANCE}  # by ending
FOLDERS = (".lance",)  # endings of those that are folders


def ending_of(location: str) -> str | None:
    """Return the ending by which a file or folder is known as a table, in lower case; None if it is none."""
    lower = location.lower().rstrip("/")
    return next((ending for ending in _KINDS if lower.endswith(ending)), None)


def open_table(uri: str, place: Place) -> Rows:
    """Open a table.

    Raises:
        OSError, ValueError, pa.ArrowException: there is none, or it is damaged.
    """
    return _kind(uri).open(uri, place)


def token_of(uri: str, place: Place) -> tuple[int, int]:
    """Return the change token of a table, (-1, 0) if there is none."""
    return _kind(uri).token(uri, place)


def _kind(uri: str) -> _Kind:
    return _KINDS[ending_of(uri) or ""]


def holds(uri: str) -> bool:
    """Return whether a URI is of a row of a table."""
    table, mark, _ = uri.partition("#")
    return bool(mark) and ending_of(table) is not None


def row_uris(table: str, column: str) -> str:
    """Return what the URIs of a table's rows begin with; the number of the row is the rest."""
    return f"{table}#{quote(column)}/"


def locate(uri: str, place: Place) -> Entry:
    """Return the unlabelled entry of a row: its offset is the row's number, its size and mtime_ns are the table's."""
    try:
        table, column, row = _parts(uri)
        rows = _opened(table, place)
        if _has(rows, column, row):
            return Entry(uri, *rows.token, row)
    except (ImageError, *DAMAGE):
        pass
    return Entry(uri, -1, 0)


def read(uri: str, place: Place) -> tuple[bytes, int, int]:
    """Read the image of a row.

    Returns:
        data, and the change token of the table.

    Raises:
        ImageError: "vanished", "empty", "unreadable" or "too_large".
    """
    table, column, row = _parts(uri)
    try:
        rows = _opened(table, place)
        if not _has(rows, column, row):
            raise ImageError("vanished", f"{table} has no row {row} with image bytes in a column {column!r} any more.")
        data = rows.image(column, row)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("vanished", f"Cannot read {table}: {error}.") from error
    except MemoryError as error:
        raise ImageError("too_large", f"There is not enough memory to read row {row} of {table}.") from error
    except DAMAGE as error:
        raise ImageError("unreadable", f"Cannot read row {row} of {table}: {error}.") from error
    if data is None:
        raise ImageError("empty", f"Row {row} of {table} has nothing in the column {column!r}.")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError("too_large", f"{len(data):,} bytes are more than the limit of {MAX_FILE_BYTES:,}.")
    return data, *rows.token


def _parts(uri: str) -> tuple[str, str, int]:
    table, _, rest = uri.partition("#")
    if (found := _ROW.fullmatch(unquote(rest))) is None:
        raise ImageError("vanished", f"Expected: a row such as {table}#image/123. Got: {uri}.")
    return table, found[1], int(found[2])


def _has(rows: Rows, column: str, row: int) -> bool:
    return row < rows.count and rows.schema.names.count(column) == 1 and holds_images(rows.schema.field(column).type)


# --- tables that are kept open


@dataclass
class _Open:
    rows: Rows
    checked: float  # as time.monotonic


_OPEN: OrderedDict[str, _Open] = OrderedDict()  # the one read last is at the end
_LOCK = threading.Lock()
_OPENING = tuple(threading.Lock() for _ in range(16))  # a table is opened once, and several side by side


def forget(table: str) -> None:
    """Read a table anew from its place the next time."""
    with _LOCK:
        _OPEN.pop(table, None)


def _opened(table: str, place: Place) -> Rows:
    """Return an open table, which is opened again if it has changed; it closes when nobody reads it any more."""
    with _OPENING[hash(table) % len(_OPENING)]:
        with _LOCK:
            found, now = _OPEN.get(table), time.monotonic()
        if found is not None and now - found.checked > SECONDS_BETWEEN_CHECKS:
            token, found.checked = token_of(table, place), now
            found = found if token == found.rows.token else None
        if found is None:
            found = _Open(open_table(table, place), now)
        with _LOCK:
            _OPEN[table] = found
            _OPEN.move_to_end(table)
            if len(_OPEN) > MAX_OPEN:
                _OPEN.popitem(last=False)
        return found.rows
