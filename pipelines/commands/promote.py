"""The commands that move an alias: ``penult promote`` and ``rollback``."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.base import Json, Store, app, print_json, with_storage_options
from pipelines.commands.fields import by_fields
from pipelines.commands.tracking import Track, check_tracking, track_aliases
from pipelines.options import TrackOptions

Reason = Annotated[str, typer.Option(help="Why, in a sentence; `penult champion` shows it.")]


@app.command()
@with_storage_options
@by_fields
def promote(
    store: Store,
    head: Annotated[
        str | None,
        typer.Argument(help="Id of a head, or how it begins or ends, or another alias; by default the newest."),
    ] = None,
    alias: Annotated[str, typer.Option(help="The alias to move, or to make.")] = "champion",
    reason: Reason = "",
    track: Track = TrackOptions(),
    as_json: Json = False,
) -> None:
    """Put a head in use.

    `penult predict`, `export` and `finetune` take the head that the alias `champion` points at where none is named.
    `--head` takes any alias. Where it has pointed before is kept: `penult champion` lists it, `rollback` goes back.
    """
    from featurestore.store import FeatureStore
    from pipelines import stored_heads
    from pipelines.commands import output

    check_tracking(track)
    result = stored_heads.promote(FeatureStore(store), head, alias, reason=reason)
    output.promoted(result)
    print_json(as_json, result)
    track_aliases(track, store)


@app.command()
@with_storage_options
@by_fields
def rollback(
    store: Store,
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "champion",
    reason: Reason = "",
    track: Track = TrackOptions(),
    as_json: Json = False,
) -> None:
    """Undo the last promotion: the head before is in use again.

    Once more, and it is the head before that. Never one whose files are damaged.
    """
    from featurestore.store import FeatureStore
    from pipelines import stored_heads
    from pipelines.commands import output

    check_tracking(track)
    result = stored_heads.rollback(FeatureStore(store), alias, reason)
    output.promoted(result)
    print_json(as_json, result)
    track_aliases(track, store)
