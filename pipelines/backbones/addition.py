"""The addition of a network to a store: read, checked, proved, and only then kept."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.canary import MAX_DEVIATION, deviation
from featurestore.errors import BackboneError, PenultError, StoreError, UsageError
from featurestore.storage.base import location
from featurestore.store import FeatureStore
from pipelines.backbones import canary, foreign, models, originals, proof
from pipelines.backbones.base import Content, Normalization, near
from pipelines.backbones.engine_options import BATCH_SIZES, EngineOptions
from pipelines.backbones.engines import open_engine
from pipelines.backbones.foreign import Foreign
from pipelines.backbones.graphs import import_openvino, tensors
from pipelines.backbones.keras_models import END
from pipelines.backbones.model_spec import ModelSpec, read
from pipelines.images import decoder

if TYPE_CHECKING:
    import openvino


@dataclass(frozen=True)
class Added:
    """What was added.

    Attributes:
        backbone: the network.
        new: whether it is new to the store.
        defaults: the keys that its spec left out, with their values.
        cosine: of the reference's vectors; None without a reference.
        rounding: that of its vector without and with the rounding of a quantised graph, if this had to be allowed for.
    """

    backbone: Foreign
    new: bool
    defaults: dict[str, Any]
    cosine: float | None
    rounding: float | None

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return self.backbone.to_json() | {
            "new": self.new,
            "defaults": self.defaults,
            "cosine": self.cosine,
            "rounding": self.rounding,
        }


def add(store: str | PurePath, name: str, model: Path, spec: Path, unproved: bool = False, copy: bool = True) -> Added:
    """Add a network to a store under a name, once it has given the vector that its reference expects.

    Args:
        store: where it is kept; made if it is not there.
        name: what people and feature sets will call it.
        model: an ONNX, OpenVINO, LiteRT or Keras file, or a SavedModel's folder.
        spec: a TOML file, see ``pipelines.backbones.model_spec``.
        unproved: whether a spec without a reference is taken.
        copy: whether the store keeps the model itself, too; else it remembers where it lies.

    Raises:
        UsageError: a name that cannot be had, or a spec with a missing or impossible value.
        BackboneError: a model that cannot be read or run, or that does not give what its reference expects.
        StoreError: the store cannot be written.
    """
    foreign.check_name(name)
    told, reference = read(spec)
    if reference is None and not unproved:
        raise UsageError(
            f"{spec} has no [reference], a picture and its vector as the network's home framework computes it, so "
            "nothing shows that the preprocessing is right: add one, or say --unproved."
        )
    files = models.files_of(model)
    sha256 = models.digest_of(files)
    content = _known(location(store), sha256) or models.as_content(models.read(model))
    layer = _tapped(import_openvino().Core().read_model(*content), told, model)
    cosine, rounding = (None, None) if reference is None else proof.check(content, told, layer, reference)
    with tempfile.TemporaryDirectory(prefix="penult-") as folder:
        about = {"sha256": sha256, "graph_sha256": foreign.digest_of_graph(content), "layer": layer}
        backbone = foreign.made(name, told, folder, {**about, "width": 0, "batch": None})
        foreign.put(Path(folder), backbone, content)
        backbone = _run(backbone, told, content)
    opened = FeatureStore.create(store)
    if model.suffix != models.GRAPH:
        backbone = replace(backbone, original=originals.name_of(model, copy))
    backbone, new = foreign.keep(opened, backbone, content, files)
    defaults = {f.name: getattr(told, f.name) for f in fields(told) if getattr(told, f.name) == f.default}
    return Added(backbone, new, defaults, cosine, rounding)


def _known(store: PurePath, sha256: str) -> Content | None:
    """Return the graph that a store has of a model, so that two specs of one model share it."""
    known = (backbone for backbone in foreign.names(store).values() if backbone.sha256 == sha256)
    with suppress(StoreError):
        return next((backbone.graph(backbone.tap()) for backbone in known), None)
    return None


def _tapped(graph: openvino.Model, spec: ModelSpec, model: Path) -> str:
    """Return the name of the tapped output, after checking that a picture of the spec is what the graph takes."""
    if len(graph.inputs) != 1 or (spec.input and spec.input not in graph.inputs[0].names):
        given = ", ".join(sorted(name for one in graph.inputs for name in one.names)) or "none"
        wanted = spec.input or "one"
        raise BackboneError(f"Expected: a network with {wanted} as its only input. Got: {model} with {given}.")
    shape = graph.inputs[0].partial_shape
    want = [None, spec.size, spec.size, 3] if spec.layout == "NHWC" else [None, 3, spec.size, spec.size]
    sides = [] if shape.rank.is_dynamic else [None if dim.is_dynamic else dim.get_length() for dim in shape]
    fits = not sides or len(sides) == 4
    fits &= all(None in (side, wanted) or side == wanted for side, wanted in zip(sides, want, strict=False))
    if not fits:
        raise BackboneError(
            f"Expected: an input {spec.layout} of {spec.size} pixels, as the spec says. Got: {model} with {shape}: "
            "correct size or layout."
        )
    _check_takes_floats(graph, spec, model)
    layer = _layer(graph, spec, model)
    if (kind := tensors(graph)[layer].get_element_type()).is_integral():
        raise BackboneError(
            f"Expected: an output of floats. Got: {layer} of {model}, {kind.get_type_name()}: tap another, or convert "
            "the network with a float output."
        )
    return layer


def _check_takes_floats(graph: openvino.Model, spec: ModelSpec, model: Path) -> None:
    """Raise BackboneError if the input's type cannot hold what the spec makes of pixels."""
    kind = graph.inputs[0].get_element_type()
    holds = kind.is_real() or (
        kind.get_type_name() != "i8" and spec.normalization() == Normalization(channels=spec.channels.lower())
    )
    if not holds:
        raise BackboneError(
            f"Expected: a network that takes floats, or pixels as they are. Got: {model}, which takes "
            f"{kind.get_type_name()}, and a spec with another scale, mean or std: convert it with a float input."
        )


def _layer(graph: openvino.Model, spec: ModelSpec, model: Path) -> str:
    """Return the name of the tapped output: the spec's, or the only one there is."""
    known = tensors(graph)
    if spec.output:
        if spec.output not in known:
            raise UsageError(f"{model} has no output {spec.output!r}{near(spec.output, known)}.")
        return spec.output
    ends = [END] if END in known else [min(names) for output in graph.outputs if (names := output.names)]
    if len(ends) != 1:
        raise UsageError(f"Expected: output = one of {', '.join(ends) or 'its tensors'}. Got: a spec without.")
    return ends[0]


def _run(backbone: Foreign, spec: ModelSpec, content: Content) -> Foreign:
    """Return the network with its width and batch, after running it on two pictures.

    Raises:
        BackboneError: it cannot be run, gives no vector of finite numbers, or others than on its own.
    """
    pixels = np.stack([decoder.decode(data, spec.preprocessing()).pixels for data in _pictures()])
    made: dict[int | None, np.ndarray] = {}  # by how many images at a time
    for batch in (1, None):
        try:
            made[batch] = open_engine(replace(backbone, batch=batch).tap(), EngineOptions())(pixels)
        except PenultError:
            raise
        except Exception as error:  # OpenVINO says so at the reshape, the compilation or the first run
            why = models.first_line(error)
    if not made:
        raise BackboneError(f"{backbone.name} cannot be run on a picture of {spec.size} pixels: {why}")
    runs = list(made.values())
    if runs[0].ndim != 2 or not runs[0].shape[1] or not np.isfinite(runs[0]).all():
        raise BackboneError(f"Expected: finite numbers from {backbone.name}. Got: others: correct the spec.")
    alone = [proof.vector(content, replace(spec, output=backbone.layer), picture) for picture in _pictures()]
    made = {batch: run for batch, run in made.items() if all(map(_alike, run, alone))}
    if not made:
        raise BackboneError(
            f"OpenVINO does not run {backbone.name} in parallel as it does alone: convert it with float32 weights."
        )
    runs = list(made.values())
    limit = MAX_DEVIATION["f32"]
    agree = len(runs) == 2 and all(deviation(*pair) <= limit for pair in zip(*runs, strict=True))
    size = None if agree else 1 if 1 in made else BATCH_SIZES["openvino"]
    return replace(backbone, width=runs[0].shape[1], batch=size)


def _alike(ran: np.ndarray, alone: np.ndarray | None) -> bool:
    return proof.distance(alone, ran) <= proof.MAX_ROUNDING


def _pictures() -> list[bytes]:
    return [resources.files("pipelines.backbones").joinpath(name).read_bytes() for name in canary.PICTURES]
