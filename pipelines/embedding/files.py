"""The files of a shard: planned, read, hashed, decoded, and told in the catalog."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import defaultdict, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from featurestore.errors import ImageError, PenultError
from featurestore.journal import Staging
from featurestore.schema import CATALOG, FAILED, OK
from pipelines import signals
from pipelines.embedding.contents import Contents
from pipelines.embedding.job import EmbedJob
from pipelines.images import decoder
from pipelines.images.apart import Apart
from pipelines.images.views import random_view
from pipelines.sources import corpus, places

MAX_READS = 64  # at once
MAX_BYTES_AHEAD = 256 * 2**20

Read = tuple[bytes, int, int]  # see ``Place.read``


@dataclass(slots=True)
class File:
    """One planned file; reading, hashing and decoding fill in its fields."""

    uri: str
    size: int
    mtime_ns: int
    offset: int
    reading: Future[Read] | None = None  # if it is read ahead, until it is taken
    key: bytes | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    duplicate: bool = False
    error: ImageError | None = None


class Picture(NamedTuple):
    """One input of the engine: a view of a content."""

    key: bytes
    view: int
    pixels: np.ndarray


@dataclass
class Clock:
    """Seconds per stage, summed over threads."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, stage: str, since: float) -> float:
        """Add the time since ``since``, of ``time.perf_counter``, to a stage; return the time now."""
        now = time.perf_counter()
        with self._lock:
            self.seconds[stage] += now - since
        return now


class Feed:
    """A thread-safe iterator over the planned files of one shard; ``files`` keeps all of them for the catalog.

    Files of far places are read ahead from the start, until it is closed.
    """

    def __init__(self, staging: Staging, shard: int) -> None:
        self.files: list[File] = []
        self._planned = reading_ahead(_planned(staging, shard))
        self._next = next(self._planned, None)
        self._over: PenultError | None = None
        self._lock = threading.Lock()

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> File:
        with self._lock:
            signals.check()
            if self._over is not None:
                raise self._over
            if self._next is None:
                raise StopIteration
            self.files.append(self._next)
            self._next = next(self._planned, None)
            return self.files[-1]

    @property
    def ended(self) -> bool:
        """Whether the last file was taken."""
        return self._next is None

    def stop(self, error: PenultError) -> None:
        """Let whoever asks for the next file get an error instead."""
        self._over = error

    def close(self) -> None:
        """Begin no further read, and wait for those that have begun."""
        with self._lock:
            self._planned.close()


def _planned(staging: Staging, shard: int) -> Iterator[File]:
    plan = staging.shard_plan(shard)
    columns = (plan.column(name).to_pylist() for name in ("uri", "size", "mtime_ns", "offset"))
    for uri, size, mtime_ns, offset in zip(*columns, strict=True):
        yield File(uri, size, mtime_ns, offset)


def reading_ahead(files: Iterator[File]) -> Generator[File, None, None]:
    """Yield the files in order; those of far places are being read by then, and so are some after them.

    No more bytes are begun and not taken than ``MAX_BYTES_AHEAD``, but for one file that is larger.
    """
    ahead: deque[File] = deque()
    begun = 0  # bytes
    with ThreadPoolExecutor(MAX_READS) as pool:
        try:
            for file in files:
                at_once = places.in_flight(file.uri)
                while ahead and (len(ahead) >= at_once or begun + max(0, file.size) > MAX_BYTES_AHEAD):
                    begun -= max(0, ahead[0].size)
                    yield ahead.popleft()
                if at_once > 1:
                    file.reading = pool.submit(corpus.read, file.uri, file.offset, file.size)
                ahead.append(file)
                begun += max(0, file.size)
            yield from ahead
        except BaseException:  # closed before the end, after which what was yielded may still be waiting to be read
            pool.shutdown(cancel_futures=True)
            raise


class Loader:
    """Reads, hashes and decodes the files of one shard; called from several threads.

    Args:
        job: what the shard is part of.
        shard: its number, which takes contents.
        contents: which need no embedding.
        clock: counts the seconds of reading and decoding.
        by: decodes and measures: this process, or others where an image may have ended the process of a worker.
    """

    def __init__(
        self, job: EmbedJob, shard: int, contents: Contents, clock: Clock, by: Apart | ModuleType = decoder
    ) -> None:
        self._job, self._shard, self._contents, self._clock, self._by = job, shard, contents, clock, by
        self._seen = job.tap.preprocessing

    def __call__(self, file: File) -> list[Picture]:
        """Fill in the fields of a file; return the views of it that must be embedded."""
        try:
            return self._load(file)
        except ImageError as error:
            file.error = error
            if error.error_type == "vanished":
                file.size, file.mtime_ns = -1, 0  # as listed for missing files: if it comes back, it is retried
            if file.key is not None:
                self._contents.fail(file.key, error)
            return []

    def _load(self, file: File) -> list[Picture]:
        since = time.perf_counter()
        reading, file.reading = file.reading, None  # which frees the bytes when they are decoded
        data, size, mtime_ns = reading.result() if reading else corpus.read(file.uri, file.offset, file.size)
        if file.offset >= 0 and mtime_ns != file.mtime_ns:  # another image may be there now
            raise ImageError("unreadable", "The file that holds it has changed since it was listed: run again.")
        file.size, file.mtime_ns = size, mtime_ns
        file.key = hashlib.sha256(data).digest()
        since = self._clock.add("read", since)
        file.duplicate = not self._contents.take(file.key, self._shard)
        pictures: list[Picture] = []
        if file.duplicate:
            file.width, file.height, file.format = self._by.measure(data)
        else:
            picture = self._by.decode(data, self._seen)
            file.width, file.height, file.format = picture.width, picture.height, picture.format
            pictures = self._views(file.key, picture.pixels)
        self._clock.add("decode", since)
        return pictures

    def _views(self, key: bytes, pixels: np.ndarray) -> list[Picture]:
        augmentation = self._job.augmentation
        if augmentation is None:
            return [Picture(key, 0, pixels)]
        lacking = range(self._contents.stored_views(key) + 1, self._job.views + 1)
        return [Picture(key, view, random_view(pixels, augmentation, key, view)) for view in lacking]


def catalog_rows(files: list[File], run_id: str) -> pa.RecordBatch:
    """Return the rows of the catalog (schema CATALOG) that tell what became of each file."""
    columns: dict[str, list[Any]] = {
        "uri": [f.uri for f in files],
        "sha256": [f.key for f in files],
        "size": [f.size for f in files],
        "mtime_ns": [f.mtime_ns for f in files],
        "width": [f.width for f in files],
        "height": [f.height for f in files],
        "format": [f.format for f in files],
        "status": [FAILED if f.error else OK for f in files],
        "error_type": [f.error.error_type if f.error else None for f in files],
        "error": [str(f.error) if f.error else None for f in files],
        "run_id": [run_id] * len(files),
    }
    return pa.record_batch([pa.array(columns[name.name], name.type) for name in CATALOG], schema=CATALOG)
