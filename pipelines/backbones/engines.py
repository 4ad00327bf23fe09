"""Engines that run a tapped backbone: OpenVINO on a CPU, TensorFlow anywhere, ONNX Runtime for files made for it.

An engine is a function from uint8 pixels to float32 features. The engine, the batch size and the number of threads
change features by no more than float noise. The precision changes them more, and is part of a feature set's identity.

OpenVINO runs a graph that was converted once and is kept in a cache, so that a later start needs no
TensorFlow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import EngineError
from featurestore.limits import check_count
from pipelines.backbones import PUBLISHED, graphs, native
from pipelines.backbones.engine_options import EngineOptions, check_request
from pipelines.backbones.operations import ARRAYS
from pipelines.backbones.pooling import Pooling
from pipelines.backbones.table import Tap

if TYPE_CHECKING:
    import openvino

MAX_THREADS = 1024
NATIVE_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}  # /proc/cpuinfo: x86, x86, ARM


class Engine:
    """Computes features of images in batches of a fixed size; safe to call from several threads.

    Attributes:
        tap: what is computed.
        precision: of the forward pass, "f32" or "bf16".
        width: d, the length of a feature vector.
        batch_size: the number of images that the graph takes at once; other numbers are split or padded.
    """

    tap: Tap
    precision: str
    width: int
    batch_size: int

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Compute features; those of an image do not depend on the other images in its batch.

        Args:
            pixels: uint8 (n, s, s, 3), RGB, n ≥ 1.

        Returns:
            float32 (n, d).

        Raises:
            EngineError: pixels of another shape or dtype.
        """
        size = self.tap.input_size
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3) or not len(pixels):
            raise EngineError(f"Expected: pixels uint8 (n, {size}, {size}, 3). Got: {pixels.dtype} {pixels.shape}.")
        features = np.empty((len(pixels), self.width), np.float32)
        for start in range(0, len(pixels), self.batch_size):
            batch = pixels[start : start + self.batch_size]
            n = len(batch)
            if n < self.batch_size:
                padding = np.zeros((self.batch_size - n, *batch.shape[1:]), np.uint8)
                batch = np.concatenate([batch, padding])
            features[start : start + n] = self._forward(np.ascontiguousarray(batch))[:n]
        return features

    def _forward(self, batch: np.ndarray) -> np.ndarray:
        """Run one full batch; the result is only valid until the calling thread's next call."""
        raise NotImplementedError


def open_engine(
    tap: Tap, options: EngineOptions = EngineOptions(), threads: int = 0, graph: graphs.Handed | None = None
) -> Engine:
    """Return an engine that is ready to run a backbone.

    Args:
        tap: what is computed.
        options: engine, precision and batch size.
        threads: CPU threads; 0 takes all cores.
        graph: of OpenVINO's engine, converted elsewhere.

    Raises:
        UsageError: see ``check_request``.
        BackboneError: the model cannot be built.
        EngineError: a precision that this machine only emulates.
    """
    check_request(options, tap.input_size)
    check_count("threads", threads, 0, MAX_THREADS)
    return KINDS[options.engine](tap, options, threads, graph)


class OpenVINOEngine(Engine):
    """A cached graph, compiled for this CPU; every calling thread has its own infer request."""

    def __init__(self, tap: Tap, options: EngineOptions, threads: int, graph: graphs.Handed | None) -> None:
        precision = options.precision
        batch_size = tap.network.batch or options.images_per_pass(tap.input_size)
        openvino = graphs.import_openvino()
        core = openvino.Core()
        if precision == "bf16" and not _has_native_bf16(core):
            raise EngineError("This CPU would only emulate bf16: use `--precision f32`.")
        model = graphs.graph(core, tap, graph)
        model.reshape([batch_size, tap.input_size, tap.input_size, 3])
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,  # never left to the plugin: some CPUs default to bf16
            # Independent streams do not wait for one another where decoding shares the cores.
            "PERFORMANCE_HINT": "THROUGHPUT",
            "ENABLE_CPU_PINNING": False,
        }
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        self._compiled = core.compile_model(model, "CPU", config)
        self._requests = threading.local()
        self.tap = tap
        self.precision = precision
        self.width = self._compiled.output(0).shape[1]
        self.batch_size = batch_size
        # The first tensor of a process must not be made by two threads at once: seen to hang in OpenVINO 2026.4.1.
        self(np.zeros((1, tap.input_size, tap.input_size, 3), np.uint8))

    def _forward(self, batch: np.ndarray) -> np.ndarray:
        if not hasattr(self._requests, "request"):
            self._requests.request = self._compiled.create_infer_request()
        request = self._requests.request
        request.infer([batch], share_inputs=True)
        return request.get_output_tensor().data


class TensorFlowEngine(Engine):
    """The Keras model as one TensorFlow function, in f32 on whatever device TensorFlow sees."""

    def __init__(self, tap: Tap, options: EngineOptions, threads: int, _graph: graphs.Handed | None) -> None:
        _check_f32(options)
        native.tensorflow(threads)
        self.batch_size = options.images_per_pass(tap.input_size)
        self._function = graphs.traced(tap, self.batch_size)
        self.tap = tap
        self.precision = options.precision
        self.width = self._function.get_concrete_function().structured_outputs.shape[1]

    def _forward(self, batch: np.ndarray) -> np.ndarray:
        return self._function(batch).numpy()


class NativeEngine(Engine):
    """A network that a user added, in f32, run from its own file; what comes before and after it is numpy's."""

    def __init__(self, tap: Tap, options: EngineOptions, threads: int, _graph: graphs.Handed | None) -> None:
        _check_f32(options)
        network = native.opened(tap, options.engine, threads)
        self._run = network.run
        self._pooling = Pooling.parse(tap.pooling)
        self.tap = tap
        self.precision = options.precision
        self.batch_size = network.batch or options.images_per_pass(tap.input_size)
        self.width = self._forward(np.zeros((self.batch_size, tap.input_size, tap.input_size, 3), np.uint8)).shape[1]

    def _forward(self, batch: np.ndarray) -> np.ndarray:
        backbone = self.tap.network
        output = self._run(backbone.normalization.applied(batch, backbone.layout))
        return self._pooling.of(output, backbone.layout, ARRAYS)


def _by_tensorflow(tap: Tap, options: EngineOptions, threads: int, handed: graphs.Handed | None) -> Engine:
    """Return the engine of a Keras model that penult builds, or of a model of TensorFlow that was added."""
    is_added = tap.network.model_file() is not None and tap.weights == PUBLISHED  # its file has no others
    return (NativeEngine if is_added else TensorFlowEngine)(tap, options, threads, handed)


KINDS: dict[str, Callable[[Tap, EngineOptions, int, graphs.Handed | None], Engine]] = {
    "openvino": OpenVINOEngine,
    "tensorflow": _by_tensorflow,
    "onnxruntime": NativeEngine,
}


def _check_f32(options: EngineOptions) -> None:
    if options.precision != "f32":
        raise EngineError(f"`--engine {options.engine}` computes in f32 only: use `--precision f32`.")


def _has_native_bf16(core: openvino.Core) -> bool:
    """Return whether the CPU computes in bf16: OpenVINO says so and, on Linux, the CPU's listed features agree."""
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    try:
        features = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return True
    return bool(features & NATIVE_BF16)
