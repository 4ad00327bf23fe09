"""Claims: a store of a million images, or of many small runs, is opened, counted, listed again and trained on quickly.

What is promised of a million images on two cores, beside what the vectors themselves take (rows here have eight
numbers): opening in a second; `penult status` in 10 s and 1 GiB; reading for training in 15 s and 1 GiB; a rerun
that finds nothing new in 60 s and 0.5 GiB, a third of which is listing; one more image committed in 3 s. And of a
table of 25,000 fragments, which is what 100 million images come to: opening in a second, a commit in 20 s. And after
200 runs of one new image each: at most 16 versions, 46 fragments and 200 files per table.

The million rows are in shards of 4,096, as one run leaves them. The corpus is a million real names in 100 folders, each
folder's files a link to one empty file: a rerun looks at names, sizes and times only. Each measurement is a process of
its own, less its imports, and comes after one that was not counted; the peak is what the operating system says of it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks import fake
from benchmarks.report import peak, show
from featurestore.labels import statements
from featurestore.schema import CATALOG, features_batch, key_array
from featurestore.store import FeatureStore

CLASSES = 100
SHARD = 4096
CHUNK = 50_000  # catalog rows written at a time
WIDTH = 8
RUN = "benchmark"


# --- what is measured


def opening(_: str, store: str) -> None:
    FeatureStore(store)


def status(_: str, store: str) -> None:
    from featurestore.status import status

    status(FeatureStore(store))


def training(_: str, store: str) -> None:
    FeatureStore(store).dataset()


def listing(source: str, _: str) -> None:
    from pipelines.sources.corpus import list_source

    for _entry in list_source(source):
        pass


def rerun(source: str, store: str) -> None:
    from pipelines.embedding.embed import embed

    result = embed(source, store)
    assert (result.embedded, result.failed, result.removed, result.labels["changed"]) == (0, 0, 0, []), result


def counting(_: str, store: str) -> None:
    opened = FeatureStore(store)
    for name in opened.sets():
        opened.table(name).count("view = 0")


def commit(_: str, store: str) -> None:
    """One row more in each table, and what tidies up after it; fragments of any size count as large."""
    from featurestore.storage import compaction

    compaction.LARGE = 1
    opened, run = FeatureStore(store), f"{time.time_ns()}"
    features = opened.table(opened.sets()[0])
    key, uri = np.array([os.urandom(32)], "S32"), [f"file:///{run}"]
    with opened.lock():
        for table, rows in (
            (features, features_batch(features.schema, key, np.ones((1, WIDTH)), run)),
            (opened.labels, labels_batch(uri, ["new"], run, "file:///new")),
            (opened.catalog, catalog_batch(uri, key, [0], run)),
        ):
            table.commit(run, table.stage([rows]))
            compaction.tend(table)
        opened.remember()


MEASURED: dict[str, Callable[[str, str], None]] = {
    function.__name__: function for function in (opening, status, training, listing, rerun, counting, commit)
}


def run(what: str, source: str, store: str) -> None:
    """Measure in this process, and print what it took."""
    for module in ("pipelines.embedding.embed", "pipelines.sources.corpus", "featurestore.status"):
        importlib.import_module(module)
    fake.install(WIDTH)
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    MEASURED[what](source, store)
    now = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "seconds": round(time.perf_counter() - began, 2),
                "CPU seconds": round(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime, 2),
                "peak RSS, MiB": peak() // 2**20,
            }
        )
    )


def measure(what: str, source: Path, store: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.longrun", "--run", what, str(source), str(store)]
    for _ in range(2):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


# --- stores


def write_files(folder: Path, files: int) -> list[Path]:
    """Empty files in class folders: links, so that they take names and no inodes."""
    paths = []
    for label in range(CLASSES):
        (folder / f"class-{label:02}").mkdir(parents=True)
        first, *rest = (folder / f"class-{label:02}" / f"{number:07}.jpg" for number in range(label, files, CLASSES))
        first.touch()
        for path in rest:
            os.link(first, path)
        paths += [first, *rest]
    return paths


def write_manifest(path: Path, files: list[Path]) -> Path:
    rows = (f"{file.relative_to(path.parent)},{file.parent.name}" for file in files)
    path.write_text("\n".join(["path,label", *rows]))
    return path


def write_store(path: Path, files: list[Path]) -> None:
    """What a run over these files would have left."""
    opened = empty_store(path)
    features = opened.table(opened.sets()[0])
    times = {file.parent: file.stat().st_mtime_ns for file in files[:: len(files) // CLASSES // 2]}
    random = np.random.default_rng(0)

    def catalog() -> Iterator[pa.RecordBatch]:
        for some in ranges(len(files), CHUNK):
            mine = [files[number] for number in some]
            yield catalog_batch(
                [file.as_uri() for file in mine], keys(some), [times[file.parent] for file in mine], RUN
            )

    def labels() -> Iterator[pa.RecordBatch]:
        for some in ranges(len(files), CHUNK):
            mine = [files[number] for number in some]
            source = mine[0].parents[1].as_uri()
            yield labels_batch([file.as_uri() for file in mine], [file.parent.name for file in mine], RUN, source)

    with opened.lock():
        staged = []
        for some in ranges(len(files), SHARD):
            vectors = random.standard_normal((len(some), WIDTH), np.float32)
            staged += features.stage([features_batch(features.schema, keys(some), vectors, RUN)])
        features.commit(RUN, staged)
        opened.labels.commit(RUN, opened.labels.stage(labels()))
        opened.catalog.commit(RUN, opened.catalog.stage(catalog()))
        opened.remember()


def write_fragments(path: Path, fragments: int) -> None:
    """A set of many fragments, of two rows each."""
    from lance.fragment import write_fragments as write

    opened = empty_store(path)
    table = opened.table(opened.sets()[0])
    vectors = np.random.default_rng(0).standard_normal((2 * fragments, WIDTH), np.float32)
    rows = pa.Table.from_batches([features_batch(table.schema, keys(range(len(vectors))), vectors, RUN)])
    made = write(rows, table.path, mode="append", max_rows_per_file=2, data_storage_version="2.2")
    with opened.lock():
        table.commit(RUN, [json.dumps(fragment.to_json()) for fragment in made])
        opened.remember()


def empty_store(path: Path) -> FeatureStore:
    """A store with the feature set that penult makes of this engine, and one picture that could not be read."""
    from pipelines.embedding.embed import embed

    folder = path.with_name("one")
    folder.mkdir(exist_ok=True)
    (folder / "empty.jpg").touch()
    embed(str(folder), path)
    return FeatureStore(path)


def ranges(total: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, total)) for start in range(0, total, size))


def keys(numbers: range) -> np.ndarray:
    return np.array([hashlib.sha256(b"%d" % number).digest() for number in numbers], "S32")


def catalog_batch(uris: list[str], keys: np.ndarray, times: list[int], run: str) -> pa.RecordBatch:
    n = len(uris)
    values: dict[str, Any] = {"size": 0, "width": 500, "height": 375, "format": "jpeg", "status": "ok", "run_id": run}
    columns = {"uri": pa.array(uris), "sha256": key_array(keys), "mtime_ns": pa.array(times, pa.int64())}
    columns |= {name: pa.array([value] * n, CATALOG.field(name).type) for name, value in values.items()}
    return pa.record_batch([columns.get(field.name, pa.nulls(n, field.type)) for field in CATALOG], schema=CATALOG)


def labels_batch(uris: list[str], names: list[str], run: str, source: str) -> pa.RecordBatch:
    return statements(uris, ((name, None, None) for name in names), "default", source, run)


# --- the tables


def a_million(folder: Path, images: int) -> list[dict[str, Any]]:
    files = write_files(folder / "files", images)
    manifest, store = write_manifest(folder / "manifest.csv", files), folder / "store"
    write_store(store, files)
    del files
    rows = [
        ("opening the store", "opening", folder),
        ("`penult status`", "status", folder),
        ("reading for training", "training", folder),
        ("listing the folder", "listing", folder / "files"),
        ("`penult embed` of the folder, nothing new", "rerun", folder / "files"),
        ("listing a manifest", "listing", manifest),
        ("`penult embed` of the manifest, nothing new", "rerun", manifest),
        ("reading for training what two sources list", "training", folder),
        ("committing one image more", "commit", folder),
    ]
    return [{"images": f"{images:,}", "what": name} | measure(what, source, store) for name, what, source in rows]


def many_fragments(folder: Path, fragments: int) -> list[dict[str, Any]]:
    store = folder / "fragments.store"
    write_fragments(store, fragments)
    rows = [
        ("opening the store", "opening"),
        ("`penult status`", "status"),
        ("counting rows of a view", "counting"),
        ("committing one image more", "commit"),
    ]
    return [{"fragments": f"{fragments:,}", "what": name} | measure(what, folder, store) for name, what in rows]


def many_runs(folder: Path, runs: int) -> list[dict[str, Any]]:
    """One new picture per run."""
    from pipelines.embedding.embed import embed

    corpus, store, rows = folder / "growing", folder / "growing.store", []
    for number in range(runs):
        path = corpus / f"class-{number % 3}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)).save(path)
        began = time.perf_counter()
        embed(str(corpus), store)
        took = time.perf_counter() - began
        if number + 1 in (1, 3, runs // 4, runs // 2, runs):
            opened = FeatureStore(store)
            tables = [opened.catalog, opened.labels, opened.table(opened.sets()[0])]
            files = [file for table in tables for file in table.path.rglob("*") if file.is_file()]
            rows.append(
                {
                    "runs": number + 1,
                    "seconds of the last": round(took, 2),
                    "versions a table": max(len(table.versions()) for table in tables),
                    "fragments a table": max(len(table.pieces()) for table in tables),
                    "files of tables": len(files),
                    "kB of tables": sum(file.stat().st_size for file in files) // 1000,
                }
                | {f"reading, {name}": value for name, value in measure("training", folder, store).items()}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs=3, metavar=("WHAT", "SOURCE", "STORE"), help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--fragments", type=int, default=25_000)
    parser.add_argument("--runs", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.run:
        run(*arguments.run)
        return
    fake.install(WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        show("A store of many images", a_million(Path(folder), arguments.images))
        show("A table of many fragments", many_fragments(Path(folder), arguments.fragments))
        show("Many runs of one new image", many_runs(Path(folder), arguments.runs))


if __name__ == "__main__":
    main()
