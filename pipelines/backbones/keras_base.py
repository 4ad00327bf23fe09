"""What backbones with a Keras model have in common: the names of their layers, and Keras's weights files."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from featurestore.errors import BackboneError
from pipelines.backbones.base import Backbone
from pipelines.backbones.weights import finalize, load_h5, parameters

if TYPE_CHECKING:
    import keras

    from pipelines.backbones.table import Tap

# Layers that a keras.applications model has only together with its classifier.
TOP_LAYERS = (
    *("avg_pool", "conv_2", "conv_preds", "dropout", "fc1", "fc2", "flatten", "global_average_pooling2d"),
    *("logits", "predictions", "reshape_2", "top_dropout"),
)
TOP_SUFFIXES = ("_head_gap", "_head_layernorm", "_head_dense")  # ConvNeXt prefixes its own name

T = TypeVar("T")


@dataclass(frozen=True)
class KerasBackbone(Backbone):
    """A backbone with a Keras model; a kind of its own says how its network is made and normalised."""

    def layers(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return every layer that can be tapped, in order, with the shape of its output for one image."""
        bare = in_fresh_thread(lambda: self._layer_shapes(top=False))
        full = in_fresh_thread(lambda: self._layer_shapes(top=True))
        return list((bare | full).items())

    def _layer_shapes(self, top: bool) -> dict[str, tuple[int, ...]]:
        network = self.network(top, self.input_size)
        return {layer.name: tuple(layer.output.shape[1:]) for layer in network.layers}

    def needs_top(self, layer: str) -> bool:
        """Return whether a layer exists only in the network with its classifier."""
        return layer in TOP_LAYERS or layer.endswith(TOP_SUFFIXES)

    def load(self, network: keras.Model, tap: Tap) -> None:
        """Load a network's weights from a file of Keras's that was saved with or without the classifier."""
        path = tap.weights_file
        found = parameters(path)
        expected = [network.count_params()]
        if found == expected[0]:
            return load_h5(network, path)
        if not tap.needs_top:
            full = self.network(True, self.input_size)
            expected.append(full.count_params())
            if found == expected[1]:
                load_h5(full, path)
                network.set_weights(full.get_weights()[: len(network.weights)])
                return finalize(network)
        if tap.needs_top and tap.input_size != self.input_size:
            raise BackboneError(
                f"Layer {tap.layer} of {self.name} belongs to its classifier, which takes {self.input_size} pixels: "
                "leave --input-size out."
            )
        raise BackboneError(
            f"{path} does not hold the weights of {self.name}. "
            f"Expected: {' or '.join(map(str, expected))} parameters. Got: {found}."
        )


def in_fresh_thread(work: Callable[[], T]) -> T:
    """Run in a new thread, where Keras counts unnamed layers from zero and has its default dtype policy."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(work).result()
