"""The embed loop: one shard of planned files → feature fragments, catalog rows, one journal entry.

The loop does not depend on Beam: a runner, a thread or a test calls ``embed_shard``. All threads take files from one
feed. Each thread reads, hashes and decodes files until they fill a batch, and runs the batch through the engine
itself. Only embedded batches pass between threads, and memory is bounded by a few batches per thread.
"""

from __future__ import annotations

import functools
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import repeat, takewhile

import numpy as np
import pyarrow as pa

from featurestore.errors import ImageError, SpecMismatch
from featurestore.journal import ShardEntry, Staging
from featurestore.machine import available_cores
from featurestore.schema import features_batch, spec_of, storable
from featurestore.store import FeatureStore
from pipelines.backbones import canary
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.engines import Engine, open_engine
from pipelines.backbones.table import Tap
from pipelines.concurrency import ahead_of, batched, bound_memory
from pipelines.embedding.contents import Contents
from pipelines.embedding.files import Clock, Feed, Loader, Picture, catalog_rows
from pipelines.embedding.job import EmbedJob

THREADS_PER_CORE = 2  # while one enters the engine or waits for a read, another computes
BATCHES_AHEAD = 2  # per thread: batches begun and not yet taken
ROWS_PER_WRITE = 1024
OVERFLOW = ImageError(
    "overflow",
    "The backbone's features of this image are not finite, or larger than what the set stores: "
    "try `penult embed --dtype float32`.",
)

Features = tuple[list[tuple[bytes, int]], np.ndarray]  # content and view of each row; float32 (n, d)


@functools.lru_cache(maxsize=1)
def engine_for(tap: Tap, options: EngineOptions) -> Engine:
    """Return the engine of this process, which is opened once."""
    return open_engine(tap, options)


def _engine_of(job: EmbedJob) -> Engine:
    """Return the engine of this process; raise SpecMismatch if its vectors have another length than the set's."""
    engine, width = engine_for(job.tap, job.engine), FeatureStore(job.store).spec(job.feature_set).width
    if engine.width != width:
        raise SpecMismatch(
            f"Expected: {width:,} numbers per image, as in {job.feature_set}. Got: {engine.width:,} from this "
            "backbone: embed everything into another --store."
        )
    return engine


@functools.lru_cache(maxsize=1)
def checked_engine(job: EmbedJob) -> Engine:
    """Return the engine of this process, after checking once per run that its features agree with the set's.

    Raises:
        SpecMismatch: they do not agree; see ``pipelines.backbones.canary``.
    """
    engine = _engine_of(job)
    canary.check(FeatureStore(job.store), job.feature_set, engine)
    return engine


def settle_canary(job: EmbedJob) -> None:
    """Give the set a canary if it needs one, and check the engine of this process against it.

    It is called once before the shards, with the store's lock held.

    Raises:
        SpecMismatch: the features of this process do not agree with those of the set.
    """
    canary.settle(FeatureStore(job.store), job.feature_set, _engine_of(job))
    checked_engine(job)


@functools.lru_cache(maxsize=1)
def _contents(store: str, run_id: str, feature_set: str, views: int) -> Contents:
    opened = FeatureStore(store)
    return Contents(opened.content_keys(feature_set, views or None), opened.view_counts(feature_set) if views else None)


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


def _embed(job: EmbedJob, staging: Staging, shard: int, contents: Contents) -> ShardEntry:
    began = time.perf_counter()
    clock = Clock()
    table = FeatureStore(job.store).table(job.feature_set)
    with closing(Feed(staging, shard)) as feed:
        loop = _Loop(job, table.schema, feed, Loader(job, shard, contents, clock), contents, clock)
        fragments = table.stage(_timed(loop.rows(), clock, "_pull"))
    clock.seconds["write"] = time.perf_counter() - began - clock.seconds.pop("_pull", 0.0)
    for file in feed.files:
        file.error = file.error or contents.error(file.key)
    entry = ShardEntry(
        shard=shard,
        fragments=fragments if loop.embedded else [],
        rows_file=f"{shard}.{secrets.token_hex(4)}.arrow",
        embedded=len(loop.embedded),
        deduplicated=sum(file.duplicate and not file.error for file in feed.files),
        failures=dict(Counter(file.error.error_type for file in feed.files if file.error)),
        seconds=dict(clock.seconds),
    )
    staging.note_progress(shard, len(feed.files))
    return staging.finish(entry, [catalog_rows(feed.files, job.run_id)])


class _Loop:
    """The files of one feed on their way through the engine, in threads.

    Attributes:
        embedded: the contents whose rows have been taken.
    """

    def __init__(
        self, job: EmbedJob, schema: pa.Schema, feed: Feed, load: Loader, contents: Contents, clock: Clock
    ) -> None:
        self.embedded: set[bytes] = set()
        self._engine = checked_engine(job)
        self._run_id, self._schema, self._dtype = job.run_id, schema, spec_of(schema).dtype
        self._feed, self._load, self._contents, self._clock = feed, load, contents, clock
        self._waiting: list[Picture] = []  # decoded, in no batch; per thread: below a file's views, at the end a batch
        self._lock = threading.Lock()

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Yield rows (schema of the set) until the feed has ended."""
        finite = (batch for batch in self._inferred() if batch[0])
        for group in batched(finite, max(1, ROWS_PER_WRITE // self._engine.batch_size)):
            keys, views = zip(*(row for rows, _ in group for row in rows), strict=True)
            self.embedded.update(keys)
            vectors = np.concatenate([vectors for _, vectors in group])
            yield features_batch(self._schema, np.array(keys, "S32"), vectors, self._run_id, np.array(views))

    def _inferred(self) -> Iterator[Features]:
        count = THREADS_PER_CORE * available_cores()
        with ThreadPoolExecutor(count) as pool:
            calls = takewhile(lambda _: not self._feed.ended, repeat(None))
            yield from filter(None, ahead_of(pool, self._fill_and_infer, calls, BATCHES_AHEAD * count))
            rest = batched(self._waiting, self._engine.batch_size)
            yield from ahead_of(pool, self._infer, rest, BATCHES_AHEAD * count)

    def _fill_and_infer(self, _: None) -> Features | None:
        return self._infer(batch) if (batch := self._fill()) else None

    def _fill(self) -> list[Picture]:
        """Return a full batch, or an empty list at the end of the feed."""
        size = self._engine.batch_size
        with self._lock:
            batch = self._waiting[:size]
            del self._waiting[:size]
        while len(batch) < size and (file := next(self._feed, None)) is not None:
            batch += self._load(file)
        full = len(batch) >= size
        with self._lock:
            self._waiting.extend(batch[size:] if full else batch)
        return batch[:size] if full else []

    def _infer(self, batch: list[Picture]) -> Features:
        since = time.perf_counter()
        vectors = self._engine(np.stack([picture.pixels for picture in batch]))
        self._clock.add("infer", since)
        good = storable(vectors, self._dtype)
        for at in np.flatnonzero(~good):
            self._contents.fail(batch[at].key, OVERFLOW)
        return [(batch[at].key, batch[at].view) for at in np.flatnonzero(good)], vectors[good]


def _timed(items: Iterable[pa.RecordBatch], clock: Clock, stage: str) -> Iterator[pa.RecordBatch]:
    """Pass items through, and add the seconds spent waiting for them to ``stage``."""
    iterator = iter(items)
    while True:
        since = time.perf_counter()
        item = next(iterator, None)
        clock.add(stage, since)
        if item is None:
            return
        yield item
