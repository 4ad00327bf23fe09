"""A script as people write it: a pool of threads, one Lance write at the end of a stream."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from embedder import BATCH, WIDTH, Embedder, files_of, program

SCHEMA = pa.schema({"path": pa.string(), "vector": pa.list_(pa.float32(), WIDTH)})


def embed(arguments: argparse.Namespace) -> None:
    model = Embedder(arguments.graph, arguments.crop)
    files = files_of(arguments.corpus)

    def compute(some: list[str]) -> pa.RecordBatch:
        vectors = model([Path(path).read_bytes() for path in some])
        lists = pa.FixedSizeListArray.from_arrays(vectors.ravel(), WIDTH)
        return pa.RecordBatch.from_arrays([pa.array(some), lists], schema=SCHEMA)

    def batches() -> Iterator[pa.RecordBatch]:
        with ThreadPoolExecutor(2 * len(os.sched_getaffinity(0))) as pool:
            yield from pool.map(compute, (files[at : at + BATCH] for at in range(0, len(files), BATCH)))

    lance.write_dataset(batches(), arguments.output, schema=SCHEMA, mode="overwrite")


def rows(arguments: argparse.Namespace) -> Iterable[tuple[str, np.ndarray]]:
    table = lance.dataset(arguments.output).to_table()
    return zip(table["path"].to_pylist(), table["vector"].to_pylist(), strict=True)


if __name__ == "__main__":
    program(embed, rows)
