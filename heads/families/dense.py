"""Dense nets: fully connected ReLU layers with dropout, trained many at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from heads.base import Head, Problem, SharedProblem, check_param, class_weights, dense_layer, is_count, is_number
from heads.families.base import Family, Fit
from heads.solvers import nets, optimizers

OPTIMIZERS = tuple(optimizers.OPTIMIZERS)
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


def fit_dense_nets(problems: Iterable[tuple[Problem, Mapping[str, Any]]]) -> Iterator[Fit]:
    """Train a dense net per problem, as many at a time as there are cores; yield each as soon as it is done.

    A problem is taken when a core is free for it, so a generator of problems needs memory only for those in training.
    Give the longest first. Nets come out bit-equal whatever is trained beside them and on how many cores. Whoever stops
    to iterate ends the nets in training, within an epoch. ``Problem.on_epoch`` is called in other threads.

    Args:
        problems: each with the parameters of its net.

    Raises:
        UsageError: an invalid parameter, when its problem is taken.
    """
    for trained in nets.train(_net(problem, DenseParams(**params)) for problem, params in problems):
        arrays = {
            f"{kind}{i}": array
            for i, layer in enumerate(trained.layers)
            for kind, array in zip(("kernel", "bias"), layer, strict=True)
        }
        yield Fit(trained.net, arrays, trained.seconds, trained.error)


def fit_dense(problem: Problem, **params: Any) -> dict[str, np.ndarray]:
    """Minimise cross-entropy; stop ``patience`` epochs after the best validation loss; see ``DenseParams``.

    The weights of the best validation loss are kept, also with ``patience`` 0, which never stops before the last
    epoch. The accuracies passed to ``problem.on_epoch`` are shares of right predictions. Those of the training rows are
    measured during the epoch and with dropout, as Keras does. All randomness comes from the seed.
    """
    (fit,) = fit_dense_nets([(problem, params)])
    if fit.error is not None:
        raise fit.error
    return fit.arrays


def _net(problem: Problem, asked: DenseParams) -> nets.Net:
    asked.check()
    rows, rows_val, standard = np.arange(len(problem.y)), np.arange(len(problem.y_val)), None
    if isinstance(problem, SharedProblem):
        rows, rows_val, standard = problem.rows, problem.rows_val, (problem.mean, problem.scale)
    return nets.Net(
        fitted=nets.Samples(problem.X, problem.y, rows),
        scored=nets.Samples(problem.X_val, problem.y_val, rows_val),
        standard=standard,
        class_weights=class_weights(problem.y[rows], problem.n_classes, problem.class_weight),
        seed=problem.seed,
        on_epoch=problem.on_epoch,
        **vars(asked),
    )


DENSE = Family(
    "dense net: hidden ReLU layers with dropout, early stopping on validation",
    fit_dense,
    DenseHead,
    defaults=asdict(DenseParams()),
    grid=({"hidden": [256]}, {"hidden": [512, 256], "dropout": 0.5}),
    check=check_dense,
    version=3,  # 1 was Keras's trainer, 2 multiplied in smaller blocks
    random=True,
    fit_many=fit_dense_nets,
)
