"""Claim: embedding end to end runs at 90 % or more of what the bare decoder and the bare engine allow.

The limit is 1 / (1 / forward + 1 / decode): both need all cores. Beside it Keras's own guide to feature extraction,
``image_dataset_from_directory`` and ``Model.predict``, with the same backbone on the same files.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import write_crops
from benchmarks.report import show

GUIDE_SECONDS = 60  # Keras's guide is slow: it gets as many images as it does in about this time


def forward_rate(backbone: str, weights: str, precision: str, seconds: float = 6.0) -> float:
    """Images per second of the bare engine, on pixels in memory."""
    from featurestore.machine import available_cores
    from pipelines.backbones.engine_options import EngineOptions
    from pipelines.backbones.table import resolve
    from pipelines.embedding.worker import THREADS_PER_CORE, engine_for

    tap = resolve(backbone, weights)
    engine = engine_for(tap, EngineOptions(precision=precision))
    shape = (engine.batch_size, tap.input_size, tap.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    calls = 16 * available_cores()
    with ThreadPoolExecutor(THREADS_PER_CORE * available_cores()) as pool:
        list(pool.map(engine, [pixels] * calls))
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            list(pool.map(engine, [pixels] * calls))
            done += calls * len(pixels)
        return done / (time.perf_counter() - began)


def decode_rate(files: list[Path], input_size: int) -> float:
    """Images per second of the bare decoder, on bytes in memory, with as many threads as the embed loop has."""
    from featurestore.machine import available_cores
    from pipelines.embedding.worker import THREADS_PER_CORE
    from pipelines.images.decoder import decode

    data = [path.read_bytes() for path in files]
    with ThreadPoolExecutor(THREADS_PER_CORE * available_cores()) as pool:
        list(pool.map(lambda d: decode(d, input_size), data[:64]))
        began = time.perf_counter()
        for _ in pool.map(lambda d: decode(d, input_size) and None, data):
            pass
        return len(data) / (time.perf_counter() - began)


def penult_rate(corpus: Path, backbone: str, weights: str, precision: str) -> float:
    """Images per second of a whole embed run into a new store; imports not counted."""
    import pipelines.embedding.beam  # noqa: F401
    from pipelines.backbones.engine_options import EngineOptions
    from pipelines.embedding.embed import embed
    from pipelines.options import EmbedOptions

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        options = EmbedOptions(backbone=backbone, weights=weights, engine=EngineOptions(precision=precision))
        result = embed(str(corpus), Path(folder) / "store", options)
        return result.embedded / (time.perf_counter() - began)


def guide_rate(corpus: Path, backbone: str, weights: str) -> float:
    """Images per second of Keras's guide, in a process of its own; imports and building not counted."""
    command = [sys.executable, "-m", "benchmarks.keras_guide", str(corpus), backbone, weights, str(GUIDE_SECONDS)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(corpus: Path, backbone: str, weights: str, precisions: list[str], rounds: int) -> list[dict[str, Any]]:
    """Measure one backbone in some precisions, the parts in turn, ``rounds`` times; medians."""
    from pipelines.backbones.table import resolve

    files = sorted(corpus.rglob("*.jpg"))
    size = resolve(backbone, weights).input_size
    guide = guide_rate(corpus, backbone, weights)
    rows = []
    for precision in precisions:
        taken = []
        for _ in range(rounds):
            forward, decode = forward_rate(backbone, weights, precision), decode_rate(files[:2000], size)
            limit = 1 / (1 / forward + 1 / decode)
            taken.append((forward, decode, limit, penult_rate(corpus, backbone, weights, precision)))
        forward, decode, limit, rate = (statistics.median(column) for column in zip(*taken, strict=True))
        share = statistics.median(row[3] / row[2] for row in taken)
        rows.append(
            {
                "backbone": backbone,
                "precision": precision,
                "forward /s": round(forward),
                "decode /s": round(decode),
                "limit /s": round(limit),
                "penult /s": round(rate),
                "of the limit": f"{share:.0%}",
                "Keras's guide /s": round(guide, 1),
                "penult / guide": f"{rate / guide:.1f}×",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbones", nargs="+", default=["efficientnet-lite0", "ResNet50"])
    parser.add_argument("--precisions", nargs="+", default=["f32", "bf16"])
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "penult-bench")
    arguments = parser.parse_args()
    arguments.corpus /= f"crops-{arguments.images}"
    write_crops(arguments.corpus, arguments.images)
    rows = []
    for backbone in arguments.backbones:
        weights = "imagenet" if backbone.startswith("efficientnet-lite") else str(seeded_weights(backbone))
        rows += measure(arguments.corpus, backbone, weights, arguments.precisions, arguments.rounds)
    sizes = [path.stat().st_size for path in arguments.corpus.rglob("*.jpg")]
    show(f"Embedding {len(sizes):,} JPEG files of 500×375 pixels, {np.mean(sizes) / 1e3:.0f} kB on average", rows)


def seeded_weights(backbone: str) -> Path:
    """Random weights in a file: the speed does not depend on them, and no download is needed."""
    path = Path(tempfile.gettempdir()) / "penult-bench" / f"{backbone}.weights.h5"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        code = (
            "import keras, sys; keras.utils.set_random_seed(0);"
            "getattr(keras.applications, sys.argv[1])(weights=None, include_top=False).save_weights(sys.argv[2])"
        )
        subprocess.run([sys.executable, "-c", code, backbone, str(path)], check=True, capture_output=True)
    return path


if __name__ == "__main__":
    main()
