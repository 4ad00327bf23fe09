"""The command ``penult compare``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from featurestore.errors import UsageError
from featurestore.options import whole_numbers
from pipelines.commands.base import Json, Store, app, print_json
from pipelines.commands.fields import by_fields
from pipelines.options import CompareOptions

WIDTHS = "--hidden with widths such as 1024,512"


@app.command(context_settings={"allow_extra_args": True})  # further nets of --hidden
@by_fields
def compare(
    context: typer.Context,
    store: Store,
    heads: Annotated[
        str | None, typer.Option(help="Families, comma-separated; by default all that suit the data.")
    ] = None,
    C: Annotated[
        str | None, typer.Option("--C", help="Values of C, as 0.01,0.1 or 1e-4:1e2:13 (13 from 1e-4 to 1e2).")
    ] = None,
    hidden: Annotated[
        list[str] | None, typer.Option(help="Widths of a dense net's hidden layers, as 256 512,256 for two nets.")
    ] = None,
    class_weight: Annotated[
        str | None, typer.Option(help="none, balanced, or none,balanced to try both; by default what suits the data.")
    ] = None,
    search: Annotated[
        Path | None, typer.Option(help="TOML file: [heads.NAME] with lists of values; in place of the options above.")
    ] = None,
    fewshot_k: Annotated[
        str | None,
        typer.Option(help="Also train on this few images per class, as 1,5,10, each drawn anew three times."),
    ] = None,
    feature_set: Annotated[
        list[str] | None,
        typer.Option("--set", help="Feature set, by name or its beginning; several: which is better?"),
    ] = None,
    options: Annotated[CompareOptions, {"feature_set": None}] = CompareOptions(),
    as_json: Json = False,
) -> None:
    """Compare many heads and write a report.

    Heads are ranked on the validation split, or over folds; the winner alone is scored, once, on the test split, and
    kept. Fits that are done are kept too: the same command goes on where it was interrupted, and makes no fit twice.
    """
    from heads.comparison import search as searches
    from pipelines.commands import output
    from pipelines.training import compare_heads

    if context.args and not hidden:
        raise UsageError(f"Expected: an option. Got: {context.args[0]!r}; `penult compare --help` lists them.")
    if search is not None and any(option is not None for option in (heads, C, hidden, class_weight)):
        raise UsageError("--search is in place of --heads, --C, --hidden and --class-weight: leave those out.")
    asked = (
        searches.from_file(search)
        if search is not None
        else searches.from_options(
            None if heads is None else heads.split(","),
            None if C is None else searches.numbers(C),
            [whole_numbers(WIDTHS, net) for nets in (*(hidden or ()), *context.args) for net in nets.split() or [""]],
            () if class_weight is None else [searches.class_weight(weight) for weight in class_weight.split(",")],
        )
    )
    sets = tuple(feature_set or ())
    options = replace(
        options,
        search=asked,
        fewshot=() if fewshot_k is None else whole_numbers("--fewshot-k with whole numbers such as 1,5,10", fewshot_k),
        sets=sets if len(sets) > 1 else (),
        data=replace(options.data, feature_set=sets[0] if len(sets) == 1 else None),
    )
    with output.bar("compare") as progress:
        result = compare_heads(store, options, progress)
    output.compared(result)
    print_json(as_json, result)
