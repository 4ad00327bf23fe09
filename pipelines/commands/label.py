"""The command ``penult label``."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.base import Json, LabelSet, Store, app, print_json, with_storage_options


@app.command()
@with_storage_options
def label(
    file: Annotated[str, typer.Argument(help="CSV, TSV or Parquet: path or uri, and any of label, split, group.")],
    store: Store,
    label_set: LabelSet = "default",
    withdraw: Annotated[
        bool,
        typer.Option(
            "--withdraw", help="Take back what was said of these images: what their sources say counts again."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Import labels, splits and groups.

    Nothing is embedded. They lie over what the sources say, until they are withdrawn. Each column speaks for itself: a
    column that the file lacks, or an empty cell, changes nothing.
    """
    from pipelines.commands import output
    from pipelines.embedding.labels import import_labels

    result = import_labels(file, store, label_set, withdraw=withdraw)
    output.labelled(result)
    print_json(as_json, result.to_json())
