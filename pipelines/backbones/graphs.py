"""Graphs that OpenVINO runs: those that backbones bring, and Keras models converted once and kept in a cache.

A graph takes uint8 pixels (n, s, s, 3) and gives float32 features (n, d), preprocessing inside.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from featurestore.errors import BackboneError, EngineError, UsageError
from featurestore.storage.cache import cache_folder
from pipelines.backbones import networks
from pipelines.backbones.base import Content, near
from pipelines.backbones.pooling import Pooling
from pipelines.backbones.table import Tap

if TYPE_CHECKING:
    import openvino

LOG = logging.getLogger("penult")
GRAPH_VERSION = 1  # raise it when build() or the conversion changes what a cached graph computes


class Handed(Protocol):
    """A converted graph that lies elsewhere, under what ``key_of`` has told of it."""

    @property
    def key(self) -> str:
        """What it is kept under here, too."""

    def write(self, path: Path) -> None:
        """Write the graph to ``path``, and its weights beside it, as OpenVINO's IR."""


def graph(core: openvino.Core, tap: Tap, handed: Handed | None = None) -> openvino.Model:
    """Return the tap's graph: the backbone's own, or its Keras model converted.

    Args:
        core: OpenVINO.
        tap: what the graph computes.
        handed: the same graph, converted elsewhere; then neither weights nor Keras are needed.

    Raises:
        UsageError: no such layer, or an input size that the network does not take.
        BackboneError: weights or a graph that is missing, damaged or of another network.
        EngineError: the disk does not give back what was written.
    """
    if handed is not None:
        return core.read_model(*_kept(handed.key, handed.write))
    tap.fetch()
    if (brought := own(core, tap)) is not None:
        return prepared(brought, tap)
    return core.read_model(*converted(tap))


# -- a graph that the backbone brings --------------------------------------------------------------------------------


def own(core: openvino.Core, tap: Tap) -> openvino.Model | None:
    """Return the graph that a backbone brings, as it is; None if it has a Keras model that is converted.

    Raises:
        BackboneError: it is missing, damaged or of another network.
    """
    if (brought := tap.network.graph(tap)) is None:
        return None
    try:
        return core.read_model(brought) if isinstance(brought, Path) else core.read_model(*brought)
    except Exception as error:  # a RuntimeError of any of OpenVINO's readers
        named = brought if isinstance(brought, Path) else f"The graph of {tap.backbone}"
        raise BackboneError(f"{named} is no graph that OpenVINO reads: give the file made for it.") from error


def tensors(model: openvino.Model) -> dict[str, Any]:
    """Return the outputs of all operations of a graph by the names of their tensors, in order."""
    nodes = (node for node in model.get_ordered_ops() if node.get_type_name() != "Result")
    return {name: output for node in nodes for output in node.outputs() for name in sorted(output.names)}


def prepared(model: openvino.Model, tap: Tap) -> openvino.Model:
    """Return a backbone's own graph from the pixels of an image to the tapped layer, pooled; ``model`` is changed.

    Raises:
        UsageError: no such layer, or a layer that cannot be pooled so.
    """
    openvino = import_openvino()
    from openvino import opset13 as ops
    from openvino.preprocess import ColorFormat, PrePostProcessor

    backbone, outputs = tap.network, tensors(model)
    if tap.layer not in outputs:
        raise UsageError(f"{tap.backbone} has no layer {tap.layer!r}{near(tap.layer, outputs)}.")
    features = Pooling.parse(tap.pooling).of(outputs[tap.layer], backbone.layout)
    for result in model.get_results():
        model.remove_result(result)
    model.add_results([ops.result(features)])
    steps, normalization = PrePostProcessor(model), backbone.normalization
    pixels = steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    pixels.set_color_format(ColorFormat.RGB)
    steps.input().model().set_layout(openvino.Layout(backbone.layout))
    scaled = steps.input().preprocess().convert_element_type(openvino.Type.f32)
    if normalization.channels == "bgr":
        scaled.convert_color(ColorFormat.BGR)
    scaled.mean(list(normalization.mean)).scale(list(normalization.std))
    steps.output().tensor().set_element_type(openvino.Type.f32)
    return steps.build()


# -- a Keras model that is converted ---------------------------------------------------------------------------------


def converted(tap: Tap) -> Content:
    """Return the tap's graph, and its weights, from the cache; convert it first if it is missing or damaged."""
    return _kept(key_of(tap), partial(_convert, tap))


def key_of(tap: Tap) -> str:
    """Return what a converted graph is kept under: it tells all that the graph depends on."""
    identity = asdict(replace(tap, registered=None)) | {"weights": tap.weights_sha256, "version": GRAPH_VERSION}
    del identity["crop"], identity["registered"]  # the graph begins with the cropped square
    if (added := tap.registered) is not None:  # a name says nothing of it, and its spec has numbers of its own
        identity["registered"] = [added.published_sha256(top=False), str(added.normalization), added.layout]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def is_converted(tap: Tap) -> bool:
    """Return whether the tap's graph is made from a Keras model, and not one that the backbone brings."""
    return tap.network.graph(tap) is None


def _convert(tap: Tap, path: Path) -> None:
    """Trace the Keras model and save it as OpenVINO's IR, in full f32."""
    openvino = import_openvino()
    function = traced(tap, batch_size=None)
    model = openvino.convert_model(function.get_concrete_function())
    openvino.save_model(model, path, compress_to_fp16=False)


def traced(tap: Tap, batch_size: int | None) -> Any:
    """Return the built model as a TensorFlow function of uint8 (batch_size, s, s, 3)."""
    model = networks.build(tap)
    import tensorflow as tf

    signature = tf.TensorSpec((batch_size, tap.input_size, tap.input_size, 3), tf.uint8)
    return tf.function(lambda pixels: model(pixels, training=False), input_signature=[signature], autograph=False)


def import_openvino() -> Any:
    """Import OpenVINO without the telemetry that it would send on import and on conversion."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


# -- the cache -------------------------------------------------------------------------------------------------------


def _kept(key: str, write: Callable[[Path], None]) -> Content:
    """Return a graph from the cache; write it there first if it is missing or damaged."""
    cache = cache_folder()
    folder = None if cache is None else cache / "graphs" / key
    content = None if folder is None else _read_cached(folder)
    return content or _made(folder, write)


def _read_cached(folder: Path) -> Content | None:
    """Return the graph and its weights, or None unless both are as they were written."""
    try:
        graph, weights = (folder / "graph.xml").read_bytes(), (folder / "graph.bin").read_bytes()
        digest = (folder / "sha256").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return (graph, weights) if _digest(graph, weights) == digest else None


def _made(folder: Path | None, write: Callable[[Path], None]) -> Content:
    """Return a graph, newly written; keep it in a folder of the cache if that can be written."""
    with _workplace(folder) as temporary:
        fresh = Path(temporary) / "graph"
        fresh.mkdir()
        write(fresh / "graph.xml")
        digest = _digest((fresh / "graph.xml").read_bytes(), (fresh / "graph.bin").read_bytes())
        (fresh / "sha256").write_text(digest)
        content = _read_cached(fresh)
        if content is None:
            raise EngineError(f"The converted graph in {fresh} cannot be read back: check that disk.")
        if folder and Path(temporary).parent == folder.parent:
            _put_in_place(fresh, folder)
    return content


def _workplace(folder: Path | None) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder beside the result's; if that cannot be written, warn and return one elsewhere."""
    why = "there is no home folder"
    if folder is not None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryDirectory(dir=folder.parent, prefix="tmp-")
        except OSError as error:
            why = f"{folder.parent}: {error.strerror}"
    LOG.warning(
        "The converted graph is not kept, so the next start converts it again (%s): "
        "let the variable PENULT_CACHE name a folder that can be written.",
        why,
    )
    return tempfile.TemporaryDirectory(prefix="penult-")


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Rename a converted graph's folder to its final name; another process may do so at the same time."""
    while True:
        try:
            fresh.rename(folder)
            return
        except OSError:
            if _read_cached(folder):
                return  # another process was faster
            shutil.rmtree(folder, ignore_errors=True)


def _digest(graph: bytes, weights: bytes) -> str:
    return hashlib.sha256(hashlib.sha256(graph).digest() + hashlib.sha256(weights).digest()).hexdigest()
