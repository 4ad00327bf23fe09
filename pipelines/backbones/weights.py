"""Weights files: their digests, and how Keras's own are read."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import BackboneError
from heads.backend import import_keras

if TYPE_CHECKING:
    import keras


def file_digest(path: Path) -> str:
    """Return the sha256 of a weights file, in hex; computed once while the file does not change.

    Raises:
        BackboneError: it cannot be read.
    """
    try:
        stat = path.stat()
        return _digest(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise BackboneError(f"The weights file {path} cannot be read: {error.strerror}.") from error


@lru_cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_pinned(path: Path, sha256: str) -> None:
    """Raise BackboneError unless a file of published weights is the one that was published."""
    found = file_digest(path)
    if found != sha256:
        raise BackboneError(
            f"{path} is not the published weights file; install its package again. "
            f"Expected: sha256 {sha256}. Got: {found}."
        )


def parameters(path: Path) -> int:
    """Return how many numbers an HDF5 weights file holds, without those of an optimizer and random seeds.

    Raises:
        BackboneError: it is no HDF5 file.
    """
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


def load_h5(network: keras.Model, path: Path) -> None:
    """Set a network's weights from an HDF5 file that was saved from such a network; see ``finalize``.

    Raises:
        BackboneError: the file is damaged or of another network.
    """
    read_h5(network, path)
    finalize(network)


def read_h5(network: keras.Model, path: Path) -> None:
    """Set a network's weights from an HDF5 file that was saved from such a network, as they are.

    Raises:
        BackboneError: the file is damaged or of another network.
    """
    try:
        network.load_weights(path)
    except Exception as error:  # Keras raises what h5py and its own checks happen to raise
        raise BackboneError(
            f"{path} does not hold the weights of {network.name}: give the file made for it."
        ) from error


def finalize(network: keras.Model) -> None:
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
