"""The command ``penult promote``."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.base import Json, Store, app, print_json


@app.command()
def promote(
    store: Store,
    head: Annotated[
        str | None,
        typer.Argument(help="Id of a head, or how it begins or ends, or another alias; by default the newest."),
    ] = None,
    alias: Annotated[str, typer.Option(help="The alias to move, or to make.")] = "champion",
    as_json: Json = False,
) -> None:
    """Put a head in use.

    `penult predict`, `export` and `finetune` take the head that the alias `champion` points at where none is named.
    `--head` takes any alias. Where it has pointed before is kept.
    """
    from featurestore.store import FeatureStore
    from pipelines import stored_heads
    from pipelines.commands import output

    result = stored_heads.promote(FeatureStore(store), head, alias)
    output.promoted(result)
    print_json(as_json, result)
