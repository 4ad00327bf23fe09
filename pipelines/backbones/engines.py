"""Engines that run a tapped backbone: OpenVINO on a CPU, TensorFlow anywhere.

An engine is a function from uint8 pixels to float32 features. The engine, the batch size and the number of threads
change features by no more than float noise. The precision changes them more, and is part of a feature set's identity.

OpenVINO runs a graph that was converted once and is kept in a cache, so that a later start needs no
TensorFlow.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import EngineError
from featurestore.limits import check_count
from heads.backend import import_keras
from pipelines.backbones import graphs
from pipelines.backbones.engine_options import EngineOptions, check_request
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
        if options.precision != "f32":
            raise EngineError("The TensorFlow engine computes in f32 only: use `--precision f32`.")
        import_keras()
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(False)
        if threads and tf.config.threading.get_intra_op_parallelism_threads() != threads:
            try:
                tf.config.threading.set_intra_op_parallelism_threads(threads)
            except RuntimeError as error:
                raise EngineError(
                    "TensorFlow has started already and keeps its number of threads: "
                    "open the engine first or leave out the number of threads."
                ) from error
        self.batch_size = options.images_per_pass(tap.input_size)
        self._function = graphs.traced(tap, self.batch_size)
        self.tap = tap
        self.precision = options.precision
        self.width = self._function.get_concrete_function().structured_outputs.shape[1]

    def _forward(self, batch: np.ndarray) -> np.ndarray:
        return self._function(batch).numpy()


KINDS: dict[str, type[OpenVINOEngine] | type[TensorFlowEngine]] = {
    "openvino": OpenVINOEngine,
    "tensorflow": TensorFlowEngine,
}


def _has_native_bf16(core: openvino.Core) -> bool:
    """Return whether the CPU computes in bf16: OpenVINO says so and, on Linux, the CPU's listed features agree."""
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    try:
        features = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return True
    return bool(features & NATIVE_BF16)
