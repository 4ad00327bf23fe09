"""Dense nets: fully connected ReLU layers with dropout, trained by Keras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from heads.backend import import_keras
from heads.base import Head, Problem, check_param, class_weights, dense_layer, is_count, is_number
from heads.families.base import Family

OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd")
MAX_EPOCHS = 100_000
MAX_LAYERS, MAX_WIDTH = 16, 2**16  # of hidden layers: a kernel between two of this width takes 16 GiB
MAX_BATCH_ROWS = 2**20


@dataclass(frozen=True)
class DenseParams:
    """The parameters of a dense net, with their defaults.

    Attributes:
        hidden: widths of the hidden layers.
        dropout: share of each hidden layer that is left out in a step.
        optimizer: one of ``OPTIMIZERS``.
        learning_rate: of the optimizer.
        epochs: the most passes over the training rows.
        batch_size: rows per step.
        patience: epochs without a better validation loss after which a fit ends; 0 never ends early.
    """

    hidden: Sequence[int] = field(default_factory=lambda: [256])
    dropout: float = 0.3
    optimizer: str = "adam"
    learning_rate: float = 0.001
    epochs: int = 60
    batch_size: int = 64
    patience: int = 6

    def check(self) -> None:
        """Raise UsageError for an invalid parameter."""
        hidden, dropout, rate, patience = self.hidden, self.dropout, self.learning_rate, self.patience
        widths = isinstance(hidden, list | tuple) and all(is_count(width, MAX_WIDTH) for width in hidden)
        check_param(
            widths and len(hidden) <= MAX_LAYERS,
            "hidden",
            hidden,
            f"a list of up to {MAX_LAYERS} layer widths, whole numbers above 0, up to {MAX_WIDTH:,}",
        )
        check_param(is_number(dropout) and 0 <= dropout < 1, "dropout", dropout, "a number from 0 to below 1")
        check_param(self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, "one of " + ", ".join(OPTIMIZERS))
        check_param(is_number(rate) and rate > 0, "learning_rate", rate, "a number above 0")
        for name, value, most in (("epochs", self.epochs, MAX_EPOCHS), ("batch_size", self.batch_size, MAX_BATCH_ROWS)):
            check_param(is_count(value, most), name, value, f"a whole number above 0, up to {most:,}")
        no_stop = patience == 0 and is_number(patience)
        check_param(
            no_stop or is_count(patience, MAX_EPOCHS),
            "patience",
            patience,
            f"a whole number up to {MAX_EPOCHS:,}, 0 to never stop early",
        )


@dataclass(frozen=True)
class DenseHead(Head):
    """A dense net: arrays ``kernel0`` (d, h), ``bias0`` (h,), ``kernel1`` … up to the class logits, ReLU in between."""

    def _scores(self, X: np.ndarray) -> np.ndarray:
        last = len(self.params["hidden"])
        for i in range(last):
            X = np.maximum(X @ self.arrays[f"kernel{i}"] + self.arrays[f"bias{i}"], 0)
        return X @ self.arrays[f"kernel{last}"] + self.arrays[f"bias{last}"]

    def to_layers(self, keras: Any, X: Any) -> Any:
        """Return the net as it was trained, with its dropout, which matters if it is trained further."""
        *hidden, last = self.layer_arrays
        for i, (kernel, bias) in enumerate(hidden):
            X = dense_layer(keras, f"dense{i}", X, self.arrays[kernel], self.arrays[bias], "relu")
            X = keras.layers.Dropout(self.params["dropout"], name=f"dropout{i}")(X)
        return dense_layer(keras, f"dense{len(hidden)}", X, self.arrays[last[0]], self.arrays[last[1]])

    @property
    def layer_arrays(self) -> list[tuple[str, str]]:
        """The names for the hidden layers, then for the last layer."""
        return [(f"kernel{i}", f"bias{i}") for i in range(len(self.params["hidden"]) + 1)]


def check_dense(**params: Any) -> None:
    """Raise UsageError for invalid parameters of a dense net."""
    DenseParams(**params).check()


def fit_dense(problem: Problem, **params: Any) -> dict[str, np.ndarray]:
    """Minimise cross-entropy; stop ``patience`` epochs after the best validation loss; see ``DenseParams``.

    The weights of the best validation loss are kept, also with ``patience`` 0, which never stops before the last
    epoch. The accuracies passed to ``problem.on_epoch`` are shares of right predictions. Those of the training rows are
    measured during the epoch and with dropout, as Keras does.

    All randomness comes from the seed: initialisation, dropout and the order of rows are seeded here, not through
    Keras's process-wide generator, so that fits may run in parallel.
    """
    asked = DenseParams(**params)
    asked.check()
    keras = import_keras()
    draw = np.random.default_rng(problem.seed)
    model = _net(keras, problem, asked, draw)
    weights = class_weights(problem.y, problem.n_classes, problem.class_weight)[problem.y]
    has_val = len(problem.y_val) > 0
    best = keras.callbacks.EarlyStopping(patience=asked.patience or asked.epochs, restore_best_weights=True)
    tell = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: problem.on_epoch(
            {"epoch": epoch + 1, **{name: float(value) for name, value in logs.items() if np.isfinite(value)}}
        )
    )
    model.fit(
        _batches(problem, weights, asked.batch_size, draw),
        epochs=asked.epochs,
        validation_data=(problem.X_val, problem.y_val) if has_val else None,
        validation_batch_size=1024,
        callbacks=[tell, best] if has_val else [tell],
        shuffle=False,  # our data set shuffles, from the seed
        verbose=0,
    )
    layers = [layer.get_weights() for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    return {
        f"{kind}{i}": array
        for i, layer in enumerate(layers)
        for kind, array in zip(("kernel", "bias"), layer, strict=True)
    }


def _net(keras: Any, problem: Problem, asked: DenseParams, draw: np.random.Generator) -> Any:
    """Return a compiled Keras model with new weights; ``draw`` seeds each layer."""

    def seed() -> int:
        return int(draw.integers(2**31))

    def dense(width: int, activation: str | None = None) -> Any:
        initializer = keras.initializers.GlorotUniform(seed=seed())
        return keras.layers.Dense(width, activation=activation, kernel_initializer=initializer)

    stack = [keras.Input((problem.X.shape[1],))]
    for width in asked.hidden:
        stack += [dense(width, "relu"), keras.layers.Dropout(asked.dropout, seed=seed())]
    model = keras.Sequential([*stack, dense(problem.n_classes)])
    model.compile(
        optimizer=keras.optimizers.get(
            {"class_name": asked.optimizer, "config": {"learning_rate": asked.learning_rate}},
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _batches(problem: Problem, weights: np.ndarray, batch_size: int, draw: np.random.Generator) -> Any:
    """Return a Keras data set of (X, y, weight) batches, with the rows in a new order each epoch."""
    import keras

    class Batches(keras.utils.PyDataset):
        def __init__(self) -> None:
            super().__init__()
            self.on_epoch_end()

        def __len__(self) -> int:
            return -(-len(problem.y) // batch_size)

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            rows = self.order[index * batch_size : (index + 1) * batch_size]
            return problem.X[rows], problem.y[rows], weights[rows]

        def on_epoch_end(self) -> None:
            self.order = draw.permutation(len(problem.y))

    return Batches()


DENSE = Family(
    "dense net: hidden ReLU layers with dropout, early stopping on validation",
    fit_dense,
    DenseHead,
    defaults=asdict(DenseParams()),
    grid=({"hidden": [256]}, {"hidden": [512, 256], "dropout": 0.5}),
    check=check_dense,
    random=True,
)
