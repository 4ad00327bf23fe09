"""The commands that list what is available: ``penult heads`` and ``runs``."""

from __future__ import annotations

from pipelines.commands.base import Json, Store, app, print_json, with_storage_options


@app.command()
def heads(as_json: Json = False) -> None:
    """List the families of heads, which are classifiers, with their parameters."""
    from heads.registry import FAMILIES
    from pipelines.commands import output

    rows = [{"head": name, "about": f.about, "parameters": dict(f.defaults)} for name, f in FAMILIES.items()]
    output.table(rows)
    print_json(as_json, rows)


@app.command()
@with_storage_options
def runs(store: Store, as_json: Json = False) -> None:
    """List the store's runs, and the nights that have not ended.

    The id of a train or compare run is the id of its head.
    """
    from featurestore.store import FeatureStore
    from pipelines.commands import output
    from pipelines.retraining.night import nights

    opened = FeatureStore(store)
    rows = [output.run_row(record) for record in opened.runs()]
    rows += [output.night_row(night.told) for night in nights(opened.path) if night.outcome is None]
    output.table(rows)
    print_json(as_json, rows)
