"""How much faster many dense nets are trained than as many Keras fits side by side.

Eight nets of each shape, which differ in seed and dropout, for the same number of epochs on the same rows. Keras fits
arrays with ``model.fit`` in as many processes as there are cores, of one thread each: plainly, and with the fastest
setting of those tried, which were ``steps_per_execution`` of 1, 16 and an epoch, with XLA and without (Keras leaves it
out here, and with it steps took four times as long). Imports, and the start of processes, are not timed; the building
and tracing of each model is, as each fit needs it.

    python -m benchmarks.nets
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.report import show
from featurestore.machine import available_cores
from heads.backend import import_keras, import_tensorflow
from heads.base import Problem, standardisation, standardise
from heads.families.dense import fit_dense_nets

ROWS, WIDTH, CLASSES, SCORED = 5000, 1280, 98, 1500
SPREAD = 0.19  # of the class means, beside noise of 1: the nets get 70 to 80 % right
BATCH = 64
DROPOUTS = (0.2, 0.3, 0.4, 0.5)
SEEDS = (0, 1)

Fit = tuple[int, float]  # seed, dropout


@dataclass(frozen=True)
class Taken:
    """Of all fits together: seconds, processor seconds, and the validation accuracy of each after its last epoch."""

    seconds: float
    processor: float
    accuracies: list[float]


def problem() -> Problem:
    """Classes of Gaussian noise around their means, standardised."""
    draw = np.random.default_rng(0)
    means = SPREAD * draw.standard_normal((CLASSES, WIDTH), np.float32)
    y = draw.permutation(np.arange(ROWS + SCORED) % CLASSES)
    X = means[y] + draw.standard_normal((len(y), WIDTH), np.float32)
    X = standardise(X, *standardisation(X[:ROWS]))
    return Problem(X[:ROWS], y[:ROWS], CLASSES, None, 0, X[ROWS:], y[ROWS:], lambda _: None)


def keras_fit(hidden: Sequence[int], fit: Fit, epochs: int, steps: int) -> tuple[float, float]:
    """Train with Keras in a worker; return processor seconds, and the validation accuracy after the last epoch."""
    keras, data, (seed, dropout), began = import_keras(), _data, fit, time.process_time()
    layers: list[Any] = [keras.Input((data.X.shape[1],))]
    for at, width in enumerate(hidden):
        initializer = keras.initializers.GlorotUniform(seed=100 * seed + at)
        layers += [keras.layers.Dense(width, "relu", kernel_initializer=initializer)]
        layers += [keras.layers.Dropout(dropout, seed=100 * seed + at)]
    initializer = keras.initializers.GlorotUniform(seed=100 * seed + 99)
    model = keras.Sequential([*layers, keras.layers.Dense(data.n_classes, kernel_initializer=initializer)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"], steps_per_execution=steps)
    scored = (data.X_val, data.y_val)
    told = model.fit(
        data.X, data.y, batch_size=BATCH, epochs=epochs, validation_data=scored, validation_batch_size=1024, verbose=0
    )
    return time.process_time() - began, float(told.history["val_accuracy"][-1])


_data: Problem  # of a worker process


def prepare() -> None:
    """In a worker process: one core, Keras imported, the rows at hand."""
    global _data
    tensorflow = import_tensorflow()
    tensorflow.config.threading.set_intra_op_parallelism_threads(1)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    import_keras()
    _data = problem()


def idle(seconds: float) -> int:
    """Keep a worker busy, so that the others start too."""
    time.sleep(seconds)
    return os.getpid()


def keras_in_processes(hidden: Sequence[int], fits: Sequence[Fit], epochs: int, steps: int = 1) -> Taken:
    spawn, cores = multiprocessing.get_context("spawn"), available_cores()
    with ProcessPoolExecutor(cores, spawn, initializer=prepare) as pool:
        list(pool.map(idle, [1.0] * cores))
        began = time.perf_counter()
        futures = [pool.submit(keras_fit, hidden, fit, epochs, steps) for fit in fits]
        processor, accuracies = zip(*(future.result() for future in futures), strict=True)
        return Taken(time.perf_counter() - began, sum(processor), list(accuracies))


def penult(hidden: Sequence[int], fits: Sequence[Fit], epochs: int) -> Taken:
    data, told = problem(), [[] for _ in fits]
    asked = [
        (
            replace(data, seed=seed, on_epoch=history.append),
            {"hidden": hidden, "dropout": dropout, "epochs": epochs, "patience": 0},
        )
        for (seed, dropout), history in zip(fits, told, strict=True)
    ]
    began, processor = time.perf_counter(), time.process_time()
    for fit in fit_dense_nets(asked):
        if fit.error is not None:
            raise fit.error
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    return Taken(seconds, processor, [history[-1]["val_accuracy"] for history in told])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    fits = [(seed, dropout) for dropout in DROPOUTS for seed in SEEDS]
    ways: dict[str, Callable[..., Taken]] = {
        "penult": penult,
        "Keras": keras_in_processes,
        "Keras, an epoch per execution": partial(keras_in_processes, steps=math.ceil(ROWS / BATCH)),
    }
    rows = []
    for hidden in ([256], [512, 256]):
        rounds = [
            {way: run(hidden, fits, arguments.epochs) for way, run in ways.items()} for _ in range(arguments.rounds)
        ]
        seconds = {way: min(each[way].seconds for each in rounds) for way in ways}
        processor = {way: min(each[way].processor for each in rounds) for way in ways}
        for way in ways:
            accuracies = rounds[0][way].accuracies
            rows.append(
                {
                    "hidden": "-".join(map(str, hidden)),
                    "way": way,
                    "seconds": round(seconds[way], 1),
                    "against penult": f"{seconds[way] / seconds['penult']:.1f}×",
                    "processor seconds": round(processor[way], 1),
                    "by processor time": f"{processor[way] / processor['penult']:.1f}×",
                    "validation accuracy, mean": f"{np.mean(accuracies):.1%}",
                    "least to most": f"{min(accuracies):.1%} to {max(accuracies):.1%}",
                }
            )
    show(f"{len(fits)} nets on {ROWS:,} × {WIDTH:,} features, {CLASSES} classes, {arguments.epochs} epochs", rows)


if __name__ == "__main__":
    main()
