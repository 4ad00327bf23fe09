"""Images in buckets (``s3://``, ``gs://``, ``az://``) and behind web addresses (``https://``, ``http://``).

A URI is percent-encoded as a file's is, so that a key may hold any character: the key ``50%.jpg`` is
``s3://bucket/50%25.jpg``. A member of a tar adds ``#`` and its percent-encoded name. The change token is made of the
object's ETag (on gs of its generation), or of the time of its last change where a host gives no ETag.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from urllib.parse import quote, unquote_to_bytes

from featurestore.errors import BucketError, ImageError, ObjectDenied, ObjectMissing, SourceError
from featurestore.storage import buckets
from featurestore.storage.buckets import ObjectInfo
from pipelines.sources import tars, uris
from pipelines.sources.base import Blob, Entry, Place

IN_FLIGHT = 64
GLANCE = 1000  # keys of a first look at a prefix: what servers give at once
SMALL = 2**20  # bytes of objects that are read whole: some web servers give no parts
MIN_AHEAD, MAX_AHEAD = 2**16, 2**23  # bytes read at once: for one look, and where one read follows another
_BAD_KEY = re.compile(r"(^|/)(\.{0,2})(/|$)|[\x00-\x1f\x7f]|[\ud800-\udfff]")  # clients cannot name these


class Bucket(Place):
    """The objects in the buckets of one service, and the members of tars among them."""

    in_flight = IN_FLIGHT

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    def canonical(self, uri: str) -> str:
        """Return the one spelling of an object's URI."""
        root, key, member = self._parts(uri)
        if not key:
            raise SourceError(f"Expected: a URI such as {self.scheme}://bucket/folder/image.jpg. Got: {uri}.")
        whole = f"{root}/{quote(key)}"
        return whole if member is None else uris.member_uri(whole, member)

    def source_uri(self, location: str) -> str:
        """Return the URI of a prefix, a manifest or a pattern of tars, without a slash at its end."""
        root, key, _ = self._parts(location)
        return f"{root}/{quote(key, safe=uris.safe_in(key))}".rstrip("/")

    def locate(self, uri: str) -> Entry:
        """Return the unlabelled entry of a URI; size -1 where nothing is, or nothing that may be read."""
        info = None
        with suppress(ObjectDenied):
            info = self._head(uri)
        if info is None:
            return Entry(uri, -1, 0)
        token, member = token_of(info), uris.member_of(uri)
        if member is None:
            return Entry(uri, info.size, token)
        found = tars.places_of_files(self.open, uri.partition("#")[0], info.size, token)
        offset, size = found.get(member, (-1, -1))
        return Entry(uri, size, token, offset)

    def read(self, uri: str, offset: int = -1, size: int = -1) -> tuple[bytes, int, int]:
        """Read an image's bytes, in one request unless a tar must be searched.

        Raises:
            ImageError: as ``Place.read`` does.
            BucketError: the bucket is not there or cannot be reached, and so no other image of it can be read.
        """
        if offset < 0 and uris.member_of(uri) is not None:
            found = self.locate(uri)
            if found.offset < 0:
                raise ImageError("vanished", f"There is no {uri} any more.")
            offset, size = found.offset, found.size
        try:
            data, info = self._get(uri, offset, size)
        except ObjectMissing as error:
            raise ImageError("vanished", str(error)) from error
        except ObjectDenied as error:
            raise ImageError("unreadable", str(error)) from error
        except BucketError as error:
            self._end_if_unreachable(uri)
            raise ImageError("unreadable", str(error)) from error
        except MemoryError as error:
            raise ImageError("too_large", f"There is not enough memory to read {uri}.") from error
        if offset >= 0 and len(data) < size:
            raise ImageError("truncated", f"{uri} ends within the member at byte {offset}.")
        return data, len(data), token_of(info)

    def _get(self, uri: str, offset: int, size: int) -> tuple[bytes, ObjectInfo]:
        """Read a member of a tar, or an object whole; where its size is not known, no more than may be read."""
        uris.check_size(size)
        if offset >= 0:
            data, info = buckets.get(self._location(uri), offset, max(size, 1))  # there are no parts of no bytes
            return data[:size], info
        data, info = buckets.get(self._location(uri), *((0, uris.MAX_FILE_BYTES + 1) if size < 0 else ()))
        uris.check_size(info.size)
        return data, info

    @contextmanager
    def open(self, uri: str) -> Iterator[ObjectBlob]:
        """Open an object for reading at random, the tar of a tar's member."""
        location = self._location(uri)
        with _os_errors():
            info = self._head(uri)
        if info is None:
            raise FileNotFoundError(f"There is no object {location}")
        yield ObjectBlob(location, info)

    def listed(self, uri: str) -> Iterator[tuple[str, int, int]]:
        """Yield the objects below a prefix at any depth: (key from there on, size, mtime_ns), in the server's order.

        Raises:
            SourceError: the bucket cannot be reached, is not there, or may not be listed.
        """
        location = self._location(uri).rstrip("/")
        start = len(location) + 1
        with _listing():
            for info in buckets.listed(location):
                yield info.uri[start:], info.size, token_of(info)

    def level(self, uri: str) -> tuple[list[str], list[str]]:
        """Return the names of the objects right below a prefix, and of the prefixes; raise what ``listed`` does."""
        location = self._location(uri).rstrip("/")
        start = len(location) + 1
        with _listing():
            objects, prefixes = buckets.level(location)
        return [info.uri[start:] for info in objects], [prefix[start:].rstrip("/") for prefix in prefixes]

    def _head(self, uri: str) -> ObjectInfo | None:
        return buckets.head(self._location(uri))

    def _end_if_unreachable(self, uri: str) -> None:
        """Raise BucketError if the bucket does not even say what it knows of an object."""
        with suppress(ObjectDenied):
            self._head(uri)

    def _location(self, uri: str) -> str:
        """Return the object of a URI as ``buckets`` names it."""
        root, key, _ = self._parts(uri)
        return f"{root}/{key}"

    def _parts(self, uri: str) -> tuple[str, str, str | None]:
        """Return the bucket's URI, the key, and the member's name or None."""
        rest, hash_sign, _ = uri.removeprefix(f"{self.scheme}://").partition("#")
        bucket, _, path = rest.partition("/")
        key = unquote_to_bytes(path.rstrip("/")).decode("utf-8", "surrogateescape")
        if not uri.startswith(f"{self.scheme}://") or not bucket:
            raise SourceError(f"Expected: a URI such as {self.scheme}://bucket/folder/image.jpg. Got: {uri}.")
        if key and (bad := _BAD_KEY.search(key)):
            raise SourceError(
                f"Expected: a key in UTF-8 without empty parts, '.', '..' and control characters. Got: {bad[0]!r} in "
                f"{uri}."
            )
        return f"{self.scheme}://{bucket}", key, uris.member_of(uri) if hash_sign else None


@contextmanager
def _listing() -> Iterator[None]:
    try:
        yield
    except BucketError as error:
        raise SourceError(str(error)) from error


@contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except ObjectMissing as error:
        raise FileNotFoundError(str(error).rstrip(".")) from error
    except ObjectDenied as error:
        raise PermissionError(str(error).rstrip(".")) from error


BUCKETS = {scheme: Bucket(scheme) for scheme in ("s3", "gs", "az")}


def bucket_of(location: str) -> Bucket | None:
    """Return the place of a location in a bucket; None if it is none."""
    scheme, mark, _ = location.partition("://")
    return BUCKETS.get(scheme) if mark else None


class Web(Bucket):
    """Files behind web addresses. Each is for itself: one that cannot be reached says nothing of the others."""

    def locate(self, uri: str) -> Entry:
        """Return the unlabelled entry of a URI; size -1 where nothing is, or nothing that can be read."""
        try:
            return super().locate(uri)
        except BucketError:
            return Entry(uri, -1, 0)

    def read(self, uri: str, offset: int = -1, size: int = -1) -> tuple[bytes, int, int]:
        """Read an image's bytes; they are asked for their number first, as not every host gives parts of a file."""
        if offset < 0 and size < 0 and uris.member_of(uri) is None:
            size = self.locate(uri).size
        return super().read(uri, offset, size)

    def _end_if_unreachable(self, uri: str) -> None:
        pass

    def _location(self, uri: str) -> str:
        root, key, _ = self._parts(uri)
        return f"{root}/{quote(key)}"

    def _parts(self, uri: str) -> tuple[str, str, str | None]:
        if "?" in uri:
            raise SourceError(f"Expected: an address without a question mark (write %3F in a name). Got: {uri}.")
        root, key, member = super()._parts(uri)
        return root.lower(), key, member


WEB = {scheme: Web(scheme) for scheme in ("https", "http")}


class ObjectBlob(Blob):
    """An object that is read in blocks, larger ones where one read follows another, as in a tar of small members.

    The last two blocks are kept: a tar's labels are read after the header that follows them.
    """

    def __init__(self, location: str, info: ObjectInfo) -> None:
        self.size, self.mtime_ns = info.size, token_of(info)
        self._location = location
        self._ahead = MIN_AHEAD
        self._blocks: deque[tuple[int, bytes]] = deque([(0, b"")], maxlen=2)

    def pread(self, size: int, start: int) -> bytes:
        """Read ``size`` bytes from ``start`` on, fewer if the object ends before.

        Raises:
            OSError: it is gone, may not be read, or is another one than was opened.
            BucketError: the bucket cannot be reached.
        """
        end = min(start + size, self.size)
        if start >= end:
            return b""
        kept = (block for block in reversed(self._blocks) if block[0] <= start and end <= block[0] + len(block[1]))
        first, data = next(kept, None) or self._read(start, end)
        return data[start - first : end - first]

    def _read(self, start: int, end: int) -> tuple[int, bytes]:
        """Read a block that holds these bytes, and keep it; return where it begins, and its bytes."""
        first, block = self._blocks[-1]
        follows = first <= start <= first + len(block) + self._ahead
        self._ahead = min(2 * self._ahead, MAX_AHEAD) if follows else MIN_AHEAD
        wanted = min(max(end - start, self._ahead), self.size - start)
        if self.size <= SMALL:
            start, wanted = 0, self.size
        with _os_errors():
            data, info = buckets.get(self._location, *(() if wanted == self.size else (start, wanted)))
        if token_of(info) != self.mtime_ns or len(data) < wanted:
            raise OSError(f"{self._location} changed while it was read")
        self._blocks.append((start, data))
        return start, data


def token_of(info: ObjectInfo) -> int:
    """Return the second half of an object's change token: 63 bits of its ETag, or of the time of its last change."""
    state = str(info.modified_ns) if info.token is None else info.token.removeprefix("W/").strip('"')
    return int.from_bytes(sha256(state.encode()).digest()[:8]) >> 1
