"""Quantised graphs: those whose activations are rounded to 8 bits, as LiteRT's, NNCF's and ONNX's quantisers make them.

OpenVINO keeps such a graph as floats with ``FakeQuantize`` where they are rounded, and runs it with 8-bit kernels at
any precision that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.backbones.graphs import import_openvino

if TYPE_CHECKING:
    import openvino

ROUNDING = "FakeQuantize"
BYTES = ("i8", "u8")
LEVELS = 256  # the most that 8 bits have
UNROUNDED = 2**24  # levels: as many as a float32 tells apart
MOVING = ("Convert", "Reshape", "Squeeze", "Transpose", "Unsqueeze")  # numbers stay what they are


def is_quantized(graph: openvino.Model) -> bool:
    """Return whether a graph rounds activations to 8 bits or fewer."""
    return any(node.get_attributes()["levels"] <= LEVELS for node in _roundings(graph))


def unround(graph: openvino.Model) -> None:
    """Let a graph round as finely as floats do, within the same ranges; ``graph`` is changed."""
    for node in _roundings(graph):
        node.set_attribute("levels", UNROUNDED)
    graph.validate_nodes_and_infer_types()


def float_ends(graph: openvino.Model) -> None:
    """Let a quantised graph take and give the floats that its integers stand for; ``graph`` is changed.

    An input or output whose scale is not told beside it stays as it is.
    """
    openvino = import_openvino()
    for parameter in graph.get_parameters():
        first = list(_next_but_moves(parameter))
        if parameter.get_element_type().is_integral() and first and all(_is_rounding(node) for node in first):
            parameter.set_element_type(openvino.Type.f32)
            for node in first:
                _set_range(node, (1, 2), (3, 4))
    for result in graph.get_results():
        converting = _before_moves(result)
        source = converting.input_value(0).get_node() if converting is not None else None
        if source is not None and _is_rounding(source):
            _set_range(source, (3, 4), (1, 2))
            converting.set_attribute("destination_type", "f32")
    graph.validate_nodes_and_infer_types()


def widen_weights(graph: openvino.Model) -> None:
    """Keep 8-bit weights of a graph that computes in floats as the floats they stand for; ``graph`` is changed.

    OpenVINO 2026.4.1 widens them as it runs, and with ``PERFORMANCE_HINT=THROUGHPUT`` gives other numbers each time.
    """
    if is_quantized(graph):
        return
    from openvino import opset13 as ops

    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Convert" and node.get_output_element_type(0).is_real():
            weights = node.input_value(0).get_node()
            if weights.get_type_name() == "Constant" and weights.get_output_element_type(0).get_type_name() in BYTES:
                wide = ops.constant(weights.data.astype(np.float32))
                node.output(0).replace(wide.output(0))


def _roundings(graph: openvino.Model) -> Iterator[Any]:
    return (node for node in graph.get_ordered_ops() if _is_rounding(node))


def _is_rounding(node: Any) -> bool:
    return node.get_type_name() == ROUNDING


def _next_but_moves(node: Any) -> Iterator[Any]:
    """Yield the operations that use a node's numbers, past those that only move them."""
    for used in node.output(0).get_target_inputs():
        after = used.get_node()
        yield from _next_but_moves(after) if after.get_type_name() in MOVING else [after]


def _before_moves(result: Any) -> Any:
    """Return the operation that makes an output's integers of floats; None if it has none."""
    node = result
    while node.get_type_name() in (*MOVING, "Result") and node.get_output_element_type(0).is_integral():
        before = node.input_value(0).get_node()
        if node.get_type_name() == "Convert" and before.get_output_element_type(0).is_real():
            return node
        node = before
    return None


def _set_range(node: Any, to: tuple[int, int], of: tuple[int, int]) -> None:
    """Give a rounding's range of inputs (1, 2) or outputs (3, 4) the values of the other."""
    for target, source in zip(to, of, strict=True):
        node.input(target).replace_source_output(node.input_value(source))
