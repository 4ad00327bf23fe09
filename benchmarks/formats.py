"""Claim: images in tables are embedded at 0.95 of the rate of the same images in a folder, or faster.

Without a CNN, so that the reading weighs most: decoding is what is left beside it. The rounds go through the layouts in
turn, each into a store of its own, and a ratio is of two rates of one round. Beside a busy neighbour, the ratio by
processor time is the one to look at.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from benchmarks import fake
from benchmarks.corpus import write_crops
from benchmarks.report import show

HUB_ROWS = 100  # per row group of images, as Hugging Face's datasets writes them


def tables(corpus: Path, rows: int) -> Iterator[pa.Table]:
    files = sorted(corpus.rglob("*.jpg"))
    for first in range(0, len(files), rows):
        some = files[first : first + rows]
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in some]
        yield pa.table({"image": images, "label": [file.parent.name for file in some]})


def write_parquet(corpus: Path, path: Path, rows: int) -> None:
    writer = None
    for table in tables(corpus, rows):
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def write_arrow(corpus: Path, path: Path) -> None:
    writer = None
    for table in tables(corpus, HUB_ROWS):
        writer = writer or pa.ipc.new_stream(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def write_lance(corpus: Path, path: Path) -> None:
    import lance

    for table in tables(corpus, 1000):
        lance.write_dataset(table, path, mode="append" if path.exists() else "create")


LAYOUTS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "Parquet, row groups of 100": ("hub.parquet", lambda corpus, path: write_parquet(corpus, path, HUB_ROWS)),
    "Parquet, one row group": ("one.parquet", lambda corpus, path: write_parquet(corpus, path, 10**9)),
    "Arrow stream": ("stream.arrow", write_arrow),
    "Lance": ("table.lance", write_lance),
}


def rate(source: Path) -> tuple[float, float]:
    """Images per second of a whole run, its commit included, and per second of processor time."""
    from pipelines.embedding.embed import embed

    with tempfile.TemporaryDirectory() as folder:
        since = time.process_time()
        result = embed(str(source), Path(folder) / "store")
        spent = time.process_time() - since
        assert result.embedded == result.seen and not result.failures, result
        return result.embedded / result.seconds["total"], result.embedded / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "penult-bench")
    arguments = parser.parse_args()
    fake.install()
    corpus = write_crops(arguments.corpus / f"crops-{arguments.images}", arguments.images)
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.corpus) as folder:
        sources = {"folder": corpus}
        for name, (file, write) in LAYOUTS.items():
            sources[name] = Path(folder) / file
            write(corpus, sources[name])
        rate(corpus)  # fills the page cache, and compiles
        rounds = [{name: rate(source) for name, source in sources.items()} for _ in range(arguments.rounds)]
        for name in sources:
            ratios, of_processor = (sorted(t[name][i] / t["folder"][i] for t in rounds) for i in range(2))
            rows.append(
                {
                    "layout": name,
                    "images/s": round(statistics.median(taken[name][0] for taken in rounds)),
                    "of a folder": round(statistics.median(ratios), 3),
                    "least and most": f"{ratios[0]:.3f} to {ratios[-1]:.3f}",
                    "by processor time": round(statistics.median(of_processor), 3),
                }
            )
    show(f"Embedding {arguments.images:,} JPEG crops of 500 × 375 without a CNN", rows)


if __name__ == "__main__":
    main()
