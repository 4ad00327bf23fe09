"""The plan of a run: which files of a source to embed, in which shards, and what the source says of its images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from featurestore.index import CHANGED, NEW, Known, pair_digests, text_digests
from featurestore.journal import PLAN, Staging
from featurestore.schema import LABELS
from featurestore.sets import FAILED_BEFORE, NOT_IN_SET
from featurestore.store import FeatureStore
from pipelines import signals
from pipelines.concurrency import batched
from pipelines.embedding.membership import Membership
from pipelines.embedding.result import EmbedResult
from pipelines.options import EmbedOptions
from pipelines.sources import corpus

LISTED_AT_ONCE = 4096
SHARD_SECONDS = 5.0  # a worker has two in work
SHARDS_PER_WORKER = 4  # at least, if there are several workers
TASKS_PER_WORKER = 8  # at least, if there are so many shards
MAX_TASK = 16  # shards
MIN_SHARD, MAX_SHARD = 32, 4096  # images
WAITING = 2**16  # images that wait before the size of shards is settled, so that few images are cut evenly


@dataclass(frozen=True)
class Planned:
    """What there is to do: how many images, in how many shards, and the first shard of images that stand apart."""

    images: int
    shards: int
    apart_from: int


def write_plan(
    store: FeatureStore,
    staging: Staging,
    listing: corpus.Source,
    options: EmbedOptions,
    result: EmbedResult,
    membership: Membership | None,
    cut: Cut | None,
) -> Planned:
    """Stream the listing once: count it, write the plan and the label rows. Without a cut, no image is planned."""
    known = store.known_files(result.feature_set, options.views or None)
    with staging.writer("plan", PLAN) as plan, staging.writer("labels", LABELS) as said:
        shards = _ShardWriter(plan, cut or Cut(lambda _images: 1))
        for entries in batched(_listed(listing, membership), LISTED_AT_ONCE):
            signals.check()
            keys = text_digests(entry.uri for entry in entries)
            states = states_of(entries, keys, known)
            wanted = to_embed(states, options)
            result.seen += len(entries)
            result.new += int((wanted & (states != CHANGED)).sum())
            result.changed += int((states == CHANGED).sum())
            result.unchanged += int((~wanted).sum())
            result.failed_before += int((~wanted & (states == FAILED_BEFORE)).sum())
            if cut is not None:
                shards.add([entry for entry, take in zip(entries, wanted, strict=True) if take], states[wanted])
            if membership is not None and (rows := membership.take(entries, keys)).num_rows:
                said.write_batch(rows)
        planned = shards.close()
        if membership is not None:
            for rows in membership.removals(listing.incomplete, 1.0 if options.accept_removed else options.max_removed):
                said.write_batch(rows)
            result.source, result.labels = membership.source, membership.to_json()
            result.listed_before, result.labels_changed = membership.before, membership.written
            result.removed, result.not_removed = membership.removed, membership.refused
    result.ignored, result.problems = dict(listing.ignored), list(listing.problems)
    result.columns, result.notes = dict(listing.columns), list(listing.notes)
    return planned


def _listed(listing: corpus.Source, membership: Membership | None) -> Iterator[corpus.Entry]:
    """Yield the listing; raise NoPictures if it is empty, unless the source has listed images before."""
    try:
        yield from listing
    except corpus.NoPictures:
        if membership is None or not membership.is_known:
            raise


def shard_images(per_image: float, images: int, cores: int, workers: int = 1) -> int:
    """Return how many images to put into a shard: what takes about ``SHARD_SECONDS``, and less if they are few.

    A killed worker loses the shards that it has in work. Of few images, each of several workers gets some shards, so
    that none has nothing to do while others have much.

    Args:
        per_image: seconds that one core takes for an image.
        images: how many there are at least.
        cores: of a worker.
        workers: how many there are.
    """
    by_time = int(SHARD_SECONDS * cores / max(per_image, 1e-9))
    by_share = -(-images // (SHARDS_PER_WORKER * workers)) if workers > 1 else by_time
    return min(max(min(by_time, by_share), MIN_SHARD), MAX_SHARD)


def shards_per_task(shards: int, workers: int) -> int:
    """Return how many shards a worker takes at a time: a worker overlaps those of a task, and tasks are for balance."""
    return max(1, min(shards // (TASKS_PER_WORKER * workers), MAX_TASK))


class Cut(NamedTuple):
    """How to cut the planned images into shards.

    Attributes:
        size: returns the images per shard, given how many images there are at least; called once, if there are any.
        apart: uris of images that have shards of their own, which come last.
    """

    size: Callable[[int], int]
    apart: Collection[str] = ()


class _ShardWriter:
    """Cuts planned images into shards of equal size, and writes each shard as one record batch of the plan."""

    def __init__(self, plan: pa.RecordBatchFileWriter, cut: Cut) -> None:
        self._plan, self._cut = plan, cut
        self._size: int | None = None
        self._waiting: list[tuple[corpus.Entry, bool]] = []
        self._apart: list[tuple[corpus.Entry, bool]] = []
        self._images = self._shards = 0

    def add(self, entries: list[corpus.Entry], states: np.ndarray) -> None:
        for row in zip(entries, (states != NEW).tolist(), strict=True):
            (self._apart if row[0].uri in self._cut.apart else self._waiting).append(row)
        if self._size is not None or len(self._waiting) >= WAITING:
            self._write(self._waiting, whole=True)

    def close(self) -> Planned:
        """Write what waits; return what was written."""
        self._write(self._waiting)
        apart_from = self._shards
        self._write(self._apart)
        return Planned(self._images, self._shards, apart_from)

    def _write(self, rows: list[tuple[corpus.Entry, bool]], whole: bool = False) -> None:
        """Write rows and drop them from the list, but for less than a shard if only whole ones are asked for."""
        if rows and self._size is None:
            self._size = self._cut.size(len(rows))
        while rows and self._size and (len(rows) >= self._size or not whole):
            shard = rows[: self._size]
            del rows[: self._size]
            columns = zip(*((e.uri, e.size, e.mtime_ns, e.offset, replaces) for e, replaces in shard), strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, PLAN, strict=True)]
            self._plan.write_batch(pa.record_batch(arrays, schema=PLAN))
            self._images += len(shard)
            self._shards += 1


def to_embed(states: np.ndarray, options: EmbedOptions) -> np.ndarray:
    """Return which files are to be embedded, bool (n,), given their states, uint8 (n,)."""
    todo = [NEW, CHANGED, NOT_IN_SET, FAILED_BEFORE] if options.retry_failed else [NEW, CHANGED, NOT_IN_SET]
    return np.isin(states, todo)


def count_lacking(entries: list[corpus.Entry], known: Known, options: EmbedOptions) -> int:
    """Return how many of some files a run with these options would embed into the set of which ``known`` tells."""
    states = states_of(entries, text_digests(entry.uri for entry in entries), known)
    return int(to_embed(states, options).sum())


def states_of(entries: list[corpus.Entry], keys: np.ndarray, known: Known) -> np.ndarray:
    """Return the state of each entry, uint8 (n,), see ``Known.lookup``; ``keys`` are the digests of the URIs."""
    sizes = np.array([entry.size for entry in entries], np.int64)
    mtimes = np.array([entry.mtime_ns for entry in entries], np.int64)
    return known.lookup(keys, pair_digests(sizes, mtimes))
