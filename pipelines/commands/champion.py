"""The command ``penult champion``."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.base import Json, Store, app, print_json, with_storage_options


@app.command()
@with_storage_options
def champion(
    store: Store,
    alias: Annotated[str, typer.Option(help="Another alias.")] = "champion",
    as_json: Json = False,
) -> None:
    """Say which head is in use, and which were before.

    The newest move is the last: since when, with which score on test images, why, and by whom.
    """
    from featurestore.store import FeatureStore
    from pipelines import stored_heads
    from pipelines.commands import output

    told = stored_heads.champion(FeatureStore(store), alias)
    output.pointed(alias, told)
    print_json(as_json, told)
