"""The command ``penult predict``."""

from __future__ import annotations

from typing import Annotated

import typer

from featurestore.errors import ImageError
from pipelines.commands.base import Engine, Json, MovedWeights, NamedHead, Store, app, print_json


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help="Picture files.")],
    store: Store,
    head: NamedHead = None,
    top: Annotated[int, typer.Option(help="How many labels to give.")] = 5,
    weights: MovedWeights = None,
    engine: Engine = "openvino",
    as_json: Json = False,
) -> None:
    """Label pictures with a trained head.

    Only what the store lacks is embedded; nothing is written.
    """
    from pipelines.commands import output
    from pipelines.predict import predict as run

    predictions = run(images, store, head, top=top, weights=weights, engine=engine, say=output.say)
    output.predicted(predictions)
    print_json(as_json, [prediction.to_json() for prediction in predictions])
    failed = [p for p in predictions if p.error]
    if failed:
        raise ImageError(str(failed[0].error_type), f"{len(failed)} of {len(predictions)} pictures got no label.")
