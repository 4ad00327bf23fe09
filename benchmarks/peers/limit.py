"""The strict limit: bytes in memory, decoded and inferred by a pool of threads, nothing read and nothing written.

``python -m benchmarks.peers.limit CORPUS GRAPH`` prints the images per second of each setting, the best one first;
``--best`` with a setting measures that one alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).with_name("programs")))
from embedder import Embedder, files_of

from featurestore.machine import available_cores

TUNED = 400  # images


class Setting(NamedTuple):
    """How the loop runs."""

    batch: int = 8
    hint: str = "THROUGHPUT"
    per_core: int = 2  # threads


SETTINGS = [Setting(*each) for each in product((4, 8, 16), ("THROUGHPUT", "LATENCY"), (1, 2))]


def rate(files: list[bytes], graph: str, setting: Setting) -> float:
    """Images per second."""
    model = Embedder(graph, batch=setting.batch, hint=setting.hint)
    batches = [files[at : at + setting.batch] for at in range(0, len(files), setting.batch)]
    with ThreadPoolExecutor(setting.per_core * available_cores()) as pool:
        list(pool.map(model, batches[:8]))
        began = time.perf_counter()
        list(pool.map(model, batches))
        return len(files) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("graph")
    parser.add_argument("--best", type=json.loads)
    arguments = parser.parse_args()
    files = [Path(path).read_bytes() for path in files_of(arguments.corpus)]
    if arguments.best:
        rates = [(rate(files, arguments.graph, Setting(*arguments.best)), arguments.best)]
    else:
        rates = sorted(((rate(files[:TUNED], arguments.graph, each), each) for each in SETTINGS), reverse=True)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
