"""A fitted head as Keras layers, for what runs outside numpy: exported models and fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import HeadError
from heads.backend import import_keras
from heads.base import Head
from heads.families.dense import DenseHead
from heads.families.linear import LinearHead
from heads.families.svm import RBFHead

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
    if isinstance(head, LinearHead):
        scores = _dense("dense0", X, head.arrays["coef"], head.arrays["intercept"])
    elif isinstance(head, DenseHead):
        scores = _stack(head, X)
    elif isinstance(head, RBFHead):
        scores = _machines(head, X)
    else:
        raise HeadError(
            f"A {head.family} head cannot become layers, its neighbours are no smooth function of the features: "
            "train ncm, logreg, svm, rbf-svm or dense."
        )
    return keras.Model(features, scores, name="scores")


def with_probabilities(head: Head) -> keras.Model:
    """Raw features float32 (n, d) → float32 (n, c), equal to ``head.probabilities``.

    Raises:
        HeadError: a head of this family cannot become layers.
    """
    keras = import_keras()
    scores = as_layers(head)
    cooled = scores.output / head.arrays["temperature"].item()
    return keras.Model(scores.input, keras.ops.softmax(cooled), name="probabilities")


def _dense(name: str, X: Any, kernel: np.ndarray, bias: np.ndarray, activation: str | None = None) -> Any:
    """``activation(X @ kernel + bias)`` as a layer that starts from these numbers."""
    keras = import_keras()
    layer = keras.layers.Dense(kernel.shape[1], activation=activation, dtype="float32", name=name)
    Y = layer(X)
    layer.set_weights([kernel, bias])
    return Y


def _stack(head: DenseHead, X: Any) -> Any:
    """The net as it was trained: dropout is there for whoever trains it further."""
    keras = import_keras()
    last = len(head.params["hidden"])
    for i in range(last):
        X = _dense(f"dense{i}", X, head.arrays[f"kernel{i}"], head.arrays[f"bias{i}"], "relu")
        X = keras.layers.Dropout(head.params["dropout"], name=f"dropout{i}")(X)
    return _dense(f"dense{last}", X, head.arrays[f"kernel{last}"], head.arrays[f"bias{last}"])


def _machines(head: RBFHead, X: Any) -> Any:
    """The one-vs-one machines of ``RBFHead``, their votes and margins; nothing in them is trainable."""
    ops = import_keras().ops
    vectors, dual, ends = head.arrays["vectors"], head.arrays["dual"], head.arrays["ends"]
    squared = ops.sum(X * X, axis=1, keepdims=True) + _dense("vectors", X, -2 * vectors.T, (vectors**2).sum(axis=1))
    kernel = ops.exp(-head.arrays["gamma"].item() * ops.relu(squared))
    c = len(head.classes)
    i, j = np.triu_indices(c, 1)  # the pairs in their order
    starts = [0, *ends[:-1]]
    parts = [
        _dense(f"machines{k}", kernel[:, start:end], dual[:, start:end].T, np.zeros(c - 1))
        for k, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
    columns = ops.concatenate(parts, axis=1)  # c - 1 a class: the machines against the others
    margin = ops.take(columns, i * (c - 1) + j - 1, axis=1) + ops.take(columns, j * (c - 1) + i, axis=1)
    margin = margin + head.arrays["intercept"].astype(np.float32)
    pairs = np.arange(len(i))
    won, lost = np.zeros((2, len(i), c), np.float32)
    won[pairs, i] = lost[pairs, j] = 1
    margins = margin @ (won - lost)
    if c == 2:
        return margins
    first = ops.cast(margin >= 0, "float32")
    votes = first @ won + (1 - first) @ lost
    return votes + margins / (3 * (ops.abs(margins) + 1))
