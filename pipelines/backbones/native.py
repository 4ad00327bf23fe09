"""Networks that users added, run from their own files: ONNX by ONNX Runtime, SavedModels and Keras's by TensorFlow.

What comes out is what OpenVINO gives for the graph made from the same file, within float noise.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import BackboneError, EngineError, PenultError
from featurestore.machine import available_cores
from heads.backend import import_keras
from pipelines.backbones import keras_models, models, saved_models
from pipelines.backbones.table import Tap

ERRORS_ALONE = 3  # of ONNX Runtime's levels of messages
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"  # of a model that comes as bytes
SPINNING = "session.intra_op.allow_spinning"
ADVICE = "use `--engine openvino`"


@dataclass(frozen=True)
class Native:
    """A network in the library that it was made for.

    Attributes:
        run: float32 (n, s, s, 3) or (n, 3, s, s), normalised → the tapped output, float32 (n, …).
        batch: n, if it takes no other number of images at once.
    """

    run: Callable[[np.ndarray], np.ndarray]
    batch: int | None


def opened(tap: Tap, engine: str, threads: int) -> Native:
    """Return a network as an engine runs it from its own file.

    Args:
        tap: what is computed.
        engine: a key of ``ENGINES``.
        threads: CPU threads; 0 takes all cores.

    Raises:
        BackboneError: the backbone has no file of its own, or one that the engine cannot run so.
        EngineError: the engine is not installed, or has started with another number of threads.
        StoreCorrupt: the file is missing or damaged.
    """
    context = tap.network.model_file()
    if context is None:
        raise BackboneError(f"`--engine {engine}` runs no {tap.backbone}, but networks that were added: {ADVICE}.")
    with context as file:
        suffix = "" if file.is_dir() else file.suffix
        if suffix not in ENGINES[engine]:
            able = ["openvino", *(name for name, formats in ENGINES.items() if suffix in formats)]
            raise BackboneError(
                f"Expected: --engine {' or '.join(able)} for {tap.backbone}, which was made from {_named(file)}. "
                f"Got: --engine {engine}."
            )
        try:
            network = ENGINES[engine][suffix](file, tap.layer, threads)
        except PenultError:
            raise
        except Exception as error:  # whatever these libraries raise
            raise BackboneError(
                f"{tap.backbone} cannot be run by `--engine {engine}`: {models.first_line(error)}"
            ) from error
    if network.batch and tap.network.batch not in (None, network.batch):
        raise BackboneError(
            f"The file of {tap.backbone} takes {network.batch} images at once, but it has to run by "
            f"{tap.network.batch}: {ADVICE}."
        )
    return replace(network, batch=network.batch or tap.network.batch)


def _named(file: Path) -> str:
    return "a SavedModel" if file.is_dir() else file.name  # a folder may be a temporary one


# -- ONNX Runtime ----------------------------------------------------------------------------------------------------


def _onnx(file: Path, layer: str, threads: int) -> Native:
    missing = [package for package in ("onnxruntime", "onnx") if importlib.util.find_spec(package) is None]
    if missing:
        raise EngineError(f"`--engine onnxruntime` needs {', '.join(missing)}: run `pip install 'penult[export]'`.")
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.log_severity_level = ERRORS_ALONE
    options.add_session_config_entry(SPINNING, "0")  # decoding shares the cores
    source: str | bytes = str(file)
    model = onnx.load(file, load_external_data=False)
    if layer not in {output.name for output in model.graph.output}:
        if layer not in {name for node in model.graph.node for name in node.output}:
            raise BackboneError(f"{file.name} has no tensor {layer!r}, which OpenVINO alone gives: {ADVICE}.")
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(layer))
        source = model.SerializeToString()
        options.add_session_config_entry(EXTERNAL_FOLDER, str(file.parent))
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    if given.type != "tensor(float)":
        raise BackboneError(f"{file.name} takes {given.type}, and ONNX Runtime converts nothing: {ADVICE}.")

    def run(pixels: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([layer], {given.name: pixels})[0], np.float32)

    return Native(run, given.shape[0] if isinstance(given.shape[0], int) else None)


# -- TensorFlow ------------------------------------------------------------------------------------------------------


def tensorflow(threads: int) -> Any:
    """Import TensorFlow, with this many threads per operation, and float32 as it is on any device.

    Raises:
        EngineError: it has started with another number.
    """
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
    return tf


def _saved_model(folder: Path, layer: str, threads: int) -> Native:
    tf = tensorflow(threads)
    model = saved_models.load(folder)
    signature = model.signatures[saved_models.SIGNATURE]
    _check_tap(folder, layer, signature.structured_outputs)
    ((name, given),) = signature.structured_input_signature[1].items()

    def run(pixels: np.ndarray) -> np.ndarray:
        # through the model: a signature alone would let its variables go
        return model.signatures[saved_models.SIGNATURE](**{name: tf.constant(pixels)})[layer].numpy()

    return Native(run, given.shape[0])


def _keras(file: Path, layer: str, threads: int) -> Native:
    tensorflow(threads)
    network, named = keras_models.loaded(file)
    outputs = named | {keras_models.END: network.outputs[0]}
    _check_tap(file, layer, outputs)
    function = keras_models.traced(network, outputs[layer])
    return Native(lambda pixels: function(pixels).numpy(), network.inputs[0].shape[0])


def _check_tap(model: Path, layer: str, outputs: Mapping[str, Any]) -> None:
    """Raise BackboneError unless TensorFlow gives an output of this name."""
    if layer not in outputs:
        raise BackboneError(
            f"TensorFlow gives no tensor {layer!r} of {_named(model)}, but outputs of a SavedModel and of layers of "
            f"Keras: {ADVICE}."
        )


ENGINES: dict[str, dict[str, Callable[[Path, str, int], Native]]] = {
    "onnxruntime": {".onnx": _onnx},
    "tensorflow": {"": _saved_model, ".keras": _keras, ".h5": _keras},
}  # by the ends of files; "" is a folder
