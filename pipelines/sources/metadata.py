"""What a file beside the images of a folder says of them, as in Hugging Face's ImageFolder.

It is called ``metadata.csv``, ``metadata.jsonl`` or ``metadata.parquet``, has a column ``file_name`` with paths that
begin in its folder, and speaks for the images of that folder and of those below that have no such file themselves.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace

from featurestore.errors import SourceError
from pipelines.sources import places
from pipelines.sources.base import Entry
from pipelines.sources.listing import Listing
from pipelines.sources.manifests import MAX_LINE, Values, manifest_rows, picture_uri, values_of

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"


def metadata_in(folder: str) -> str | None:
    """Return such a file in a folder, given as a path or a URI; None if there is none."""
    files = [f"{folder.rstrip('/')}/{name}" for name in NAMES]
    if places.is_uri(folder):  # far away, one look at all three saves time
        files = [entry.uri for entry in places.locate_all(files) if entry.size >= 0]
    return next((file for file in files if FILE_NAME in _columns(file)), None)


def with_metadata(
    entries: Iterator[Entry], listing: Listing, root: str, file_in: Callable[[str], str | None]
) -> Iterator[Entry]:
    """Yield the entries of a folder with what such files say: their labels, splits and groups win.

    Args:
        entries: those of the folder, without metadata.
        listing: of the folder.
        root: the folder's URI.
        file_in: returns the metadata file in a folder, given as a URI, or None.

    Raises:
        SourceError: such a file is wrong, as a manifest may be.
    """
    found: dict[str, _Metadata | None] = {}  # by the URI of a folder

    def of(folder: str) -> _Metadata | None:
        if folder not in found:
            if (file := file_in(folder)) is not None:
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
        folder = file.rpartition("/")[0]
        own = Listing(file, "manifest", replace(listing.hints, image_column=FILE_NAME))
        shared: dict[Values, Values] = {}
        for place, row in manifest_rows(own):
            if not row["path"]:
                raise SourceError(f"{place}: the {FILE_NAME} is empty.")
            key = _key(picture_uri(row["path"], folder, place))
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


def _columns(file: str) -> list[str]:
    """Return the names of a file's columns; none if it is not there, or not as it is called."""
    if file.endswith(".parquet"):
        return _parquet_columns(file)
    try:
        with places.open_file(file) as raw:
            line = raw.readline(MAX_LINE).decode("utf-8-sig")
        names = json.loads(line) if file.endswith(".jsonl") else next(csv.reader([line]), [])
    except (OSError, ValueError, RecursionError, csv.Error):
        return []
    return list(names) if isinstance(names, dict | list) else []


def _parquet_columns(file: str) -> list[str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with places.open_file(file) as raw:
            return list(parquet.read_schema(raw).names)
    except (OSError, ValueError, pa.ArrowException):
        return []
