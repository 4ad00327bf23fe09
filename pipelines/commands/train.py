"""The command ``penult train``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import typer

from featurestore.errors import UsageError
from featurestore.options import Option, whole_numbers
from pipelines.commands.base import Json, Store, app, print_json, with_storage_options
from pipelines.commands.fields import by_fields
from pipelines.commands.tracking import Track, check_tracking, track_run
from pipelines.options import TrackOptions, TrainOptions
from pipelines.written_options import WIDTHS


@dataclass(frozen=True)
class FamilyOptions:
    """Parameters of heads that have an option of their own; None is the family's default."""

    C: Annotated[float | None, Option("logistic regressions and SVMs: smaller is more regular.", flag="--C")] = None
    hidden: Annotated[str | None, Option("dense: widths of the hidden layers, as 1024,512.")] = None
    dropout: Annotated[float | None, Option("dense: share of each hidden layer left out.")] = None
    optimizer: Annotated[str | None, Option("dense: adam, adamw, rmsprop or sgd.")] = None
    learning_rate: Annotated[float | None, Option("dense: of the optimizer.")] = None
    epochs: Annotated[int | None, Option("dense: at most this many.")] = None
    batch_size: Annotated[int | None, Option("dense: rows per step.")] = None
    patience: Annotated[int | None, Option("dense: epochs without a better validation loss; 0 never stops early.")] = (
        None
    )

    def values(self) -> dict[str, Any]:
        """Return the parameters, those not given as None.

        Raises:
            UsageError: ``hidden`` is no list of widths.
        """
        return asdict(self) | {"hidden": None if self.hidden is None else whole_numbers(WIDTHS, self.hidden)}


@app.command()
@with_storage_options
@by_fields
def train(
    store: Store,
    options: TrainOptions = TrainOptions(),
    own: FamilyOptions = FamilyOptions(),
    param: Annotated[list[str] | None, typer.Option(help="A parameter of the head, NAME=VALUE; repeatable.")] = None,
    track: Track = TrackOptions(),
    as_json: Json = False,
) -> None:
    """Train one head on stored features.

    It is scored on the test split and kept under the run's id. Options that begin with the name of a head are that
    head's parameters; what is not given is at the default that `penult heads` lists.
    """
    from pipelines.commands import output
    from pipelines.training import train_head

    check_tracking(track)
    result = train_head(store, replace(options, params=parameters(param, own.values())))
    output.trained(result)
    print_json(as_json, result)
    track_run(track, store, result["run_id"])


def parameters(given: list[str] | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are not None, and those given as NAME=VALUE; VALUE is read as JSON, or else as text.

    Raises:
        UsageError: an item has no ``=``, or a name is given twice.
    """
    found = {name: value for name, value in options.items() if value is not None}
    for item in given or ():
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"Expected: --param NAME=VALUE. Got: {item!r}.")
        if name in found:
            raise UsageError(f"{name} is given twice: leave --param {item} out.")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found
