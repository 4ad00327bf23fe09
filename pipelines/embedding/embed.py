"""The embed job: list a corpus, plan which images the store lacks, embed them in shards, commit once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import PurePath

from featurestore.errors import StoreError, StoreNotFound, UsageError
from featurestore.journal import Staging
from featurestore.runs import RunRecord, utc_now
from featurestore.spec import FeatureSpec
from featurestore.store import FeatureStore
from pipelines import signals
from pipelines.backbones import kept
from pipelines.backbones.engine_options import check_request
from pipelines.backbones.table import Tap, feature_spec, resolve
from pipelines.concurrency import bound_memory
from pipelines.embedding.job import EmbedJob
from pipelines.embedding.membership import Membership, adopt
from pipelines.embedding.plan import write_plan
from pipelines.embedding.result import EmbedResult
from pipelines.options import EmbedOptions
from pipelines.sources import corpus

POLL_SECONDS = 0.5
Progress = Callable[[int, int], None]  # images done, images in all


def embed(
    source: str,
    store: str | PurePath,
    options: EmbedOptions = EmbedOptions(),
    progress: Progress | None = None,
    *,
    as_source: bool = True,
    began: Callable[[str], None] = lambda _run_id: None,
) -> EmbedResult:
    """Embed the images of a corpus whose features the store lacks.

    Args:
        source: folder, manifest or tar shards; see ``pipelines.sources.corpus``.
        store: the store's folder; it is made if it does not exist.
        options: how to embed.
        progress: called about twice per second while images are embedded.
        as_source: whether to record in the store which images the source lists, with their labels, splits and groups;
            if False, the images are only embedded.
        began: called with the run's id before any of its rows are written.

    Raises:
        SourceError, BackboneError, EngineError, StoreError, UsageError: before any work.
    """
    since = time.perf_counter()
    options.check()
    bound_memory()
    listing = corpus.list_source(source, options.hints)
    tap = _tap(options, store)
    check_request(options.engine, tap.input_size)
    spec = _spec(options, tap, store)
    opened = FeatureStore.create(store)
    with opened.lock(), signals.deferred():
        recovered = opened.recover()
        run_id = opened.new_run_id("embed")
        began(run_id)
        result = EmbedResult(run_id, opened.add_set(spec), spec.fingerprint(), recovered=recovered)
        started, planning = utc_now(), time.perf_counter()
        job = EmbedJob(opened.address, run_id, spec.set_name, tap, options.engine, options.views, options.augmentation)
        to_embed = _planned(opened, job, listing, options, result, as_source)
        result.seconds["plan"] = time.perf_counter() - planning
        try:
            if to_embed:
                _run_shards(job, to_embed, options, progress)
        finally:  # finished shards are kept, even if an error ends the run
            staging = job.staging()
            result.count(staging.entries())
            committing = time.perf_counter()
            opened.commit(staging)
        now = time.perf_counter()
        result.finish(commit=now - committing, total=now - since)
        parameters = {"source": corpus.printable(source), **options.to_json()}
        RunRecord(run_id, "embed", started, parameters, result.to_json()).write(opened.run_folder(run_id))
    return result


def _tap(options: EmbedOptions, store: str | PurePath) -> Tap:
    find = kept.finder(options.backbone)
    if find is None:
        return resolve(
            options.backbone, options.weights, options.layer, options.pooling, options.input_size, options.crop
        )
    default, own = EmbedOptions(), ("weights", "layer", "pooling", "input_size", "crop")
    if given := [name for name in own if getattr(options, name) != getattr(default, name)]:
        raise UsageError(f"{options.backbone} has its own {given[0].replace('_', ' ')}: leave yours out.")
    return find(FeatureStore(store), options.backbone)


def _spec(options: EmbedOptions, tap: Tap, store: str | PurePath) -> FeatureSpec:
    """Return the identity of the features; the engine is opened for their width only if the store has no such set."""
    asked = _asked(options, tap)
    if (stored := _stored(asked, store)) is not None:
        return stored
    from pipelines.embedding.worker import engine_for  # a run with nothing to embed needs no decoder and no engine

    return replace(asked, width=engine_for(tap, options.engine).width)


def set_of(options: EmbedOptions, store: str | PurePath) -> FeatureSpec | None:
    """Return the spec of the feature set that a run with these options would add to; None if there is none yet."""
    return _stored(_asked(options, _tap(options, store)), store)


def _asked(options: EmbedOptions, tap: Tap) -> FeatureSpec:
    """Return the identity of the features but for their width."""
    tap.fetch()
    augmentation = None if options.augmentation is None else options.augmentation.to_json()
    return feature_spec(tap, 0, options.engine.precision, options.dtype, augmentation)


def _stored(asked: FeatureSpec, store: str | PurePath) -> FeatureSpec | None:
    """Return the spec of a stored set that is as asked for but for its width."""
    try:
        opened = FeatureStore(store)
    except StoreNotFound:
        return None
    for name in opened.sets():
        with suppress(StoreError):  # of another set, or this one is refused when it is added to
            found = opened.spec(name)
            if replace(asked, width=found.width) == found:
                return found
    return None


def _planned(
    store: FeatureStore,
    job: EmbedJob,
    listing: corpus.Source,
    options: EmbedOptions,
    result: EmbedResult,
    as_source: bool,
) -> int:
    """Begin the run's journal with its plan; return how many files to embed, after the canary if there are any."""
    staging = job.staging()
    staging.begin(job.feature_set)
    try:
        membership = None
        if as_source:
            adopt(store, listing)
            membership = Membership(store, listing.uri, options.label_set, job.run_id)
        to_embed = write_plan(store, staging, listing, options, result, membership)
        if to_embed:
            from pipelines.embedding.worker import settle_canary

            settle_canary(job)
    except BaseException:
        staging.remove()
        raise
    return to_embed


def _run_shards(job: EmbedJob, to_embed: int, options: EmbedOptions, progress: Progress | None) -> None:
    """Embed the planned files in Beam."""
    run = _import_beam()
    shards = -(-to_embed // options.shard_images)
    with _watching(job.staging(), to_embed, progress):
        run(job, shards, options.runner, options.runner_arguments)


@contextmanager
def _watching(staging: Staging, total: int, progress: Progress | None) -> Iterator[None]:
    """Report progress while the block runs, read from the notes that workers on any machine leave in the journal."""
    done = threading.Event()

    def tell() -> None:
        with suppress(StoreError):  # a bucket that is away: the run itself says so
            progress and progress(staging.progress(), total)

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            tell()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        tell()


def _import_beam() -> Callable[..., None]:
    """Import Beam, only when it is needed, and without its warnings about clients that penult does not use."""
    logging.disable(logging.WARNING)
    try:
        from pipelines.embedding.beam import run_shards
    finally:
        logging.disable(logging.NOTSET)
    return run_shards
