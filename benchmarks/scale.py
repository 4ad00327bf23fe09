"""Claims: ten million images are planned, and ten thousand shards committed, in minutes and in bounded memory.

Both are the driver's part, which a cluster does not share. The listing is made up, so that its own time does not
count; the shards are small. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import longrun
from benchmarks.report import peak, show

WIDTH = 1280
FEW = 20  # images per shard, where the number of shards is what counts
MANY, NARROW = 100_000, 8  # images per shard, and features, where the number of images is what counts
RUN = "20260101T000000000000Z-embed-000000"


class Listing:
    """So many images that nobody has seen, in a bucket."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.ignored: dict[str, int] = {}
        self.problems: list[str] = []
        self.columns: dict[str, str] = {}
        self.notes: list[str] = []
        self.incomplete: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        from pipelines.sources.corpus import Entry

        for n in range(self.images):
            yield Entry(f"s3://photos/class-{n % 1000:03}/{n:09}.jpg", 40_000 + n % 1000, n, -1, f"class-{n % 1000:03}")


def plan(folder: Path, images: int) -> dict[str, Any]:
    from featurestore.journal import Staging
    from featurestore.store import FeatureStore
    from pipelines.embedding.membership import Membership
    from pipelines.embedding.plan import Cut, write_plan
    from pipelines.embedding.result import EmbedResult
    from pipelines.options import EmbedOptions

    store = FeatureStore(folder / "store")
    staging = Staging(store.path, RUN)
    began = time.perf_counter()
    with store.lock():
        staging.begin(name := store.sets()[0])
        result, membership = EmbedResult(RUN, name, ""), Membership(store, "s3://photos", "default", RUN)
        planned = write_plan(store, staging, Listing(images), EmbedOptions(), result, membership, Cut(lambda _: 1000))  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in staging.folder.glob("*.arrow"))
    return {
        "what": f"plan {planned.images:,} images",
        "seconds": round(seconds, 1),
        "per million": f"{seconds / images * 1e6:.1f} s",
        "journal, MB": round(size / 1e6),
        "peak RSS, MiB": peak() // 2**20,
    }


def prepare(folder: Path, shards: int, rows: int, width: int) -> None:
    """The journal of a run that has finished its shards, each of so many rows."""
    from featurestore.journal import PLAN, ShardEntry
    from featurestore.schema import LABELS
    from featurestore.store import FeatureStore

    store = FeatureStore(folder / "store")
    staging, table = journal_of(folder), store.table(store.sets()[0])
    staging.begin(store.sets()[0])
    with staging.writer("plan", PLAN) as file, staging.writer("labels", LABELS):
        for shard in range(shards):
            uris = [f"file:///photos/{n:09}.jpg" for n in range(shard * rows, shard * rows + rows)]
            columns = [uris, [1] * rows, [1] * rows, [-1] * rows, [False] * rows]
            file.write_batch(pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, PLAN, strict=True)], PLAN))
    vectors = np.ones((rows, width), np.float32)
    for shard in range(shards):
        numbers = range(shard * rows, shard * rows + rows)
        keys = longrun.keys(numbers)
        fragments = table.stage([longrun.features_batch(table.schema, keys, vectors, RUN)])
        catalog = longrun.catalog_batch([f"file:///photos/{n:09}.jpg" for n in numbers], keys, [1] * rows, RUN)
        staging.finish(ShardEntry(shard, fragments, f"{shard}.rows.arrow", rows, 0, {}, {}), [catalog])


def commit(folder: Path, shards: int) -> dict[str, Any]:
    from featurestore.store import FeatureStore

    store, staging = FeatureStore(folder / "store"), journal_of(folder)
    began = time.perf_counter()
    with store.lock():
        assert staging.missing(shards) == []
        store.commit(staging)
    seconds = time.perf_counter() - began
    images = store.catalog.count() - 1  # less the one of ``empty_store``
    assert images % shards == 0 and images > 0
    return {
        "what": f"commit {shards:,} shards, {images:,} images",
        "seconds": round(seconds, 1),
        "per shard": f"{seconds / shards * 1000:.1f} ms",
        "per million images": f"{seconds / images * 1e6:.1f} s",
        "peak RSS, MiB": peak() // 2**20,
    }


def journal_of(folder: Path) -> Any:
    from featurestore.journal import Staging

    return Staging(folder / "store", RUN)


def measured(part: str, folder: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale", "--run", part, str(folder), str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs=3, metavar=("PART", "FOLDER", "COUNT"), help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--shards", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--large-shards", type=int, nargs="*", default=[10, 100], help="of 100,000 images each")
    arguments = parser.parse_args()
    if arguments.run:
        part, folder, count = arguments.run
        print(json.dumps({"plan": plan, "commit": commit}[part](Path(folder), int(count))))
        return
    from benchmarks import fake

    planned = []
    fake.install(WIDTH)
    for count in arguments.images:
        with tempfile.TemporaryDirectory() as name:
            longrun.empty_store(Path(name, "store"))
            planned.append(measured("plan", Path(name), count))
    show("Planning images that nobody has seen", planned)
    for title, counts, rows, width in (
        (f"Committing finished shards of {FEW} images × {WIDTH:,} features on a disk", arguments.shards, FEW, WIDTH),
        (f"Committing finished shards of {MANY:,} images × {NARROW} features", arguments.large_shards, MANY, NARROW),
    ):
        committed = []
        fake.install(width)
        for count in counts:
            with tempfile.TemporaryDirectory() as name:
                longrun.empty_store(Path(name, "store"))
                prepare(Path(name), count, rows, width)
                committed.append(measured("commit", Path(name), count))
        if committed:
            show(title, committed)


if __name__ == "__main__":
    main()
