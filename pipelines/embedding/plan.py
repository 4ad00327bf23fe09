"""The plan of a run: which files of a source to embed, in which shards, and what the source says of its images."""

from __future__ import annotations

from collections.abc import Iterator

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


def write_plan(
    store: FeatureStore,
    staging: Staging,
    listing: corpus.Source,
    options: EmbedOptions,
    result: EmbedResult,
    membership: Membership | None,
) -> int:
    """Stream the listing once: count it, write the plan and the label rows; return how many files to embed."""
    known = store.known_files(result.feature_set, options.views or None)
    planned = 0
    with staging.writer("plan", PLAN) as plan, staging.writer("labels", LABELS) as said:
        shards = _ShardWriter(plan, options.shard_images)
        for entries in batched(_listed(listing, membership), options.shard_images):
            signals.check()
            keys = text_digests(entry.uri for entry in entries)
            states = states_of(entries, keys, known)
            wanted = to_embed(states, options)
            result.seen += len(entries)
            result.new += int((wanted & (states != CHANGED)).sum())
            result.changed += int((states == CHANGED).sum())
            result.unchanged += int((~wanted).sum())
            result.failed_before += int((~wanted & (states == FAILED_BEFORE)).sum())
            planned += int(wanted.sum())
            shards.add([entry for entry, take in zip(entries, wanted, strict=True) if take], states[wanted])
            if membership is not None and (rows := membership.take(entries, keys)).num_rows:
                said.write_batch(rows)
        shards.close()
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


class _ShardWriter:
    """Cuts planned files into shards of equal size, and writes each shard as one record batch of the plan."""

    def __init__(self, plan: pa.RecordBatchFileWriter, shard_images: int) -> None:
        self._plan, self._shard_images = plan, shard_images
        self._waiting: list[tuple[corpus.Entry, bool]] = []

    def add(self, entries: list[corpus.Entry], states: np.ndarray) -> None:
        self._waiting += zip(entries, (states != NEW).tolist(), strict=True)
        while len(self._waiting) >= self._shard_images:
            self._write(self._waiting[: self._shard_images])
            del self._waiting[: self._shard_images]

    def close(self) -> None:
        if self._waiting:
            self._write(self._waiting)

    def _write(self, rows: list[tuple[corpus.Entry, bool]]) -> None:
        columns = zip(*((e.uri, e.size, e.mtime_ns, e.offset, replaces) for e, replaces in rows), strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, PLAN, strict=True)]
        self._plan.write_batch(pa.record_batch(arrays, schema=PLAN))


def to_embed(states: np.ndarray, options: EmbedOptions) -> np.ndarray:
    """Return which files are to be embedded, bool (n,), given their states, uint8 (n,)."""
    todo = [NEW, CHANGED, NOT_IN_SET, FAILED_BEFORE] if options.retry_failed else [NEW, CHANGED, NOT_IN_SET]
    return np.isin(states, todo)


def states_of(entries: list[corpus.Entry], keys: np.ndarray, known: Known) -> np.ndarray:
    """Return the state of each entry, uint8 (n,), see ``Known.lookup``; ``keys`` are the digests of the URIs."""
    sizes = np.array([entry.size for entry in entries], np.int64)
    mtimes = np.array([entry.mtime_ns for entry in entries], np.int64)
    return known.lookup(keys, pair_digests(sizes, mtimes))
