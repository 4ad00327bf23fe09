"""The command ``penult status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featurestore.errors import UsageError
from pipelines.commands.base import Json, Store, app, print_json, with_storage_options


@app.command()
@with_storage_options
def status(
    store: Store,
    failed: Annotated[bool, typer.Option("--failed", help="List the files that failed, with the reasons.")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="With --failed: write the list to this CSV file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what the store holds.

    Sources and what they list, feature sets with their coverage, failures by reason, labels, runs, bytes on disk.
    """
    from featurestore.status import failed_files
    from featurestore.status import status as count
    from featurestore.store import FeatureStore
    from pipelines.commands import output

    if csv is not None and not failed:
        raise UsageError("--csv writes the list of --failed: give both.")
    opened = FeatureStore(store)
    if not failed:
        counted = count(opened)
        output.status(counted)
        print_json(as_json, counted)
        return
    files = failed_files(opened)
    if csv is None:
        output.failed(files)
    else:
        output.write_csv(csv, files)
    print_json(as_json, {"failed": files})
