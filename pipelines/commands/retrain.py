"""The command ``penult retrain``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from featurestore.errors import Blocked, UsageError
from pipelines.commands.base import Json, app, print_json
from pipelines.commands.fields import by_fields
from pipelines.retraining.options import RetrainOptions


@app.command()
@by_fields
def retrain(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE.toml", help="What to do; --init writes one.")] = None,
    store: Annotated[
        Path | None, typer.Option("--store", envvar="PENULT_STORE", help="The feature store's folder.")
    ] = None,
    options: RetrainOptions = RetrainOptions(),
    skip_code: Annotated[
        int, typer.Option(min=0, max=255, help="Exit code if nothing has changed; Airflow skips on 99.")
    ] = 0,
    log_format: Annotated[str, typer.Option(help="Lines on stderr: text, or json, one object per line.")] = "text",
    init: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a commented recipe to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Embed, compare, and promote a head if it is better: the job of every night.

    It embeds what is new, takes the current labels, checks the data, compares the recipe's heads, scores the winner
    against the champion on the same test images, and promotes it by the recipe's rule. The same recipe and date are
    never done twice; a night that was killed goes on.
    """
    from pipelines.commands import output
    from pipelines.retraining.night import Console

    output.log_as(log_format)
    if init is not None:
        _write_recipe(init)
        return
    if recipe is None or store is None:
        raise UsageError("Expected: a recipe and --store STORE, or --init FILE to write a recipe.")
    from pipelines.retraining import retrain as run

    outcome = run(recipe, store, options, Console(output.say, output.bar))
    output.night(outcome)
    print_json(as_json, outcome)
    sys.stdout.flush()
    if outcome["decision"] == "blocked":
        raise Blocked(f"The night of {outcome['date']} is blocked: {outcome['reason']}")
    if outcome["decision"] == "unchanged" and skip_code:
        raise typer.Exit(skip_code)


def _write_recipe(path: Path) -> None:
    """Write a commented recipe to a new file."""
    from pipelines.commands import output
    from pipelines.retraining.recipe import template

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError:
        raise UsageError(f"Expected: --init, a file to make. Got: {path}, which is there.") from None
    output.say(f"{path}: set `location` and `heads`, then `penult retrain {path} --plan --store STORE`.")
