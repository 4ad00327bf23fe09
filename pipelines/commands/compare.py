"""The command ``penult compare``."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated

import typer

from featurestore.errors import UsageError
from pipelines.commands.base import Json, Store, app, print_json, with_storage_options
from pipelines.commands.fields import by_fields
from pipelines.commands.tracking import TRACKED, Track, check_tracking, track_run
from pipelines.option_fields import given
from pipelines.options import CompareOptions, TrackOptions
from pipelines.written_options import WrittenOptions

WITH_PROTOCOL = ("--set", "--label-set", "--val", "--test", "--split-seed")


@app.command(context_settings={"allow_extra_args": True})  # further nets of --hidden
@with_storage_options
@by_fields
def compare(
    context: typer.Context,
    store: Store,
    written: WrittenOptions = WrittenOptions(),
    options: Annotated[CompareOptions, {"feature_set": None}] = CompareOptions(),
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="NAME",
            help="Make a published evaluation instead, and keep no head: dinov2-logreg, dinov2-knn, big-vision-fewshot "
            "or clip-benchmark.",
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the leaderboard to this CSV file too.")
    ] = None,
    track: Track = TrackOptions(),
    as_json: Json = False,
) -> None:
    """Compare many heads and write a report.

    Heads are ranked on the validation split, or over folds; the winner alone is scored, once, on the test split, and
    kept. Fits that are done are kept too: the same command goes on where it was interrupted, and makes no fit twice.
    """
    from heads.reporting import leaderboard
    from pipelines.commands import output
    from pipelines.training import compare_heads

    if context.args and not written.hidden:
        raise UsageError(f"Expected: an option. Got: {context.args[0]!r}; `penult compare --help` lists them.")
    if protocol is not None:
        asked = [*given(written), *given(options), *([] if csv is None else ["--csv"]), *given(track, TRACKED)]
        if fixed := [flag for flag in asked if flag not in WITH_PROTOCOL]:
            raise UsageError(f"--protocol says all but the data and the split: leave {' and '.join(fixed)} out.")
        _evaluate(store, protocol, written.put_into(options), as_json)
        return
    options = written.put_into(options, context.args)
    if csv is not None:
        leaderboard.check(csv)
    check_tracking(track)
    with output.bar("compare") as progress:
        result = compare_heads(store, options, progress)
    output.compared(result)
    print_json(as_json, result)
    if csv is not None:
        leaderboard.write(csv, result)
    track_run(track, store, result["run_id"])


def _evaluate(store: PurePath, protocol: str, options: CompareOptions, as_json: bool) -> None:
    """Make a published evaluation in place of a comparison."""
    from pipelines.commands import output
    from pipelines.protocols import evaluate

    result = evaluate(store, protocol, options.data, options.sets)
    output.evaluated(result)
    print_json(as_json, result)
