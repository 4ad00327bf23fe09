"""The commands ``penult verify``, ``doctor`` and ``gc``."""

from __future__ import annotations

from typing import Annotated

import typer

from featurestore.errors import StoreCorrupt
from featurestore.options import seconds
from pipelines.commands.base import Json, Store, app, print_json, with_storage_options


@app.command()
@with_storage_options
def verify(store: Store, as_json: Json = False) -> None:
    """Read everything and say what is damaged.

    Every file is compared with the digest it had, every stored vector with its checksum.
    """
    from dataclasses import asdict

    from pipelines import maintenance
    from pipelines.commands import output

    with output.bar("verify, MB") as progress:
        found = maintenance.verify(store, progress)
    output.verified(found)
    print_json(as_json, [asdict(finding) for finding in found])
    if found:
        raise StoreCorrupt(f"{store} is damaged: `penult doctor --store {store}` brings back what can be had.")


@app.command()
@with_storage_options
def doctor(store: Store, as_json: Json = False) -> None:
    """Repair a damaged store.

    What is damaged is put aside under STORE/damaged. Rows that any file still holds come back; lost features are
    embedded anew from the sources that the runs name, and nothing else is.
    """
    from pipelines import maintenance
    from pipelines.commands import output

    with output.bar("embed") as progress:
        result = maintenance.doctor(store, progress)
    output.repaired(result)
    print_json(as_json, result.to_json())


@app.command()
@with_storage_options
def gc(
    store: Store,
    older_than: Annotated[
        float,
        typer.Option(parser=seconds, metavar="TIME", help="Leave unfinished work that is younger: 30min, 12h, 1w."),
    ] = 7 * 86_400,
    as_json: Json = False,
) -> None:
    """Remove what no run needs any more.

    Old versions, what dead runs have left, what doctor has put aside; small files are merged. Embedding does most of
    it by itself.
    """
    from pipelines import maintenance
    from pipelines.commands import output

    freed = maintenance.gc(store, older_than)
    output.freed(freed)
    print_json(as_json, freed)
