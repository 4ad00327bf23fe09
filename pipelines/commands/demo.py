"""The command ``penult demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.base import Json, app, print_json


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write; made if need be.")] = Path("penult-demo"),
    as_json: Json = False,
) -> None:
    """Embed a small real corpus, compare heads, write a report.

    The corpus is scikit-learn's handwritten digits, 1,797 images in ten class folders.
    """
    from pipelines.commands import output
    from pipelines.demo import write_digits
    from pipelines.embedding.embed import embed
    from pipelines.training import compare_heads

    corpus, store = folder / "digits", folder / "store"
    output.say(f"Writing scikit-learn's handwritten digits to {corpus}.")
    write_digits(corpus)
    with output.bar("embed") as progress:
        embedded = embed(str(corpus), store, progress=progress)
    output.embedded(embedded)
    with output.bar("compare") as progress:
        compared = compare_heads(store, progress=progress)
    output.compared(compared)
    output.say(
        f"\nThe store is {store}. Try:\n"
        f"  penult status --store {store}\n"
        f"  penult predict {corpus / '7' / '0007.png'} --store {store}"
    )
    print_json(as_json, {"embed": embedded.to_json(), "compare": compared})
