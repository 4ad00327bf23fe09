"""Claims: memory does not grow with the corpus, and a rerun over known files is quick.

The real pipeline (Beam, reading, hashing, decoding, Lance, commit) with a backbone of no cost. Each run is a process
of its own; the peak is what the operating system says of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import fake
from benchmarks.report import peak, show

CLASSES = 10


def write_small(folder: Path, count: int) -> Path:
    """``count`` different small JPEG files: the decoder's own buffers are the same for any number of them."""
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"class-{label}").mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"class-{number % CLASSES}" / f"{number:06}.jpg")
    return folder


def run(corpus: str, store: str) -> None:
    """Embed in this process and print what it took."""
    from pipelines.embedding.embed import embed

    fake.install()
    began = time.perf_counter()
    result = embed(corpus, store)
    print(
        json.dumps(
            {
                "seen": result.seen,
                "embedded": result.embedded,
                "seconds": time.perf_counter() - began,
                "peak": peak() / 2**20,
            }
        )
    )


def measure(corpus: Path, store: Path, what: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--run", str(corpus), str(store)]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(out.stdout.splitlines()[-1])
    return {
        "run": what,
        "files": f"{told['seen']:,}",
        "embedded": f"{told['embedded']:,}",
        "seconds": round(told["seconds"], 1),
        "peak RSS, MiB": round(told["peak"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs=2, metavar=("CORPUS", "STORE"), help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=100_000)
    arguments = parser.parse_args()
    if arguments.run:
        run(*arguments.run)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (arguments.images // 10, arguments.images):
            corpus = write_small(Path(folder) / str(count), count)
            rows.append(measure(corpus, Path(folder) / f"{count}.store", "first"))
            rows.append(measure(corpus, Path(folder) / f"{count}.store", "again"))
    show("Memory and reruns, with a backbone of no cost", rows)


if __name__ == "__main__":
    main()
