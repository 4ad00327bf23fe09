"""datachain: a map over a storage in two processes, saved as a dataset of its own SQLite database.

Its ``map`` hands over a file at a time, so that the graph takes one image per forward pass. A changed preprocessing is
a changed body of the same function, as it is when somebody edits a script.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from embedder import Embedder, program

ROWS = 64  # per insert: by default 10,000, and a kill costs as many


def embed(arguments: argparse.Namespace) -> None:
    import datachain as dc

    graph = arguments.graph
    if arguments.crop == "squash":

        def compute(file, model) -> list[float]:  # type: ignore[no-untyped-def]
            return model([file.read()], "squash")[0].tolist()
    else:

        def compute(file, model) -> list[float]:  # type: ignore[no-untyped-def]
            return model([file.read()], "center")[0].tolist()

    (
        dc.read_storage(Path(arguments.corpus).as_uri(), type="binary")
        .filter(dc.C("file.path").glob("*.jpg"))
        .settings(parallel=len(os.sched_getaffinity(0)), prefetch=0, batch_size=ROWS)
        .setup(model=lambda: Embedder(graph, threads=1, batch=1))
        .map(vector=compute, params=["file", "model"], output={"vector": list[float]})
        .save("features")
    )


def rows(arguments: argparse.Namespace) -> Iterable[tuple[str, np.ndarray]]:
    import datachain as dc

    return [(path, np.array(vector)) for path, vector in dc.read_dataset("features").to_iter("file.path", "vector")]


if __name__ == "__main__":
    # The database is beside the output; datachain reads where from the environment as it is imported.
    os.environ["DATACHAIN_ROOT_DIR"] = sys.argv[4 if sys.argv[1] == "embed" else 2]
    program(embed, rows)
