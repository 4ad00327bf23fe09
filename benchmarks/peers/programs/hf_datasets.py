"""Hugging Face datasets: an image folder, ``map`` in two processes, ``save_to_disk``; its cache beside the output."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from embedder import BATCH, WIDTH, Embedder, program

_models: dict[tuple[str, str], Embedder] = {}  # of this process


def compute(batch: dict[str, list[Any]], graph: str, crop: str) -> dict[str, Any]:
    if (graph, crop) not in _models:
        _models[graph, crop] = Embedder(graph, crop, threads=1)
    paths = [image["path"] for image in batch["image"]]
    return {"path": paths, "vector": _models[graph, crop]([Path(path).read_bytes() for path in paths])}


def embed(arguments: argparse.Namespace) -> None:
    found = datasets.load_dataset(
        "imagefolder", data_dir=arguments.corpus, split="train", cache_dir=f"{arguments.output}/cache"
    ).cast_column("image", datasets.Image(decode=False))
    features = datasets.Features(
        {"path": datasets.Value("string"), "vector": datasets.List(datasets.Value("float32"), length=WIDTH)}
    )
    found.map(
        compute,
        batched=True,
        batch_size=BATCH,
        num_proc=len(os.sched_getaffinity(0)),
        remove_columns=found.column_names,
        features=features,
        fn_kwargs={"graph": arguments.graph, "crop": arguments.crop},
    ).save_to_disk(f"{arguments.output}/features")


def rows(arguments: argparse.Namespace) -> Iterable[tuple[str, np.ndarray]]:
    found = datasets.load_from_disk(f"{arguments.output}/features").with_format("numpy")
    return zip(found["path"], found["vector"], strict=True)


if __name__ == "__main__":
    program(embed, rows)
