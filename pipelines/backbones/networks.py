"""Backbones as Keras models with their weights; only this module and ``lite`` build one."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from featurestore.errors import BackboneError, UsageError
from heads.backend import import_keras
from pipelines.backbones import lite
from pipelines.backbones.table import TABLE, Backbone, Tap, file_digest, near, resolve

if TYPE_CHECKING:
    import keras

T = TypeVar("T")


def layers(backbone: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return every layer that can be tapped, in order, with the shape of its output for one image.

    Raises:
        UsageError: there is no such backbone.
    """
    row = TABLE[resolve(backbone).backbone]
    bare = _in_fresh_thread(lambda: _layer_shapes(row, top=False))
    full = _in_fresh_thread(lambda: _layer_shapes(row, top=True))
    return list((bare | full).items())


def fetch(tap: Tap) -> None:
    """Download a backbone's published weights with Keras unless they are on this machine.

    Raises:
        BackboneError: the download was refused, or the package that holds the weights is missing.
    """
    if tap.weights != "imagenet" or tap.weights_file.is_file():
        return
    row = TABLE[tap.backbone]
    builder = getattr(import_keras().applications, row.name)
    shape = (row.input_size, row.input_size, 3)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras draws its progress bar on stdout
            builder(weights="imagenet", include_top=tap.needs_top, input_shape=shape)
    except Exception as error:
        raise BackboneError(
            f"The weights of {row.name} could not be downloaded: give a copy with `--weights FILE`."
        ) from error


def build(tap: Tap) -> keras.Model:
    """Return the frozen network: uint8 (n, s, s, 3) of RGB pixels → float32 (n, d), preprocessing inside.

    Raises:
        UsageError: no such layer, or an input size that the network does not take.
        BackboneError: weights that are missing, damaged or of another network.
    """
    fetch(tap)
    return _in_fresh_thread(lambda: _build(tap))


def unfrozen(tap: Tap, layer: str) -> tuple[keras.Model, keras.Model]:
    """Return the network to train: a layer and those after it, in the order of ``layers``, are trainable.

    Returns:
        The model that ``build`` gives, and the network whose weights it uses, for ``save_weights``. Batch
        normalisation and dropout stay in inference mode.

    Raises:
        UsageError, BackboneError: as ``build``; or no layer from that one to the tapped one has weights.
    """
    fetch(tap)
    return _in_fresh_thread(lambda: _unfrozen(tap, layer))


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
    row = TABLE[tap.backbone]
    # Keras pools the default layer itself, because ConvNeXt normalises once more after pooling.
    network = _network(row, tap.needs_top, tap.input_size, tap.pooling if tap.layer == row.layer else "none")
    _load_weights(network, row, tap)
    pixels = keras.Input((tap.input_size, tap.input_size, 3), dtype="uint8", name="pixels")
    scaled = _normalize(keras.ops.cast(pixels, "float32"), row)
    return keras.Model(pixels, _core(network, tap)(scaled, training=False), name="features"), network


def _core(network: keras.Model, tap: Tap) -> keras.Model:
    """Return the network up to the tapped layer, pooled."""
    keras = import_keras()
    is_default = tap.layer == TABLE[tap.backbone].layer
    features = network.output if is_default else _layer(network, tap.layer).output
    if len(features.shape) == 4 and tap.pooling == "avg":
        features = keras.layers.GlobalAveragePooling2D(name="pooled")(features)
    elif len(features.shape) == 4 and tap.pooling == "max":
        features = keras.layers.GlobalMaxPooling2D(name="pooled")(features)
    elif len(features.shape) > 2:
        features = keras.layers.Flatten(name="flattened")(features)
    return keras.Model(network.input, features, name="core")


def _network(row: Backbone, top: bool, input_size: int, pooling: str = "none") -> keras.Model:
    """Return a network with random weights."""
    keras = import_keras()
    try:
        if row.module == "lite":
            return lite.graph(row.name, top, input_size)
        return getattr(keras.applications, row.name)(
            weights=None,
            include_top=top,
            input_shape=(input_size, input_size, 3),
            pooling=None if pooling == "none" else pooling,
        )
    except ValueError as error:
        raise UsageError(f"{row.name} cannot be built for {input_size} pixels: {error}") from error


def _normalize(pixels: Any, row: Backbone) -> Any:
    """Normalise float pixels of 0 to 255 as in the network's training."""
    if row.normalization == "lite":
        return (pixels - 127.0) / 128.0
    module = importlib.import_module(f"keras.applications.{row.module}")
    return module.preprocess_input(pixels)


def _layer(network: keras.Model, name: str) -> keras.layers.Layer:
    names = [layer.name for layer in network.layers]
    if name not in names:
        raise UsageError(f"{network.name} has no layer {name!r}{near(name, names)}.")
    return network.get_layer(name)


def _layer_shapes(row: Backbone, top: bool) -> dict[str, tuple[int, ...]]:
    network = _network(row, top, row.input_size)
    return {layer.name: tuple(layer.output.shape[1:]) for layer in network.layers}


def _load_weights(network: keras.Model, row: Backbone, tap: Tap) -> None:
    """Load a network's weights from a file that was saved with or without the classifier."""
    path = tap.weights_file
    if tap.weights == "imagenet" and row.name in lite.FAMILY:
        _check_pinned(path, lite.FAMILY[row.name].sha256)
    if row.module == "lite" and path.suffix == ".pth":
        return lite.load(network, path)

    found = _parameters(path)
    expected = [network.count_params()]
    if found == expected[0]:
        return _load_h5(network, path)
    if not tap.needs_top:
        full = _network(row, True, row.input_size)
        expected.append(full.count_params())
        if found == expected[1]:
            _load_h5(full, path)
            network.set_weights(full.get_weights()[: len(network.weights)])
            return _finalize(network)
    if tap.needs_top and tap.input_size != row.input_size:
        raise BackboneError(
            f"Layer {tap.layer} of {row.name} belongs to its classifier, which takes {row.input_size} pixels: leave "
            "--input-size out."
        )
    raise BackboneError(
        f"{path} does not hold the weights of {row.name}. "
        f"Expected: {' or '.join(map(str, expected))} parameters. Got: {found}."
    )


def _load_h5(network: keras.Model, path: Path) -> None:
    try:
        network.load_weights(path)
    except Exception as error:  # Keras raises what h5py and its own checks happen to raise
        raise BackboneError(
            f"{path} does not hold the weights of {network.name}: give the file made for it."
        ) from error
    _finalize(network)


def _finalize(network: keras.Model) -> None:
    """Let normalisation layers take their statistics from the weights just set.

    The published EfficientNet B0 to B7 hold standard deviations where variances belong;
    keras.applications corrects this with one more layer, but only if it loads the weights itself.
    """
    keras = import_keras()
    deviations = (0.229, 0.224, 0.225)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization) and hasattr(layer, "adapt_variance"):
            variance = keras.ops.convert_to_numpy(layer.adapt_variance)
            if abs(variance - deviations).max() < 1e-3:
                layer.adapt_variance.assign(variance**2)
            layer.finalize_state()


def _parameters(path: Path) -> int:
    """Return how many numbers an HDF5 weights file holds, without those of an optimizer and random seeds."""
    import h5py

    sizes = []

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not re.search("optimizer|seed_generator", name):
            sizes.append(item.size)

    try:
        with h5py.File(path) as file:
            file.visititems(add)
    except OSError as error:
        raise BackboneError(f"{path} is no HDF5 weights file: give a .weights.h5 or .h5 saved by Keras.") from error
    return sum(sizes)


def _check_pinned(path: Path, sha256: str) -> None:
    found = file_digest(path)
    if found != sha256:
        raise BackboneError(
            f"{path} is not the published weights file; install its package again. "
            f"Expected: sha256 {sha256}. Got: {found}."
        )


def _in_fresh_thread(work: Callable[[], T]) -> T:
    """Run in a new thread, where Keras counts unnamed layers from zero and has its default dtype policy."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(work).result()
