"""The embed loop: one shard of planned files → feature fragments, catalog rows, one journal entry.

The loop does not depend on Beam: a runner, a thread or a test calls ``embed_shard``. All threads take files from one
feed. Each thread reads, hashes and decodes files until they fill a batch, and runs the batch through the engine
itself. Only embedded batches pass between threads, and memory is bounded by a few batches per thread.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
import pyarrow as pa

from featurestore import layout
from featurestore.concurrency import ahead_of
from featurestore.errors import ImageError, SpecMismatch
from featurestore.journal import ShardEntry, Staging
from featurestore.machine import available_cores
from featurestore.schema import features_batch, spec_of, storable
from featurestore.store import FeatureStore
from pipelines.backbones import canary, graphs
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.engines import Engine, open_engine
from pipelines.backbones.table import Tap
from pipelines.concurrency import Once, batched, bound_memory, shared_pool
from pipelines.embedding.contents import Contents
from pipelines.embedding.files import Clock, Feed, Loader, Picture, catalog_rows
from pipelines.embedding.heartbeat import beating, check_open, worker_name
from pipelines.embedding.job import EmbedJob, HandedGraph
from pipelines.images import decoder
from pipelines.images.apart import Apart

THREADS_PER_CORE = 2  # while one enters the engine or waits for a read, another computes
BATCHES_AHEAD = 2  # per thread: batches begun and not yet taken
ROWS_PER_WRITE = 1024
SHARDS_IN_WORK = 2  # per process: one begins while another ends
OVERFLOW = ImageError(
    "overflow",
    "The backbone's features of this image are not finite, or larger than what the set stores: "
    "try `penult embed --dtype float32`.",
)

Features = tuple[list[tuple[bytes, int]], np.ndarray]  # content and view of each row; float32 (n, d)
_in_work = threading.BoundedSemaphore(SHARDS_IN_WORK)
_feeding = threading.Lock()  # held by the shard whose files are read


@Once
def engine_for(tap: Tap, options: EngineOptions, threads: int = 0, graph: HandedGraph | None = None) -> Engine:
    """Return the engine of this process, which is opened once; ``threads`` and ``graph`` as in ``open_engine``."""
    return open_engine(tap, options, threads, graph)


def hand_out_graph(job: EmbedJob, staging: Staging) -> EmbedJob:
    """Put the graph into the journal, where there is one, so that workers need neither weights nor Keras for it."""
    if job.engine.engine != "openvino" or not graphs.is_converted(job.tap):
        return job
    for name, data in zip((layout.GRAPH, layout.GRAPH_WEIGHTS), graphs.converted(job.tap), strict=True):
        staging.attach(name, data)
    return replace(job, graph=HandedGraph(graphs.key_of(job.tap), job.store, job.run_id))


@Once
def _opened(store: str, _run_id: str) -> FeatureStore:
    """Return the store, which is opened once per run."""
    return FeatureStore(store)


def _engine_of(job: EmbedJob, threads: int) -> Engine:
    """Return the engine of this process; raise SpecMismatch if its vectors have another length than the set's."""
    engine = engine_for(job.tap, job.engine, threads, job.graph)
    width = _opened(job.store, job.run_id).spec(job.feature_set).width
    if engine.width != width:
        raise SpecMismatch(
            f"Expected: {width:,} numbers per image, as in {job.feature_set}. Got: {engine.width:,} from this "
            "backbone: embed everything into another --store."
        )
    return engine


@Once
def checked_engine(job: EmbedJob, threads: int = 0) -> Engine:
    """Return the engine of this process, after checking once per run that its features agree with the set's.

    Raises:
        SpecMismatch: they do not agree; see ``pipelines.backbones.canary``.
    """
    engine = _engine_of(job, threads)
    canary.check(_opened(job.store, job.run_id), job.feature_set, engine)
    return engine


def settle_canary(job: EmbedJob) -> float:
    """Give the set a canary if it needs one, and check the engine of this process against it.

    It is called once before the shards, with the store's lock held.

    Returns:
        About how many seconds of one core an image takes: those of the check, which is a full batch.

    Raises:
        SpecMismatch: the features of this process do not agree with those of the set.
    """
    engine = _engine_of(job, threads=0)
    canary.settle(_opened(job.store, job.run_id), job.feature_set, engine)
    since = time.process_time()
    checked_engine(job)
    return (time.process_time() - since) / engine.batch_size


@Once
def _contents(store: str, run_id: str, feature_set: str, views: int) -> Contents:
    opened = _opened(store, run_id)
    return Contents(opened.content_keys(feature_set, views or None), opened.view_counts(feature_set) if views else None)


def embed_shard(job: EmbedJob, shard: int, cores: int = 0) -> ShardEntry:
    """Embed the files of one planned shard and return its entry in the journal.

    A finished shard is not embedded again; its existing entry is returned. Files that fail become catalog rows. Several
    threads of a process may call this at once: they share one engine and one pool of threads, and two of the shards
    are in work, so that one begins while another ends.

    Args:
        job: what the shard is part of.
        shard: its number.
        cores: how many cores this process may use for all its shards; 0 for all that the machine gives it.

    Raises:
        EngineError: this worker has another version of penult than the driver.
        RunnerError: the run has ended.
    """
    job.check_version()
    staging = job.staging()
    if (finished := staging.entry(shard)) is not None:
        return finished
    bound_memory()
    contents = _contents(job.store, job.run_id, job.feature_set, job.views)
    with _in_work, contents.of_shard(shard):
        return _embed(job, staging, shard, contents, cores or available_cores())


def _embed(job: EmbedJob, staging: Staging, shard: int, contents: Contents, cores: int) -> ShardEntry:
    began = time.perf_counter()
    clock = Clock()
    carefully = shard >= job.suspect_from or staging.begun(shard) is not None
    table = _opened(job.store, job.run_id).table(job.feature_set)
    with closing(Apart()) as apart, closing(Feed(staging, shard)) as feed, beating(staging, shard, feed):
        load = Loader(job, shard, contents, clock, apart if carefully else decoder)
        with closing(_Loop(job, table.schema, feed, load, contents, clock, cores)) as loop:
            fragments = table.stage(_timed(loop.rows(), clock, "_pull"))
    clock.seconds["write"] = time.perf_counter() - began - clock.seconds.pop("_pull", 0.0)
    contents.wait_for({file.key for file in feed.files if file.duplicate and file.key is not None})
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
        worker=worker_name(),
    )
    check_open(staging)
    staging.note_progress(shard, len(feed.files), worker_name())
    return staging.finish(entry, [catalog_rows(feed.files, job.run_id)])


class _Loop:
    """The files of one feed on their way through the engine, in threads.

    Attributes:
        embedded: the contents whose rows have been taken.
    """

    def __init__(
        self, job: EmbedJob, schema: pa.Schema, feed: Feed, load: Loader, contents: Contents, clock: Clock, cores: int
    ) -> None:
        self.embedded: set[bytes] = set()
        self._engine = checked_engine(job, 0 if cores == available_cores() else cores)
        self._threads = THREADS_PER_CORE * cores
        self._run_id, self._schema, self._dtype = job.run_id, schema, spec_of(schema).dtype
        self._feed, self._load, self._contents, self._clock = feed, load, contents, clock
        self._waiting: list[Picture] = []  # decoded, in no batch; per thread: below a file's views, at the end a batch
        self._lock, self._turn = threading.Lock(), ExitStack()

    def close(self) -> None:
        """Let the next shard have its turn: after an error, whoever holds the error holds the iterators above."""
        self._turn.close()

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Yield rows (schema of the set) until the feed has ended."""
        finite = (batch for batch in self._inferred() if batch[0])
        for group in batched(finite, max(1, ROWS_PER_WRITE // self._engine.batch_size)):
            keys, views = zip(*(row for rows, _ in group for row in rows), strict=True)
            self.embedded.update(keys)
            self._contents.settle(keys)
            vectors = np.concatenate([vectors for _, vectors in group])
            yield features_batch(self._schema, np.array(keys, "S32"), vectors, self._run_id, np.array(views))

    def _inferred(self) -> Iterator[Features]:
        pool, ahead = shared_pool(self._threads), BATCHES_AHEAD * self._threads
        yield from filter(None, ahead_of(pool, self._fill_and_infer, self._calls(), ahead))
        yield from ahead_of(pool, self._infer, batched(self._waiting, self._engine.batch_size), ahead)

    def _calls(self) -> Iterator[None]:
        """Yield until the feed has ended; of two shards in work, one waits here, as they would end at once."""
        self._turn.enter_context(_feeding)
        while not self._feed.ended:
            yield None
        self.close()

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
