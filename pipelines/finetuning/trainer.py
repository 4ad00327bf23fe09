"""The network that is fine-tuned, a backbone with its head; the only module with a gradient through a CNN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from featurestore.errors import HeadError
from heads.backend import import_keras, import_tensorflow
from heads.base import Head, softmax
from pipelines.backbones import networks
from pipelines.backbones.table import Tap
from pipelines.keras_head import as_layers

SMALLEST = 1e-7  # probability in a loss, as in Keras


class Trainer:
    """A network from pixels to class scores, which starts with the weights of a backbone and of a head.

    The head and the backbone's layers from ``layer`` on are trained. Batch normalisation uses its stored statistics
    and does not update them. The head's dropout is on during training.

    Args:
        tap: the backbone and the layer whose output is the head's input.
        head: a linear or dense head.
        layer: name of the first layer to train.
        optimizer: Keras's name of the optimizer.
        settings: the optimizer's settings, as Keras names them.

    Raises:
        UsageError: there is no such layer, or nothing to train from it on.
        HeadError: heads of this family have no gradient.
    """

    def __init__(self, tap: Tap, head: Head, layer: str, optimizer: str, settings: dict[str, float]) -> None:
        if not head.layer_arrays:
            raise HeadError(f"A {head.family} head cannot be trained further: train a logreg or dense head first.")
        keras, tf = import_keras(), import_tensorflow()
        self.classes = head.classes
        self._head = head
        self._model, self._network = networks.unfrozen(tap, layer)
        self._top = as_layers(head)
        self._dense = [member for member in self._top.layers if isinstance(member, keras.layers.Dense)]
        dropouts = [member for member in self._top.layers if isinstance(member, keras.layers.Dropout)]
        self._dropouts = [dropout for dropout in dropouts if dropout.rate > 0]  # with rate 0 Keras makes no seed
        self._trained = [*self._model.trainable_variables, *self._top.trainable_variables]
        self._optimizer = keras.optimizers.get({"class_name": optimizer, "config": settings})
        self._optimizer.build(self._trained)
        values = [variable.value for variable in self._trained]
        temperature = float(head.arrays["temperature"])
        pixels = tf.TensorSpec((None, tap.input_size, tap.input_size, 3), tf.uint8)
        labels, weights = tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None,), tf.float32)

        @tf.function(input_signature=[pixels, labels, weights], autograph=False)
        def step(pixels, labels, weights):  # type: ignore[no-untyped-def]
            # The tape records only what depends on a trained variable, so no gradient goes into frozen layers.
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                scores = self._top(self._model(pixels, training=False), training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores / temperature)
                loss = tf.reduce_mean(weights * losses)
            self._optimizer.apply(tape.gradient(loss, values), self._trained)
            return losses, tf.argmax(scores, axis=1, output_type=tf.int32)

        @tf.function(input_signature=[pixels], autograph=False)
        def scores(pixels):  # type: ignore[no-untyped-def]
            return self._top(self._model(pixels, training=False), training=False)

        self._step, self._scores = step, scores

    @contextmanager
    def running(self, precision: str) -> Iterator[None]:
        """Run the block's steps in "f32", or in "bf16": bf16 products, f32 sums and weights (oneDNN, on a CPU).

        Mixed precision as in Kalamkar et al. 2019, "A study of BFLOAT16 for deep learning training" (arXiv:1905.12322):
        no scaling of the loss is needed.
        """
        options = import_tensorflow().config.optimizer.set_experimental_options
        options({"auto_mixed_precision_onednn_bfloat16": precision == "bf16"})
        try:
            yield
        finally:
            options({"auto_mixed_precision_onednn_bfloat16": False})  # the option applies to the whole process

    def begin(self, seed: int, epoch: int, learning_rate: float) -> None:
        """Set an epoch's learning rate, and seed its dropout with ``seed`` and ``epoch`` only."""
        self._optimizer.learning_rate = learning_rate
        draw = np.random.default_rng([seed, epoch, 1])
        for dropout in self._dropouts:
            dropout.seed_generator.state.assign(draw.integers(2**32, size=2, dtype=np.uint32))

    def step(self, pixels: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Train on one batch.

        Args:
            pixels: uint8 (n, s, s, 3).
            labels: int32 (n,), indices into the head's classes.
            weights: float32 (n,), weight of each row in the loss.

        Returns:
            Cross-entropy, float32 (n,), and index of the predicted class, int32 (n,), of each row before the step.
        """
        losses, predicted = self._step(pixels, labels, weights)
        return losses.numpy(), predicted.numpy()

    def evaluate(self, pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what ``step`` returns, without training; the label -1 (not a class of the head) has probability 0."""
        scores = self._scores(pixels).numpy()
        probabilities = softmax(scores / self._head.arrays["temperature"])
        own = np.where(labels < 0, 0, probabilities[np.arange(len(labels)), labels])
        return -np.log(np.maximum(own, SMALLEST)), scores.argmax(axis=1)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return the features of the backbone as trained so far, float32 (n, d), for pixels uint8 (n, s, s, 3)."""
        return self._model(pixels, training=False).numpy()

    def weights(self) -> list[np.ndarray]:
        """Return the values of all trained variables."""
        return [variable.numpy() for variable in self._trained]

    def set_weights(self, weights: list[np.ndarray]) -> None:
        """Set all trained variables to values that ``weights`` returned."""
        for variable, value in zip(self._trained, weights, strict=True):
            variable.assign(value)

    def momenta(self) -> list[np.ndarray]:
        """Return the optimizer's state."""
        return [variable.numpy() for variable in self._optimizer.variables]

    def set_momenta(self, momenta: list[np.ndarray]) -> None:
        """Set the optimizer's state to values that ``momenta`` returned."""
        for variable, value in zip(self._optimizer.variables, momenta, strict=True):
            variable.assign(value)

    def head(self) -> Head:
        """Return the head with its current weights."""
        arrays = {
            name: array
            for pair, layer in zip(self._head.layer_arrays, self._dense, strict=True)
            for name, array in zip(pair, layer.get_weights(), strict=True)
        }
        return replace(self._head, arrays={**self._head.arrays, **arrays})

    def save_backbone(self, path: Path) -> None:
        """Write the current weights of the whole backbone in Keras's format; ``path`` must end in .weights.h5."""
        self._network.save_weights(path)
