"""The command ``penult embed``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from featurestore.options import Option
from pipelines.commands.base import Json, Store, app, print_json, with_storage_options
from pipelines.commands.fields import by_fields
from pipelines.images.augmentation import Augmentation
from pipelines.options import MAX_FAILURE_RATE, EmbedOptions, check_share
from pipelines.written_options import CropFlags

if TYPE_CHECKING:
    from pathlib import PurePath

    from pipelines.embedding.embed import EmbedResult

RUNNER_ARGUMENTS = "penult.runner_arguments"  # key in click's context


@dataclass(frozen=True)
class Request:
    """What the command takes besides the options of the job."""

    crop: CropFlags = CropFlags()
    views: Annotated[int, Option("Embed this many random views of each image too, for training.")] = 0
    drawn: Annotated[Augmentation, {"seed": Option("Another seed, other views.", flag="--view-seed")}] = Augmentation(
        rotation=15.0, shift=0.1, zoom=0.1, flip="horizontal"
    )
    max_failure_rate: Annotated[float, Option("Share of failed files that ends in exit code 3.")] = MAX_FAILURE_RATE

    def jobs(self, options: EmbedOptions) -> list[tuple[str, EmbedOptions]]:
        """Return the jobs per source, checked, each with the name of its bar: the images, then their views if any.

        Raises:
            UsageError: an option is invalid.
        """
        self.drawn.check()
        check_share("--max-failure-rate", self.max_failure_rate)
        options = self.crop.put_into(options)
        if not self.views:
            return [("embed", options)]
        of_views = replace(options, views=self.views, augmentation=self.drawn)
        of_views.check()  # refused now, not after the images themselves are embedded
        return [("embed", options), ("views", of_views)]


class _RunnerCommand(TyperCommand):
    """A command that takes the words after ``--`` as options of the Beam runner, not as sources."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move the words after ``--`` from the arguments into click's context."""
        if "--" in args:
            at = args.index("--")
            args, ctx.meta[RUNNER_ARGUMENTS] = args[:at], tuple(args[at + 1 :])
        return super().parse_args(ctx, args)


@app.command(cls=_RunnerCommand)
@with_storage_options
@by_fields
def embed(
    context: typer.Context,
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... [-- RUNNER OPTIONS]",
            help="Folders (a sub-folder per class), manifests (.csv, .tsv, .parquet), .tar shards, or tables of images "
            "(.parquet, .arrow, .lance), here or in a bucket (s3://bucket/photos); after --, options of the Beam "
            "runner.",
        ),
    ],
    store: Store,
    options: EmbedOptions = EmbedOptions(),
    request: Request = Request(),
    as_json: Json = False,
) -> None:
    """Embed what the store lacks of a corpus.

    A second run over the same files embeds nothing. Files that cannot be read become rows that say why.
    """
    from pipelines.sources.corpus import list_source

    jobs = request.jobs(replace(options, runner_arguments=context.meta.get(RUNNER_ARGUMENTS, ())))
    for one in source:
        list_source(one)  # a mistake in the last source is reported before the first is embedded
    results = [_embedded(one, store, jobs) for one in source]
    told = [images.to_json() | ({"views": views[0].to_json()} if views else {}) for images, *views in results]
    print_json(as_json, told[0] if len(told) == 1 else {"sources": told})
    for images, *_ in results:
        images.check(request.max_failure_rate, options.max_removed)


def _embedded(source: str, store: PurePath, jobs: list[tuple[str, EmbedOptions]]) -> list[EmbedResult]:
    """Run a source's jobs, each with a bar, and tell what each did."""
    from pipelines.commands import output
    from pipelines.embedding.embed import embed as run

    results = []
    for name, options in jobs:
        with output.bar(name) as progress:
            results.append(run(source, store, options, progress))
        output.embedded(results[-1])
    return results
