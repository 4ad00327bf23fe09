"""The command ``penult forget``."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.base import Json, Store, app, print_json, with_storage_options


@app.command()
@with_storage_options
def forget(
    store: Store,
    source: Annotated[
        str | None, typer.Argument(help="A source of `penult status`, as it was given to `penult embed`.")
    ] = None,
    unknown_origin: Annotated[
        bool,
        typer.Option("--unknown-origin", help="Forget the images of which an older penult did not note the source."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Forget a source.

    Images that no other source lists are removed: they are in no training, report or count. Their features stay until
    `penult gc`, so that embedding the source again costs nothing.
    """
    from pipelines.commands import output
    from pipelines.embedding.forget import forget as run

    result = run(store, source, unknown_origin=unknown_origin)
    output.forgotten(result)
    print_json(as_json, result)
