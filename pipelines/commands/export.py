"""The command ``penult export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.base import Json, NamedHead, Store, app, print_json, with_storage_options
from pipelines.commands.fields import by_fields
from pipelines.options import ExportOptions


@app.command()
@with_storage_options
@by_fields
def export(
    store: Store,
    to: Annotated[Path, typer.Option(help="The folder to make: the model, labels.txt, model.json.")],
    head: NamedHead = None,
    options: ExportOptions = ExportOptions(),
    as_json: Json = False,
) -> None:
    """Export a head and its backbone as one model.

    uint8 pixels in, probabilities out. Before it is kept it is loaded back and checked on images of the store.
    """
    from pipelines.commands import output
    from pipelines.export import export as run

    result = run(store, to, options, head, output.say)
    output.exported(result)
    print_json(as_json, result)
