"""URIs of images, which are files or members of tars, and how their bytes are read.

An image is named by its URI: ``file://`` and the percent-encoded bytes of the absolute path, so that names that are not
UTF-8 survive. A member of a tar adds ``#`` and its percent-encoded name.
"""

# Paths stay strings: pathlib costs more than the stat calls, and changes names such as "./a".
# ruff: noqa: PTH100, PTH111, PTH116

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote_from_bytes, unquote_to_bytes

from featurestore.errors import ImageError, SourceError
from pipelines.sources import tars
from pipelines.sources.base import Blob, Entry

MAX_FILE_BYTES = 256 * 2**20


# --- URIs


def uri_of(path: str | bytes | os.PathLike[str], member: str | None = None) -> str:
    """Return the URI of a file (made absolute, links not resolved), or of a member of a tar."""
    uri = "file://" + quote_from_bytes(_absolute(os.fsencode(path)))
    return uri if member is None else member_uri(uri, member)


def member_uri(uri: str, member: str) -> str:
    """Return the URI of a member of a tar, given the tar's URI."""
    return f"{uri}#{quote_from_bytes(member.encode('utf-8', 'surrogateescape'))}"


def canonical(uri: str) -> str:
    """Return a ``file://`` URI with an absolute path that is percent-encoded as ``uri_of`` does.

    Raises:
        SourceError: it is no such URI.
    """
    return uri_of(path_of(uri), member_of(uri))


def source_uri(location: str | os.PathLike[str]) -> str:
    """Return the URI of a corpus (a folder, manifest or tar), the same however its location was typed.

    The location need not exist. Braces and commas of a pattern of tars stay as they are:
    ``file:///data/shard-{000..150}.tar`` is one source.
    """
    path = _absolute(os.fsencode(local_path(location)))
    return "file://" + quote_from_bytes(path, safe=safe_in(os.fsdecode(path)))


def safe_in(location: str) -> str:
    """Return the characters of a source's location that are not percent-encoded in its URI."""
    return "/{}," if location.lower().endswith((".tar", *tars.COMPRESSED)) else "/"


def local_path(location: str | os.PathLike[str]) -> str:
    """Return a location as a path: ``~`` and ``~user`` are expanded, a ``file://`` URI is decoded."""
    text = os.fspath(location)
    return path_of(text) if text.startswith("file://") else os.path.expanduser(text)


def _absolute(path: bytes) -> bytes:
    path = os.path.abspath(path)
    return path[1:] if path.startswith(b"//") else path  # POSIX allows two slashes another meaning; Linux has none


def path_of(uri: str) -> str:
    """Return the path of a ``file://`` URI; for a tar member, the path of the tar.

    Raises:
        SourceError: the URI is of another scheme or host, or its path is not absolute.
    """
    path = uri.removeprefix("file://localhost").removeprefix("file://").partition("#")[0]
    if not uri.startswith("file://") or not path.startswith("/"):
        raise SourceError(f"Expected: a URI such as file:///folder/image.jpg. Got: {uri}.")
    return os.fsdecode(unquote_to_bytes(path))


def member_of(uri: str) -> str | None:
    """Return the member's name in the URI of a tar member, None for a plain file."""
    _, hash_sign, member = uri.partition("#")
    return unquote_to_bytes(member).decode("utf-8", "surrogateescape") if hash_sign else None


def locate(uri: str) -> Entry:
    """Return the unlabelled entry of a URI; size -1 where there is no such regular file or member.

    The headers of a tar are scanned once and remembered while the tar does not change.
    """
    path, member = path_of(uri), member_of(uri)
    size, mtime_ns = size_and_mtime(path)
    if member is None or size < 0:
        return Entry(uri, size, mtime_ns)
    tar = uri.partition("#")[0]
    offset, size = tars.places_of_files(open_blob, tar, size, mtime_ns).get(member, (-1, -1))
    return Entry(uri, size, mtime_ns, offset)


# --- reading


def read(uri: str, offset: int = -1, size: int = -1) -> tuple[bytes, int, int]:
    """Read an image's bytes: a plain file whole, a tar member at its offset (looked up if not given).

    Only regular files are opened, so a FIFO or a device never blocks.

    Returns:
        data, its size in bytes, and the mtime in ns of the file that was open while it was read.

    Raises:
        ImageError: "vanished", "unreadable", "truncated" (a tar ends within the member) or "too_large".
    """
    path = path_of(uri)
    if offset < 0 and member_of(uri) is not None:
        found = locate(uri)
        if found.offset < 0:
            raise ImageError("vanished", f"{path!r} has no member {member_of(uri)!r} any more.")
        offset, size = found.offset, found.size
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError("unreadable", f"{path!r} is not a regular file.")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _read_open(descriptor, path, offset, size)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        gone = isinstance(error, ValueError) or error.errno in (errno.ENOENT, errno.ENOTDIR)
        raise ImageError("vanished" if gone else "unreadable", f"Cannot read {path!r}: {error}.") from error
    except MemoryError as error:
        raise ImageError("too_large", f"There is not enough memory to read {path!r}.") from error


def _read_open(descriptor: int, path: str, offset: int, size: int) -> tuple[bytes, int, int]:
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):  # swapped between stat and open
        raise ImageError("unreadable", f"{path!r} is not a regular file.")
    plain = offset < 0
    start, size = (0, info.st_size) if plain else (offset, size)
    check_size(size)
    data = pread(descriptor, size, start)
    if len(data) < size and not plain:
        raise ImageError("truncated", f"{path!r} ends within the member at byte {offset}.")
    if len(data) < size or os.fstat(descriptor).st_mtime_ns != info.st_mtime_ns:
        raise ImageError("unreadable", f"{path!r} changed while it was read: run again.")
    return data, size, info.st_mtime_ns


def check_size(size: int) -> None:
    """Raise ImageError ("too_large") if an image has more bytes than are read."""
    if size > MAX_FILE_BYTES:
        raise ImageError("too_large", f"{size:,} bytes are more than the limit of {MAX_FILE_BYTES:,}.")


class LocalBlob(Blob):
    """An open regular file of this machine, see ``Blob``."""

    def __init__(self, descriptor: int) -> None:
        info = os.fstat(descriptor)
        self._descriptor, self.size, self.mtime_ns = descriptor, info.st_size, info.st_mtime_ns

    def pread(self, size: int, start: int) -> bytes:
        """Read ``size`` bytes from ``start`` on, fewer if the file ends before."""
        return pread(self._descriptor, size, start)

    def data_at(self, start: int) -> int:
        """Return where data begin from ``start`` on, past a hole; -1 if nothing but a hole follows."""
        try:
            return os.lseek(self._descriptor, start, os.SEEK_DATA)
        except OSError as error:  # ENXIO: nothing follows; else the file system knows no holes
            return -1 if error.errno == errno.ENXIO else start


@contextmanager
def open_blob(uri: str) -> Iterator[LocalBlob]:
    """Open the file of a URI for reading at random, the tar of a tar's member.

    Raises:
        OSError: there is no such regular file, or it cannot be read.
    """
    path = path_of(uri)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", path)
        yield LocalBlob(descriptor)
    finally:
        os.close(descriptor)


def pread(descriptor: int, size: int, start: int) -> bytes:
    """Read ``size`` bytes from ``start`` on, fewer if the file ends before."""
    data = os.pread(descriptor, size, start)
    if len(data) == size or not data:
        return data
    parts, done = [data], len(data)
    while done < size and (data := os.pread(descriptor, size - done, start + done)):
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def mode_of(path: str) -> int:
    """Return the mode of a file or folder, 0 if there is none.

    Raises:
        SourceError: the mode cannot be read.
    """
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return 0
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error


def size_and_mtime(path: str) -> tuple[int, int]:
    """Return (size, mtime_ns) of a regular file, following links; (-1, 0) if there is none."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return -1, 0
    return (info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else (-1, 0)


def printable(name: str) -> str:
    """Return a name as valid UTF-8 text, which labels and a run's record must be."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
