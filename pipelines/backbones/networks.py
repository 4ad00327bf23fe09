"""Taps as Keras models with their weights: frozen to compute features, or with last layers to train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.errors import UsageError
from heads.backend import import_keras
from pipelines.backbones.base import near
from pipelines.backbones.keras_base import in_fresh_thread
from pipelines.backbones.keras_operations import TENSORS
from pipelines.backbones.pooling import Pooling
from pipelines.backbones.table import TABLE, Tap, resolve

if TYPE_CHECKING:
    import keras


def layers(backbone: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return every layer that can be tapped, in order, with the shape of its output for one image.

    Raises:
        UsageError: there is no such backbone.
    """
    return TABLE[resolve(backbone).backbone].layers()


def build(tap: Tap) -> keras.Model:
    """Return the frozen network: uint8 (n, s, s, 3) of RGB pixels → float32 (n, d), preprocessing inside.

    Raises:
        UsageError: no such layer, or an input size that the network does not take.
        BackboneError: weights that are missing, damaged or of another network, or a backbone without a Keras model.
    """
    tap.fetch()
    return in_fresh_thread(lambda: _build(tap))


def unfrozen(tap: Tap, layer: str) -> tuple[keras.Model, keras.Model]:
    """Return the network to train: a layer and those after it, in the order of ``layers``, are trainable.

    Returns:
        The model that ``build`` gives, and the network whose weights it uses, for ``save_weights``. Batch
        normalisation and dropout stay in inference mode.

    Raises:
        UsageError, BackboneError: as ``build``; or no layer from that one to the tapped one has weights.
    """
    tap.fetch()
    return in_fresh_thread(lambda: _unfrozen(tap, layer))


def _build(tap: Tap) -> keras.Model:
    model, _ = _assemble(tap)
    model.trainable = False
    return model


def _unfrozen(tap: Tap, layer: str) -> tuple[keras.Model, keras.Model]:
    model, network = _assemble(tap)
    first = network.layers.index(_layer(network, layer))
    for number, member in enumerate(network.layers):
        member.trainable = number >= first
    if not model.trainable_variables:
        raise UsageError(f"{network.name} has nothing to train from {layer} to {tap.layer}: name an earlier layer.")
    return model, network


def _assemble(tap: Tap) -> tuple[keras.Model, keras.Model]:
    """Return the model from pixels to pooled features, and the network inside it, with its weights."""
    keras = import_keras()
    backbone = tap.network
    # Keras pools the default layer itself, because ConvNeXt normalises once more after pooling.
    pooling = tap.pooling if tap.layer == backbone.layer else "none"
    network = backbone.network(tap.needs_top, tap.input_size, pooling)
    backbone.load(network, tap)
    pixels = keras.Input((tap.input_size, tap.input_size, 3), dtype="uint8", name="pixels")
    scaled = backbone.normalized(keras.ops.cast(pixels, "float32"))
    return keras.Model(pixels, _core(network, tap)(scaled, training=False), name="features"), network


def _core(network: keras.Model, tap: Tap) -> keras.Model:
    """Return the network up to the tapped layer, pooled."""
    keras = import_keras()
    is_default = tap.layer == tap.network.layer
    features = network.output if is_default else _layer(network, tap.layer).output
    pooled = Pooling.parse(tap.pooling).of(features, tap.network.layout, TENSORS)
    return keras.Model(network.input, pooled, name="core")


def _layer(network: keras.Model, name: str) -> keras.layers.Layer:
    names = [layer.name for layer in network.layers]
    if name not in names:
        raise UsageError(f"{network.name} has no layer {name!r}{near(name, names)}.")
    return network.get_layer(name)
