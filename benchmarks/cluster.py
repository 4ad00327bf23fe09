"""Claims: a cluster costs little, and so do the small shards by which a kill costs seconds.

Two Dask workers of one thread, and one worker of two threads, embed at 0.95 of the rate of one process on the same two
cores; shards sized by time at that of shards of 4,096 images. Whole runs into new stores, in a driver that is a process
of its own; the workers are warm, as those of a cluster are. The rounds go through the places in turn, and a ratio is of
two rates of one round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import clusters
from benchmarks.corpus import write_crops
from benchmarks.report import show

CLUSTERS = {"Dask, two workers of one thread": (2, 1), "Dask, one worker of two threads": (1, 2)}
FIRST = "one process, shards by time"


def run(source: str, store: str, shard_images: int, arguments: list[str]) -> None:
    """Embed in this process or from it, and print what it took."""
    from pipelines.embedding.embed import embed, import_beam
    from pipelines.options import EmbedOptions

    import_beam()
    runner = {"runner": "DaskRunner", "runner_arguments": tuple(arguments)} if arguments else {}
    began = time.perf_counter()
    result = embed(source, store, EmbedOptions(shard_images=shard_images or None, **runner))  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    shards = sum(did["shards"] for did in result.workers.values())
    print(json.dumps({"rate": result.embedded / seconds, "shards": shards, "images": result.embedded}))


def measured(source: Path, store: Path, shard_images: int = 0, arguments: list[str] | None = None) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.cluster", "--run", str(source), str(store), str(shard_images)]
    done = subprocess.run([*command, *(arguments or [])], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def rates(corpus: Path, few: Path, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """The rates of each place, round by round."""
    taken: list[dict[str, dict[str, Any]]] = []
    with ExitStack() as stack:
        arguments = {}
        for number, (name, (workers, threads)) in enumerate(CLUSTERS.items()):
            home = folder / f"dask-{number}"
            home.mkdir()
            cluster = stack.enter_context(clusters.dask(home, workers, threads))
            cluster.wait_for_workers(workers)
            arguments[name] = cluster.runner[3:]
            measured(few, folder / f"warm-{number}", 32, arguments[name])
        for number in range(rounds):
            row = {
                FIRST: measured(corpus, folder / f"{number}"),
                "one process, shards of 4,096": measured(corpus, folder / f"{number}-4096", 4096),
            }
            for at, (name, words) in enumerate(arguments.items()):
                row[name] = measured(corpus, folder / f"{number}-{at}", 0, words)
            taken.append(row)
    rows = []
    for name in taken[0]:
        ratios = [row[name]["rate"] / row[FIRST]["rate"] for row in taken]
        rows.append(
            {
                "where": name,
                "shards": taken[-1][name]["shards"],
                "images/s": round(statistics.median(row[name]["rate"] for row in taken), 1),
                "of one process": round(statistics.median(ratios), 2),
                "least and most": f"{min(ratios):.2f} to {max(ratios):.2f}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    arguments, rest = parser.parse_known_args()
    if arguments.run:
        source, store, shard_images, *words = arguments.run
        run(source, store, int(shard_images), [*words, *rest])
        return
    made = Path(tempfile.gettempdir(), "penult-bench")
    corpus = write_crops(made / f"crops-{arguments.images}", arguments.images)
    few = write_crops(made / "crops-200", 200)
    with tempfile.TemporaryDirectory() as name:
        title = f"Embedding {arguments.images:,} JPEG crops of 500 × 375 on two cores, EfficientNet-Lite0, f32"
        show(title, rates(corpus, few, Path(name), arguments.rounds))


if __name__ == "__main__":
    main()
