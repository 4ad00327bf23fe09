"""The command ``penult embed``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from featurestore.errors import UsageError
from featurestore.options import Option
from pipelines.commands.base import Json, Store, app, print_json
from pipelines.commands.fields import by_fields
from pipelines.images.augmentation import Augmentation
from pipelines.options import EmbedOptions, check_share

RUNNER_ARGUMENTS = "penult.runner_arguments"  # key in click's context
VIEWS = Augmentation(rotation=15.0, shift=0.1, zoom=0.1, flip="horizontal")


class _RunnerCommand(TyperCommand):
    """A command that takes the words after ``--`` as options of the Beam runner, not as sources."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move the words after ``--`` from the arguments into click's context."""
        if "--" in args:
            at = args.index("--")
            args, ctx.meta[RUNNER_ARGUMENTS] = args[:at], tuple(args[at + 1 :])
        return super().parse_args(ctx, args)


@app.command(cls=_RunnerCommand)
@by_fields
def embed(
    context: typer.Context,
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... [-- RUNNER OPTIONS]",
            help="Folders (a sub-folder per class), manifests (.csv, .tsv, .parquet) or .tar shards; "
            "after --, options of the Beam runner.",
        ),
    ],
    store: Store,
    options: EmbedOptions = EmbedOptions(),
    squash: Annotated[bool, typer.Option("--squash", help="Squeeze a rectangle into a square (the default).")] = False,
    center_crop: Annotated[
        bool, typer.Option("--center-crop", help="Take the largest central square of a rectangle.")
    ] = False,
    pad: Annotated[bool, typer.Option("--pad", help="Add black to a rectangle until it is square.")] = False,
    views: Annotated[int, typer.Option(help="Embed this many random views of each picture too, for training.")] = 0,
    drawn: Annotated[Augmentation, {"seed": Option("Another seed, other views.", flag="--view-seed")}] = VIEWS,
    max_failure_rate: Annotated[float, typer.Option(help="Share of failed files that ends in exit code 3.")] = 0.05,
    as_json: Json = False,
) -> None:
    """Embed what the store lacks of a corpus.

    A second run over the same files embeds nothing. Files that cannot be read become rows that say why.
    """
    from pipelines.commands import output
    from pipelines.embedding.embed import embed as run
    from pipelines.sources.corpus import list_source

    options = replace(
        options, crop=_crop(squash, center_crop, pad), runner_arguments=context.meta.get(RUNNER_ARGUMENTS, ())
    )
    drawn.check()
    check_share("--max-failure-rate", max_failure_rate)
    of_views = replace(options, views=views, augmentation=drawn)
    if views:  # refused now, not after the images themselves are embedded
        of_views.check()
    for one in source:
        list_source(one)  # a mistake in the last source is reported before the first is embedded
    results = []
    for one in source:
        with output.bar("embed") as progress:
            results.append([run(one, store, options, progress)])
        output.embedded(results[-1][0])
        if views:
            with output.bar("views") as progress:
                results[-1].append(run(one, store, of_views, progress))
            output.embedded(results[-1][1])
    told = [one.to_json() | ({"views": more[0].to_json()} if more else {}) for one, *more in results]
    print_json(as_json, told[0] if len(told) == 1 else {"sources": told})
    for result, *_ in results:
        result.check(max_failure_rate, options.max_removed)


def _crop(squash: bool, center: bool, pad: bool) -> str:
    chosen = [name for name, on in (("squash", squash), ("center", center), ("pad", pad)) if on]
    if len(chosen) > 1:
        raise UsageError("Give one of --squash, --center-crop and --pad.")
    return chosen[0] if chosen else "squash"
