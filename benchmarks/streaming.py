"""Claim: a comparison streams rows that do not fit in memory, in few passes, and gives what it gives in memory.

Rows of any number are made of real features, efficientnet-lite0's of scikit-learn's digits: each row is a picture's
features mixed with those of another picture, and a little seeded noise. The label is the first one's. Each comparison
is a process of its own; the peak is what the operating system says of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.report import peak, show
from featurestore.labels import with_origin
from featurestore.schema import CATALOG, LABELS_V1, features_batch, key_array
from featurestore.spec import FeatureSpec, Preprocessing
from featurestore.splits import Split
from featurestore.store import FeatureStore
from pipelines.options import CompareOptions

CHUNK = 20_000  # rows made at a time
NOISE = 0.2  # of each feature's standard deviation
MOST_MIXED = 0.45  # share of the other picture
SHARE = 0.01  # of val and of test
LIMIT, SMALL_LIMIT = 4 * 10**9, 200 * 10**6


def digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The features of scikit-learn's digits, float32 (1797, 1280), and their labels."""
    from pipelines.demo import write_digits
    from pipelines.embedding.embed import embed

    write_digits(folder / "digits")
    embed(str(folder / "digits"), folder / "digits.store")
    data = FeatureStore(folder / "digits.store").dataset()
    return data.X, data.y


def write_store(path: Path, X: np.ndarray, y: np.ndarray, rows: int) -> None:
    """A store of ``rows`` labelled rows of the width of X."""
    store = FeatureStore.create(path)
    table = store.table(store.add_set(FeatureSpec("mixed", "0" * 64, Preprocessing(224, "none"), "top", "avg", 1280)))
    run = "benchmark"
    starts = range(0, rows, CHUNK)
    noise = (NOISE * X.std(axis=0)).astype(np.float32)

    def numbers(start: int) -> range:
        return range(start, min(start + CHUNK, rows))

    def keys(start: int) -> np.ndarray:
        return np.array([hashlib.sha256(b"%d" % number).digest() for number in numbers(start)], "S32")

    def labels_of(start: int) -> np.ndarray:
        return y[np.asarray(numbers(start)) % len(y)]

    def features() -> Iterator[pa.RecordBatch]:
        for start in starts:
            random, some = np.random.default_rng(start), np.asarray(numbers(start))
            share = random.uniform(0, MOST_MIXED, (len(some), 1)).astype(np.float32)
            mixed = (1 - share) * X[some % len(X)] + share * X[random.integers(0, len(X), len(some))]
            mixed += noise * random.standard_normal(mixed.shape, np.float32)
            yield features_batch(table.schema, keys(start), mixed, run)

    def uris(start: int) -> pa.Array:
        return pa.array([f"file:///pictures/{number:08}.png" for number in numbers(start)])

    def labels() -> Iterator[pa.RecordBatch]:
        for start in starts:
            nothing = pa.nulls(len(numbers(start)), pa.string())
            named = [pa.array([name] * len(nothing)) for name in ("default", run)]
            columns = [uris(start), pa.array(labels_of(start)), nothing, nothing, *named]
            yield with_origin(pa.record_batch(columns, schema=LABELS_V1))

    def catalog() -> Iterator[pa.RecordBatch]:
        for start in starts:
            n = len(numbers(start))
            values: dict[str, Any] = {"size": 1, "mtime_ns": 1, "status": "ok", "run_id": run}
            columns = {"uri": uris(start), "sha256": key_array(keys(start))}
            columns |= {name: pa.array([value] * n, CATALOG.field(name).type) for name, value in values.items()}
            every = [columns.get(field.name, pa.nulls(n, field.type)) for field in CATALOG]
            yield pa.record_batch(every, schema=CATALOG)

    with store.lock():
        table.commit(run, table.stage(features()))
        store.commit_labels(run, list(labels()))
        store.catalog.commit(run, store.catalog.stage(catalog()))


def run(store: str, limit: int, values: int) -> None:
    """Compare in this process; print what came of it, and what it took."""
    from heads.comparison.space import Search
    from heads.solvers import sweep
    from pipelines.options import FitData
    from pipelines.training import compare_heads

    taken: dict[int, list[float]] = defaultdict(list)  # seconds of each pass, by the number of rows
    evaluate = sweep._evaluate

    def timed(*arguments: Any) -> Any:
        began, n = time.perf_counter(), arguments[0].rows.n
        made = evaluate(*arguments)
        taken[n].append(time.perf_counter() - began)
        print(f"pass {len(taken[n])} over {n:,}: {taken[n][-1]:.2f} s", file=sys.stderr, flush=True)
        return made

    sweep._evaluate = timed
    grid = tuple({"C": float(f"{C:.6g}")} for C in np.geomspace(1e-5, 1e-1, values))
    began = time.perf_counter()
    told = compare_heads(
        store,
        CompareOptions(
            search=Search({"logreg": grid}, (None,)),
            data=FitData(split=Split(SHARE, SHARE)),
            memory_limit=limit or None,
        ),
    )
    took = time.perf_counter() - began
    passes = taken.pop(told["n"]["train"])
    print(
        json.dumps(
            {
                "rows": told["n"]["train"],
                "val": {str(row["params"]["C"]): row["val"] for row in told["leaderboard"]},
                "winner": told["winner"]["params"]["C"],
                "test": told["winner"]["test"],
                "seconds": took,
                "passes": len(passes),
                "pass": sum(passes) / len(passes),
                "sampled": sum(sum(seconds) for seconds in taken.values()),
                "peak": peak() / 2**30,
            }
        )
    )


def measure(store: Path, limit: int, values: int) -> dict[str, Any]:
    shutil.rmtree(store / "results", ignore_errors=True)  # or the second comparison would know the first one's
    command = [sys.executable, "-m", "benchmarks.streaming", "--run", str(store), str(limit), str(values)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row_of(told: dict[str, Any], limit: int) -> dict[str, Any]:
    return {
        "training rows": f"{told['rows']:,}",
        "--memory-limit": f"{limit / 1e9:g} GB" if limit else "none",
        "values of C": len(told["val"]),
        "seconds": round(told["seconds"]),
        "passes": told["passes"],
        "seconds per pass": round(told["pass"], 2),
        "seconds on the sample": round(told["sampled"], 1),
        "peak RSS, GiB": round(told["peak"], 2),
        "winner": f"C {told['winner']:g}",
        "val": f"{max(told['val'].values()):.2%}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs=3, metavar=("STORE", "LIMIT", "VALUES"), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=2_050_000)
    parser.add_argument("--small", type=int, default=60_000, help="rows to compare in memory too, or 0")
    parser.add_argument("--values", type=int, default=20, help="of C")
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run[0], *map(int, arguments.run[1:]))
        return
    with tempfile.TemporaryDirectory() as folder:
        X, y = digits(Path(folder))
        rows = []
        sizes = [(arguments.small, (0, SMALL_LIMIT)), (arguments.rows, (LIMIT,))]
        for count, limits in sizes if arguments.small else sizes[1:]:
            store = Path(folder) / f"{count}.store"
            write_store(store, X, y, count)
            told = [measure(store, limit, arguments.values) for limit in limits]
            rows += [row_of(one, limit) for one, limit in zip(told, limits, strict=True)]
            if len(told) == 2:
                a, b = (one["val"] for one in told)
                print(f"Most that validation accuracy differs for a value of C: {max(abs(a[C] - b[C]) for C in a):.2%}")
    show("Comparing logistic regressions in memory and streamed from the store", rows)


if __name__ == "__main__":
    main()
