"""The optimisers of nets, with the formulas and defaults of Keras 3 (``keras/src/optimizers``), in place.

Adam's and RMSprop's moving averages are kept as sums, without Keras's factor ``1 - decay``, which is part of a constant
of the step instead: one pass over memory less per average.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EPSILON = 1e-7
MEAN_DECAY, SQUARE_DECAY = 0.9, 0.999  # of Adam
WEIGHT_DECAY = 0.004  # of AdamW, times the learning rate
RMS_DECAY = 0.9

Update = Callable[..., None]


@dataclass(frozen=True)
class Optimizer:
    """How weights follow their gradient.

    Attributes:
        sums: how many arrays it keeps beside the weights, each as large and at first 0.
        step: takes the learning rate and the number of a step, from 1; returns the update of that step. An update takes
            arrays of one shape, float32: weights, their gradient, room for numbers, and the sums. It changes the
            weights and the sums, and overwrites the others.
    """

    sums: int
    step: Callable[[float, int], Update]


def adam(rate: float, step: int, weight_decay: float = 0.0, epsilon: float = EPSILON) -> Update:
    """Return the update of one step of Adam, or with a weight decay of AdamW; see ``Optimizer.step``.

    Kingma & Ba 2015, "Adam" (arXiv:1412.6980); Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"
    (arXiv:1711.05101).
    """
    unbiased = math.sqrt(1 - SQUARE_DECAY**step) / (1 - MEAN_DECAY**step)
    root = math.sqrt(1 - SQUARE_DECAY)
    factor, least = rate * unbiased * (1 - MEAN_DECAY) / root, epsilon / root

    def update(W: np.ndarray, G: np.ndarray, room: np.ndarray, mean: np.ndarray, square: np.ndarray) -> None:
        if weight_decay:
            np.multiply(W, 1 - weight_decay * rate, out=W)
        np.multiply(mean, MEAN_DECAY, out=mean)
        np.add(mean, G, out=mean)
        np.multiply(G, G, out=G)
        np.multiply(square, SQUARE_DECAY, out=square)
        np.add(square, G, out=square)
        np.sqrt(square, out=room)
        np.add(room, least, out=room)
        np.divide(mean, room, out=room)
        np.multiply(room, factor, out=room)
        np.subtract(W, room, out=W)

    return update


def _adamw(rate: float, step: int) -> Update:
    return adam(rate, step, WEIGHT_DECAY)


def _rmsprop(rate: float, step: int) -> Update:
    factor, epsilon = rate / math.sqrt(1 - RMS_DECAY), EPSILON / (1 - RMS_DECAY)

    def update(W: np.ndarray, G: np.ndarray, room: np.ndarray, square: np.ndarray) -> None:
        np.multiply(G, G, out=room)
        np.multiply(square, RMS_DECAY, out=square)
        np.add(square, room, out=square)
        np.add(square, epsilon, out=room)
        np.sqrt(room, out=room)
        np.divide(G, room, out=room)
        np.multiply(room, factor, out=room)
        np.subtract(W, room, out=W)

    return update


def _sgd(rate: float, step: int) -> Update:
    def update(W: np.ndarray, G: np.ndarray, room: np.ndarray) -> None:
        np.multiply(G, rate, out=G)
        np.subtract(W, G, out=W)

    return update


OPTIMIZERS = {
    "adam": Optimizer(2, adam),
    "adamw": Optimizer(2, _adamw),
    "rmsprop": Optimizer(1, _rmsprop),
    "sgd": Optimizer(0, _sgd),
}
