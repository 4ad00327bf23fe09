"""The Beam graph that embeds the shards of a run; the only module that imports apache_beam, and Dask below it.

Its input is lists of shard numbers, and its results are the entries in the journal, so Beam never shuffles large data.
What the runner says of its success is not asked: it may have lost shards and say "done", or fail after the last one.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from featurestore import errors
from featurestore.concurrency import ahead_of
from featurestore.errors import (
    BackboneError,
    BucketError,
    EngineError,
    PenultError,
    RunnerError,
    SpecMismatch,
    StoreCorrupt,
    StoreError,
    UsageError,
)
from featurestore.machine import available_cores
from pipelines import signals
from pipelines.concurrency import batched
from pipelines.embedding.plan import shards_per_task
from pipelines.embedding.worker import SHARDS_IN_WORK, EmbedJob, embed_shard
from pipelines.runners import DASK, Runner, value_of

POLL_SECONDS = 0.2
GUESSED_WORKERS = 16
PASSED_ON = {BackboneError, EngineError, RunnerError, SpecMismatch, StoreCorrupt, StoreError, UsageError}


class EmbedShards(beam.DoFn):
    """Numbers of some shards → of each, the number of images embedded."""

    def __init__(self, job: EmbedJob) -> None:
        self._job = job

    def process(self, shards: Sequence[int]) -> Iterator[int]:
        """Embed the shards, of which one begins while another ends; repeating it is harmless."""
        cores = cores_of_worker()
        with ThreadPoolExecutor(SHARDS_IN_WORK) as pool:
            entries = ahead_of(pool, lambda shard: embed_shard(self._job, shard, cores), shards, SHARDS_IN_WORK)
            yield from (entry.embedded for entry in entries)


def cores_of_worker() -> int:
    """Return how many cores all tasks of this process share: a Dask worker's threads, or what the machine gives it."""
    if (distributed := sys.modules.get("distributed")) is not None:
        with contextlib.suppress(ValueError):  # not a worker of Dask
            return min(available_cores(), distributed.get_worker().state.nthreads)
    return available_cores()


class Workers(NamedTuple):
    """What a cluster has: how many worker processes, and how many cores each."""

    processes: int
    cores: int


def workers_of(runner: Runner, arguments: Sequence[str]) -> Workers:
    """Return the workers that there are: this process, those of a Dask cluster, or a guess where the engine is silent.

    Raises:
        RunnerError: the scheduler does not answer.
    """
    if runner.name != DASK:
        return Workers(1 if runner.in_process else GUESSED_WORKERS, available_cores())
    import distributed

    place = {"address": value_of(arguments, runner.places[0]), "scheduler_file": value_of(arguments, runner.places[1])}
    try:
        with distributed.Client(**place, set_as_default=False) as client:
            threads = client.nthreads().values()
    except (OSError, TimeoutError) as error:
        raise RunnerError(f"The Dask scheduler does not answer: {_said(error)}: look after it.") from error
    return Workers(len(threads), min(threads)) if threads else Workers(GUESSED_WORKERS, 1)


def run_shards(job: EmbedJob, shards: Sequence[int], runner: Runner, arguments: Sequence[str] = ()) -> None:
    """Run shards of a planned job and wait until the runner has ended.

    Args:
        job: what the workers do.
        shards: their numbers.
        runner: on which they run.
        arguments: options of that runner, as on a command line.

    Raises:
        UsageError: Beam refuses an option.
        PenultError, OSError: a worker raised it, or the run was interrupted.
        RunnerError: the runner failed.
    """
    shared = not runner.in_process
    size = shards_per_task(len(shards), workers_of(runner, arguments).processes) if shared else len(shards)
    tasks = list(batched(shards, size))
    pipeline = beam.Pipeline(options=_options(runner, runner.arguments(arguments, len(tasks))))
    _ = pipeline | beam.Create(tasks) | beam.ParDo(EmbedShards(job))  # Create reshuffles by itself
    try:
        with _silence():
            result = pipeline.run()
            try:
                _wait(result)
            finally:
                _close(result)
    except (Exception, CancelledError) as error:
        own = _own_error(error, (PenultError,) if shared else (PenultError, OSError)) or _named_error(error)
        if own is None and not shared:
            raise
        if own is None or (shared and isinstance(own, BucketError) and own.passing):  # the next try may go well
            raise RunnerError(f"{runner.name}: {_said(own or error)}") from error
        raise own from error


def _options(runner: Runner, arguments: list[str]) -> PipelineOptions:
    """Parse options for Beam; raise UsageError where Beam would end the process."""
    said = io.StringIO()
    with contextlib.suppress(ImportError):  # which Beam says better
        importlib.import_module(runner.path.rpartition(".")[0])  # else its own options are not known yet
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(arguments)
            options.get_all_options()  # which parses them
    except SystemExit:
        raise UsageError(
            f"Beam refuses an option of the runner: {_said(said.getvalue()).rpartition('error: ')[2]}."
        ) from None
    return options


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep Beam and Dask from telling of errors while the block runs: they are raised instead."""
    silent = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    for name in ("apache_beam.runners.common", *silent):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def not_of_beam(record: logging.LogRecord) -> bool:
        return "apache_beam" not in record.pathname

    logging.root.addFilter(not_of_beam)  # what a portable runner says; not what other loggers pass on
    try:
        yield
    finally:
        logging.root.removeFilter(not_of_beam)


def _wait(result: Any) -> None:
    """Wait for the end of a run that goes on elsewhere, and cancel it if this process is to end."""
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            result.wait_until_finish()
        except BaseException as error:
            failed.append(error)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    try:
        while waiter.is_alive():
            signals.check()
            waiter.join(POLL_SECONDS)
    except PenultError:
        with contextlib.suppress(Exception):
            result.cancel()
        raise
    if failed:
        raise failed[0]


def _close(result: Any) -> None:
    """End the connection to a Dask scheduler, which would be kept."""
    if (client := getattr(result, "client", None)) is not None:
        with contextlib.suppress(Exception, CancelledError):
            client.close()


def _own_error(error: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """Return the error of one of these kinds that Beam wrapped in other errors; None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, kinds) and "[while running " not in str(cause):  # not Beam's copy of it
            return cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _named_error(error: BaseException) -> PenultError | None:
    """Return the PenultError whose traceback a portable runner passes on as text; None if it is another error's."""
    found = re.fullmatch(r"featurestore\.errors\.(\w+): (.+?)( \[while running .*)?", _said(error))
    kind = getattr(errors, found[1], None) if found else None
    return kind(found[2]) if found and kind in PASSED_ON else None


def _said(error: BaseException | str) -> str:
    """Return the last line of what Beam or a runner says, which may be a worker's traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1].strip() if lines else type(error).__name__).rstrip(".")
