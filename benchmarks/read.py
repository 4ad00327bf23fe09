"""Claim: reading features for training comes near a bare ``np.load`` of the same matrix, with every row checked."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.report import show
from featurestore.schema import features_batch
from featurestore.spec import FeatureSpec, Preprocessing
from featurestore.store import FeatureStore

BATCH = 4096


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows, width = arguments.rows, arguments.width
    random = np.random.default_rng(0)
    keys = np.sort(random.integers(0, 256, (rows, 32), np.uint8).view("S32").reshape(-1))
    order = random.permutation(rows)  # contents come in no order
    with tempfile.TemporaryDirectory() as folder:
        spec = FeatureSpec("benchmark", "0" * 64, Preprocessing(224, "none"), "top", "avg", width)
        store = FeatureStore.create(Path(folder) / "store")
        name = store.add_set(spec)
        table = store.table(name)
        matrix = np.lib.format.open_memmap(Path(folder) / "matrix.npy", "w+", np.float16, (rows, width))

        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, rows, BATCH):
                some = order[start : start + BATCH]
                matrix[some] = random.standard_normal((len(some), width), np.float32)
                yield features_batch(table.schema, keys[some], matrix[some], "benchmark")

        table.commit("benchmark", table.stage(batches()))
        matrix.flush()

        def numpy_way() -> np.ndarray:
            return np.load(Path(folder) / "matrix.npy", mmap_mode="r").astype(np.float32)

        def penult_way() -> np.ndarray:
            return store.vectors(name, keys)[0]

        assert np.array_equal(numpy_way(), penult_way())
        taken = [(seconds(numpy_way), seconds(penult_way)) for _ in range(arguments.rounds)]
    bare, ours = (statistics.median(column) for column in zip(*taken, strict=True))
    ratio = statistics.median(b / a for a, b in taken)
    gigabytes = rows * width * 2 / 1e9
    show(
        f"Reading {rows:,} × {width:,} float16 as a float32 matrix, files in the page cache",
        [
            {
                "reader": "np.load(mmap) + astype",
                "seconds": round(bare, 2),
                "GB/s": round(gigabytes / bare, 2),
                "ratio": 1.0,
            },
            {
                "reader": "FeatureStore.vectors (keys and checksums checked, in key order)",
                "seconds": round(ours, 2),
                "GB/s": round(gigabytes / ours, 2),
                "ratio": round(ratio, 2),
            },
        ],
    )


if __name__ == "__main__":
    main()
