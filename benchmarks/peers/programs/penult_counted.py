"""penult's command line with its images counted (``run embed …``), and a reader of its store (``dump``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from embedder import count, program


def run() -> None:
    from pipelines.__main__ import main
    from pipelines.embedding import worker

    infer = worker._Loop._infer

    def counted(loop: Any, batch: list[Any]) -> Any:
        found = infer(loop, batch)
        count(len(batch))
        return found

    worker._Loop._infer = counted  # type: ignore[method-assign]
    main()


def rows(arguments: argparse.Namespace) -> Iterable[tuple[str, np.ndarray]]:
    """The set of this crop; a name for each content, as no two files of the corpus are alike."""
    from featurestore import FeatureStore

    store = FeatureStore(arguments.output)
    name = next(name for name in store.sets() if store.spec(name).preprocessing.crop == arguments.crop)
    catalog = store.catalog.read(["uri", "sha256"], "status = 'ok'").to_pylist()
    uris = {row["sha256"].hex(): row["uri"] for row in catalog}
    X, _, ids = store.features(name)
    return [(uris[key], vector) for key, vector in zip(ids, X, strict=True)]


if __name__ == "__main__":
    if sys.argv[1] == "run":
        del sys.argv[1]
        run()
    else:
        program(lambda _: None, rows)
