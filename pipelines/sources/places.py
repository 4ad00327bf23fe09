"""The table of places, by the scheme of their URIs: an image anywhere is located and read by its URI."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import IO

from featurestore.errors import ImageError
from pipelines.sources import objects, rows, unpacked, uris
from pipelines.sources.base import Blob, Entry, Place
from pipelines.sources.blobs import BlobFile


class Files(Place):
    """The files of this machine, and the members of its tars; see ``uris``."""

    scheme = "file"
    canonical = staticmethod(uris.canonical)
    source_uri = staticmethod(uris.source_uri)
    locate = staticmethod(uris.locate)
    read = staticmethod(uris.read)
    open = staticmethod(uris.open_blob)


BUFFER_BYTES = 2**18
MAX_ASKED = 32
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FILES = Files()
_PLACES: dict[str, Place] = {_FILES.scheme: _FILES, **objects.BUCKETS, **objects.WEB}


def register(place: Place) -> None:
    """Add a place to the table, or replace the one of the same scheme."""
    _PLACES[place.scheme] = place


def schemes() -> str:
    """Return in words how a URI may begin."""
    *most, last = (f"{scheme}://" for scheme in _PLACES)
    return f"{', '.join(most)} or {last}" if most else last


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


def uri_of(location: str) -> str:
    """Return the URI of a file, given as a URI or as a path."""
    return canonical(location) if is_uri(location) else uris.uri_of(location)


def shown(uri: str) -> str:
    """Return how a URI is called in sentences: a file of this machine by its path."""
    return uris.path_of(uri) if uri.startswith("file:") else uri


def locate(uri: str) -> Entry:
    """Return the unlabelled entry of a URI; size -1 where there is no such image."""
    place = _of(uri)
    return rows.locate(uri, place) if rows.holds(uri) else place.locate(uri)


def locate_all(several: Sequence[str]) -> list[Entry]:
    """Return the entries of many URIs; far places are asked about ``MAX_ASKED`` at once."""
    far = [uri for uri in several if in_flight(uri) > 1]
    with ThreadPoolExecutor(MAX_ASKED) as pool:
        found = dict(zip(far, pool.map(locate, far), strict=True))
    return [found.get(uri) or locate(uri) for uri in several]


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


def in_flight(uri: str) -> int:
    """Return how many requests to have under way at once to the place of a URI, see ``Place``."""
    return _of(uri).in_flight


@contextmanager
def open_file(location: str) -> Iterator[IO[bytes]]:
    """Open a file, given as a URI or as a path, for reading its bytes.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    if is_uri(location):
        with open_blob(canonical(location)) as blob:
            yield io.BufferedReader(BlobFile(blob), BUFFER_BYTES)
    else:
        with open(location, "rb") as file:  # noqa: PTH123
            yield file


def _of(uri: str) -> Place:
    try:
        place = _PLACES[uri[: uri.find(":")]]
    except KeyError:
        raise ImageError("unreadable", f"Expected: a URI that begins with {schemes()}. Got: {uri}.") from None
    return unpacked.Unpacked(place) if unpacked.holds(uri) else place
