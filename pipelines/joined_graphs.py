"""A network's own graph joined with a head's layers into one, as OpenVINO's IR or as ONNX.

What comes before the network (its normalisation) and after it (pooling, the head) is converted from Keras. The network
itself is kept as it is, up to the tapped output.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from featurestore.errors import BackboneError, EngineError
from heads.backend import import_keras, import_tensorflow
from pipelines.backbones import graphs, models, saved_models
from pipelines.backbones.foreign import Foreign
from pipelines.backbones.keras_operations import TENSORS
from pipelines.backbones.pooling import Pooling
from pipelines.backbones.table import Tap

if TYPE_CHECKING:
    import keras
    import onnx

OPENVINO, ONNX = "openvino", "onnx"
PIXELS, PROBABILITIES = "pixels", "probabilities"
NETWORK = "network/"  # before all names of a network in a joined graph
GIVEN, MADE = "given", "made"  # a network's input and its tapped output there, as float32
IMAGES, OUTPUTS = "images", "outputs"  # the same of all images, where it runs image by image
OLDEST, NEWEST = 7, 18  # versions of ONNX's operations that tf2onnx writes
WHOLE_BYTES = 1 << 30  # of numbers that lie in the file itself: protobuf reads up to 2 GiB

Join = Callable[[Tap, "keras.Model", Path], None]
Parts = tuple["onnx.ModelProto", "onnx.ModelProto", "onnx.ModelProto"]  # before the network, itself, and after it


def joiner(tap: Tap, format: str) -> Join | None:
    """Return the function that writes a format from a network's own graph; None if a Keras model is exported."""
    if graphs.is_converted(tap):
        return None
    return JOINS.get((format, tap.network.kind)) or JOINS.get((format, ANY))


def write_openvino(tap: Tap, last: keras.Model, path: Path) -> None:
    """Write a backbone's own graph and a head's layers as one graph of OpenVINO."""
    openvino, tf = graphs.import_openvino(), import_tensorflow()
    first = graphs.graph(openvino.Core(), tap)
    signature = tf.TensorSpec(last.input.shape, tf.float32)
    function = tf.function(lambda X: {PROBABILITIES: last(X)}, input_signature=[signature], autograph=False)
    second = openvino.convert_model(function.get_concrete_function())
    features = first.get_results()[0].input_value(0)
    for place in second.get_parameters()[0].output(0).get_target_inputs():
        place.replace_source_output(features)
    first.get_parameters()[0].output(0).get_tensor().set_names({PIXELS})
    whole = openvino.Model(second.get_results(), first.get_parameters(), "classifier")
    openvino.save_model(whole, path, compress_to_fp16=False)


def write_onnx(tap: Tap, last: keras.Model, path: Path) -> None:
    """Write an added network and a head's layers as one ONNX model.

    A network that takes one image at a time is run so, image by image, by ONNX's Scan.

    Raises:
        BackboneError: the tapped output is no tensor of ONNX, or the network takes another number of images at a time.
        EngineError: its operations are of a version that nothing can be joined with.
    """
    import onnx

    backbone = cast(Foreign, tap.network)  # no other has a kind that is joined so
    with backbone.model_file() as file:
        network = READERS[backbone.kind](file)
    version = _version_of(network)
    if backbone.batch not in (None, 1):
        raise BackboneError(f"{backbone.name} takes {backbone.batch} images at once, and its export has to take any.")
    given, is_fixed = _prune(network, tap.layer)
    shape = _shape_of(tap)
    before = of_keras(_before(tap), "scaled", version)
    after = of_keras(_after(tap, shape, last), PROBABILITIES, version)
    for part, prefix in ((before, "before/"), (network, NETWORK), (after, "after/")):
        _rename(part.graph, prefix)
    names = NETWORK + given, NETWORK + tap.layer
    for by_one in [True] if backbone.batch else [False, True] if is_fixed else [False]:
        joined = _joined((before, network, after), names, shape if by_one else None)
        large = sum(tensor.ByteSize() for tensor in joined.graph.initializer) > WHOLE_BYTES
        onnx.save(joined, path, save_as_external_data=large, location=f"{path.name}.data")
        if by_one or not is_fixed or _takes_two(path, tap.input_size):
            return


def of_keras(model: keras.Model, output: str, version: int | None = None) -> onnx.ModelProto:
    """Return a Keras model as ONNX, with its one output named, and a batch of any size.

    Args:
        model: its input keeps its name.
        output: the output's name.
        version: of ONNX's operations; by default tf2onnx's own.
    """
    tf = import_tensorflow()
    signature = [tf.TensorSpec(model.input.shape, model.input.dtype)]
    function = tf.function(lambda given: model(given, training=False), input_signature=signature, autograph=False)
    return _of_function(function.get_concrete_function(), model.input.name, [output], version)


def _of_function(function: Any, given: str, made: list[str], version: int | None) -> onnx.ModelProto:
    """Return a concrete function of TensorFlow as ONNX; its input and outputs get these names."""
    from keras.src.export.tf2onnx_lib import patch_tf2onnx  # Keras's own, which has no other door
    from onnx import version_converter
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # loading the model shows what was not converted
    # Keras's exporter leaves constants that the function captured, such as those of a Normalization, without a value.
    frozen = convert_variables_to_constants_v2(function)
    names = dict(zip((tensor.name for tensor in (*frozen.inputs, *frozen.outputs)), (given, *made), strict=True))
    with warnings.catch_warnings():
        # keras 3.15 reads np.object to see whether tf2onnx needs it, and numpy 2 warns of that
        warnings.filterwarnings("ignore", "In the future `np.object`", FutureWarning)
        patch_tf2onnx()
    import tf2onnx

    proto, _ = tf2onnx.convert.from_graph_def(
        frozen.graph.as_graph_def(),
        input_names=list(names)[:1],
        output_names=list(names)[1:],
        opset=None if version is None else min(version, NEWEST),
        tensors_to_rename=names,
    )
    return proto if (version or 0) <= NEWEST else version_converter.convert_version(proto, version)


# -- what comes before and after a network ---------------------------------------------------------------------------


def _before(tap: Tap) -> keras.Model:
    """Return what a network's input is made by: uint8 (n, s, s, 3) of RGB pixels → float32."""
    keras = import_keras()
    pixels = keras.Input((tap.input_size, tap.input_size, 3), dtype="uint8", name=PIXELS)
    return keras.Model(pixels, tap.network.normalized(keras.ops.cast(pixels, "float32")))


def _after(tap: Tap, shape: list[int | None], last: keras.Model) -> keras.Model:
    """Return what follows the tapped output, of this shape per image: pooling, then the head."""
    keras = import_keras()
    output = keras.Input(shape, dtype="float32", name="tapped")
    return keras.Model(output, last(Pooling.parse(tap.pooling).of(output, tap.network.layout, TENSORS)))


def _shape_of(tap: Tap) -> list[int | None]:
    """Return the shape of the tapped output of one image, as OpenVINO knows it; None for an axis of any length."""
    model: Any = graphs.own(graphs.import_openvino().Core(), tap)
    side = tap.input_size
    model.reshape([1, side, side, 3] if tap.network.layout == "NHWC" else [1, 3, side, side])
    shape = graphs.tensors(model)[tap.layer].get_partial_shape()
    return [None if axis.is_dynamic else axis.get_length() for axis in shape][1:]


# -- graphs of ONNX --------------------------------------------------------------------------------------------------


def _version_of(network: onnx.ModelProto) -> int:
    version = next(one.version for one in network.opset_import if one.domain in ("", "ai.onnx"))
    if version < OLDEST:
        raise EngineError(
            f"Expected: a model of ONNX's operations in version {OLDEST} or later. Got: version {version}: "
            "try another format."
        )
    return int(version)


def _prune(network: onnx.ModelProto, layer: str) -> tuple[str, bool]:
    """Leave in a model what its tapped output needs; return its input's name, and whether that takes a fixed batch.

    Raises:
        BackboneError: there is no such output, or it needs several inputs.
    """
    graph = network.graph
    if layer not in {name for node in graph.node for name in node.output}:
        raise BackboneError(
            f"The tapped {layer!r} is a tensor of OpenVINO's graph, and none of the model's own: add it under another "
            'name with one of those as its spec\'s "output".'
        )
    needed, kept = {layer}, []
    for node in reversed(graph.node):  # which ONNX wants sorted
        if needed.intersection(node.output):
            needed.update(_named(node))
            kept.append(node)
    nodes = kept[::-1]
    numbers = [tensor for tensor in graph.initializer if tensor.name in needed]
    sparse = [tensor for tensor in graph.sparse_initializer if tensor.values.name in needed]
    constant = {tensor.name for tensor in numbers} | {tensor.values.name for tensor in sparse}
    inputs = [tensor for tensor in graph.input if tensor.name in needed - constant]
    if len(inputs) != 1:
        names = ", ".join(tensor.name for tensor in inputs) or "none"
        raise BackboneError(f"Expected: a network with one input. Got: {names} before {layer!r}.")
    for field, left in (("node", nodes), ("initializer", numbers), ("sparse_initializer", sparse), ("input", inputs)):
        del getattr(graph, field)[:]
        getattr(graph, field).extend(left)
    del graph.value_info[:], graph.output[:]
    dimensions = inputs[0].type.tensor_type.shape.dim
    return inputs[0].name, bool(dimensions) and dimensions[0].dim_value > 0


def _named(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, and what the graphs in it read."""
    yield from node.input
    for graph in _graphs_in(node):
        yield from (name for inner in graph.node for name in _named(inner))
        yield from (output.name for output in graph.output)


def _graphs_in(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def _rename(graph: onnx.GraphProto, prefix: str) -> None:
    """Put a prefix before every name in a graph, so that nothing in another has it.

    ``onnx.compose.add_prefix_graph`` (1.23) forgets constants that are read by graphs in nodes.
    """
    for node in graph.node:
        node.name = prefix + node.name if node.name else ""
        node.input[:] = [prefix + name if name else name for name in node.input]
        node.output[:] = [prefix + name if name else name for name in node.output]
        for inner in _graphs_in(node):
            _rename(inner, prefix)
    for tensor in (*graph.input, *graph.output, *graph.initializer, *(one.values for one in graph.sparse_initializer)):
        tensor.name = prefix + tensor.name
    del graph.value_info[:]


def _joined(parts: Parts, names: tuple[str, str], by_one: list[int | None] | None) -> onnx.ModelProto:
    """Return one model of what comes before a network, the network, and what comes after it.

    Args:
        parts: the three models, which have no name in common.
        names: of the network's input and of its tapped output.
        by_one: the shape of the tapped output of one image, if the network is to be run image by image.
    """
    from onnx import TensorProto, helper

    before, network, after = (part.graph for part in parts)
    (first, end), (scaled, tapped) = (before.input[0], after.output[0]), (before.output[0], after.input[0])
    element = network.input[0].type.tensor_type.elem_type
    numbers = [*before.initializer, *network.initializer, *after.initializer]
    nodes = [
        helper.make_node("Cast", [GIVEN], [names[0]], to=element),
        *network.node,
        helper.make_node("Cast", [names[1]], [MADE], to=TensorProto.FLOAT),
    ]
    given, made = GIVEN, MADE
    if by_one is not None:
        nodes, shapes = _one_by_one(nodes, _sides(scaled), by_one)
        numbers += shapes
        given, made = IMAGES, OUTPUTS
    nodes = [
        helper.make_node("Identity", [PIXELS], [first.name]),
        *before.node,
        helper.make_node("Identity", [scaled.name], [given]),
        *nodes,
        helper.make_node("Identity", [made], [tapped.name]),
        *after.node,
        helper.make_node("Identity", [end.name], [PROBABILITIES]),
    ]
    pixels = helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["n", *_sides(first)])
    probabilities = helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["n", *_sides(end)])
    graph = helper.make_graph(nodes, "classifier", [pixels], [probabilities], numbers)
    graph.sparse_initializer.extend(network.sparse_initializer)
    versions: dict[str, int] = {}
    for one in (one for part in (parts[1], parts[0], parts[2]) for one in part.opset_import):
        versions.setdefault(one.domain, one.version)
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    whole = helper.make_model(graph, opset_imports=opsets, functions=parts[1].functions, producer_name="penult")
    whole.ir_version = max(parts[1].ir_version, helper.find_min_ir_version_for(opsets, ignore_unknown=True), 4)
    return whole


def _sides(tensor: onnx.ValueInfoProto) -> list[int]:
    """Return a tensor's shape per image."""
    return [axis.dim_value for axis in tensor.type.tensor_type.shape.dim][1:]


def _one_by_one(
    nodes: list[onnx.NodeProto], given: list[int], made: list[int | None]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return a Scan from ``IMAGES`` to ``OUTPUTS``, and its constants: a network's nodes, for one image after another.

    Args:
        nodes: from ``GIVEN`` to ``MADE``.
        given, made: the shapes of these for one image.
    """
    from onnx import TensorProto, helper, numpy_helper

    shapes = {"image-shape": [1, *given], "output-shape": [-1 if axis is None else axis for axis in made]}
    body = helper.make_graph(
        [
            helper.make_node("Reshape", ["image", "image-shape"], [GIVEN]),
            *nodes,
            helper.make_node("Reshape", [MADE, "output-shape"], ["output"]),
        ],
        "image by image",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, made)],
    )
    scan = [helper.make_node("Scan", [IMAGES], [OUTPUTS], body=body, num_scan_inputs=1)]
    return scan, [numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in shapes.items()]


def _takes_two(path: Path, side: int) -> bool:
    """Return whether a model gives for two images what it gives for each, though it was made for a fixed number."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    run = run_onnx(path)
    try:
        both = run(pixels)
    except Exception:  # whatever ONNX Runtime raises
        return False
    return bool(np.allclose(both, np.concatenate([run(pixels[:1]), run(pixels[1:])]), atol=1e-5))


def run_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return an exported model as ONNX Runtime runs it: uint8 (n, s, s, 3) → float32 (n, c)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run([PROBABILITIES], {PIXELS: pixels})[0]


def _read_onnx(file: Path) -> onnx.ModelProto:
    import onnx

    return onnx.load(file)


def _read_lite(file: Path) -> onnx.ModelProto:
    import tf2onnx
    from onnx import TensorProto

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    made, _ = tf2onnx.convert.from_tflite(str(file))
    if any(
        tensor.type.tensor_type.elem_type != TensorProto.FLOAT for tensor in (*made.graph.input, *made.graph.output)
    ):
        raise BackboneError(f"{file.name} takes or gives integers: export it with `--format openvino`.")
    return made


def _read_saved_model(folder: Path) -> onnx.ModelProto:
    model = saved_models.load(folder)
    function = model.signatures[saved_models.SIGNATURE]
    return _of_function(function, "given", sorted(function.structured_outputs), None)


READERS: dict[str, Callable[[Path], Any]] = {
    ".onnx": _read_onnx,
    ".tflite": _read_lite,
    models.SAVED_MODEL: _read_saved_model,
}
ANY = "*"
JOINS: dict[tuple[str, str], Join] = {
    (OPENVINO, ANY): write_openvino,
    **{(ONNX, kind): write_onnx for kind in READERS},
}  # by the format and the kind of file that a network was added from
