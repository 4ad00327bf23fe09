"""Fitted heads as Keras models, for exported models and for fine-tuning; elsewhere heads compute in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heads.backend import import_keras
from heads.base import Head

if TYPE_CHECKING:
    import keras


def as_layers(head: Head) -> keras.Model:
    """Return a model of ``head.scores``: raw features float32 (n, d) → scores float32 (n, c).

    The model standardises its input with constants first. Folding them into a kernel would lose precision: the
    mean of a column that hardly varies would cancel in float32. The Dense layers of linear and dense heads are
    trainable and named ``dense0``, ``dense1``, …, in the order of the head's arrays.

    Raises:
        HeadError: heads of this family cannot become layers.
    """
    keras = import_keras()
    features = keras.Input((len(head.arrays["mean"]),), dtype="float32", name="features")
    X = (features - head.arrays["mean"]) / head.arrays["scale"]
    return keras.Model(features, head.to_layers(keras, X), name="scores")


def with_probabilities(head: Head) -> keras.Model:
    """Return a model of ``head.probabilities``: raw features float32 (n, d) → probabilities float32 (n, c).

    Raises:
        HeadError: heads of this family cannot become layers.
    """
    keras = import_keras()
    scores = as_layers(head)
    cooled = scores.output / head.arrays["temperature"].item()
    return keras.Model(scores.input, keras.ops.softmax(cooled), name="probabilities")
