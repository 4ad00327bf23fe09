"""Claim: a whole ``penult compare`` with no options takes a small part of the time of a script of one's own.

Synthetic features of 1,280 numbers and 100 classes. The command is timed as a process, start and report included, then
the same command again. The seconds of each family are those that its fits had, so that those of nets, which run side by
side, add up to more than passed.

The script is what one would write: standardised features, ``GridSearchCV`` with penult's own validation split over
LogisticRegression, LinearSVC, RidgeClassifier, k-NN and SVC, one process per core, and Keras for two nets. It tries
what penult tries. ``--every`` times only every so many values of a grid, and scales up.

    python -m benchmarks.whole --rows 5000 20000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.estimators import features
from benchmarks.report import show
from benchmarks.streaming import write_store
from featurestore.store import FeatureStore
from heads.backend import import_keras
from heads.registry import FAMILIES

WIDTH, CLASSES = 1280, 100
SPREAD = 0.3  # of the class means, beside noise of 1
CORES = os.cpu_count()


def compare(store: Path) -> tuple[dict[str, Any], float, float]:
    """What the command printed as JSON, seconds, and the peak of its memory in MiB."""
    command = [sys.executable, "-m", "pipelines", "compare", "--store", str(store), "--json"]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return json.loads(done.stdout.splitlines()[-1]), seconds, peak


def penult(store: Path, rows: int) -> list[dict[str, Any]]:
    """The command, twice; a row of the table each."""
    made = []
    for what in ("penult compare", "the same again"):
        told, seconds, peak = compare(store)
        spent: dict[str, float] = defaultdict(float)
        for row in told["leaderboard"]:
            spent[row["head"]] += row["fit_seconds"]
        shares = ", ".join(f"{name} {value:.1f}" for name, value in spent.items()) if not made else "kept"
        best = told["leaderboard"][0]
        made.append(
            {
                "rows": f"{rows:,}",
                "what": what,
                "seconds": round(seconds, 1),
                "against penult": f"{seconds / made[0]['seconds'] if made else 1:.2g}×",
                "validation top-1": f"{best['val']:.1%}, {best['head']}",
                "fits": len(told["leaderboard"]),
                "seconds of fits": shares,
                "peak MiB": round(peak),
            }
        )
    return made


def script(store: Path, rows: int, every: int, penult_seconds: float) -> dict[str, Any]:
    """What people would write by hand, on the same rows and splits; one row of the table."""
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC, LinearSVC

    data = FeatureStore(store).dataset()
    used = data.splits != "test"
    scaler = StandardScaler().fit(data.X[data.splits == "train"])
    X = scaler.transform(data.X[used]).astype(np.float32)
    y = np.unique(data.y[used], return_inverse=True)[1]
    held = data.splits[used] == "val"
    split = PredefinedSplit(np.where(held, 0, -1))
    C = [point["C"] for point in FAMILIES["logreg"].grid]
    wide = [{"C": [C], "gamma": [gamma]} for C in (1.0, 3.0, 10.0) for gamma in (0.3 / X.shape[1], "scale")]
    models: dict[str, tuple[Any, list[dict[str, list[Any]]]]] = {
        "logreg": (LogisticRegression(max_iter=1000), [{"C": [value]} for value in C]),
        "svm": (LinearSVC(), [{"C": [point["C"]]} for point in FAMILIES["svm"].grid]),
        "ridge": (RidgeClassifier(), [{"alpha": [point["alpha"]]} for point in FAMILIES["ridge"].grid]),
        "knn": (KNeighborsClassifier(), [{"n_neighbors": [3]}, {"n_neighbors": [10]}]),
        "SVC": (SVC(), wide),
    }
    spent, scores, fits = {}, {}, 0
    for name, (model, values) in models.items():
        some = values[len(values) // (2 * every) :: every] or values[:1]
        search = GridSearchCV(model, some, cv=split, refit=False, n_jobs=CORES)
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search.fit(X, y)
        spent[name] = (time.perf_counter() - began) * len(values) / len(some)
        scores[name] = float(search.best_score_)
        fits += len(some)
        print(f"{name}: {len(some)} of {len(values)} fits, {spent[name]:.0f} s for all", file=sys.stderr)
    import_keras()
    began = time.perf_counter()
    for hidden, dropout in (([256], 0.3), ([512, 256], 0.5)):
        scores[f"Keras {hidden}"] = keras_net(hidden, dropout, (X[~held], y[~held]), (X[held], y[held]))
    spent["Keras"] = time.perf_counter() - began
    best = max(scores, key=lambda name: scores[name])
    seconds = sum(spent.values())
    return {
        "rows": f"{rows:,}",
        "what": f"a script, every {every}. value" if every > 1 else "a script",
        "seconds": round(seconds, 1),
        "against penult": f"{seconds / penult_seconds:.0f}×",
        "validation top-1": f"{scores[best]:.1%}, {best}",
        "fits": fits + 2,
        "seconds of fits": ", ".join(f"{name} {value:.0f}" for name, value in spent.items()),
        "peak MiB": "",
    }


def keras_net(hidden: Sequence[int], dropout: float, train: tuple[Any, Any], val: tuple[Any, Any]) -> float:
    """The best validation accuracy of a net that stops early, as penult's does."""
    keras = import_keras()
    layers: list[Any] = [keras.Input((train[0].shape[1],))]
    for width in hidden:
        layers += [keras.layers.Dense(width, "relu"), keras.layers.Dropout(dropout)]
    model = keras.Sequential([*layers, keras.layers.Dense(CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    stop = keras.callbacks.EarlyStopping(patience=6, restore_best_weights=True)
    model.fit(*train, batch_size=64, epochs=60, validation_data=val, callbacks=[stop], verbose=0)
    return float(model.evaluate(*val, verbose=0)[1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5000, 20_000])
    parser.add_argument("--every", type=int, default=5, help="time every so many values of the script's grids")
    parser.add_argument("--script-rows", type=int, default=20_000, help="no script for more rows than this")
    asked = parser.parse_args(arguments)
    table = []
    for rows in asked.rows:
        with tempfile.TemporaryDirectory(prefix="penult-whole-") as folder:
            store = Path(folder) / "store"
            X, y = features(rows, WIDTH, CLASSES, SPREAD)
            write_store(store, X, np.array([f"class {label:02}" for label in y]), rows)
            del X
            table += penult(store, rows)
            if rows <= asked.script_rows:
                table.append(script(store, rows, asked.every, table[-2]["seconds"]))
    show("A comparison with no options, whole process", table)


if __name__ == "__main__":
    main()
