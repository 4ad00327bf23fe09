"""The embed job: list a corpus, plan which images the store lacks, embed them in shards, commit once."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.errors import TooManyFailures, TooManyRemoved, UsageError
from featurestore.index import CHANGED, NEW, Known, pair_digests, text_digests
from featurestore.journal import PLAN, Staging
from featurestore.runs import RunRecord, utc_now
from featurestore.schema import LABELS
from featurestore.store import FAILED_BEFORE, NOT_IN_SET, FeatureStore
from pipelines import signals
from pipelines.backbones import kept
from pipelines.backbones.engine_options import check_request
from pipelines.backbones.table import Tap, feature_spec, resolve
from pipelines.embedding.membership import Membership, adopt
from pipelines.embedding.worker import EmbedJob, bound_memory, engine_for, settle_canary
from pipelines.options import EmbedOptions, check_share
from pipelines.sources import corpus

STAGES = ("plan", "read", "decode", "infer", "write", "commit", "total")
POLL_SECONDS = 0.5
Progress = Callable[[int, int], None]  # images done, images in all


@dataclass
class EmbedResult:
    """What an embed run did; ``to_json`` is the contract of ``--json``."""

    run_id: str
    feature_set: str
    fingerprint: str
    seen: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    deduplicated: int = 0
    embedded: int = 0
    failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    failed_before: int = 0  # how many of the unchanged files failed in an earlier run
    labels_changed: int = 0
    source: str = ""  # the source's identity, a URI
    listed_before: int = 0  # how many images the source listed the last time
    removed: int = 0  # images that no source lists any more
    not_removed: int = 0  # images that the source no longer lists, but that stay because they are too many
    labels: dict[str, Any] = field(default_factory=dict)  # of the source: classes, unlabelled, splits, changed
    columns: dict[str, str] = field(default_factory=dict)  # of a manifest: the name of the column for each role
    notes: list[str] = field(default_factory=list)  # how the source was read
    recovered: list[str] = field(default_factory=list)  # dead runs whose finished shards were committed first
    ignored: dict[str, int] = field(default_factory=dict)  # number of files that are not images, by extension
    problems: list[str] = field(default_factory=list)  # folders that could not be listed and the like
    seconds: dict[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0

    @property
    def failure_rate(self) -> float:
        """Share of the corpus's files that failed, in this run or an earlier one."""
        return (self.failed + self.failed_before) / max(self.seen, 1)

    def check(self, max_failure_rate: float, max_removed: float = EmbedOptions.max_removed) -> None:
        """Raise TooManyFailures or TooManyRemoved if a share is above its limit, UsageError if a limit is no share."""
        check_share("--max-failure-rate", max_failure_rate)
        if self.not_removed:
            raise TooManyRemoved(
                f"{self.not_removed:,} of the {self.listed_before:,} images of {self.source} are no longer listed "
                f"({self.not_removed / self.listed_before:.1%}), more than --max-removed {max_removed}: none was "
                "removed and everything new is kept; check that the source is whole, or give --accept-removed."
            )
        if self.failure_rate > max_failure_rate:
            raise TooManyFailures(
                f"{self.failed + self.failed_before} of {self.seen} files failed ({self.failure_rate:.1%}), more than "
                f"--max-failure-rate {max_failure_rate}: everything good is kept; `penult status` says why, "
                "--retry-failed tries them again."
            )

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``penult embed --json`` prints."""
        return asdict(self)


def embed(
    source: str,
    store: str | Path,
    options: EmbedOptions = EmbedOptions(),
    progress: Progress | None = None,
    *,
    as_source: bool = True,
) -> EmbedResult:
    """Embed the images of a corpus whose features the store lacks.

    Args:
        source: folder, manifest or tar shards; see ``pipelines.sources.corpus``.
        store: the store's folder; it is made if it does not exist.
        options: how to embed.
        progress: called about twice per second while images are embedded.
        as_source: whether to record in the store which images the source lists, with their labels, splits and groups;
            if False, the images are only embedded.

    Raises:
        SourceError, BackboneError, EngineError, StoreError, UsageError: before any work.
    """
    began = time.perf_counter()
    options.check()
    bound_memory()
    listing = corpus.list_source(source, split_folders=options.split_folders)
    tap = _tap(options, store)
    check_request(options.engine, tap.input_size)
    engine = engine_for(tap, options.engine)
    augmentation = None if options.augmentation is None else options.augmentation.to_json()
    spec = feature_spec(tap, engine.width, options.engine.precision, options.dtype, augmentation)
    opened = FeatureStore.create(store)
    with opened.lock(), signals.deferred():
        recovered = opened.recover()
        run_id = opened.new_run_id("embed")
        result = EmbedResult(run_id, opened.add_set(spec), spec.fingerprint(), recovered=recovered)
        started, planning = utc_now(), time.perf_counter()
        job = EmbedJob(
            str(opened.path.resolve()),
            run_id,
            result.feature_set,
            tap,
            options.engine,
            options.views,
            options.augmentation,
        )
        staging = job.staging()
        staging.begin(result.feature_set)
        try:
            membership = _membership(opened, listing, options, run_id) if as_source else None
            to_embed = _plan(opened, staging, listing, options, result, membership)
            if to_embed:
                settle_canary(job)
        except BaseException:
            staging.remove()
            raise
        seconds = {"plan": time.perf_counter() - planning}
        try:
            if to_embed:
                run_shards = _import_beam()
                shards = -(-to_embed // options.shard_images)
                with _watching(staging, to_embed, progress):
                    run_shards(job, shards, options.runner, options.runner_arguments)
        finally:  # finished shards are kept, even if an error ends the run
            for entry in staging.entries():
                result.embedded += entry.embedded
                result.deduplicated += entry.deduplicated
                result.failures = dict(Counter(result.failures) + Counter(entry.failures))
                seconds = {stage: seconds.get(stage, 0.0) + entry.seconds.get(stage, 0.0) for stage in STAGES}
            committing = time.perf_counter()
            opened.commit(staging)
        now = time.perf_counter()
        seconds |= {"commit": now - committing, "total": now - began}
        result.seconds = {stage: round(seconds.get(stage, 0.0), 3) for stage in STAGES}
        result.failed = sum(result.failures.values())
        result.images_per_second = round(result.embedded / seconds["total"], 1)
        parameters = {"source": corpus.printable(source), **options.to_json()}
        RunRecord(run_id, "embed", started, parameters, result.to_json()).write(opened.run_folder(run_id))
    return result


def _tap(options: EmbedOptions, store: str | Path) -> Tap:
    find = kept.finder(options.backbone)
    if find is None:
        return resolve(
            options.backbone, options.weights, options.layer, options.pooling, options.input_size, options.crop
        )
    default, own = EmbedOptions(), ("weights", "layer", "pooling", "input_size", "crop")
    if given := [name for name in own if getattr(options, name) != getattr(default, name)]:
        raise UsageError(f"{options.backbone} has its own {given[0].replace('_', ' ')}: leave yours out.")
    return find(FeatureStore(store), options.backbone)


def _membership(store: FeatureStore, listing: corpus.Source, options: EmbedOptions, run_id: str) -> Membership:
    adopt(store, listing)
    return Membership(store, listing.uri, options.label_set, run_id)


def _plan(
    store: FeatureStore,
    staging: Staging,
    listing: corpus.Source,
    options: EmbedOptions,
    result: EmbedResult,
    membership: Membership | None,
) -> int:
    """Stream the listing once: count it, write the plan and the label rows; return how many files to embed."""
    known = store.known_files(result.feature_set, options.views or None)
    todo = [NEW, CHANGED, NOT_IN_SET, FAILED_BEFORE] if options.retry_failed else [NEW, CHANGED, NOT_IN_SET]
    planned = 0
    with staging.writer("plan", PLAN) as plan, staging.writer("labels", LABELS) as said:
        shards = _ShardWriter(plan, options.shard_images)
        for entries in _chunks(_listed(listing, membership), options.shard_images):
            signals.check()
            keys = text_digests(entry.uri for entry in entries)
            states = _states(entries, keys, known)
            wanted = np.isin(states, todo)
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


def _states(entries: list[corpus.Entry], keys: np.ndarray, known: Known) -> np.ndarray:
    sizes = np.array([entry.size for entry in entries], np.int64)
    mtimes = np.array([entry.mtime_ns for entry in entries], np.int64)
    return known.lookup(keys, pair_digests(sizes, mtimes))


def _chunks(entries: Iterator[corpus.Entry], size: int) -> Iterator[list[corpus.Entry]]:
    while chunk := list(islice(entries, size)):
        yield chunk


@contextmanager
def _watching(staging: Staging, total: int, progress: Progress | None) -> Iterator[None]:
    """Report progress while the block runs, read from the notes that workers on any machine leave in the journal."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            progress and progress(staging.progress(), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        if progress:
            progress(staging.progress(), total)


def _import_beam() -> Callable[..., None]:
    """Import Beam, only when it is needed, and without its warnings about clients that penult does not use."""
    logging.disable(logging.WARNING)
    try:
        from pipelines.embedding.beam import run_shards
    finally:
        logging.disable(logging.NOTSET)
    return run_shards
