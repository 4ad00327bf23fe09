"""The command ``penult retrain``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated

import typer

from featurestore.errors import Blocked, UsageError
from featurestore.limits import check_count
from featurestore.options import Option
from pipelines.commands.base import STORE, Json, app, print_json, with_storage_options
from pipelines.commands.fields import by_fields
from pipelines.retraining.options import BLOCKED, UNCHANGED, RetrainOptions


@dataclass(frozen=True)
class Request:
    """What the command takes besides the options of the job."""

    skip_code: Annotated[int, Option("Exit code if nothing has changed; Airflow skips on 99.")] = 0
    log_format: Annotated[str, Option("Lines on stderr: text, or json, one object per line.")] = "text"
    init: Annotated[Path | None, Option("Write a commented recipe to this file.", metavar="FILE")] = None

    def check(self) -> None:
        """Raise UsageError for a number that is no exit code."""
        check_count("--skip-code", self.skip_code, 0, 255)


@app.command()
@with_storage_options
@by_fields
def retrain(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE.toml", help="What to do; --init writes one.")] = None,
    store: Annotated[PurePath | None, STORE] = None,
    options: RetrainOptions = RetrainOptions(),
    request: Request = Request(),
    as_json: Json = False,
) -> None:
    """Embed, compare, and promote a head if it is better: the job of every night.

    It embeds what is new, takes the current labels, checks the data, compares the recipe's heads, scores the winner
    against the champion on the same test images, and promotes it by the recipe's rule. The same recipe and date are
    never done twice; a night that was killed goes on.
    """
    from pipelines.commands import output
    from pipelines.retraining.night import Console

    request.check()
    output.log_as(request.log_format)
    if request.init is not None:
        _write_recipe(request.init)
        return
    if recipe is None or store is None:
        raise UsageError("Expected: a recipe and --store STORE, or --init FILE to write a recipe.")
    from pipelines.retraining import retrain as run

    outcome = run(recipe, store, options, Console(output.say, output.bar))
    output.night(outcome)
    print_json(as_json, outcome)
    sys.stdout.flush()
    if outcome["decision"] == BLOCKED:
        raise Blocked(f"The night of {outcome['date']} is blocked: {outcome['reason']}")
    if outcome["decision"] == UNCHANGED and request.skip_code:
        raise typer.Exit(request.skip_code)


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
