"""SavedModels, run by TensorFlow only if nothing in them does more than arithmetic.

A SavedModel is a program: its operations may read and write files, and some run while it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featurestore.errors import BackboneError
from heads.backend import import_tensorflow
from pipelines.backbones.models import SAVED_MODEL

SIGNATURE = "serving_default"  # the one that OpenVINO reads
# Of the objects of a SavedModel, those whose loading runs no function; tables and files beside it are not among them.
STILL = ("bare_concrete_function", "captured_tensor", "constant", "function", "user_object", "variable")
# Of the operations that TensorFlow calls stateful, those of a network; and of the others, those that read files.
ARITHMETIC = ("If", "ReadVariableOp", "StatefulPartitionedCall", "VarHandleOp", "While")
READING = ("MatchingFiles", "ReadFile", "RegisterDataset", "Snapshot")
ADVICE = "use `--engine openvino`, which runs no such thing"


def load(folder: Path) -> Any:
    """Return a SavedModel as TensorFlow loads it, with the signature ``SIGNATURE``.

    Raises:
        BackboneError: it has no such signature, was saved by TensorFlow 1, or would do more than arithmetic.
    """
    _check_objects(folder)
    model = import_tensorflow().saved_model.load(str(folder))
    if (signature := model.signatures.get(SIGNATURE)) is None:
        raise BackboneError(f"Expected: a SavedModel with the signature {SIGNATURE}. Got: one without: {ADVICE}.")
    if more := sorted(set(_beyond_arithmetic(signature.graph.as_graph_def()))):
        raise BackboneError(
            f"Expected: a SavedModel of arithmetic alone. Got: one with {', '.join(more[:5])}: {ADVICE}."
        )
    return model


def _check_objects(folder: Path) -> None:
    """Raise BackboneError if loading a SavedModel would run a function of it."""
    import_tensorflow()
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((folder / SAVED_MODEL).read_bytes())
    except DecodeError as error:
        raise BackboneError(f"{folder / SAVED_MODEL} is no SavedModel: {error}.") from error
    for graph in saved.meta_graphs:
        objects = graph.object_graph_def.nodes
        if not objects:  # TensorFlow 1 runs operations to initialise it
            raise BackboneError(f"Expected: a SavedModel of TensorFlow 2. Got: one of TensorFlow 1: {ADVICE}.")
        kinds = {one.WhichOneof("kind") for one in objects} - {*STILL, None}
        kinds |= {"a function to restore it" for one in objects if one.saveable_objects}
        if kinds:
            named = ", ".join(sorted(kinds))
            raise BackboneError(f"Expected: a SavedModel of variables and functions. Got: one with {named}: {ADVICE}.")


def _beyond_arithmetic(graph: Any) -> Iterator[str]:
    """Yield the operations of a graph, and of its functions, that read, write, draw at random or talk to others."""
    from tensorflow.python.framework import op_def_registry

    functions = {function.signature.name for function in graph.library.function}
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    for name in {node.op for node in nodes} - functions - set(ARITHMETIC):
        known = op_def_registry.get(name)
        if known is None or known.is_stateful or name in READING:
            yield name
