"""The storage in a bucket: whole objects, conditional puts for first-wins, a lease that ends for the lock.

A put that a server has answered is durable, and everyone sees it at once: S3, GCS and Azure promise both. So nothing is
flushed; digests are checked where penult keeps them. Folders are prefixes.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import chain, islice
from pathlib import Path, PurePath, PurePosixPath

from featurestore.errors import ObjectMissing, StoreCorrupt, StoreError, trouble
from featurestore.storage import buckets, cache, copies, leases
from featurestore.storage.base import Stat, Wanted, register
from featurestore.storage.buckets import CREATE, ObjectInfo
from featurestore.storage.glances import Glances, Told
from featurestore.storage.probe import prove

SCHEMES = ("s3", "gs", "az")
FIRST_BYTES, BLOCK_BYTES = 2**20, 4 * 2**20  # read at once: when an object is opened, and at most where it is read on
SEEK_BYTES = 2**18  # read at once elsewhere: a shard's part of a long plan is small
DELETED_AT_ONCE = 1000
FEW = 2  # files, looked at one by one
GRACE = timedelta(days=1)


class ObjectPath(PurePosixPath):
    """A location in a bucket; ``str`` of it is the URI.

    Example:
        >>> path = ObjectPath("s3://photos/a store") / "runs"
        >>> str(path), path.name, str(path.parent)
        ('s3://photos/a store/runs', 'runs', 's3://photos/a store')
    """

    def __str__(self) -> str:
        plain = super().__str__()  # "//" is one separator to a path
        scheme, colon, rest = plain.partition(":/")
        return f"{scheme}://{rest}" if colon and scheme in SCHEMES else plain


class ObjectStorage:
    """Objects in a bucket; see ``Storage`` for what the methods promise."""

    grace, links = GRACE, False

    def __init__(self) -> None:
        self._glances = Glances(_told)

    def stat(self, path: PurePath, follow: bool = True) -> Stat | None:
        """Return what is at a location, or None; a prefix of objects is a folder."""
        if len(path.parts) <= 2:
            return Stat("folder", 0, 0, "")
        if (told := self._glances.over(path, [str(path)])) is not None:
            below = any(uri.startswith(f"{path}/") for uri in told)
            return told.get(str(path)) or (Stat("folder", 0, 0, "") if below else None)
        if (info := buckets.head(str(path))) is not None:
            return _stat(info)
        return Stat("folder", 0, 0, "") if next(buckets.listed(str(path)), None) else None

    def stats(self, folder: PurePath, names: Collection[str]) -> dict[str, Stat]:
        """Return what is at the names below a folder that are there: many are looked for in one listing."""
        uris = {name: str(folder / name) for name in names}
        if (told := self._glances.over(folder, uris.values())) is not None:
            return {name: told[uri] for name, uri in uris.items() if uri in told}
        if len(names) <= FEW:
            return {name: found for name in names if (found := self.stat(folder / name)) is not None}
        wanted = {uri: name for name, uri in uris.items()}
        return {wanted[info.uri]: _stat(info) for info in buckets.listed(str(folder)) if info.uri in wanted}

    @contextmanager
    def open(self, path: PurePath) -> Iterator[io.BufferedIOBase]:
        """Open an object for reading in large blocks."""
        try:
            with io.BufferedReader(_Reader(str(path))) as file:
                yield file
        except ObjectMissing as error:
            raise StoreCorrupt(
                f"Expected: a file at {path}. Got: none; `penult doctor` brings back what can be had."
            ) from error

    @contextmanager
    def write(self, path: PurePath, durable: bool = True) -> Iterator[Path]:
        """Yield a temporary local path; on success, its file is uploaded to ``path``."""
        try:
            with tempfile.TemporaryDirectory(prefix="penult-") as folder:
                temporary = Path(folder, path.name)
                yield temporary
                leases.confirm(str(path))
                buckets.put_file(str(path), temporary)
                self.changed(path)
        except OSError as error:
            raise StoreError(trouble(error, path)) from error

    def create(self, path: PurePath, data: bytes) -> bool:
        """Write an object unless there is one; return whether this call wrote it."""
        leases.confirm(str(path))
        written = buckets.put(str(path), data, CREATE) is not None
        self.changed(path)
        return written

    def replace(self, path: PurePath, data: bytes, token: str | None) -> bool:
        """Write an object if its token is still ``token``."""
        leases.confirm(str(path), now=True)
        written = buckets.put(str(path), data, CREATE if token is None else token) is not None
        self.changed(path)
        return written

    def list(self, folder: PurePath) -> list[PurePath]:
        """Return what is right below a prefix, sorted."""
        if (told := self._glances.over(folder)) is not None:
            start = f"{folder}/"
            return sorted({folder / uri.removeprefix(start).partition("/")[0] for uri in told if uri.startswith(start)})
        objects, prefixes = buckets.level(str(folder))
        return sorted(type(folder)(uri) for uri in {*(found.uri for found in objects), *prefixes})

    def walk(self, folder: PurePath) -> Iterator[tuple[PurePath, Stat]]:
        """Yield all objects below a prefix."""
        told = self._glances.over(folder)
        found = ((info.uri, _stat(info)) for info in buckets.listed(str(folder))) if told is None else told.items()
        yield from ((type(folder)(uri), stat) for uri, stat in found if uri.startswith(f"{folder}/"))

    def delete(self, path: PurePath) -> None:
        """Delete an object, and all below a prefix."""
        leases.confirm(str(path))
        below = (info.uri for info in buckets.listed(str(path)))
        uris = chain([str(path)], below)
        while some := list(islice(uris, DELETED_AT_ONCE)):
            buckets.delete(some)
        self.changed(path)

    def move(self, path: PurePath, to: PurePath) -> None:
        """Copy an object, or all below a prefix, within the bucket; then delete."""
        leases.confirm(str(path))
        if buckets.head(str(path)) is not None:
            buckets.copy(str(path), str(to))
        for found, _ in self.walk(path):
            buckets.copy(str(found), str(to / found.relative_to(path)))
        self.changed(to)
        self.delete(path)

    def make_folder(self, path: PurePath) -> None:
        """Do nothing: a prefix is there as soon as an object is."""

    def flush(self, path: PurePath, missing_ok: bool = False) -> None:
        """Do nothing: what the server has taken is kept."""

    @contextmanager
    def lock(self, path: PurePath, holder: str) -> Iterator[str | None]:
        """Hold a lease on an object; yield who else holds it. A bucket that breaks its word is refused."""
        prove(str(path.parent))
        with leases.held(str(path), holder) as other, ExitStack() as stack:
            if other is None:
                stack.enter_context(self._glances.locked(path.parent))
            yield other

    def confirm(self, path: PurePath) -> None:
        """Raise StoreLocked if this process has lost the lock over a location to another one."""
        leases.confirm(str(path), now=True)

    @contextmanager
    def lease(self, folder: PurePath, alone: bool = False) -> Iterator[bool]:
        """Yield True: nobody knows who reads in a bucket; what readers may need is kept for ``grace``.

        What is in the folder is listed once per lease, and again after this process has written there.
        """
        if alone:
            yield True
            return
        with self._glances.held(folder):
            yield True

    def changed(self, path: PurePath) -> None:
        """Let the next look at a folder under lease be a request."""
        self._glances.drop(path)

    def uri(self, path: PurePath) -> str:
        """Return the URI."""
        return str(path)

    def options(self, path: PurePath) -> dict[str, str]:
        """Return endpoint, region and credentials."""
        return buckets.storage_options(str(path))

    def refusal(self, error: BaseException, path: PurePath) -> StoreError | None:
        """Return what the server said in an error of Lance, which speaks to it through the same library in Rust."""
        return buckets.refusal(str(path), error)

    def copies(self, folder: PurePath, wanted: Mapping[str, Wanted], make: bool) -> Path | None:
        """Return a folder of the cache with copies, made if they fit."""
        return copies.folder_with(folder, wanted, make)

    def local(self, path: PurePath) -> Path:
        """Return a copy in the cache folder, made unless there is one of the same token."""
        if (info := buckets.head(str(path))) is None:
            raise StoreCorrupt(f"Expected: a file at {path}. Got: none; `penult doctor` brings back what can be had.")
        cache.has_room(info.size)  # it is copied in any case
        place = cache.place_of(cache.OBJECTS, f"{path} {info.token}", path.name)
        return cache.kept(place, lambda to: buckets.get_file(str(path), to))


class _Reader(io.RawIOBase):
    """An object, read in blocks, the last of which is kept; its first block is read when it is opened.

    Blocks grow as long as each goes on where the last one ended.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.at, self.first, self.size = uri, 0, 0, FIRST_BYTES
        self.block, self.info = buckets.get(uri, 0, self.size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.info.size}[whence])
        return self.at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self.at >= self.info.size:
            return 0
        if not self.first <= self.at < self.first + len(self.block):
            goes_on = self.at == self.first + len(self.block)
            self.size = min(2 * self.size, BLOCK_BYTES) if goes_on else SEEK_BYTES
            self.first = self.at
            self.block, _ = buckets.get(self.uri, self.at, max(self.size, len(buffer)), self.info.etag)
        start = self.at - self.first
        part = self.block[start : start + len(buffer)]
        buffer[: len(part)] = part
        self.at += len(part)
        return len(part)


def _told(folder: PurePath) -> Told:
    return {info.uri: _stat(info) for info in buckets.listed(str(folder))}


def _stat(info: ObjectInfo) -> Stat:
    return Stat("file", info.size, info.modified_ns, info.token or "")


register(ObjectPath, ObjectStorage(), *SCHEMES)
