"""How fast a backbone runs on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

import numpy as np

from featurestore.errors import EngineError
from featurestore.limits import check_amount
from featurestore.machine import available_cores
from featurestore.store import FeatureStore
from pipelines.backbones import kept
from pipelines.backbones.engine_options import PRECISIONS, EngineOptions
from pipelines.backbones.engines import Engine, open_engine
from pipelines.backbones.table import Tap, resolve

BATCHES = (1, 4, 8, 16, 32)
THREADS_PER_CORE = 2  # as the embed loop has them
MILLION = 1_000_000


def measure(name: str, store: PurePath | None, seconds: float = 2.0) -> list[dict[str, Any]]:
    """Return a row per precision and batch size: images per second, and hours for a million images.

    Args:
        name: a backbone.
        store: where it is, if it is not in the table.
        seconds: how long each is measured.

    Raises:
        UsageError: no such backbone, or no time.
        StoreNotFound: there is no store at that place.
        BackboneError: the network cannot be run.
    """
    check_amount("--seconds", seconds)
    if store is not None:
        FeatureStore(store)  # so that a wrong place is said, whatever the name
    find = kept.finder(name)
    kept.check_place(name, store)
    tap = resolve(name) if find is None else find(store or "", name)
    tap.fetch()
    return [row for precision in PRECISIONS for row in _rows(tap, precision, seconds)]


def _rows(tap: Tap, precision: str, seconds: float) -> Iterator[dict[str, Any]]:
    for batch in (tap.network.batch,) if tap.network.batch else BATCHES:
        try:
            engine = open_engine(tap, EngineOptions(precision=precision, batch_size=batch))
        except EngineError:
            return  # this CPU has no such precision
        rate = _rate(engine, seconds)
        yield {
            "precision": precision,
            "batch": batch,
            "images_per_second": round(rate, 1),
            "hours_per_million": round(MILLION / rate / 3600, 2),
        }


def _rate(engine: Engine, seconds: float) -> float:
    """Return images per second of full batches, with as many threads as the embed loop has."""
    side = engine.tap.input_size
    pixels = np.random.default_rng(0).integers(0, 256, (engine.batch_size, side, side, 3), np.uint8)
    threads = THREADS_PER_CORE * available_cores()

    def work(until: float) -> int:
        batches = 0
        while time.perf_counter() < until:
            engine(pixels)
            batches += 1
        return batches

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: engine(pixels), range(threads)))  # each thread's own request is made before
        began = time.perf_counter()
        done = sum(pool.map(work, [began + seconds] * threads))
        return done * engine.batch_size / (time.perf_counter() - began)
