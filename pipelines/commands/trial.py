"""The command ``penult trial``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from pipelines.commands.base import Json, Store, app, print_json, with_storage_options
from pipelines.commands.fields import by_fields
from pipelines.options import TrialOptions


@app.command()
@with_storage_options
@by_fields
def trial(
    source: Annotated[str, typer.Argument(help="The corpus, as for `penult embed`; a sample of it is embedded.")],
    store: Store,
    backbone: Annotated[
        list[str] | None,
        typer.Option("--backbone", help="One of `penult backbones`, or of the store's own; the one in use first."),
    ] = None,
    options: TrialOptions = TrialOptions(),
    as_json: Json = False,
) -> None:
    """Try other backbones on a sample of a corpus before you embed all of it.

    The sample grows until the differences are sure or small, or --max-share is reached. What is embedded is kept:
    `penult embed` then computes only the rest.
    """
    from pipelines.commands import output
    from pipelines.trial.trial import trial as run

    with output.bar("trial") as progress:
        result = run(source, store, replace(options, backbones=tuple(backbone or ())), progress, output.say)
    output.tried(result)
    print_json(as_json, result)
