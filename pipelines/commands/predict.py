"""The command ``penult predict``."""

from __future__ import annotations

from typing import Annotated

import typer

from featurestore.errors import ImageError
from pipelines.commands.base import Json, NamedHead, Store, app, print_json, with_storage_options
from pipelines.commands.fields import by_fields
from pipelines.options import PredictOptions


@app.command()
@with_storage_options
@by_fields
def predict(
    images: Annotated[list[str], typer.Argument(help="Image files.")],
    store: Store,
    head: NamedHead = None,
    options: PredictOptions = PredictOptions(),
    as_json: Json = False,
) -> None:
    """Label images with a trained head.

    Only what the store lacks is embedded; nothing is written.
    """
    from pipelines.commands import output
    from pipelines.predict import predict as run

    predictions = run(images, store, head, options, output.say)
    output.predicted(predictions)
    print_json(as_json, [prediction.to_json() for prediction in predictions])
    failed = [p for p in predictions if p.error]
    if failed:
        raise ImageError(str(failed[0].error_type), f"{len(failed)} of {len(predictions)} images got no label.")
