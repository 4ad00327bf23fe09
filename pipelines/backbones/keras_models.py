"""Models that Keras saved, read without running any code in them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import BackboneError
from heads.backend import import_keras
from pipelines.backbones.graphs import import_openvino

if TYPE_CHECKING:
    import keras
    import openvino

MAX_BYTES = 8 << 30  # of a model with its weights: the largest vision transformers in float32 take 4 to 5
END = "output"  # the name of the last layer's output, besides its own


def read(model: Path) -> openvino.Model:
    """Return a Keras model as a graph of OpenVINO; each layer's output has the layer's name.

    Raises:
        BackboneError: see ``loaded``, which raises what Keras raises, too.
    """
    network, named = loaded(model)
    last = next(name for name, output in named.items() if output is network.outputs[0])
    graph = import_openvino().convert_model(traced(network, named).get_concrete_function())
    for result in graph.get_results():  # all stay: without them, the layouts that Keras has would be lost
        if last in result.output(0).names:
            result.input_value(0).get_tensor().add_names({END})
    return graph


def loaded(model: Path) -> tuple[keras.Model, dict[str, Any]]:
    """Return a Keras model, and its layers' outputs by their names.

    Raises:
        BackboneError: it has several inputs, takes content from other files, or is too large. Keras itself raises what
            it happens to raise for a damaged file, and for one that needs code: a Lambda, a class of its own.
    """
    if model.suffix == ".keras":
        _check_archive(model)
    else:
        _check_links(model)
    keras = import_keras()
    network = keras.models.load_model(model, compile=False, safe_mode=True)
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        count = f"{len(network.inputs)} inputs and {len(network.outputs)} outputs"
        raise BackboneError(f"Expected: a network with one input and one output. Got: {model} with {count}.")
    layers = [layer for layer in network.layers if not isinstance(layer, keras.layers.InputLayer)]
    nodes = [node for level in _functional(network)._nodes_by_depth.values() for node in level]
    # A network inside has an output of its own, besides that of its call here; a layer called twice has two.
    made = {layer: [output for node in nodes if node.operation is layer for output in node.outputs] for layer in layers}
    named = {layer.name: outputs[0] for layer, outputs in made.items() if len(outputs) == 1}
    return network, named


def _functional(network: keras.Model) -> Any:
    """Return a network as a graph of calls, which a Sequential has inside."""
    return getattr(network, "_functional", network)


def traced(network: keras.Model, outputs: Any) -> Any:
    """Return some outputs of a network as a TensorFlow function of its input, float32."""
    keras = import_keras()
    import tensorflow as tf

    part = keras.Model(network.inputs, outputs)
    signature = tf.TensorSpec(network.inputs[0].shape, tf.float32)
    return tf.function(lambda pixels: part(pixels, training=False), input_signature=[signature], autograph=False)


def _check_archive(model: Path) -> None:
    """Raise BackboneError for an archive that is none, or that takes more room than a model may."""
    try:
        with zipfile.ZipFile(model) as archive:
            size = sum(info.file_size for info in archive.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        raise BackboneError(f"{model} is no file that Keras saved: {error}.") from error
    if size > MAX_BYTES:
        raise BackboneError(
            f"Expected: a model of up to {MAX_BYTES >> 30} GiB. Got: {model}, unpacked {size / 2**30:.1f}."
        )


def _check_links(model: Path) -> None:
    """Raise BackboneError for an HDF5 file that takes some of its content from other files."""
    import h5py

    def check(group: Any) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise BackboneError(f"{model} takes {name} from another file, {link.filename!r}: save the model whole.")
            if isinstance(link, h5py.HardLink):
                item = group[name]
                if isinstance(item, h5py.Dataset) and item.external:
                    raise BackboneError(f"{model} takes {name} from another file: save the model whole.")
                if isinstance(item, h5py.Group):
                    check(item)

    try:
        with h5py.File(model) as file:
            check(file)
    except (OSError, RecursionError) as error:
        raise BackboneError(f"{model} is no HDF5 file that Keras saved: {error}.") from error
