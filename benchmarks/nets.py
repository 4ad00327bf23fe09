"""How much faster many dense nets are trained than as many Keras fits side by side.

Eight nets of each shape, which differ in seed and dropout, for the same number of epochs on the same rows. Keras fits
plainly (``model.fit`` on arrays), with as many at a time as there are cores: in processes with one thread each, and in
threads of one process, as penult itself did before. Imports, and the start of processes, are not timed; the building
and tracing of each model is, as each fit needs it.

    python -m benchmarks.nets
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.report import show
from featurestore.machine import available_cores
from heads.backend import import_keras, import_tensorflow
from heads.base import Problem, standardisation, standardise
from heads.families.dense import fit_dense_nets

ROWS, WIDTH, CLASSES, SCORED = 5000, 1280, 98, 1500
SPREAD = 0.19  # of the class means, beside noise of 1: the nets get 70 to 80 % right
DROPOUTS = (0.2, 0.3, 0.4, 0.5)
SEEDS = (0, 1)

Fit = tuple[int, float]  # seed, dropout


def problem() -> Problem:
    """Classes of Gaussian noise around their means, standardised."""
    draw = np.random.default_rng(0)
    means = SPREAD * draw.standard_normal((CLASSES, WIDTH), np.float32)
    y = draw.permutation(np.arange(ROWS + SCORED) % CLASSES)
    X = means[y] + draw.standard_normal((len(y), WIDTH), np.float32)
    X = standardise(X, *standardisation(X[:ROWS]))
    return Problem(X[:ROWS], y[:ROWS], CLASSES, None, 0, X[ROWS:], y[ROWS:], lambda _: None)


def keras_fit(data: Problem, hidden: Sequence[int], fit: Fit, epochs: int) -> float:
    """Train with Keras; return the validation accuracy after the last epoch."""
    keras, (seed, dropout) = import_keras(), fit
    layers: list[Any] = [keras.Input((data.X.shape[1],))]
    for at, width in enumerate(hidden):
        initializer = keras.initializers.GlorotUniform(seed=100 * seed + at)
        layers += [keras.layers.Dense(width, "relu", kernel_initializer=initializer)]
        layers += [keras.layers.Dropout(dropout, seed=100 * seed + at)]
    initializer = keras.initializers.GlorotUniform(seed=100 * seed + 99)
    model = keras.Sequential([*layers, keras.layers.Dense(data.n_classes, kernel_initializer=initializer)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"])
    scored = (data.X_val, data.y_val)
    told = model.fit(
        data.X, data.y, batch_size=64, epochs=epochs, validation_data=scored, validation_batch_size=1024, verbose=0
    )
    return float(told.history["val_accuracy"][-1])


_data: Problem  # of a worker process


def prepare() -> None:
    """In a worker process: one core, Keras imported, the rows at hand."""
    global _data
    tensorflow = import_tensorflow()
    tensorflow.config.threading.set_intra_op_parallelism_threads(1)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    import_keras()
    _data = problem()


def in_process(hidden: Sequence[int], fit: Fit, epochs: int) -> float:
    """``keras_fit`` on a worker's rows."""
    return keras_fit(_data, hidden, fit, epochs)


def idle(seconds: float) -> int:
    """Keep a worker busy, so that the others start too."""
    time.sleep(seconds)
    return os.getpid()


def keras_in_processes(hidden: Sequence[int], fits: Sequence[Fit], epochs: int) -> tuple[float, list[float]]:
    """Seconds and accuracies."""
    spawn, cores = multiprocessing.get_context("spawn"), available_cores()
    with ProcessPoolExecutor(cores, spawn, initializer=prepare) as pool:
        list(pool.map(idle, [1.0] * cores))
        return side_by_side(pool, in_process, hidden, fits, epochs)


def side_by_side(
    pool: Executor, run: Callable[..., Any], hidden: Sequence[int], fits: Sequence[Fit], epochs: int
) -> tuple[float, list[float]]:
    began = time.perf_counter()
    futures = [pool.submit(run, hidden, fit, epochs) for fit in fits]
    values = [future.result() for future in futures]
    return time.perf_counter() - began, values


def keras_in_threads(hidden: Sequence[int], fits: Sequence[Fit], epochs: int) -> tuple[float, list[float]]:
    """Seconds and accuracies."""
    import_keras()
    data = problem()
    with ThreadPoolExecutor(available_cores()) as pool:
        return side_by_side(pool, lambda *what: keras_fit(data, *what), hidden, fits, epochs)


def penult(hidden: Sequence[int], fits: Sequence[Fit], epochs: int) -> tuple[float, list[float]]:
    """Seconds and accuracies after the last epoch."""
    data, told = problem(), [[] for _ in fits]
    asked = [
        (
            replace(data, seed=seed, on_epoch=history.append),
            {"hidden": hidden, "dropout": dropout, "epochs": epochs, "patience": 0},
        )
        for (seed, dropout), history in zip(fits, told, strict=True)
    ]
    began = time.perf_counter()
    for fit in fit_dense_nets(asked):
        if fit.error is not None:
            raise fit.error
    return time.perf_counter() - began, [history[-1]["val_accuracy"] for history in told]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    fits = [(seed, dropout) for dropout in DROPOUTS for seed in SEEDS]
    ways = {
        "penult": penult,
        "Keras, a process per core": keras_in_processes,
        "Keras, a thread per core": keras_in_threads,
    }
    rows = []
    for hidden in ([256], [512, 256]):
        rounds = range(arguments.rounds)
        taken = {way: [run(hidden, fits, arguments.epochs) for _ in rounds] for way, run in ways.items()}
        least = {way: min(seconds for seconds, _ in each) for way, each in taken.items()}
        for way, each in taken.items():
            accuracies = each[0][1]
            rows.append(
                {
                    "hidden": "-".join(map(str, hidden)),
                    "way": way,
                    "seconds": round(least[way], 1),
                    "against penult": f"{least[way] / least['penult']:.1f}×",
                    "validation accuracy, mean": f"{np.mean(accuracies):.1%}",
                    "least to most": f"{min(accuracies):.1%} to {max(accuracies):.1%}",
                }
            )
    show(f"{len(fits)} nets on {ROWS:,} × {WIDTH:,} features, {CLASSES} classes, {arguments.epochs} epochs", rows)


if __name__ == "__main__":
    main()
