"""List a manifest: a CSV, TSV or Parquet file that names the images, one per row; and write one."""

# ruff: noqa: PTH100, PTH118, PTH119, PTH120, PTH122

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, NamedTuple
from urllib.parse import quote

from featurestore.errors import SourceError
from featurestore.storage.base import storage_of
from featurestore.storage.files import make_folder, replacing
from pipelines.concurrency import batched
from pipelines.sources import places
from pipelines.sources.base import Entry, SourceKind
from pipelines.sources.columns import find_columns, names_pictures, texts_of
from pipelines.sources.listing import Listing, has_image_name, split_of
from pipelines.sources.missing_files import why_missing
from pipelines.sources.rows import ending_of
from pipelines.sources.tables import image_column_of, list_tables
from pipelines.sources.uris import local_path, mode_of, path_of, uri_of

MAX_LINE = 2**20  # characters
EXAMPLES = 20
ROWS_AT_ONCE = 512  # that are located together
OTHER_FILES = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK\x03\x04": "a zip or Excel file"}
SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
_NOT_UTF_8 = re.compile("[\udc80-\udcff]")

_Row = dict[str, str | None]


class Values(NamedTuple):
    """What a row says of its image."""

    label: str | None
    split: str | None
    group: str | None


class Manifest(SourceKind):
    """A file that names the images, one in each row."""

    name = "manifest"
    looked_for = "at least one row"
    endings = (".csv", ".tsv", ".parquet")
    is_label_file = True

    def owns(self, location: str) -> bool:
        """Return whether it ends as a manifest does, and is there."""
        return location.lower().endswith(self.endings) and (places.is_uri(location) or mode_of(location) != 0)

    def entries(self, listing: Listing) -> Iterator[Entry]:
        """Yield the image of each row, which may hold the image itself."""
        table = places.uri_of(listing.location) if ending_of(listing.location) else None
        if table is not None and image_column_of(table, listing) is not None:
            return list_tables([table], listing)
        return list_manifest(listing)


def list_manifest(listing: Listing) -> Iterator[Entry]:
    """Yield the image of each row, each image once; a cell of blanks counts as empty.

    Raises:
        SourceError: the file or a row of it is wrong, or two rows disagree about one image.
    """
    here = listing.location
    folder = os.path.dirname(places.source_uri(here) if places.is_uri(here) else os.path.abspath(here))
    seen: dict[bytes, Values] = {}
    shared: dict[Values, Values] = {}  # rows with equal values share a tuple
    missing: list[tuple[str, str]] = []  # (as written, as a path), kept until a file is found
    found_one = False
    for (place, text, uri, values), found in _located(_named(listing, folder)):
        values = shared.setdefault(values, values)
        digest = hashlib.blake2b(uri.encode(), digest_size=16).digest()
        if (before := seen.get(digest)) is not None:
            for name, old, new in zip(Values._fields, before, values, strict=True):
                if old != new:
                    raise SourceError(f"{place}: {uri} has {name} {new!r} here and {old!r} in a row above.")
            continue
        seen[digest] = values
        if found.size >= 0:
            found_one = True
        elif not found_one and len(missing) < EXAMPLES and uri.startswith("file:"):
            missing.append((text, path_of(uri)))
        yield Entry(uri, found.size, found.mtime_ns, found.offset, *values)
    if missing and not found_one:
        cause = why_missing(missing, folder)
        listing.problems.append(f"None of the {len(seen):,} files that {listing.location} names is there: {cause}.")


def write_manifest(path: PurePath, uris: Sequence[str]) -> str:
    """Write a manifest of some images without labels, on a disk or in a bucket; return where it is, as a source."""
    import pyarrow as pa
    from pyarrow import parquet

    make_folder(path.parent)
    with replacing(path) as temporary:
        parquet.write_table(pa.table({"uri": pa.array(uris, pa.string())}), temporary)
    return storage_of(path).uri(path)


class _Named(NamedTuple):
    place: str  # of the row, in words
    text: str
    uri: str
    values: Values


def _named(listing: Listing, folder: str) -> Iterator[_Named]:
    """Yield the image that each row names."""
    for place, row in manifest_rows(listing):
        text = row.get("path") or row.get("uri") or ""
        yield _Named(place, text, picture_uri(text, folder, place), values_of(row, place))


def _located(rows: Iterator[_Named]) -> Iterator[tuple[_Named, Entry]]:
    """Yield the rows with what is there."""
    for batch in batched(rows, ROWS_AT_ONCE):
        yield from zip(batch, places.locate_all([row.uri for row in batch]), strict=True)


def values_of(row: dict[str, str | None], place: str) -> Values:
    """Return what a row says of its image.

    Raises:
        SourceError: its split is no split's name.
    """
    return Values(_cell(row, "label"), split_of(_cell(row, "split"), place), _cell(row, "group"))


def _cell(row: _Row, role: str) -> str | None:
    text = row.get(role)
    return text if text and not text.isspace() else None


def picture_uri(text: str, folder: str, place: str) -> str:
    """Return the URI of the image that a cell names, as a path from a folder (a path or a URI) on, or as a URI.

    Raises:
        SourceError: it names none; ``place`` says where it stands.
    """
    if not text or text.isspace():
        raise SourceError(f"{place}: the path is empty.")
    if "://" in text:
        if places.is_uri(text):
            return _canonical(text, place)
        if places.is_foreign(text):
            raise SourceError(f"{place}: Expected: a path, or a URI that begins with {places.schemes()}. Got: {text}.")
    if text.startswith("~") and "/" in text:
        text = local_path(text)
    if places.is_uri(folder) and not text.startswith("/"):
        root, mark, key = folder.partition("://")
        return _canonical(f"{root}{mark}{os.path.normpath(f'{key}/{quote(text)}')}", place)
    return uri_of(os.path.join(folder, text))


def _canonical(uri: str, place: str) -> str:
    try:
        return places.canonical(uri)
    except SourceError as error:
        raise SourceError(f"{place}: {error}") from error


# --- rows: their place in words, and their cells by role


def manifest_rows(listing: Listing) -> Iterator[tuple[str, _Row]]:
    """Yield each row: where it is, in words, and its cells by role.

    Raises:
        SourceError: the file or a row of it is wrong.
    """
    read = _READERS.get(os.path.splitext(listing.location)[1].lower(), _text_rows)
    try:
        yield from read(listing)
    except OSError as error:
        raise SourceError(f"The manifest {listing.location} cannot be read: {error}.") from error


def _parquet_rows(listing: Listing) -> Iterator[tuple[str, _Row]]:
    from pyarrow import parquet

    def batches(columns: list[str]) -> Iterator[Any]:
        yield from file.iter_batches(10_000, columns=columns)

    with _told(listing), places.open_file(listing.location) as raw, parquet.ParquetFile(raw) as file:
        yield from _batch_rows(listing, file.schema_arrow, batches)


def _json_rows(listing: Listing) -> Iterator[tuple[str, _Row]]:
    """Yield the rows of a file with a JSON object in each line."""
    import pyarrow as pa
    from pyarrow import json, types

    with _told(listing):
        with places.open_file(listing.location) as raw, json.open_json(raw) as reader:
            guessed = reader.schema
        # A text that looks like a time stays a text, and what is null at first may be a text later.
        kinds = [pa.string() if types.is_temporal(f.type) or types.is_null(f.type) else f.type for f in guessed]
        options = json.ParseOptions(explicit_schema=pa.schema(zip(guessed.names, kinds, strict=True)))
        with places.open_file(listing.location) as raw, json.open_json(raw, parse_options=options) as reader:
            yield from _batch_rows(listing, reader.schema, lambda _: reader)


def _batch_rows(
    listing: Listing, schema: Any, batches: Callable[[list[str]], Iterable[Any]]
) -> Iterator[tuple[str, _Row]]:
    """Yield the rows of Arrow batches, which ``batches`` yields with at least the columns that it is given."""
    columns, done = find_columns(schema.names, listing, schema.types), 0
    for batch in batches(list(columns.values())):
        texts = [texts_of(batch.column(name)) for name in columns.values()]
        for number, cells in enumerate(zip(*texts, strict=True), start=done + 1):
            yield f"{listing.location}, row {number}", dict(zip(columns, cells, strict=True))
        done += batch.num_rows


@contextmanager
def _told(listing: Listing) -> Iterator[None]:
    """Tell what pyarrow finds wrong of a manifest."""
    import pyarrow as pa

    try:
        yield
    except (ValueError, pa.ArrowException) as error:  # ValueError: a column's name that is not UTF-8
        raise SourceError(f"The manifest {listing.location} cannot be read: {error}.") from error


def _text_rows(listing: Listing) -> Iterator[tuple[str, _Row]]:
    """Yield the rows of a CSV or TSV file; raise SourceError if a misplaced quote would merge rows.

    Quotes are read strictly, as in RFC 4180: a quote that is never closed would swallow the rows up to the next quote.
    """
    location = listing.location
    delimiter = "\t" if location.lower().endswith(".tsv") else ","
    with places.open_file(location) as raw:
        start = raw.read(4)
    if other := next((name for magic, name in OTHER_FILES.items() if start.startswith(magic)), None):
        raise SourceError(f"{location} is {other}. Expected: text in UTF-8 (in a spreadsheet: save as CSV UTF-8).")
    with places.open_file(location) as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(_lines(file, location), delimiter=delimiter, strict=True)
        records = _records(reader, location)
        line, header = next(records, (0, []))
        if not header:
            raise SourceError(f"The manifest {location} cannot be read: it is empty.")
        _check_header(header, f"{location}, {_lines_from(line, reader)}", delimiter)
        columns = find_columns(header, listing)
        at = [header.index(name) for name in columns.values()]
        for number, (line, record) in enumerate(records, start=1):
            place = f"{location}, {_lines_from(line, reader)}, row {number}"
            if reader.line_num > line:
                _check_line_breaks(record, dict(zip(at, columns, strict=True)), place, delimiter)
            if len(record) != len(header):
                kind = "tab" if delimiter == "\t" else "comma"
                raise SourceError(
                    f"{place}: Expected: {len(header)} fields, as in the header. Got: {len(record)}. "
                    f"A field that holds a {kind} must stand in quotes."
                )
            yield place, dict(zip(columns, [record[i] for i in at], strict=True))


def _lines(file: io.TextIOWrapper, location: str) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), ""), start=1):
        if "\0" in line:
            raise SourceError(f"{location}, line {number}: it holds a NUL byte. Expected: text in UTF-8.")
        if not line.isascii() and _NOT_UTF_8.search(line):
            raise SourceError(f"{location}, line {number}: it is not UTF-8 (Latin-1?). Save the file as UTF-8.")
        if len(line) == MAX_LINE:
            raise SourceError(f"{location}, line {number}: it is longer than {MAX_LINE:,} characters.")
        yield line


def _records(reader: Any, location: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank, with the line on which it begins; ``reader.line_num`` is where it ends."""
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            detail = str(error).replace("\t", "tab")
            raise SourceError(
                f'{location}, {_lines_from(line, reader)}: a quote (") opens a field that is not closed right '
                f"({detail}): close it, double it, or take it out."
            ) from error
        if record is None:
            return
        if any(map(str.strip, record)):
            yield line, record


def _lines_from(line: int, reader: Any) -> str:
    return f"line {line}" if reader.line_num <= line else f"lines {line} to {reader.line_num}"


def _check_header(header: list[str], place: str, delimiter: str) -> None:
    if any("\n" in name or "\r" in name for name in header):
        raise SourceError(f"{place}: a column's name holds a line break: a quote (\") in the header is not closed.")
    line = delimiter.join(header)
    for other, name in SEPARATORS.items():
        if not names_pictures(header) and names_pictures(line.split(other)):
            raise SourceError(
                f"{place}: the columns are separated by {name}. Expected: commas in a .csv file, tabs in a .tsv file."
            )


def _check_line_breaks(record: list[str], taken: dict[int, str], place: str, delimiter: str) -> None:
    """Refuse a field of several lines, unless it is the text of a column that is not read, such as a caption."""
    for i, field in enumerate(record):
        rest = field.splitlines()[1:]
        if i in taken and rest:
            held = f"the {taken[i]} holds a line break"
        elif row := next((line for line in rest if _looks_like_a_row(line, record, taken, delimiter)), ""):
            held = f"field {i + 1} holds what looks like a row, {row[:100]!r}"
        else:
            continue
        raise SourceError(f'{place}: {held}: the quote (") that opens the field is never closed, or closed too late.')


def _looks_like_a_row(line: str, record: list[str], taken: dict[int, str], delimiter: str) -> bool:
    """Return whether a line within a field has an image's name in the column in which this row has one."""
    cells = line.split(delimiter)
    for i, role in taken.items():
        if role in ("path", "uri") and i < len(record) and has_image_name(os.path.basename(record[i])):
            return i < len(cells) and has_image_name(os.path.basename(cells[i].strip(' "')))
    return len(cells) == len(record)


_READERS = {".parquet": _parquet_rows, ".jsonl": _json_rows}  # all others are text
