"""Networks that users add to a store, each a graph with a spec: ``STORE/backbones/models/NAME.json``.

The graph lies beside it as OpenVINO's IR, ``<sha256>.xml`` and ``<sha256>.bin``, by its own digest, and the model that
it was made from as ``pipelines.backbones.originals`` keeps it. That model's digest and all values of the spec that move
a number are part of a feature set's identity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from featurestore import layout
from featurestore.errors import BackboneError, StoreCorrupt, StoreError, UsageError
from featurestore.spec import Preprocessing
from featurestore.storage.base import location, storage_of
from featurestore.storage.files import (
    exists,
    is_plain_name,
    listed,
    make_folder,
    read_bytes,
    read_sealed,
    replacing,
    write_sealed,
)
from featurestore.store import FeatureStore
from heads.backend import import_keras
from pipelines.backbones import PUBLISHED, keras_models, originals
from pipelines.backbones.base import Backbone, Content, near
from pipelines.backbones.model_spec import RESIZES, ModelSpec
from pipelines.backbones.models import MAX_BYTES, SAVED_MODEL, reading
from pipelines.backbones.table import TABLE, Tap
from pipelines.backbones.weights import read_h5

if TYPE_CHECKING:
    import keras

SUFFIXES = (".xml", ".bin")  # of the two files of OpenVINO's IR
FROZEN = {
    ".onnx": "was added as ONNX, which is frozen and exported as onnx or openvino alone: for more, add its .keras file",
    ".tflite": "was added as LiteRT, which is frozen and exported as onnx or openvino alone: for more, add its .keras "
    "file",
    SAVED_MODEL: "was added as a SavedModel, which has no layers to unfreeze and is exported as onnx or openvino "
    "alone: for more, save it as .keras and add that",
    "": "is a graph of OpenVINO alone, which is frozen and exported as openvino only: for more, add the .onnx or "
    ".keras file that it was made from",
}  # by ``Foreign.kind``: what a network without a Keras model is, and what to do
TOLD = ("sha256", "graph_sha256", "width", "batch", "layer")  # of a description, besides its name and the spec


@dataclass(frozen=True)
class Foreign(Backbone):
    """A network that a user added.

    Attributes:
        model: its spec.
        sha256: of the model that was added, in hex.
        graph_sha256: of the two files of its graph, one behind the other.
        folder: where these lie.
        original: the model, see ``pipelines.backbones.originals.name_of``; "" if there is only the graph.
    """

    model: ModelSpec
    sha256: str
    graph_sha256: str
    folder: str
    original: str = field(default="", kw_only=True, compare=False)

    def tap(self) -> Tap:
        """Return what is computed with it: its spec leaves nothing to choose."""
        return Tap(
            self.name,
            PUBLISHED,
            self.layer,
            str(self.model.pooled()),
            self.input_size,
            RESIZES[self.model.resize],
            registered=self,
        )

    def preprocessing(self, tap: Tap) -> Preprocessing:
        """Return what the spec says."""
        return self.model.preprocessing()

    def published_sha256(self, top: bool) -> str:
        """Return the digest of the model that was added."""
        return self.sha256

    def fetch(self, top: bool) -> None:
        """Do nothing: the graph is read where it lies."""

    def at_hand(self) -> str:
        """Return "yes"."""
        return "yes"

    @property
    def kind(self) -> str:
        """The kind of file that it was added from, see ``pipelines.backbones.originals.kind_of``."""
        return originals.kind_of(self.original)

    def graph(self, tap: Tap) -> Content | None:
        """Return the graph; None for weights that fine-tuning made, which a Keras model takes.

        Raises:
            StoreCorrupt: it is missing or damaged.
        """
        if tap.weights != PUBLISHED:
            return None
        place = location(self.folder)
        graph, weights = (read_bytes(place / f"{self.graph_sha256}{suffix}", MAX_BYTES) for suffix in SUFFIXES)
        if digest_of_graph((graph, weights)) != self.graph_sha256:
            raise StoreCorrupt(f"Expected: the graph of {self.name} in {self.folder} as it was added. Got: another.")
        return graph, weights

    def model_file(self) -> AbstractContextManager[Path]:
        """Return a context with the path of the model as it was added, see ``pipelines.backbones.originals.opened``."""
        return originals.opened(location(self.folder), self.sha256, self.original)

    def is_whole(self) -> bool:
        """Return whether the graph is there, as it was added."""
        try:
            return bool(self.graph(self.tap()))
        except StoreError:
            return False

    def network(self, top: bool, input_size: int, pooling: str = "none") -> keras.Model:
        """Return the Keras model that was added, with its weights, up to the tapped layer.

        Raises:
            BackboneError: it was not added as a file of Keras, or cannot be read or trained.
            StoreCorrupt: its file is missing or damaged.
        """
        if self.kind in FROZEN:
            raise BackboneError(f"{self.name} {FROZEN[self.kind]} under another name.")
        if self.batch is not None:
            raise BackboneError(
                f"{self.name} takes {self.batch} images at once, and only such a graph is made of it: for more, add it "
                "under another name with an input for any number of images."
            )
        with self.model_file() as file, reading(file):
            network, named = keras_models.loaded(file)
        outputs = {keras_models.END: network.outputs[0]} | named
        if self.layer not in outputs:
            raise BackboneError(
                f"{self.layer!r} of {self.name} is a tensor of OpenVINO's graph, and no layer of Keras: add it under "
                'another name with a layer as its spec\'s "output".'
            )
        return import_keras().Model(network.inputs[0], outputs[self.layer], name=self.name)

    def normalized(self, pixels: Any) -> Any:
        """Return float pixels of 0 to 255 as the spec says."""
        if self.normalization.channels == "bgr":
            pixels = import_keras().ops.take(pixels, (2, 1, 0), -1)  # a slice would not do for old versions of ONNX
        scaled = self.normalization.scaled(pixels)
        return import_keras().ops.transpose(scaled, (0, 3, 1, 2)) if self.layout == "NCHW" else scaled

    def load(self, network: keras.Model, tap: Tap) -> None:
        """Set weights that fine-tuning made; do nothing for those that were added."""
        if tap.weights != PUBLISHED:
            read_h5(network, tap.weights_file)

    def layers(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return the tapped layer, with the shape of one image's vector: the spec leaves no other."""
        return [(self.layer, (self.width,))]

    def to_json(self) -> dict[str, Any]:
        """Return what a store keeps of it."""
        told = {key: getattr(self, key) for key in (*TOLD, "original")}
        return {"name": self.name, "spec": asdict(self.model), **told}


def digest_of_graph(content: Content) -> str:
    """Return the sha256 of the two files of a graph, in hex."""
    digest = hashlib.sha256(content[0])
    digest.update(content[1])
    return digest.hexdigest()


def where(folder: PurePath) -> str:
    """Return a folder's address, which means the same in every process of a run."""
    return storage_of(folder).uri(folder)


def check_name(name: str) -> None:
    """Raise UsageError for a name that a backbone of a store cannot have."""
    if not is_plain_name(name) or ":" in name or name.startswith((".", "-")):
        raise UsageError(f"Expected: a name, such as dinov2-small. Got: {name!r}.")
    if name in TABLE:
        raise UsageError(f"There is a backbone {name} already: choose another name.")


def put(folder: PurePath, backbone: Foreign, content: Content) -> None:
    """Write a network's graph, over one that may be damaged, then its description, each whole or not at all."""
    make_folder(folder)
    for suffix, data in zip(SUFFIXES, content, strict=True):
        with replacing(folder / f"{backbone.graph_sha256}{suffix}") as temporary:
            temporary.write_bytes(data)
    _describe(folder, backbone)


def _describe(folder: PurePath, backbone: Foreign) -> None:
    write_sealed(folder / f"{backbone.name}{layout.JSON}", backbone.to_json())


def keep(store: FeatureStore, backbone: Foreign, content: Content, files: list[Path]) -> tuple[Foreign, bool]:
    """Add a network to a store, whose lock is taken; return it as it lies there, and whether its graph was written.

    A graph of the same model that is missing or damaged is written anew.

    Args:
        store: where it is kept.
        backbone: the network.
        content: its graph.
        files: of the model it was made from, which are copied if ``backbone.original`` says so.

    Raises:
        BackboneError: another network has its name.
        StoreLocked: another run holds the store's lock.
    """
    folder = layout.models(store.path)
    backbone = replace(backbone, folder=where(folder))
    with store.lock():
        known = names(store.path).get(backbone.name)
        # one model may give a graph of another digest each time it is read
        if known and known != replace(backbone, graph_sha256=known.graph_sha256):
            raise BackboneError(f"{store.path} has another backbone {backbone.name}: choose another name.")
        if originals.is_kept(backbone.original):
            originals.keep(folder, backbone.sha256, files)
        elif known and originals.is_kept(known.original):
            backbone = replace(backbone, original=known.original)
        if known and known.is_whole():
            backbone = replace(backbone, graph_sha256=known.graph_sha256)
            _describe(folder, backbone)
            return backbone, False
        put(folder, backbone, content)
    return backbone, True


def names(store: PurePath) -> dict[str, Foreign]:
    """Return the networks of a store by their names, sorted; none if there is no store."""
    paths = listed(layout.models(store))
    return {path.stem: described(path) for path in paths if path.suffix == layout.JSON}


def find(store: PurePath, name: str) -> Tap:
    """Return what is computed with a network of a store.

    Raises:
        UsageError: neither the store nor the table has a backbone of this name.
        StoreCorrupt: its description is damaged.
    """
    path = layout.models(store) / f"{name}{layout.JSON}"
    if not is_plain_name(name) or not exists(path):
        raise UsageError(f"There is no backbone {name!r}{near(name, [*TABLE, *names(store)])}.")
    return described(path).tap()


def described(path: PurePath) -> Foreign:
    """Return the network that a description tells of.

    Raises:
        StoreCorrupt: the description is damaged.
    """
    told = read_sealed(path, required=True)
    try:
        backbone = made(path.stem, ModelSpec.of(told["spec"]), where(path.parent), {key: told[key] for key in TOLD})
        return replace(backbone, original=str(told.get("original", "")))  # older stores kept no model
    except (KeyError, TypeError, UsageError) as error:
        raise StoreCorrupt(
            f"Expected: the description of a backbone in {path}. Got: another file ({error})."
        ) from error


def check(path: PurePath) -> None:
    """Raise StoreCorrupt unless a description is intact, and the graph and the kept model that it names are there."""
    backbone = described(path)
    backbone.graph(backbone.tap())
    if originals.is_kept(backbone.original):
        originals.check(path.parent, backbone.sha256)


def files_of(path: PurePath) -> list[PurePath]:
    """Return a description and, as far as it can be read, the files of the graph and of the kept model it names."""
    try:
        backbone = described(path)
    except StoreError:
        return [path]
    kept = [originals.archive(path.parent, backbone.sha256)] if originals.is_kept(backbone.original) else []
    return [path, *(path.with_name(f"{backbone.graph_sha256}{suffix}") for suffix in SUFFIXES), *kept]


def made(name: str, model: ModelSpec, folder: str, told: Mapping[str, Any]) -> Foreign:
    """Return the network of a name, a spec and what ``TOLD`` lists."""
    batch = told["batch"]
    return Foreign(
        name,
        model.size,
        int(told["width"]),
        model.normalization(),
        str(told["layer"]),
        model,
        str(told["sha256"]),
        str(told["graph_sha256"]),
        folder,
        layout=model.layout,
        batch=None if batch is None else int(batch),
    )
