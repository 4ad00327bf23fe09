"""The embed job: list a corpus, plan which images the store lacks, embed them in shards, commit once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath
from types import ModuleType

from featurestore.errors import RunnerError, StoreError, StoreNotFound, UsageError
from featurestore.journal import Staging
from featurestore.runs import RunRecord, utc_now
from featurestore.spec import FeatureSpec
from featurestore.store import FeatureStore
from pipelines import runners, signals
from pipelines.backbones import kept
from pipelines.backbones.engine_options import check_request
from pipelines.backbones.table import Tap, feature_spec, resolve
from pipelines.concurrency import bound_memory
from pipelines.embedding.job import EmbedJob
from pipelines.embedding.membership import Membership, adopt
from pipelines.embedding.plan import Cut, Planned, shard_images, write_plan
from pipelines.embedding.result import EmbedResult
from pipelines.options import EmbedOptions
from pipelines.sources import corpus

POLL_SECONDS = 0.5
WATCH_SHARE = 0.05  # of the time that looking after the workers may take
RERUNS = 2  # of what a runner left undone
LOG = logging.getLogger("penult")
Progress = Callable[..., None]  # images done, images in all; on a cluster also how many workers are alive


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
    return _run(source, store, options, _Way(progress, began, as_source))


def record_source(source: str, store: str | PurePath, options: EmbedOptions = EmbedOptions()) -> EmbedResult:
    """Record in the store what a corpus lists, with labels, splits and groups, as ``embed`` does; embed nothing.

    In the result, ``new`` and ``changed`` count what ``embed`` would embed.

    Raises:
        SourceError, BackboneError, EngineError, StoreError, UsageError: before anything is recorded.
    """
    return _run(source, store, options, _Way(embeds=False))


@dataclass(frozen=True)
class _Way:
    """How a run goes: see ``embed``; ``embeds``: whether it embeds anything, or only records what is listed."""

    progress: Progress | None = None
    began: Callable[[str], None] = lambda _run_id: None
    as_source: bool = True
    embeds: bool = True


def _run(source: str, store: str | PurePath, options: EmbedOptions, way: _Way) -> EmbedResult:
    since = time.perf_counter()
    options.check()
    bound_memory()
    listing = corpus.list_source(source, options.hints)
    tap = tap_for(options, store)
    check_request(options.engine, tap.input_size)
    spec = _spec(options, tap, store)
    opened = FeatureStore.create(store)
    with opened.lock(), signals.deferred():
        recovered = opened.recover()
        run_id = opened.new_run_id("embed")
        way.began(run_id)
        result = EmbedResult(run_id, opened.add_set(spec), spec.fingerprint(), recovered=recovered.runs)
        started, planning = utc_now(), time.perf_counter()
        job = EmbedJob(opened.address, run_id, spec.set_name, tap, options.engine, options.views, options.augmentation)
        staging, cut = job.staging(), Cut(partial(_shard_images, job, options), recovered.begun)
        planned = _planned(opened, job, staging, listing, options, result, way, cut)
        result.seconds["plan"] = time.perf_counter() - planning
        try:
            if planned.images:
                _run_shards(replace(job, suspect_from=planned.apart_from), staging, planned, options, way.progress)
        finally:  # finished shards are kept, even if an error ends the run
            result.count(staging.entries())
            committing = time.perf_counter()
            opened.commit(staging)
        now = time.perf_counter()
        result.finish(commit=now - committing, total=now - since)
        parameters = {"source": corpus.printable(source), **options.to_json()}
        RunRecord(run_id, "embed", started, parameters, result.to_json()).write(opened.run_folder(run_id))
    return result


def tap_for(options: EmbedOptions, store: str | PurePath) -> Tap:
    """Return what a run with these options computes, with a backbone of the table or one that the store keeps.

    Raises:
        UsageError: there is no such backbone, or an option is not for it.
        BackboneError, StoreError: it cannot be had.
    """
    find = kept.finder(options.backbone)
    if find is None:
        return resolve(
            options.backbone, options.weights, options.layer, options.pooling, options.input_size, options.crop
        )
    default, own = EmbedOptions(), ("weights", "layer", "pooling", "input_size", "crop")
    if given := [name for name in own if getattr(options, name) != getattr(default, name)]:
        raise UsageError(f"{options.backbone} has its own {given[0].replace('_', ' ')}: leave yours out.")
    return find(store, options.backbone)


def _spec(options: EmbedOptions, tap: Tap, store: str | PurePath) -> FeatureSpec:
    """Return the identity of the features; the engine is opened for their width only if the store has no such set."""
    asked = _asked(options, tap)
    if (stored := _stored(asked, store)) is not None:
        return stored
    from pipelines.embedding.worker import engine_for  # a run with nothing to embed needs no decoder and no engine

    return replace(asked, width=engine_for(tap, options.engine).width)


def set_of(options: EmbedOptions, store: str | PurePath) -> FeatureSpec | None:
    """Return the spec of the feature set that a run with these options would add to; None if there is none yet."""
    return _stored(_asked(options, tap_for(options, store)), store)


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
    staging: Staging,
    listing: corpus.Source,
    options: EmbedOptions,
    result: EmbedResult,
    way: _Way,
    cut: Cut,
) -> Planned:
    """Begin the run's journal with its plan."""
    staging.begin(job.feature_set)
    try:
        membership = None
        if way.as_source:
            adopt(store, listing)
            membership = Membership(store, listing.uri, options.label_set, job.run_id)
        return write_plan(store, staging, listing, options, result, membership, cut if way.embeds else None)
    except BaseException:
        staging.remove()
        raise


def _shard_images(job: EmbedJob, options: EmbedOptions, images: int) -> int:
    """Check what is to embed, before the first shard is planned; return how many images to put into a shard.

    Args:
        job, options: of the run.
        images: how many there are at least.

    Raises:
        RunnerError: the runner cannot be reached.
        SpecMismatch: see ``settle_canary``.
    """
    from pipelines.embedding.worker import settle_canary

    runner = runners.find(options.runner)
    runner.reach(options.runner_arguments)
    per_image = settle_canary(job)
    if options.shard_images is not None:
        return options.shard_images
    workers = import_beam().workers_of(runner, options.runner_arguments)
    return shard_images(per_image, images, workers.cores, workers.processes)


def _run_shards(
    job: EmbedJob, staging: Staging, planned: Planned, options: EmbedOptions, progress: Progress | None
) -> None:
    """Embed the planned files in Beam, until the journal has an entry for each shard.

    What the runner says is not asked. Shards that it left are run again, ``RERUNS`` times; then RunnerError is raised.
    """
    from pipelines.embedding.worker import hand_out_graph

    beam = import_beam()
    runner, arguments, missing = runners.find(options.runner), options.runner_arguments, list(range(planned.shards))
    if not runner.in_process:
        job = hand_out_graph(job, staging)
    with _watching(staging, planned.images, progress, told=not runner.in_process):
        for reruns in reversed(range(1 + RERUNS)):
            failed = _failure(partial(beam.run_shards, job, missing, runner, arguments))
            if not (missing := staging.missing(planned.shards)):
                return
            gone = _failure(partial(runner.reach, arguments))
            if gone or not reruns:
                raise _left(staging, missing, planned.images, gone or failed)
            LOG.warning(
                "%s left %s of %s shards undone (%s): they are run again.",
                *(runner.name, f"{len(missing):,}", f"{planned.shards:,}", failed or "it reported success"),
            )


def _failure(work: Callable[[], None]) -> RunnerError | None:
    """Return how a runner fails at something; None if it says that it does not. Errors of the work are raised."""
    try:
        work()
    except RunnerError as error:
        return error
    return None


def _left(staging: Staging, missing: list[int], to_embed: int, failed: RunnerError | None) -> RunnerError:
    """Return the error that says what a run has kept and what it lacks."""
    lacking = sum(plan.num_rows for plan in staging.shard_plans(missing))
    return RunnerError(
        f"{str(failed).rstrip('.') if failed else 'The runner reported success'}; {to_embed - lacking:,} images are "
        f"done and kept, {lacking:,} are not: the same command goes on from there."
    )


@contextmanager
def _watching(staging: Staging, total: int, progress: Progress | None, told: bool) -> Iterator[None]:
    """Report progress while the block runs, read from the notes that workers on any machine leave in the journal.

    ``told``: say how many workers there are, too.
    """
    done, watch = threading.Event(), staging.watch()

    def tell() -> None:
        with suppress(StoreError):  # a bucket that is away: the run itself says so
            if progress is not None:
                found = watch.read()
                progress(found.images, total, *([found.workers] if told else []))

    def follow() -> None:
        pause = POLL_SECONDS
        while not done.wait(pause):
            began = time.monotonic()
            tell()
            pause = max(POLL_SECONDS, (time.monotonic() - began) / WATCH_SHARE)

    watcher = threading.Thread(target=follow, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        tell()


def import_beam() -> ModuleType:
    """Import Beam, only when it is needed, and without its warnings about clients that penult does not use."""
    logging.disable(logging.WARNING)
    try:
        from pipelines.embedding import beam
    finally:
        logging.disable(logging.NOTSET)
    return beam
