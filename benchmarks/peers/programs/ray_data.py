"""Ray Data: files read as bytes, actors that compute, Lance by lance-ray.

With ``--checkpoint`` Ray's own checkpoint of finished rows, which wants a sink of files: Parquet, appended to.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lance
import lance_ray
import numpy as np
import pyarrow.parquet as pq
import ray
from embedder import BATCH, Embedder, files_of, program
from ray.data.checkpoint import CheckpointConfig

ROWS = 64  # per block, where blocks are checkpointed: what a kill costs


class Model:
    def __init__(self, graph: str, crop: str) -> None:
        self.embedder = Embedder(graph, crop, threads=1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"path": batch["path"], "vector": self.embedder(batch["bytes"])}


def embed(arguments: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    ray.init(
        num_cpus=cores + 2,  # to read and to write; a checkpoint's filter takes one for itself, else the run hangs
        include_dashboard=False,
        object_store_memory=2**30,
        log_to_driver=True,
    )
    if arguments.checkpoint:
        ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
            id_column="path",
            checkpoint_path=f"{arguments.output}.checkpoint",
            delete_checkpoint_on_success=False,
        )
    files = files_of(arguments.corpus)
    blocks = len(files) // ROWS + 1 if arguments.checkpoint else None
    found = ray.data.read_binary_files(files, include_paths=True, override_num_blocks=blocks).map_batches(
        Model,
        fn_constructor_args=(arguments.graph, arguments.crop),
        batch_size=4 * BATCH,
        num_cpus=1,
        concurrency=cores,
    )
    if arguments.checkpoint:
        found.write_parquet(arguments.output)
    else:
        lance_ray.write_lance(found, arguments.output, mode="overwrite")


def rows(arguments: argparse.Namespace) -> Iterable[tuple[str, np.ndarray]]:
    parquet = list(Path(arguments.output).glob("*.parquet"))
    table = pq.read_table(parquet) if parquet else lance.dataset(arguments.output).to_table()
    return zip(table["path"].to_pylist(), table["vector"].to_pylist(), strict=True)


if __name__ == "__main__":
    program(embed, rows)
