"""The trainer of dense nets, in float32: each net in one thread, as many at a time as there are cores.

In a step, nearly all work is on the first kernel: the product with the batch, the gradient, the optimiser. Gradient and
optimiser go through a kernel in blocks of rows that stay in a core's cache: the gradient of a block is used before that
of the next is computed, and no gradient is ever held whole. In float32 there is little left to gain: of a step of
1280-512-256 the products, which run at what the processor can, are 56 %, the optimiser 33 %, of it a third the square
root.

Nets share the matrices of features. They do not share products: a net has its own order of rows, and products of
stacked batches take as long as one after another. So a net's numbers depend on its seed and its rows alone, not on
which nets are trained beside it, nor on the number of cores. BLAS would break that: with two threads, products of some
shapes differ in their last bits. A lone net therefore takes one core.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from featurestore.machine import available_cores
from heads.base import slices
from heads.solvers.blas import one_blas_thread
from heads.solvers.optimizers import OPTIMIZERS, Update

BLOCK_NUMBERS = 1 << 17  # weights updated at a time, with gradient and sums 2.5 MiB; products of fewer rows are slower
SCORED_ROWS = 256  # validation rows scored at a time


@dataclass(frozen=True)
class Samples:
    """Rows of a matrix that others may share: X float32 (n, d), y int (n,) from 0, and the rows' numbers int (k,)."""

    X: np.ndarray
    y: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Net:
    """A net to train, and on what.

    Attributes:
        fitted: at least one row.
        scored: validation rows; may be none.
        standard: the mean and the scale of the features, float32 (d,) each; None if they are standardised.
        class_weights: float32 (c,), of the rows of each class.
        hidden, dropout, optimizer, learning_rate, epochs, batch_size, patience: see ``DenseParams``.
        seed: of everything random.
        on_epoch: see ``heads.base.Problem``; called in another thread.
    """

    fitted: Samples
    scored: Samples
    standard: tuple[np.ndarray, np.ndarray] | None
    class_weights: np.ndarray
    hidden: Sequence[int]
    dropout: float
    optimizer: str
    learning_rate: float
    epochs: int
    batch_size: int
    patience: int
    seed: int
    on_epoch: Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class TrainedNet:
    """A trained net: its number, the kernel and the bias of each layer, seconds; or the ``error`` that ended it."""

    net: int
    layers: list[tuple[np.ndarray, np.ndarray]]
    seconds: float
    error: Exception | None = None


def train(nets: Iterable[Net]) -> Iterator[TrainedNet]:
    """Train nets; yield each as soon as it is done.

    A net is taken from ``nets`` when a core is free for it. Whoever stops to iterate ends the nets in training, within
    an epoch.
    """
    workers, given, stop = available_cores(), enumerate(nets), threading.Event()
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:

        def begin(most: int) -> set[Future[TrainedNet]]:
            return {pool.submit(_train, number, net, stop) for number, net in islice(given, most)}

        try:
            running = begin(workers)
            while running:
                done = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
                running = (running - {done}) | begin(1)
                yield done.result()
        finally:
            stop.set()


def _train(number: int, net: Net, stop: threading.Event) -> TrainedNet:
    """Train a net to its end, or until ``stop`` is set."""
    began = time.perf_counter()
    try:
        with np.errstate(all="ignore"):  # a rate that is too high ends in weights that are not finite
            layers = _Training(net).run(stop)
    except Exception as error:  # one net that fails, for want of memory, must not cost the others
        return TrainedNet(number, [], time.perf_counter() - began, error)
    return TrainedNet(number, layers, time.perf_counter() - began)


class _Layer:
    """The kernel (k, h) and bias (h,) of a layer, and the blocks that both are updated in."""

    def __init__(self, kernel: np.ndarray, sums: int, room: np.ndarray) -> None:
        """``sums``: of the optimiser; ``room``: at least (2, BLOCK_NUMBERS) and (2, h)."""
        self.kernel, self.bias = kernel, np.zeros(kernel.shape[1], np.float32)
        self.bias_sums = [np.zeros_like(self.bias) for _ in range(sums)]
        kernel_sums = [np.zeros_like(kernel) for _ in range(sums)]
        self._bias_room = room[:, : len(self.bias)]
        self._blocks = []
        for rows in slices(len(kernel), max(1, BLOCK_NUMBERS // kernel.shape[1])):
            part = kernel[rows]
            gradient, more = (numbers[: part.size].reshape(part.shape) for numbers in room)
            self._blocks.append((rows, part, gradient, more, *(total[rows] for total in kernel_sums)))

    def update(self, X: np.ndarray, D: np.ndarray, update: Update) -> None:
        """Take a step; ``X`` (b, k) was the layer's input, ``D`` (b, h) the derivatives of the loss by its output."""
        for rows, part, gradient, *others in self._blocks:
            np.matmul(X[:, rows].T, D, out=gradient)
            update(part, gradient, *others)
        gradient, more = self._bias_room
        np.add.reduce(D, axis=0, out=gradient)
        update(self.bias, gradient, more, *self.bias_sums)


class _Training:
    """A net that is being trained, and the room for its batches."""

    def __init__(self, net: Net) -> None:
        self._net, self._draw, self._steps = net, np.random.default_rng(net.seed), 0
        self._optimizer = OPTIMIZERS[net.optimizer]
        widths = [net.fitted.X.shape[1], *net.hidden, len(net.class_weights)]
        room = np.empty((2, max(BLOCK_NUMBERS, *widths[1:])), np.float32)
        self.layers = [
            _Layer(self._glorot_uniform(fan_in, fan_out), self._optimizer.sums, room)
            for fan_in, fan_out in pairwise(widths)
        ]
        rows = max(min(net.batch_size, len(net.fitted.rows)), min(SCORED_ROWS, len(net.scored.rows)))
        self._inputs = [np.empty((rows, width), np.float32) for width in widths]  # of each layer, then the logits
        self._derivatives = [np.empty((rows, width), np.float32) for width in widths[1:-1]]
        self._noise = np.empty(rows * max(net.hidden, default=0), np.float32)

    def run(self, stop: threading.Event) -> list[tuple[np.ndarray, np.ndarray]]:
        """Train to the end; return the kernels and biases of the least validation loss, or without it the last."""
        net = self._net
        weights = [(layer.kernel, layer.bias) for layer in self.layers]
        best, least, waited = weights, math.nan, 0
        for epoch in range(1, net.epochs + 1):
            told = self._epoch()
            if len(net.scored.rows):
                told |= self._score()
            finite = {name: value for name, value in told.items() if math.isfinite(value)}
            net.on_epoch({"epoch": epoch, **finite})
            if len(net.scored.rows):
                waited += 1
                if epoch == 1 or told["val_loss"] < least:
                    least, waited = told["val_loss"], 0
                    best = [(kernel.copy(), bias.copy()) for kernel, bias in weights]
                if waited == net.patience > 0:
                    break
            if stop.is_set():
                break
        return best

    def _epoch(self) -> dict[str, float]:
        """Take a step per batch, over all rows in a new order; return the loss and accuracy that the steps had."""
        net, loss, right = self._net, 0.0, 0
        order = net.fitted.rows[self._draw.permutation(len(net.fitted.rows))]
        for batch in slices(len(order), net.batch_size):
            rows = order[batch]
            logits, y = self._forward(net.fitted.X, rows, self._draw), net.fitted.y[rows]
            weights = net.class_weights[y]
            losses, hits = _cross_entropy(logits, y)
            loss += float(losses @ weights)
            right += hits
            logits *= (weights / len(rows))[:, None]  # Keras's sum_over_batch_size
            self._step(logits)
        return {"loss": loss / len(order), "accuracy": right / len(order)}

    def _score(self) -> dict[str, float]:
        """Return the loss and accuracy on the validation rows, all of weight 1."""
        scored, loss, right = self._net.scored, 0.0, 0
        for part in slices(len(scored.rows), SCORED_ROWS):
            rows = scored.rows[part]
            losses, hits = _cross_entropy(self._forward(scored.X, rows), scored.y[rows])
            loss += float(losses.sum())
            right += hits
        return {"val_loss": loss / len(scored.rows), "val_accuracy": right / len(scored.rows)}

    def _forward(self, X: np.ndarray, rows: np.ndarray, draw: np.random.Generator | None = None) -> np.ndarray:
        """Return the logits of some rows (b, c); ``draw`` is for dropout."""
        inputs = [each[: len(rows)] for each in self._inputs]
        np.take(X, rows, axis=0, out=inputs[0], mode="clip")  # "raise" would go through another buffer
        if self._net.standard is not None:
            mean, scale = self._net.standard
            np.subtract(inputs[0], mean, out=inputs[0])
            np.divide(inputs[0], scale, out=inputs[0])
        for layer, (ins, outs) in zip(self.layers, pairwise(inputs), strict=True):
            np.matmul(ins, layer.kernel, out=outs)
            np.add(outs, layer.bias, out=outs)
            if layer is not self.layers[-1]:
                np.maximum(outs, 0, out=outs)
                if draw is not None:
                    self._drop(outs, draw)
        return inputs[-1]

    def _drop(self, values: np.ndarray, draw: np.random.Generator) -> None:
        """Set a share of the values to 0, and scale the others so that the expected sum stays."""
        kept = 1 - self._net.dropout
        if kept < 1:
            noise = self._noise[: values.size].reshape(values.shape)
            draw.random(out=noise, dtype=np.float32)
            np.add(noise, kept, out=noise)
            np.floor(noise, out=noise)  # 1 in a share of ``kept``, else 0
            np.multiply(noise, 1 / kept, out=noise)
            np.multiply(values, noise, out=values)

    def _step(self, D: np.ndarray) -> None:
        """Update all layers; ``D`` (b, c) are the derivatives of the batch's loss by the logits."""
        self._steps += 1
        update = self._optimizer.step(self._net.learning_rate, self._steps)
        for at in reversed(range(len(self.layers))):
            layer, X, derivatives = self.layers[at], self._inputs[at][: len(D)], D
            if at > 0:
                D = np.matmul(D, layer.kernel.T, out=self._derivatives[at - 1][: len(D)])
            layer.update(X, derivatives, update)
            if at > 0:
                D *= X > 0  # of ReLU, and of dropout but for its scale
                if self._net.dropout:
                    D *= 1 / (1 - self._net.dropout)

    def _glorot_uniform(self, fan_in: int, fan_out: int) -> np.ndarray:
        """Return a new kernel, float32 (fan_in, fan_out)."""
        limit = math.sqrt(6 / (fan_in + fan_out))
        kernel = self._draw.random((fan_in, fan_out), np.float32)
        kernel *= 2 * limit
        kernel -= limit
        return kernel


def _cross_entropy(Z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the loss of each row of logits Z (b, c) and the number of right predictions.

    Overwrites the logits with the derivatives of each row's loss by them.
    """
    rows = np.arange(len(y))
    right = int((Z.argmax(axis=1) == y).sum())
    Z -= Z.max(axis=1, keepdims=True)
    own = Z[rows, y]
    np.exp(Z, out=Z)
    total = Z.sum(axis=1)
    Z /= total[:, None]
    Z[rows, y] -= 1
    return np.log(total) - own, right
