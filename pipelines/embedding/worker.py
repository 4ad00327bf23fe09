"""The embed loop: one shard of planned files → feature fragments, catalog rows, one journal entry.

The loop does not depend on Beam: a runner, a thread or a test calls ``embed_shard``. All threads take files from one
feed. Each thread reads, hashes and decodes files until they fill a batch, and runs the batch through the engine
itself. Only embedded batches pass between threads, and memory is bounded by a few batches per thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import secrets
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, repeat, takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from featurestore.errors import ImageError
from featurestore.index import KeySet
from featurestore.journal import ShardEntry, Staging
from featurestore.machine import available_cores
from featurestore.schema import CATALOG, FAILED, OK, features_batch, spec_of, storable
from featurestore.store import FeatureStore
from pipelines import signals
from pipelines.backbones import canary
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.engines import Engine, open_engine
from pipelines.backbones.table import Tap
from pipelines.images import decoder
from pipelines.images.augmentation import Augmentation
from pipelines.images.views import random_view
from pipelines.sources import corpus

THREADS_PER_CORE = 2  # while one enters the engine or waits for a read, another computes
BATCHES_AHEAD = 2  # per thread: batches begun and not yet taken
HEARTBEAT_SECONDS = 0.5
M_ARENA_MAX = -8  # from malloc.h
ROWS_PER_WRITE = 1024
OVERFLOW = ImageError(
    "overflow",
    "The backbone's features of this picture are not finite, or larger than what the set stores: "
    "try `penult embed --dtype float32`.",
)

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class EmbedJob:
    """What a worker needs to embed shards; it is small enough to send to another machine."""

    store: str
    run_id: str
    feature_set: str
    tap: Tap
    engine: EngineOptions
    views: int = 0  # augmented views per image; 0 embeds the image itself
    augmentation: Augmentation | None = None

    def staging(self) -> Staging:
        """Return the run's journal."""
        return Staging(Path(self.store), self.run_id)


@dataclass(slots=True)
class _File:
    """One planned file; reading, hashing and decoding fill in its fields."""

    uri: str
    size: int
    mtime_ns: int
    offset: int
    key: bytes | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    duplicate: bool = False
    error: ImageError | None = None


class _Picture(NamedTuple):
    """One input of the engine: a view of a content."""

    key: bytes
    view: int
    pixels: np.ndarray


@dataclass
class _Clock:
    """Seconds per stage, summed over threads."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, stage: str, since: float) -> float:
        now = time.perf_counter()
        with self._lock:
            self.seconds[stage] += now - since
        return now


class _Contents:
    """The contents that need no embedding.

    These are the contents that the set held when the run began, and those that shards of this process have taken
    since. No other run writes to the set meanwhile, because this one holds the store's lock.
    """

    def __init__(self, known: np.ndarray, partly: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """``partly``: keys S32 (n,), sorted, and how many views of each are stored."""
        self._known, self._partly = KeySet(known), partly
        self._taken: dict[bytes, int] = {}  # content → the shard in progress that took it
        self._errors: dict[bytes, ImageError] = {}
        self._lock = threading.Lock()

    def take(self, key: bytes, shard: int) -> bool:
        """Return whether the caller must embed this content; true only for the first caller."""
        with self._lock:
            if key in self._taken or key in self._known:
                return False
            self._taken[key] = shard
            return True

    def stored_views(self, key: bytes) -> int:
        """Return how many views are stored of a content that lacks some."""
        if self._partly is None:
            return 0
        keys, counts = self._partly
        at = int(np.searchsorted(keys, np.array(key, "S32")))
        return int(counts[at]) if at < len(keys) and keys[at] == np.array(key, "S32") else 0

    @contextlib.contextmanager
    def of_shard(self, shard: int) -> Iterator[None]:
        """At the end of the block, mark the shard's contents as known; after an error, let them be taken again."""
        embedded = False
        try:
            yield
            embedded = True
        finally:
            with self._lock:
                own = [key for key, owner in self._taken.items() if owner == shard]
                for key in own:
                    del self._taken[key]
                if embedded and own:
                    self._known.add(np.array(own, "S32"))

    def fail(self, key: bytes, error: ImageError) -> None:
        """Note why a content cannot be embedded, so that all files with this content get the error."""
        with self._lock:
            self._errors[key] = error

    def error(self, key: bytes | None) -> ImageError | None:
        """Return why a content could not be embedded; None if there was no error."""
        return self._errors.get(key) if key else None


class _Feed:
    """A thread-safe iterator over the planned files of one shard; ``files`` keeps all of them for the catalog."""

    def __init__(self, staging: Staging, shard: int) -> None:
        self.files: list[_File] = []
        self.ended = False
        self._staging, self._shard = staging, shard
        self._planned = _planned(staging, shard)
        self._beat = time.monotonic()
        self._lock = threading.Lock()

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> _File:
        with self._lock:
            signals.check()
            file = next(self._planned, None)
            if file is None:
                self.ended = True
                raise StopIteration
            self.files.append(file)
            if time.monotonic() - self._beat > HEARTBEAT_SECONDS:
                self._beat = time.monotonic()
                self._staging.note_progress(self._shard, len(self.files))
            return file


@functools.lru_cache(maxsize=1)
def engine_for(tap: Tap, options: EngineOptions) -> Engine:
    """Return the engine of this process, which is opened once."""
    return open_engine(tap, options)


@functools.lru_cache(maxsize=1)
def checked_engine(job: EmbedJob) -> Engine:
    """Return the engine of this process, after checking once per run that its features agree with the set's.

    Raises:
        SpecMismatch: they do not agree; see ``pipelines.backbones.canary``.
    """
    engine = engine_for(job.tap, job.engine)
    canary.check(FeatureStore(job.store), job.feature_set, engine)
    return engine


def settle_canary(job: EmbedJob) -> None:
    """Give the set a canary if it needs one, and check the engine of this process against it.

    It is called once before the shards, with the store's lock held.

    Raises:
        SpecMismatch: the features of this process do not agree with those of the set.
    """
    engine = engine_for(job.tap, job.engine)
    canary.settle(FeatureStore(job.store), job.feature_set, engine)
    checked_engine(job)


@functools.lru_cache(maxsize=1)
def _contents(store: str, run_id: str, feature_set: str, views: int) -> _Contents:
    opened = FeatureStore(store)
    return _Contents(
        opened.content_keys(feature_set, views or None), opened.view_counts(feature_set) if views else None
    )


def embed_shard(job: EmbedJob, shard: int) -> ShardEntry:
    """Embed the files of one planned shard and return its entry in the journal.

    A finished shard is not embedded again; its existing entry is returned. Files that fail become catalog rows.
    """
    staging = job.staging()
    if (finished := staging.entry(shard)) is not None:
        return finished
    bound_memory()
    contents = _contents(job.store, job.run_id, job.feature_set, job.views)
    with contents.of_shard(shard):
        return _embed(job, staging, shard, contents)


def _embed(job: EmbedJob, staging: Staging, shard: int, contents: _Contents) -> ShardEntry:
    began = time.perf_counter()
    engine = checked_engine(job)
    table = FeatureStore(job.store).table(job.feature_set)
    schema = table.schema
    clock, feed, size = _Clock(), _Feed(staging, shard), engine.batch_size
    embedded: set[bytes] = set()
    load = _loader(job, shard, contents, clock)
    dtype = spec_of(schema).dtype
    waiting: list[_Picture] = []  # decoded, in no batch yet; per thread: below a file's views, at the end a batch
    lock = threading.Lock()

    def fill() -> list[_Picture]:
        """Return a full batch, or an empty list at the end of the feed."""
        with lock:
            batch = waiting[:size]
            del waiting[:size]
        while len(batch) < size and (file := next(feed, None)) is not None:
            batch += load(file)
        full = len(batch) >= size
        with lock:
            waiting.extend(batch[size:] if full else batch)
        return batch[:size] if full else []

    def infer(batch: list[_Picture]) -> tuple[list[tuple[bytes, int]], np.ndarray]:
        since = time.perf_counter()
        vectors = engine(np.stack([picture.pixels for picture in batch]))
        clock.add("infer", since)
        good = storable(vectors, dtype)
        for at in np.flatnonzero(~good):
            contents.fail(batch[at].key, OVERFLOW)
        return [(batch[at].key, batch[at].view) for at in np.flatnonzero(good)], vectors[good]

    def fill_and_infer(_: None) -> tuple[list[tuple[bytes, int]], np.ndarray] | None:
        return infer(batch) if (batch := fill()) else None

    def inferred() -> Iterator[tuple[list[tuple[bytes, int]], np.ndarray]]:
        count = THREADS_PER_CORE * available_cores()
        with ThreadPoolExecutor(count) as pool:
            calls = takewhile(lambda _: not feed.ended, repeat(None))
            yield from filter(None, ahead_of(pool, fill_and_infer, calls, BATCHES_AHEAD * count))
            yield from ahead_of(pool, infer, _batched(waiting, size), BATCHES_AHEAD * count)

    def rows() -> Iterator[pa.RecordBatch]:
        finite = (batch for batch in inferred() if batch[0])
        for group in _batched(finite, max(1, ROWS_PER_WRITE // size)):
            keys, views = zip(*(row for rows, _ in group for row in rows), strict=True)
            embedded.update(keys)
            vectors = np.concatenate([vectors for _, vectors in group])
            yield features_batch(schema, np.array(keys, "S32"), vectors, job.run_id, np.array(views))

    fragments = table.stage(_timed(rows(), clock, "_pull"))
    clock.seconds["write"] = time.perf_counter() - began - clock.seconds.pop("_pull", 0.0)
    files = feed.files
    for file in files:
        file.error = file.error or contents.error(file.key)
    failures = Counter(file.error.error_type for file in files if file.error)
    entry = ShardEntry(
        shard=shard,
        fragments=fragments if embedded else [],
        rows_file=f"{shard}.{secrets.token_hex(4)}.arrow",
        embedded=len(embedded),
        deduplicated=sum(file.duplicate and not file.error for file in files),
        failures=dict(failures),
        seconds=dict(clock.seconds),
    )
    staging.note_progress(shard, len(files))
    return staging.finish(entry, [_catalog_rows(files, job.run_id)])


def _loader(job: EmbedJob, shard: int, contents: _Contents, clock: _Clock) -> Callable[[_File], list[_Picture]]:
    """Return a function that reads, hashes and decodes a file, and returns the views of it that must be embedded."""
    tap = job.tap

    def pictures(key: bytes, pixels: np.ndarray) -> list[_Picture]:
        if job.augmentation is None:
            return [_Picture(key, 0, pixels)]
        views = range(contents.stored_views(key) + 1, job.views + 1)
        return [_Picture(key, view, random_view(pixels, job.augmentation, key, view)) for view in views]

    def load(file: _File) -> list[_Picture]:
        since = time.perf_counter()
        found: list[_Picture] = []
        try:
            data, size, mtime_ns = corpus.read(file.uri, file.offset, file.size)
            if file.offset >= 0 and mtime_ns != file.mtime_ns:  # another tar member may be at this offset now
                raise ImageError("unreadable", "The tar has changed since it was listed: run again.")
            file.size, file.mtime_ns = size, mtime_ns
            file.key = hashlib.sha256(data).digest()
            since = clock.add("read", since)
            file.duplicate = not contents.take(file.key, shard)
            if file.duplicate:
                file.width, file.height, file.format = decoder.measure(data)
            else:
                picture = decoder.decode(data, tap.input_size, tap.crop)
                file.width, file.height, file.format = picture.width, picture.height, picture.format
                found = pictures(file.key, picture.pixels)
            clock.add("decode", since)
        except ImageError as error:
            file.error = error
            if error.error_type == "vanished":
                file.size, file.mtime_ns = -1, 0  # as listed for missing files: if it comes back, it is retried
            if file.key is not None:
                contents.fail(file.key, error)
        return found

    return load


def _planned(staging: Staging, shard: int) -> Iterator[_File]:
    plan = staging.shard_plan(shard)
    columns = (plan.column(name).to_pylist() for name in ("uri", "size", "mtime_ns", "offset"))
    for uri, size, mtime_ns, offset in zip(*columns, strict=True):
        yield _File(uri, size, mtime_ns, offset)


@functools.cache
def bound_memory() -> None:
    """Make freed memory available to all threads, so that the process does not grow with their number.

    By default glibc uses up to eight heaps per core; each new thread may add one, and none is given back (mallopt(3)).
    Arrow's own memory pool kept 50 MiB per 100,000 catalog rows that Lance's threads had freed.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, available_cores())


def _catalog_rows(files: list[_File], run_id: str) -> pa.RecordBatch:
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


def ahead_of(pool: Executor, function: Callable[[In], Out], items: Iterable[In], ahead: int) -> Iterator[Out]:
    """Map a function over items in a pool, in order, with at most ``ahead`` results begun and not yet taken."""
    begun: deque[Future[Out]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) >= ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


def _batched(items: Iterable[In], size: int) -> Iterator[list[In]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _timed(items: Iterable[In], clock: _Clock, stage: str) -> Iterator[In]:
    """Pass items through, and add the seconds spent waiting for them to ``stage``."""
    iterator = iter(items)
    while True:
        since = time.perf_counter()
        item = next(iterator, None)
        clock.add(stage, since)
        if item is None:
            return
        yield item
