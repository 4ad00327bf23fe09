"""The base of all heads: a fitted head is class names and arrays, and predicts with numpy alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.errors import HeadError, UsageError

SCALE_FLOOR = 0.1
MAX_FLOAT = sys.float_info.max
MAX_COUNT = 2**31 - 1
CHUNK_ROWS = 2048  # rows scored at a time, so that prediction needs little memory besides X

ClassWeight = str | tuple[float, ...] | None


@dataclass(frozen=True)
class Problem:
    """The input of a family's fit.

    Attributes:
        X: float32 (n, d), standardised.
        y: int (n,), indices of classes, each of 0..n_classes-1 at least once.
        n_classes: number of classes, at least 2.
        class_weight: None or "balanced".
        seed: of everything random in the fit.
        X_val: float32 (m, d), standardised; m may be 0.
        y_val: int (m,), indices of classes.
        on_epoch: a fit with epochs calls it with the values of each, see ``Head.history``.
    """

    X: np.ndarray
    y: np.ndarray
    n_classes: int
    class_weight: str | None
    seed: int
    X_val: np.ndarray
    y_val: np.ndarray
    on_epoch: Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class SharedProblem(Problem):
    """A problem whose matrices other problems share, such as one fold of several: no copy of them is made.

    Attributes:
        X, X_val: float32, not standardised; may be the same.
        rows, rows_val: int (k,) and (m,), the rows of X and y to fit, and those of X_val and y_val. Only the y of these
            are indices of classes.
        mean, scale: float32 (d,), as ``standardisation`` gives them for the rows to fit.
    """

    rows: np.ndarray
    rows_val: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class Head:
    """A fitted head for d features and c classes.

    Attributes:
        family: its name in the registry.
        params: every parameter it was fitted with.
        classes: str (c,), sorted.
        arrays: all arrays it predicts from: ``mean`` and ``scale`` (d,) of the training features,
            ``temperature`` (), and those of its family.
        history: one dict per epoch of its training: "epoch" (from 1), "loss", "accuracy", and with validation rows
            "val_loss" and "val_accuracy"; values that are not finite are left out. Empty if the family has no epochs,
            and after a load.
    """

    family: str
    params: dict[str, Any]
    classes: np.ndarray
    arrays: dict[str, np.ndarray]
    history: tuple[dict[str, float], ...] = ()

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Score raw features X (n, d): return float (n, c), the largest score of a row is the predicted class.

        Raises:
            HeadError: the shape of X is not (n, d).
        """
        mean, scale = self.arrays["mean"], self.arrays["scale"]
        if X.ndim != 2 or X.shape[1] != len(mean):
            raise HeadError(f"Expected: features of shape (n, {len(mean)}). Got: {X.shape}.")
        chunks = list(slices(len(X), CHUNK_ROWS)) or [slice(0)]  # at least one, so that an empty X gives (0, c)
        return np.concatenate([self._scores(standardise(X[rows], mean, scale)) for rows in chunks])

    def to_layers(self, keras: Any, X: Any) -> Any:
        """Return the scores of standardised features X as layers of ``keras``; see ``layer_arrays``.

        Raises:
            HeadError: a head of this family cannot become layers.
        """
        raise HeadError(
            f"A {self.family} head cannot become layers, its scores are no smooth function of the features: "
            "train another, such as logreg."
        )

    @property
    def layer_arrays(self) -> list[tuple[str, str]]:
        """The names of the kernel and bias arrays of each layer that can be trained further; may be empty."""
        return []

    def probabilities(self, X: np.ndarray) -> np.ndarray:
        """Return float (n, c) with rows that sum to 1: softmax of ``scores / temperature``."""
        return self._probabilities(self.scores(X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the most likely class of each row, str (n,)."""
        return self.classes[self.scores(X).argmax(axis=1)]

    def _scores(self, X: np.ndarray) -> np.ndarray:
        """Score a chunk of standardised rows."""
        raise NotImplementedError

    def _probabilities(self, scores: np.ndarray) -> np.ndarray:
        return softmax(scores / self.arrays["temperature"])


def slices(n: int, size: int) -> Iterator[slice]:
    """Yield n consecutive rows as slices of ``size`` rows; the last may be shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def standardisation(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the scale of the columns, float32 (d,).

    The scale is the population standard deviation, but at least a tenth of the upper quartile of all columns'
    deviations. Otherwise a channel that is almost constant on the training rows could get huge values on another image
    (hundreds of standard deviations on scikit-learn's digits). A scale that is still 0 becomes 1.
    """
    return X.mean(axis=0, dtype=np.float64).astype(np.float32), floored(X.std(axis=0, dtype=np.float64))


def floored(deviations: np.ndarray) -> np.ndarray:
    """Return standard deviations (d,) as the scale that ``standardisation`` describes, float32 (d,)."""
    scale = np.maximum(deviations, SCALE_FLOOR * np.quantile(deviations, 0.75)).astype(np.float32)
    scale[scale == 0] = 1
    return scale


def standardise(X: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return ``(X - mean) / scale`` as float32."""
    out = np.subtract(X, mean, dtype=np.float32)
    out /= scale
    return out


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the softmax of each row."""
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def fit_temperature(scores: np.ndarray, y: np.ndarray) -> float:
    """Return the T at which ``softmax(scores / T)`` fits the labels y best; 1 without rows.

    Temperature scaling of Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599), with the
    softened targets of Platt 1999: the true class gets ``1 - 1 / (n + 2)`` and the others share the rest. So a
    validation split without a mistake does not make every probability 1.

    Args:
        scores: (n, c), of rows that the head was not fitted on.
        y: int (n,), indices of the true classes.
    """
    from scipy.optimize import minimize_scalar

    n, c = scores.shape
    if n == 0:
        return 1.0
    rest = 1 / (n + 2) / (c - 1)
    targets = np.full((n, c), rest)
    targets[np.arange(n), y] = 1 - rest * (c - 1)

    def loss(log_t: float) -> float:
        z = scores / np.exp(log_t)
        z = z - z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return -float((targets * log_p).sum()) / n

    unit = float(np.log(scores.std() + 1e-12))  # scores may be of any size: search around their own spread
    return float(np.exp(minimize_scalar(loss, bounds=(unit - 7, unit + 7), method="bounded").x))


def coded(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes of labels y, str (n,), sorted, and the labels as indices of them, int (n,).

    Raises:
        HeadError: fewer than two classes.
    """
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise HeadError(f"Expected: training labels of at least two classes. Got: {', '.join(classes)!r}.")
    return classes, codes


def class_weights(y: np.ndarray, n_classes: int, kind: ClassWeight) -> np.ndarray:
    """Return the weight of each class's rows, float32 (c,).

    It is 1 for None, ``n / (c * count)`` for "balanced" (0 if no rows), and else as given, one per class.
    """
    if kind is None:
        return np.ones(n_classes, np.float32)
    if kind != "balanced":
        return np.array(kind, np.float32)
    counts = np.bincount(y, minlength=n_classes)
    return np.where(counts > 0, len(y) / (n_classes * np.maximum(counts, 1)), 0).astype(np.float32)


def check_param(good: bool, name: str, value: object, expected: str) -> None:
    """Raise UsageError for a parameter's value unless it is ``good``.

    Raises:
        UsageError: ``good`` is false.
    """
    if not good:
        raise UsageError(f"Parameter {name}: Expected: {expected}. Got: {value!r}.")


def is_number(value: object) -> bool:
    """Return whether a value is an int or float, not a bool, and finite as a float64."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_FLOAT


def is_count(value: object, most: int = MAX_COUNT) -> bool:
    """Return whether a value is an int, not a bool, from 1 to ``most``."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def dense_layer(
    keras: Any, name: str, X: Any, kernel: np.ndarray, bias: np.ndarray, activation: str | None = None
) -> Any:
    """Return ``activation(X @ kernel + bias)`` as a Keras layer that starts from these arrays."""
    layer = keras.layers.Dense(kernel.shape[1], activation=activation, dtype="float32", name=name)
    Y = layer(X)
    layer.set_weights([kernel, bias])
    return Y
