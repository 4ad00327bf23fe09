"""Compressed tars, which cannot be read at random: each is unpacked once, into the cache folder of this machine.

The members of such a tar have the change token of the compressed file. A process that has unpacked one goes on with it
until it asks again what is there, as each listing does.
"""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from featurestore.errors import ImageError, SourceError
from featurestore.storage import cache
from pipelines.sources import tars, uris
from pipelines.sources.base import Blob, Entry, Place
from pipelines.sources.blobs import BlobFile

BLOCK = 2**20  # bytes read at once
STEP = 64 * BLOCK  # bytes written between two looks at the room that is left
LOG = logging.getLogger("penult")


def _zstandard(file: IO[bytes]) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")


READERS: dict[tuple[str, ...], Callable[[Any], Any]] = {
    (".gz", ".tgz"): lambda file: gzip.GzipFile(fileobj=file),
    (".bz2", ".tbz2"): bz2.BZ2File,
    (".xz", ".txz"): lzma.LZMAFile,
    (".zst",): _zstandard,
}


class _Unreadable(Exception):
    """A compressed tar cannot be unpacked; ``cause`` says why. The cache takes an OSError for one of its own folder."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Copy(NamedTuple):
    path: Path
    size: int  # of the compressed file
    mtime_ns: int


_copies: dict[str, _Copy] = {}  # by the tar's URI: those that this process reads
_unpacking = threading.Lock()


def holds(uri: str) -> bool:
    """Return whether a URI is that of a compressed tar or of a member of one."""
    return uri.partition("#")[0].lower().endswith(tars.COMPRESSED)


class Unpacked(Place):
    """The compressed tars of a place, and their members."""

    in_flight = 1  # what is read lies on this machine

    def __init__(self, place: Place) -> None:
        self.scheme, self._place = place.scheme, place

    def canonical(self, uri: str) -> str:
        """Return the one spelling of an image's URI."""
        return self._place.canonical(uri)

    def source_uri(self, location: str) -> str:
        """Return the URI of a source."""
        return self._place.source_uri(location)

    def locate(self, uri: str) -> Entry:
        """Return the unlabelled entry of a URI; size -1 where there is no such image."""
        tar, _, member = uri.partition("#")
        found = self._place.locate(tar)
        if found.size < 0 or not member:
            return found
        offset, size = -1, -1
        with suppress(OSError):
            copy = self._unpacked(tar, found)
            names = tars.places_of_files(uris.open_blob, uris.uri_of(copy.path), found.size, found.mtime_ns)
            offset, size = names.get(uris.member_of(uri) or "", (-1, -1))
        return Entry(uri, size, found.mtime_ns, offset)

    def read(self, uri: str, offset: int = -1, size: int = -1) -> tuple[bytes, int, int]:
        """Read an image's bytes, see ``Place``; those of the tar itself if the URI names no member."""
        tar, _, member = uri.partition("#")
        if not member:
            return self._place.read(uri, offset, size)
        if offset < 0:
            _, size, _, offset, *_ = self.locate(uri)
        if offset < 0:
            raise ImageError("vanished", f"There is no {uri} any more.")
        uris.check_size(size)
        try:
            copy = self._unpacked(tar)
            with uris.open_blob(uris.uri_of(copy.path)) as blob:
                data = blob.pread(size, offset)
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            raise ImageError("vanished" if gone else "unreadable", f"Cannot read {uri}: {error}.") from error
        if len(data) < size:
            raise ImageError("truncated", f"{uri} ends within the member at byte {offset}.")
        return data, size, copy.mtime_ns

    @contextmanager
    def open(self, uri: str) -> Iterator[Blob]:
        """Open the unpacked tar of a URI for reading at random."""
        copy = self._unpacked(uri.partition("#")[0], self._place.locate(uri.partition("#")[0]))
        with uris.open_blob(uris.uri_of(copy.path)) as blob:
            blob.mtime_ns = copy.mtime_ns
            yield blob

    def _unpacked(self, tar: str, found: Entry | None = None) -> _Copy:
        """Return the unpacked tar, as it was ``found`` or as this process knows it.

        Raises:
            OSError: it is not there, cannot be read, or is damaged.
            SourceError: there is no room for it.
        """
        with _unpacking:
            known = _copies.get(tar)
            if known is None or (found is not None and (found.size, found.mtime_ns) != known[1:]):
                found = found or self._place.locate(tar)
                key = f"{tar} {found.size} {found.mtime_ns}"
                known = _Copy(cache.place_of(cache.OBJECTS, key, "unpacked.tar"), found.size, found.mtime_ns)
            try:
                cache.kept(known.path, lambda path: self._unpack(tar, known, path))
            except _Unreadable as error:
                raise error.cause from None
            _copies[tar] = known
            return known

    def _unpack(self, tar: str, wanted: _Copy, to: Path) -> None:
        LOG.info("Unpacking %s.", tar)
        with to.open("wb") as file:
            for data in self._unpacked_bytes(tar, wanted):
                if file.tell() % STEP < BLOCK and not cache.has_room(STEP):
                    raise SourceError(
                        f"There is no room to unpack {tar} in the cache folder: give it more with --cache-limit, "
                        "another folder with --cache, or decompress it to .tar."
                    )
                file.write(data)

    def _unpacked_bytes(self, tar: str, wanted: _Copy) -> Iterator[bytes]:
        reader = next(reader for endings, reader in READERS.items() if tar.lower().endswith(endings))
        try:
            with self._place.open(tar) as blob:
                if (blob.size, blob.mtime_ns) != wanted[1:]:
                    raise OSError(f"{tar} changed while it was read")
                with reader(io.BufferedReader(BlobFile(blob), BLOCK)) as unpacked:
                    while data := unpacked.read(BLOCK):
                        yield data
        except OSError as error:
            raise _Unreadable(error) from error
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise _Unreadable(OSError(f"it is damaged: {error}")) from error
