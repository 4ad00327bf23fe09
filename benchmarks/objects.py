"""Claims: a corpus and a store in a bucket cost little more than on a disk, far away too.

Embedding from a bucket into a bucket at 0.9 of the rate of a disk, at 0.8 if each request takes 50 ms more; Parquet
with image bytes at 0.95 of a folder's; nothing new among a million objects in 60 s and 0.5 GiB; `status` and `train` as
on a disk from the second time on, from local copies.

The server is SeaweedFS on the loopback, on the same cores: its work counts in seconds and not in processor time, which
is that of penult alone, and the figure to look at beside a busy neighbour. A proxy adds the latency. The rounds go
through the places in turn, and a ratio is of two rates of one round. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from benchmarks import fake, longrun, streaming
from benchmarks.corpus import write_crops
from benchmarks.formats import HUB_ROWS, write_parquet
from benchmarks.report import peak, show
from object_proxy import proxy
from object_servers import ObjectServer, seaweedfs

PENULT = [sys.executable, "-m", "pipelines"]
LATENCY = 0.05  # seconds per request
AT_ONCE = 32
TIMES = 2  # that a command is measured
CHUNK = 50_000
COMMANDS = {"status": ["status"], "train": ["train", "--head", "ncm"]}


class Taken(NamedTuple):
    """What a process took."""

    seconds: float
    cpu: float
    told: Any = None


def process(command: list[str], environment: Mapping[str, str]) -> Taken:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(seconds, cpu, json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def environments(server: ObjectServer, cache: Path) -> Iterator[dict[float, dict[str, str]]]:
    """The variables by which processes reach the server, by the latency that is added."""
    near = dict(os.environ) | server.environment | {"PENULT_CACHE": str(cache)}
    with proxy(server.endpoint, LATENCY) as far:
        yield {0: near, LATENCY: near | {"AWS_ENDPOINT_URL": far.endpoint}}


def upload(server: ObjectServer, files: Mapping[str, Path | bytes]) -> str:
    """Put objects into a new bucket, by key; return its URI."""
    import obstore

    bucket = server.make_bucket()
    client = server.store(bucket)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda item: obstore.put(client, *item), files.items()))
    return f"s3://{bucket}"


# --- embedding, in a process of its own


def run(what: str, source: str, store: str) -> None:
    """Embed in this process, and print what it took."""
    import pipelines.embedding.beam  # noqa: F401
    from pipelines.embedding.embed import embed

    if what == "rerun":
        fake.install(longrun.WIDTH)
    began, since = time.perf_counter(), time.process_time()
    result = embed(source, store)
    assert not result.failures and (what == "embed") == (result.embedded == result.seen), result
    taken = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - since}
    print(json.dumps(taken | {"images": result.seen, "peak": peak()}))


def measured(what: str, source: str, store: str, environment: Mapping[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.objects", "--run", what, source, store]
    return dict(process(command, environment).told)


def embedding(server: ObjectServer, folder: Path, corpus: Path, rounds: int) -> list[dict[str, Any]]:
    """The rate of whole runs with a real backbone, from and into each place."""
    table = folder / "hub.parquet"
    write_parquet(corpus, table, HUB_ROWS)
    crops = {f"crops/{path.relative_to(corpus).as_posix()}": path for path in sorted(corpus.rglob("*.jpg"))}
    bucket = upload(server, crops | {"hub.parquet": table})
    places = {
        "folder → disk": (str(corpus), f"{folder}/store", 0.0),
        "Parquet → disk": (str(table), f"{folder}/store", 0.0),
        "s3 → s3": (f"{bucket}/crops", f"{bucket}/store", 0.0),
        "s3 → s3, 50 ms": (f"{bucket}/crops", f"{bucket}/store", LATENCY),
        "Parquet in s3 → s3, 50 ms": (f"{bucket}/hub.parquet", f"{bucket}/store", LATENCY),
    }
    first, *_ = places
    taken: list[dict[str, dict[str, Any]]] = []
    with environments(server, folder / "cache") as reached:
        measured("embed", str(corpus), f"{folder}/store-0", reached[0])  # fills the page cache, and converts the graph
        for number in range(1, rounds + 1):
            row = {}
            for index, (name, (source, store, latency)) in enumerate(places.items()):
                row[name] = measured("embed", source, f"{store}-{number}-{index}", reached[latency])
            taken.append(row)
    rows = []
    for name in places:
        ratios, of_processor = ([row[first][by] / row[name][by] for row in taken] for by in ("seconds", "cpu"))
        rate = statistics.median(row[name]["images"] / row[name]["seconds"] for row in taken)
        rows.append(
            {
                "from → to": name,
                "images/s": round(rate, 1),
                "of a folder on a disk": round(statistics.median(ratios), 2),
                "least and most": f"{min(ratios):.2f} to {max(ratios):.2f}",
                "by processor time": round(statistics.median(of_processor), 2),
            }
        )
    return rows


# --- a run with nothing new


def nothing_new(server: ObjectServer, folder: Path, objects: int) -> list[dict[str, Any]]:
    """A run over a prefix of empty objects that the store has."""
    store, names = folder / "known.store", (f"p/class-{n % 100:02}/{n:07}.jpg" for n in range(objects))
    bucket = upload(server, dict.fromkeys(names, b""))
    with environments(server, folder / "cache") as reached:
        os.environ.update(reached[0])
        fake.install(longrun.WIDTH)
        write_known(store, f"{bucket}/p")
        rows = []
        for latency in (0, LATENCY):
            told = [measured("rerun", f"{bucket}/p", str(store), reached[latency]) for _ in range(2)][1]
            rows.append(
                {
                    "objects": f"{told['images']:,}",
                    "added latency": f"{latency * 1000:.0f} ms",
                    "seconds": round(told["seconds"], 1),
                    "CPU seconds": round(told["cpu"], 1),
                    "peak RSS, MiB": told["peak"] // 2**20,
                }
            )
    return rows


def write_known(path: Path, prefix: str) -> None:
    """A store as a run over the prefix would have left it."""
    from pipelines.sources.corpus import list_source

    entries = list(list_source(prefix))
    opened = longrun.empty_store(path)
    features = opened.table(opened.sets()[0])

    def catalog(some: range) -> pa.RecordBatch:
        mine = entries[some.start : some.stop]
        times = [entry.mtime_ns for entry in mine]
        return longrun.catalog_batch([entry.uri for entry in mine], longrun.keys(some), times, longrun.RUN)

    def labels(some: range) -> pa.RecordBatch:
        mine = entries[some.start : some.stop]
        return longrun.labels_batch([e.uri for e in mine], [e.label or "" for e in mine], longrun.RUN, prefix)

    def vectors(some: range) -> pa.RecordBatch:
        rows = np.ones((len(some), longrun.WIDTH), np.float32)
        return longrun.features_batch(features.schema, longrun.keys(some), rows, longrun.RUN)

    with opened.lock():
        for table, batch in ((features, vectors), (opened.labels, labels), (opened.catalog, catalog)):
            table.commit(longrun.RUN, table.stage(map(batch, longrun.ranges(len(entries), CHUNK))))
        opened.remember()


# --- commands on a store in a bucket


def commands(server: ObjectServer, folder: Path, rows: int) -> list[dict[str, Any]]:
    """Whole processes: the first, which makes copies, and the median of others; and one without copies."""
    store, random = folder / "features.store", np.random.default_rng(0)
    y = np.arange(2000) % 10
    X = random.normal(size=(10, fake.WIDTH))[y] + 3 * random.normal(size=(2000, fake.WIDTH))
    streaming.write_store(store, X.astype(np.float32), np.array([f"class {label}" for label in y]), rows)
    bucket = upload(server, {f"store/{p.relative_to(store).as_posix()}": p for p in store.rglob("*") if p.is_file()})
    found = []
    with environments(server, folder / "commands-cache") as reached:
        for name, command in COMMANDS.items():
            local = [
                process([*PENULT, *command, "--store", str(store), "--json"], reached[0]) for _ in range(1 + TIMES)
            ][1:]
            for latency, environment in reached.items():
                far = [*PENULT, *command, "--store", f"{bucket}/store", "--json"]
                none = [process([*far, "--cache-limit", "0.000001MB"], environment) for _ in range(2)][1:]
                with tempfile.TemporaryDirectory(dir=folder) as cache:
                    first, *later = (process([*far, "--cache", cache], environment) for _ in range(1 + TIMES))
                by = {"local": local, "no copies": none, "first": [first], "later": later}
                found.append(
                    {"command": f"`{name}`", "added latency": f"{latency * 1000:.0f} ms"}
                    | {
                        f"{words}, s (CPU)": " ".join(
                            f"{statistics.median(times):.2f}" if index == 0 else f"({statistics.median(times):.2f})"
                            for index, times in enumerate(([t.seconds for t in taken], [t.cpu for t in taken]))
                        )
                        for words, taken in by.items()
                    }
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs=3, metavar=("WHAT", "SOURCE", "STORE"), help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--parts", nargs="+", default=["embedding", "nothing-new", "commands"])
    arguments = parser.parse_args()
    if arguments.run:
        run(*arguments.run)
        return
    corpus = write_crops(Path(tempfile.gettempdir(), "penult-bench", f"crops-{arguments.images}"), arguments.images)
    with tempfile.TemporaryDirectory() as name, seaweedfs() as server:
        folder = Path(name)
        if "embedding" in arguments.parts:
            title = f"Embedding {arguments.images:,} JPEG crops of 500 × 375, EfficientNet-Lite0, f32"
            show(title, embedding(server, folder, corpus, arguments.rounds))
        if "nothing-new" in arguments.parts:
            show("A run with nothing new over objects in a bucket", nothing_new(server, folder, arguments.objects))
        if "commands" in arguments.parts:
            title = f"Commands on a store of {arguments.rows:,} × {fake.WIDTH:,} features in a bucket"
            show(title, commands(server, folder, arguments.rows))


if __name__ == "__main__":
    main()
