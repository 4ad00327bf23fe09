"""The table of places, by the scheme of their URIs: an image anywhere is located and read by its URI."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager

from featurestore.errors import ImageError
from pipelines.sources import rows, uris
from pipelines.sources.base import Blob, Entry, Place


class Files(Place):
    """The files of this machine, and the members of its tars; see ``uris``."""

    scheme = "file"
    canonical = staticmethod(uris.canonical)
    source_uri = staticmethod(uris.source_uri)
    locate = staticmethod(uris.locate)
    read = staticmethod(uris.read)
    open = staticmethod(uris.open_blob)


_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FILES = Files()
_PLACES: dict[str, Place] = {_FILES.scheme: _FILES}


def register(place: Place) -> None:
    """Add a place to the table, or replace the one of the same scheme."""
    _PLACES[place.scheme] = place


def schemes() -> str:
    """Return in words how a URI may begin."""
    return " or ".join(f"{scheme}://" for scheme in _PLACES)


def is_uri(text: str) -> bool:
    """Return whether a text is a URI of a place in the table; all else is a path."""
    scheme, mark, _ = text.partition("://")
    return bool(mark) and scheme in _PLACES


def is_foreign(text: str) -> bool:
    """Return whether a text is a URI of a scheme that is not in the table."""
    return _URI.match(text) is not None and not is_uri(text)


def canonical(uri: str) -> str:
    """Return the spelling of an image's URI that stands in the catalog, see ``Place``."""
    return _of(uri).canonical(uri)


def source_uri(location: str | os.PathLike[str]) -> str:
    """Return the URI of a source, given as a URI or as a path; it is the same however that was typed."""
    text = os.fspath(location)
    return (_of(text) if is_uri(text) else _FILES).source_uri(text)


def locate(uri: str) -> Entry:
    """Return the unlabelled entry of a URI; size -1 where there is no such image."""
    place = _of(uri)
    return rows.locate(uri, place) if rows.holds(uri) else place.locate(uri)


def read(uri: str, offset: int = -1, size: int = -1) -> tuple[bytes, int, int]:
    """Read an image's bytes, and the change token of what was read (size, mtime_ns), see ``Place``.

    Raises:
        ImageError: "vanished", "unreadable", "truncated" or "too_large".
    """
    place = _of(uri)
    return rows.read(uri, place) if rows.holds(uri) else place.read(uri, offset, size)


def open_table(uri: str) -> rows.Rows:
    """Open the table of a URI, anew also for ``read``, see ``rows``.

    Raises:
        OSError, ValueError, pa.ArrowException: there is none, or it is damaged.
    """
    rows.forget(uri)
    return rows.open_table(uri, _of(uri))


def has_table(uri: str) -> bool:
    """Return whether there is a table at a URI."""
    return rows.token_of(uri, _of(uri))[0] >= 0


def open_blob(uri: str) -> AbstractContextManager[Blob]:
    """Open the file of a URI for reading at random, see ``Place``.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    return _of(uri).open(uri)


def _of(uri: str) -> Place:
    try:
        return _PLACES[uri[: uri.find(":")]]
    except KeyError:
        raise ImageError("unreadable", f"Expected: a URI that begins with {schemes()}. Got: {uri}.") from None
