"""What a file beside the images of a folder says of them, as in Hugging Face's ImageFolder.

It is called ``metadata.csv``, ``metadata.jsonl`` or ``metadata.parquet``, has a column ``file_name`` with paths that
begin in its folder, and speaks for the images of that folder and of those below that have no such file themselves.
"""

# ruff: noqa: PTH118, PTH120, PTH123

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace

from featurestore.errors import SourceError
from pipelines.sources.base import Entry
from pipelines.sources.listing import Listing
from pipelines.sources.manifests import MAX_LINE, Values, manifest_rows, values_of
from pipelines.sources.uris import path_of, uri_of

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"


def has_metadata(folder: str) -> bool:
    """Return whether there is such a file in a folder."""
    return _file_in(folder) is not None


def with_metadata(entries: Iterator[Entry], listing: Listing) -> Iterator[Entry]:
    """Yield the entries of a folder with what such files say: their labels, splits and groups win.

    Raises:
        SourceError: such a file is wrong, as a manifest may be.
    """
    root = uri_of(listing.location)
    found: dict[str, _Metadata | None] = {}  # by the URI of a folder

    def of(folder: str) -> _Metadata | None:
        if folder not in found:
            if (file := _file_in(path_of(folder + "/"))) is not None:
                found[folder] = _Metadata(file, listing)
            else:
                found[folder] = of(folder.rpartition("/")[0]) if len(folder) > len(root) else None
        return found[folder]

    for entry in entries:
        metadata = of(entry.uri.rpartition("/")[0])
        yield entry if metadata is None else metadata.put_into(entry)
    for metadata in dict.fromkeys(found.values()):
        if metadata is not None:
            metadata.tell(listing)


class _Metadata:
    """The rows of one such file, each of which is given to its image once."""

    def __init__(self, file: str, listing: Listing) -> None:
        self._file, self._without = file, 0
        self._rows: dict[bytes, Values] = {}
        own = Listing(file, "manifest", replace(listing.hints, image_column=FILE_NAME))
        shared: dict[Values, Values] = {}
        for place, row in manifest_rows(own):
            if not row["path"]:
                raise SourceError(f"{place}: the {FILE_NAME} is empty.")
            key = _key(uri_of(os.path.join(os.path.dirname(file), row["path"])))
            values = values_of(row, place)
            if self._rows.setdefault(key, shared.setdefault(values, values)) != values:
                raise SourceError(f"{place}: {row['path']!r} has other values here than in a row above.")
        self._gives_labels = "label" in own.columns
        listing.columns.update(own.columns)
        for note in own.notes:
            listing.notes.append(note)

    def put_into(self, entry: Entry) -> Entry:
        values = self._rows.pop(_key(entry.uri), None)
        if values is None:
            self._without += 1
            return entry
        label = values.label if self._gives_labels else entry.label
        return entry._replace(label=label, split=values.split or entry.split, group=values.group or entry.group)

    def tell(self, listing: Listing) -> None:
        if self._without:
            listing.notes.append(f"{self._without:,} images stand in no row of {self._file}.")
        if self._rows:
            listing.notes.append(f"{len(self._rows):,} rows of {self._file} name no image that is there.")


def _key(uri: str) -> bytes:
    return hashlib.blake2b(uri.encode(), digest_size=16).digest()


def _file_in(folder: str) -> str | None:
    files = (os.path.join(folder, name) for name in NAMES)
    return next((file for file in files if FILE_NAME in _columns(file)), None)


def _columns(file: str) -> list[str]:
    """Return the names of a file's columns; none if it is not there, or not as it is called."""
    if file.endswith(".parquet"):
        return _parquet_columns(file)
    try:
        with open(file, encoding="utf-8-sig") as opened:
            line = opened.readline(MAX_LINE)
        names = json.loads(line) if file.endswith(".jsonl") else next(csv.reader([line]), [])
    except (OSError, ValueError, RecursionError, csv.Error):
        return []
    return list(names) if isinstance(names, dict | list) else []


def _parquet_columns(file: str) -> list[str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return list(parquet.read_schema(file).names)
    except (OSError, ValueError, pa.ArrowException):
        return []
