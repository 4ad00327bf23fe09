"""A fitted head as Keras layers, for what runs outside numpy: exported models and fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heads.backend import import_keras
from heads.base import Head

if TYPE_CHECKING:
    import keras


def as_layers(head: Head) -> keras.Model:
    """The head's scores: raw features float32 (n, d) → float32 (n, c), equal to ``head.scores``.

    Standardisation comes first, as constants and not folded into a kernel, where the mean of a column
    that hardly varies would cancel in float32. The Dense layers of linear and dense heads are trainable
    and named ``dense0``, ``dense1``, …, in the order of the head's own arrays.

    Raises:
        HeadError: a head of this family cannot become layers.
    """
    keras = import_keras()
    features = keras.Input((len(head.arrays["mean"]),), dtype="float32", name="features")
    X = (features - head.arrays["mean"]) / head.arrays["scale"]
    return keras.Model(features, head.to_layers(keras, X), name="scores")


def with_probabilities(head: Head) -> keras.Model:
    """Raw features float32 (n, d) → float32 (n, c), equal to ``head.probabilities``.

    Raises:
        HeadError: a head of this family cannot become layers.
    """
    keras = import_keras()
    scores = as_layers(head)
    cooled = scores.output / head.arrays["temperature"].item()
    return keras.Model(scores.input, keras.ops.softmax(cooled), name="probabilities")
