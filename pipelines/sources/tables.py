"""List tables: Parquet and Arrow files with the bytes of an image in each row."""

# ruff: noqa: PTH100, PTH118

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from itertools import islice
from typing import Any
from urllib.parse import quote

from pyarrow import types

from featurestore.errors import ImageError, SourceError
from pipelines.sources import places
from pipelines.sources.base import Entry, SourceKind
from pipelines.sources.columns import texts_of
from pipelines.sources.listing import SPLITS, Listing, has_image_name, is_aside, split_of
from pipelines.sources.objects import GLANCE, bucket_of
from pipelines.sources.rows import DAMAGE, FOLDERS, Rows, ending_of, row_uris
from pipelines.sources.table_columns import class_names, find_table_columns, image_columns, listed_types
from pipelines.sources.uris import mode_of, path_of, printable, uri_of
from pipelines.sources.webdataset import expand_braces

MAX_PEEKED = 50  # folders in which tables are looked for, before a folder is taken for one of images
MAX_TRIED = 3  # tables there, of which one must hold images
MAX_NAME_BYTES = 4096
_WORD = re.compile("[A-Za-z]+")


class Tables(SourceKind):
    """Tables with image bytes: one Arrow file or Lance table, a pattern with braces for many, or a folder of tables.

    A single Parquet file is a manifest's, which may name the images instead.
    """

    name = "table"
    looked_for = "rows with the bytes of images"
    endings = (".arrow", ".feather", ".lance")

    def owns(self, location: str) -> bool:
        """Return whether it is called as tables are, or a folder of tables with images."""
        if ending_of(location) is None:
            return stat.S_ISDIR(mode_of(location)) and _is_folder_of_tables(location)
        if (first := next(expand_braces(location))) != location and not _is_there(location):
            return _is_there(first)
        return ending_of(location) in self.endings and places.has_table(_uri(location))

    def entries(self, listing: Listing) -> Iterator[Entry]:
        """Yield the images of all tables."""
        if ending_of(listing.location) is None:
            found = sorted(_walk(listing))
        else:
            found = [listing.location] if _is_there(listing.location) else list(expand_braces(listing.location))
        return list_tables(list(map(_uri, found)), listing)


class TablesBelow(SourceKind):
    """What lies below a prefix of a bucket, if it is tables with image bytes."""

    name = "tables"
    looked_for = Tables.looked_for

    def owns(self, location: str) -> bool:
        """Return whether there are tables of images, and no image files among the first keys there.

        Raises:
            SourceError: the bucket is not there, cannot be reached, or may not be listed.
        """
        bucket = bucket_of(location)
        if bucket is None or has_image_name(location.rpartition("/")[2]):
            return False
        root = bucket.source_uri(location)
        keys = [key for key, _, _ in islice(bucket.listed(root), GLANCE)]
        if any(has_image_name(key.rpartition("/")[2]) for key in keys):
            return False
        tables = [f"{root}/{quote(key)}" for key in keys if _is_file(key.rpartition("/")[2])]
        return any(map(_may_hold_images, tables[:MAX_TRIED]))

    def entries(self, listing: Listing) -> Iterator[Entry]:
        """Yield the images of all tables."""
        return list_tables(sorted(_below_prefix(listing)), listing)


def list_tables(tables: list[str], listing: Listing) -> Iterator[Entry]:
    """Yield the image of each row of the tables, given by their URIs.

    A table that is damaged or has no column of images is told as one that could not be listed.

    Raises:
        SourceError: a table is missing, or none is as it should be; a cell of the split or the label is wrong.
    """
    splits = _splits(tables, listing) if listing.hints.split_folders else {}
    told = listing  # of the first table alone
    for table in tables:
        if not places.has_table(table):
            raise SourceError(f"There is no table {_name(table)}: check the path and the braces.")
        try:
            rows = places.open_table(table)
            image = _image_column(rows, table, listing)
            if image is None:
                raise SourceError(f"{_name(table)} has no column of image bytes. Got: {listed_types(rows.schema)}.")
            yield from _entries(table, rows, find_table_columns(rows.schema, image, told), splits.get(table))
            told = Listing(listing.location, listing.kind, listing.hints)
        except SourceError as error:
            if len(tables) == 1 or told is listing:
                raise
            listing.could_not_list(table + "#", str(error))
        except DAMAGE as error:
            listing.could_not_list(table + "#", f"{_name(table)} cannot be read: {error}.")


def image_column_of(table: str, listing: Listing) -> str | None:
    """Return the column of a table that holds image bytes; None if there is none, or the table cannot be read.

    Raises:
        SourceError: there are several, or the one that was asked for holds neither images nor paths.
    """
    try:
        return _image_column(places.open_table(table), table, listing)
    except DAMAGE:
        return None


def _image_column(rows: Rows, table: str, listing: Listing) -> str | None:
    found = image_columns(rows.schema, listing.hints.image_column, _name(table))
    found = [name for name in found if not _holds_names(rows, name)]
    if len(found) > 1:
        raise SourceError(
            f"{_name(table)}: several columns may hold the image: {', '.join(map(repr, found))}. "
            "Name one with --image-column."
        )
    return found[0] if found else None


def _holds_names(rows: Rows, column: str) -> bool:
    """Return whether a column holds names of images as bytes, as programs write text that know no UTF-8."""
    if types.is_struct(rows.schema.field(column).type):
        return False
    try:
        first = rows.image(column, 0) if rows.count else None
        return first is not None and len(first) <= MAX_NAME_BYTES and has_image_name(first.decode())
    except (ImageError, MemoryError, *DAMAGE):
        return False


def _entries(table: str, rows: Rows, columns: dict[str, str], split: str | None) -> Iterator[Entry]:
    uris, token, row = row_uris(table, columns["image"]), rows.token, 0
    said = {role: name for role, name in columns.items() if role != "image"}
    if not said:
        yield from (Entry(f"{uris}{row}", *token, row, None, split) for row in range(rows.count))
        return
    names = class_names(rows.schema).get(said.get("label", ""))
    nothing: list[str | None] = []
    for arrays in rows.cells(list(said.values())):
        cells = dict(zip(said, arrays, strict=True))
        count = len(arrays[0])
        texts = {
            role: _texts(array, names if role == "label" else None, f"{_name(table)}, from row {row} on")
            for role, array in cells.items()
        }
        nothing = nothing if len(nothing) == count else [None] * count
        for label, word, group in zip(*(texts.get(role, nothing) for role in ("label", "split", "group")), strict=True):
            its = split_of(word, f"{_name(table)}, row {row}") if word else None
            yield Entry(f"{uris}{row}", *token, row, label, its or split, group)
            row += 1


def _texts(array: Any, names: list[str] | None, place: str) -> list[str | None]:
    """Return cells as text, blanks as None; a number of a class is its name, and -1 is none."""
    if names is None or not types.is_integer(array.type):
        return [text if text and not text.isspace() else None for text in texts_of(array)]
    numbers = [None if number == -1 else number for number in array.to_pylist()]
    if wrong := [number for number in numbers if number is not None and not 0 <= number < len(names)]:
        raise SourceError(f"{place}: Expected: a label from 0 to {len(names) - 1}, or -1 for none. Got: {wrong[0]}.")
    return [None if number is None else names[number] for number in numbers]


def _is_there(location: str) -> bool:
    return places.has_table(location) if places.is_uri(location) else mode_of(location) != 0


def _uri(location: str) -> str:
    return location if places.is_uri(location) else uri_of(location)


def _name(table: str) -> str:
    return printable(path_of(table)) if table.startswith("file://") else table


# --- which tables there are


def _splits(tables: list[str], listing: Listing) -> dict[str, str]:
    """Return the splits that the tables' names say, as ``train-00000-of-00002.parquet`` or ``test/0.parquet`` do.

    As with folders, one split is none: the images of a lone train.parquet may be of any.
    """
    root = places.source_uri(listing.location) + "/"
    told = {table: split for table in tables if (split := _split_of(table.removeprefix(root))) is not None}
    if len(set(told.values())) < 2:
        return {}
    listing.notes.append(
        f"The tables' names are taken for the splits {', '.join(sorted(set(told.values())))}; "
        "--no-split-folders takes them for nothing."
    )
    return told


def _split_of(table: str) -> str | None:
    for part in reversed(table.split("/")):
        if (word := _WORD.match(part)) and word[0].lower() in SPLITS:
            return SPLITS[word[0].lower()]
    return None


def _walk(listing: Listing) -> Iterator[str]:
    """Yield the paths of all tables below a folder."""

    def lost(error: OSError) -> None:
        listing.could_not_list(uri_of(error.filename) + "/", f"{error.filename!r} cannot be read: {error.strerror}.")

    for folder, below, names in os.walk(os.path.abspath(listing.location), onerror=lost):
        below[:] = [name for name in below if not is_aside(name)]
        for name in names:
            if _is_file(name):
                yield os.path.join(folder, name)
            elif listing.is_image(name):
                listing.ignored["image beside tables"] += 1


def _is_folder_of_tables(location: str) -> bool:
    """Return whether there are tables of images below a folder, and no image files in the first folders there."""
    tables, pending = list[str](), [location]
    for _ in range(MAX_PEEKED):
        if not pending or len(tables) >= MAX_TRIED:
            break
        if (inside := _peek(pending.pop(0))) is None:
            return False
        tables += inside[0]
        pending += inside[1]
    return any(map(_may_hold_images, tables[:MAX_TRIED]))


def _peek(folder: str) -> tuple[list[str], list[str]] | None:
    """Return the tables and the folders in a folder; None at the first image file."""
    tables, below = list[str](), list[str]()
    try:
        with os.scandir(folder) as items:
            for item in items:
                if has_image_name(item.name):
                    return None
                if _is_file(item.name):
                    tables.append(item.path)
                elif not is_aside(item.name) and item.is_dir():
                    below.append(item.path)
    except OSError:  # the listing reports it later
        pass
    return sorted(tables), sorted(below)


def _below_prefix(listing: Listing) -> Iterator[str]:
    """Yield the URIs of all tables below a prefix of a bucket."""
    bucket = bucket_of(listing.location)
    assert bucket is not None
    root = bucket.source_uri(listing.location)
    for key, _, _ in bucket.listed(root):
        *folders, name = key.split("/")
        if any(map(is_aside, folders)) or not name:
            continue
        if _is_file(name):
            yield f"{root}/{quote(key)}"
        elif listing.is_image(name):
            listing.ignored["image beside tables"] += 1


def _is_file(name: str) -> bool:
    """Return whether a file is a table by its name; the files in a Lance table are none."""
    return ending_of(name) not in (None, *FOLDERS)


def _may_hold_images(path: str) -> bool:
    try:
        return bool(image_columns(places.open_table(_uri(path)).schema, None, path))
    except DAMAGE:
        return False
