"""The command ``penult finetune``."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.base import Json, MovedWeights, Store, app, print_json, with_storage_options
from pipelines.commands.fields import by_fields
from pipelines.options import FinetuneOptions


@app.command()
@with_storage_options
@by_fields
def finetune(
    store: Store,
    options: FinetuneOptions,
    head: Annotated[
        str | None,
        typer.Option(
            help="Id of a linear or dense head, how it begins or ends, or an alias; by default the champion, else the "
            "newest that was not fine-tuned."
        ),
    ] = None,
    weights: MovedWeights = None,
    as_json: Json = False,
) -> None:
    """Train the backbone's last layers further, with a head.

    The best epoch on validation becomes a backbone, ft:ID, and a head on its features. Killed, the same command goes
    on after the last whole epoch.
    """
    from pipelines.commands import output
    from pipelines.finetuning.finetune import finetune as run

    with output.bar("finetune") as progress:
        result = run(store, head, options, weights, progress, output.say)
    output.finetuned(result)
    print_json(as_json, result)
