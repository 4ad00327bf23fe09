"""The embed loop: one shard of planned files → feature fragments, catalog rows, one journal entry.

It knows no Beam: a runner, a thread or a test calls ``embed_shard``. Reading, decoding and inference overlap in
threads (all three release the interpreter lock); memory is bounded by the pictures in flight.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import secrets
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from featurestore.errors import ImageError
from featurestore.known import contains
from featurestore.schema import CATALOG, FAILED, OK, features_batch
from featurestore.staging import ShardEntry, Staging
from featurestore.store import FeatureStore
from pipelines import images, interrupt, sources
from pipelines.backbones import Tap
from pipelines.engines import Engine, open_engine

IMAGES_AHEAD = 64  # pictures that may be decoded and wait for the engine, and at least four a thread
CALLS_AHEAD = 4  # batches a stream of the engine that may be under way or wait
HEARTBEAT_SECONDS = 0.5
M_ARENA_MAX = -8  # from malloc.h
ROWS_A_WRITE = 1024

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class EmbedJob:
    """All that a worker on another machine needs, and small enough to send."""

    store: str
    run_id: str
    feature_set: str
    tap: Tap
    engine: str
    precision: str
    batch_size: int | None

    def staging(self) -> Staging:
        """The run's journal."""
        return Staging(Path(self.store), self.run_id)


@dataclass(slots=True)
class _File:
    """One planned file on its way: filled in by read, hash and decode."""

    uri: str
    size: int
    mtime_ns: int
    offset: int
    key: bytes | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    pixels: np.ndarray | None = None  # only between decoding and inference
    duplicate: bool = False
    error: ImageError | None = None


@dataclass
class _Clock:
    """Seconds a stage, summed over threads."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, stage: str, since: float) -> float:
        now = time.perf_counter()
        with self._lock:
            self.seconds[stage] += now - since
        return now


class _Claims:
    """Which shard of this process embeds a content first, so that copies in other shards do not repeat it."""

    def __init__(self) -> None:
        self._owners: dict[bytes, int] = {}
        self._errors: dict[bytes, ImageError] = {}
        self._lock = threading.Lock()

    def owner(self, key: bytes, shard: int) -> int:
        with self._lock:
            return self._owners.setdefault(key, shard)

    def fail(self, key: bytes, error: ImageError) -> None:
        with self._lock:
            self._errors[key] = error

    def error(self, key: bytes | None) -> ImageError | None:
        return self._errors.get(key) if key else None


@functools.lru_cache(maxsize=1)
def engine_for(tap: Tap, engine: str, precision: str, batch_size: int | None) -> Engine:
    """The engine of this process, opened once."""
    return open_engine(tap, engine=engine, precision=precision, batch_size=batch_size)


@functools.lru_cache(maxsize=1)
def _known_contents(store: str, run_id: str, feature_set: str) -> np.ndarray:
    """Contents that were in the set when the run began (nobody else writes while it holds the lock)."""
    return FeatureStore(store).content_keys(feature_set)


@functools.lru_cache(maxsize=1)
def _claims(run_id: str) -> _Claims:
    return _Claims()


def embed_shard(job: EmbedJob, shard: int) -> ShardEntry:
    """Embed the files of one planned shard and acknowledge it in the journal.

    A shard that is finished already is not touched again: its entry is returned. Files that fail become
    catalog rows.
    """
    staging = job.staging()
    if (finished := staging.entry(shard)) is not None:
        return finished
    limit_malloc_arenas()
    began = time.perf_counter()
    engine = engine_for(job.tap, job.engine, job.precision, job.batch_size)
    table = FeatureStore(job.store).table(job.feature_set)
    schema = table.schema
    clock, files, embedded = _Clock(), [], 0
    claims = _claims(job.run_id)
    load = _loader(job, shard, claims, clock)

    def to_embed(loaded: Iterable[_File]) -> Iterator[_File]:
        beat = time.monotonic()
        for file in loaded:
            interrupt.check()
            files.append(file)
            if time.monotonic() - beat > HEARTBEAT_SECONDS:
                beat = time.monotonic()
                staging.note_progress(shard, len(files))
            if file.pixels is not None:
                yield file

    def infer(batch: list[_File]) -> tuple[list[_File], np.ndarray]:
        since = time.perf_counter()
        vectors = engine(np.stack([file.pixels for file in batch if file.pixels is not None]))
        for file in batch:
            file.pixels = None
        clock.add("infer", since)
        return batch, vectors

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal embedded
        with ThreadPoolExecutor(threads()) as pool:  # one for both: no more running threads than cores
            loaded = _ahead(pool, load, _planned(staging, shard), max(IMAGES_AHEAD, 4 * threads()))
            batches = _batched(to_embed(loaded), engine.batch_size)
            inferred = _ahead(pool, infer, batches, CALLS_AHEAD * engine.streams)
            for group in _batched(inferred, max(1, ROWS_A_WRITE // engine.batch_size)):
                keys = np.array([file.key for batch, _ in group for file in batch], "S32")
                vectors = np.concatenate([vectors for _, vectors in group])
                embedded += len(keys)
                yield features_batch(schema, keys, vectors, job.run_id)

    fragments = table.stage(_timed(rows(), clock, "_pull"))
    clock.seconds["write"] = time.perf_counter() - began - clock.seconds.pop("_pull", 0.0)
    for file in files:
        if file.duplicate:
            file.error = claims.error(file.key)
    failures = Counter(file.error.error_type for file in files if file.error)
    entry = ShardEntry(
        shard=shard,
        fragments=fragments if embedded else [],
        rows_file=f"{shard}.{secrets.token_hex(4)}.arrow",
        embedded=embedded,
        deduplicated=sum(file.duplicate and not file.error for file in files),
        failures=dict(failures),
        seconds=dict(clock.seconds),
    )
    staging.note_progress(shard, len(files))
    return staging.finish(entry, [_catalog_rows(files, job.run_id)])


def threads() -> int:
    """One thread a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _loader(job: EmbedJob, shard: int, claims: _Claims, clock: _Clock) -> Callable[[_File], _File]:
    """The function the decoder threads run: read, hash, and decode what is new."""
    known = _known_contents(job.store, job.run_id, job.feature_set)
    seen: set[bytes] = set()
    lock = threading.Lock()

    def is_duplicate(key: bytes) -> bool:
        with lock:
            if key in seen:
                return True
            seen.add(key)
        return bool(contains(known, np.array([key], "S32"))[0]) or claims.owner(key, shard) != shard

    def load(file: _File) -> _File:
        since = time.perf_counter()
        try:
            data, file.size, file.mtime_ns = sources.read(file.uri, file.offset, file.size)
            file.key = hashlib.sha256(data).digest()
            since = clock.add("read", since)
            file.duplicate = is_duplicate(file.key)
            if file.duplicate:
                file.width, file.height, file.format = images.measure(data)
            else:
                picture = images.decode(data, job.tap.input_size)
                file.width, file.height, file.format = picture.width, picture.height, picture.format
                file.pixels = picture.pixels
            clock.add("decode", since)
        except ImageError as error:
            file.error = error
            if file.key is not None:
                claims.fail(file.key, error)
        return file

    return load


def _planned(staging: Staging, shard: int) -> Iterator[_File]:
    plan = staging.shard_plan(shard)
    columns = (plan.column(name).to_pylist() for name in ("uri", "size", "mtime_ns", "offset"))
    for uri, size, mtime_ns, offset in zip(*columns, strict=True):
        yield _File(uri, size, mtime_ns, offset)


@functools.cache
def limit_malloc_arenas() -> None:
    """One heap a core: glibc's default of eight grows with every new thread and is never given back (mallopt(3))."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, threads())


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


def _ahead(pool: Executor, function: Callable[[In], Out], items: Iterable[In], ahead: int) -> Iterator[Out]:
    """Map in order, in a pool, with at most ``ahead`` calls begun and not yet taken."""
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
    """Pass items through, adding the time they took to come to ``stage``."""
    iterator = iter(items)
    while True:
        since = time.perf_counter()
        item = next(iterator, None)
        clock.add(stage, since)
        if item is None:
            return
        yield item
