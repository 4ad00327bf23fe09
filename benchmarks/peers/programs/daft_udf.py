"""Daft: a class with a batch method; Daft downloads, the class computes, Daft writes Lance.

OpenVINO crashes the process (SIGSEGV) when a thread of Daft 0.7.26 enters it, so the class has a pool of Python's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import daft
import numpy as np
from embedder import BATCH, WIDTH, Embedder, program

THREADS = 2 * len(os.sched_getaffinity(0))


@daft.cls(use_process=False, max_concurrency=1)
class Model:
    def __init__(self, graph: str, crop: str) -> None:
        self.pool = ThreadPoolExecutor(THREADS)
        self.embedder = self.pool.submit(Embedder, graph, crop).result()

    @daft.method.batch(
        return_dtype=daft.DataType.embedding(daft.DataType.float32(), WIDTH), batch_size=4 * THREADS * BATCH
    )
    def embed(self, data: daft.Series) -> np.ndarray:
        files = data.to_pylist()
        return np.concatenate(
            list(self.pool.map(self.embedder, (files[at : at + BATCH] for at in range(0, len(files), BATCH))))
        )


def embed(arguments: argparse.Namespace) -> None:
    model = Model(arguments.graph, arguments.crop)
    files = daft.from_glob_path(f"{arguments.corpus}/**/*.jpg").select("path")
    found = files.with_column("vector", model.embed(daft.functions.download(daft.col("path"))))
    found.write_lance(arguments.output, mode="overwrite")


def rows(arguments: argparse.Namespace) -> Iterable[tuple[str, np.ndarray]]:
    found = daft.read_lance(arguments.output).to_pydict()
    return zip(found["path"], found["vector"], strict=True)


if __name__ == "__main__":
    program(embed, rows)
