"""The Beam graph that embeds the shards of a run; the only module that imports apache_beam.

Its input is the shard numbers, and its results are the entries in the journal, so Beam never shuffles large data.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from featurestore.errors import PenultError
from pipelines.embedding.worker import EmbedJob, embed_shard


class EmbedShard(beam.DoFn):
    """One shard number → the number of images embedded."""

    def __init__(self, job: EmbedJob) -> None:
        self._job = job

    def process(self, shard: int) -> Iterator[int]:
        """Embed the shard; repeating it is harmless."""
        yield embed_shard(self._job, shard).embedded


def run_shards(job: EmbedJob, shards: int, runner: str, arguments: Sequence[str] = ()) -> None:
    """Run all shards of a planned job and wait until they are finished.

    Args:
        job: what the workers do.
        shards: how many shards the plan has.
        runner: a Beam runner's name.
        arguments: options of that runner, as on a command line.

    Raises:
        PenultError, OSError: a worker raised it.
    """
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)  # errors are raised below instead
    options = PipelineOptions([*arguments, f"--runner={runner}"])
    pipeline = beam.Pipeline(options=options)
    _ = pipeline | beam.Create(range(shards)) | beam.ParDo(EmbedShard(job))  # Create reshuffles by itself
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:
        raise _own_error(error) from error


def _own_error(error: BaseException) -> BaseException:
    """Return the PenultError or OSError that Beam wrapped in other errors; ``error`` itself if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (PenultError, OSError)) and "[while running " not in str(cause):  # not Beam's copy of it
            return cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return error
