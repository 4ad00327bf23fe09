"""The table of backbones, and taps, which name what is computed with one of them.

A :class:`Tap` names what is computed: a backbone, its weights, the layer read and how it is pooled. ``resolve`` makes
one from a user's options, without TensorFlow; ``networks.build`` makes the Keras model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from featurestore.errors import BackboneError, UsageError
from featurestore.limits import check_count
from featurestore.spec import CROPS, FeatureSpec, Preprocessing
from pipelines.backbones import DEFAULT, MAX_INPUT_SIZE, MIN_INPUT_SIZE, PUBLISHED
from pipelines.backbones.applications import APPLICATIONS
from pipelines.backbones.base import Backbone, near
from pipelines.backbones.lite import FAMILY
from pipelines.backbones.mobilenet import MOBILENET
from pipelines.backbones.weights import file_digest

POOLINGS = ("avg", "max", "none")
TABLE: dict[str, Backbone] = {backbone.name: backbone for backbone in (*FAMILY, MOBILENET, *APPLICATIONS)}


def register(backbone: Backbone) -> None:
    """Add a backbone to the table, in every process that embeds with it.

    Raises:
        ValueError: there is one of this name.
    """
    if backbone.name in TABLE:
        raise ValueError(f"there is a backbone {backbone.name} already")
    TABLE[backbone.name] = backbone


@dataclass(frozen=True)
class Tap:
    """What is computed from an image: the features of one layer of one backbone.

    Attributes:
        backbone: a name from the table.
        weights: "imagenet" for the published ones, or a path.
        layer: the layer that is read.
        pooling: over the two spatial axes, "avg" or "max"; "none" flattens them.
        input_size: pixels, the side of the square the backbone sees.
        crop: how a rectangle becomes that square, one of ``featurestore.spec.CROPS``.
        registered: the backbone, if a store and not the table has it.
    """

    backbone: str
    weights: str
    layer: str
    pooling: str
    input_size: int
    crop: str = "squash"
    registered: Backbone | None = None

    @property
    def network(self) -> Backbone:
        """The backbone."""
        return self.registered or TABLE[self.backbone]

    @property
    def needs_top(self) -> bool:
        """Whether the layer exists only in the network with its classifier."""
        return self.network.needs_top(self.layer)

    @property
    def weights_file(self) -> Path:
        """Where the weights are, or will be once they are fetched.

        Raises:
            BackboneError: they come in a package that is not installed.
        """
        return self.network.published(self.needs_top) if self.weights == PUBLISHED else Path(self.weights)

    @property
    def weights_sha256(self) -> str:
        """Digest of the weights file, in hex.

        Raises:
            BackboneError: the file is not on this machine; ``fetch`` brings published ones.
        """
        if self.weights == PUBLISHED:
            return self.network.published_sha256(self.needs_top)
        return file_digest(Path(self.weights))

    @property
    def preprocessing(self) -> Preprocessing:
        """How a file's bytes become the network's input."""
        return self.network.preprocessing(self)

    def fetch(self) -> None:
        """Bring published weights onto this machine unless they are there.

        Raises:
            BackboneError: that is refused, or the package that holds the weights is missing.
        """
        if self.weights == PUBLISHED:
            self.network.fetch(self.needs_top)


def resolve(
    backbone: str = DEFAULT,
    weights: str | Path = PUBLISHED,
    layer: str | None = None,
    pooling: str = "avg",
    input_size: int | None = None,
    crop: str = "squash",
) -> Tap:
    """Return the tap for a user's options, checked against the table without TensorFlow; fill in the defaults.

    Args:
        backbone: a name from the table.
        weights: "imagenet" or a file: .weights.h5, Keras's own .h5, or .pth for those published so.
        layer: a layer's name, by default the last feature layer; it is checked when the model is built.
        pooling: "avg", "max" or "none".
        input_size: pixels, by default the one the backbone was trained with.
        crop: how a rectangle becomes a square.

    Raises:
        UsageError: no such backbone, pooling or crop, or an impossible input size.
        BackboneError: no such weights file.
    """
    if backbone not in TABLE:
        raise UsageError(f"There is no backbone {backbone!r}{near(backbone, TABLE)}.")
    if pooling not in POOLINGS:
        raise UsageError(f"Expected: --pooling {', '.join(POOLINGS)}. Got: {pooling!r}.")
    if crop not in CROPS:
        raise UsageError(f"Expected: crop {', '.join(CROPS)}. Got: {crop!r}.")
    if input_size is not None:
        check_count("--input-size in pixels", input_size, MIN_INPUT_SIZE, MAX_INPUT_SIZE)
    if weights != PUBLISHED and not Path(weights).is_file():
        raise BackboneError(f"There is no weights file {weights}: give `--weights {PUBLISHED}` or a file.")
    row = TABLE[backbone]
    layer = row.layer if layer is None else layer
    tap = Tap(backbone, str(weights), layer, pooling, input_size or row.input_size, crop)
    # Layers of the classifier have no spatial axes left, so every pooling would be the same tap.
    return replace(tap, pooling="none") if tap.needs_top else tap


def feature_spec(
    tap: Tap, width: int, precision: str = "f32", dtype: str = "float16", augmentation: str | None = None
) -> FeatureSpec:
    """Return the identity of the features that a tap gives.

    Args:
        tap: what is computed.
        width: d, the length of a vector, as the engine reports it.
        precision: of the forward pass, "f32" or "bf16".
        dtype: of the stored vectors, "float16" or "float32".
        augmentation: of random views, as JSON; None for the images themselves.
    """
    return FeatureSpec(
        backbone=tap.backbone,
        weights_sha256=tap.weights_sha256,
        preprocessing=tap.preprocessing,
        layer=tap.layer,
        pooling=tap.pooling,
        width=width,
        precision=precision,
        dtype=dtype,
        augmentation=augmentation,
    )


class Row(NamedTuple):
    """What `penult backbones` shows of one backbone."""

    name: str
    input_size: int
    width: int
    layer: str
    weights: str  # on this machine: "yes", "no" (downloaded on first use, or --weights) or "extra" (to be installed)


def table(added: Iterable[Backbone] = ()) -> list[Row]:
    """Return a row per backbone of the table, then of those that a store has, without TensorFlow."""
    return [Row(b.name, b.input_size, b.width, b.layer, b.at_hand()) for b in (*TABLE.values(), *added)]
