"""Dense nets trained together: the steps are Keras's, the results those of Keras, and no net depends on another."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from builders import DATASET, only
from featurestore.dataset import Dataset
from featurestore.errors import UsageError
from featurestore.splits import SPLITS
from heads import registry
from heads.base import Problem, SharedProblem, class_weights, standardisation, standardise
from heads.comparison.compare import compare
from heads.comparison.space import Evaluation
from heads.comparison.subsampling import by_turns, first_of_each
from heads.comparison.tables import Table
from heads.comparison.trials import Experiment, Trial
from heads.families.base import Fit
from heads.families.dense import DenseHead, fit_dense, fit_dense_nets
from heads.solvers import nets
from heads.solvers.blas import one_blas_thread
from heads.spec import HeadSpec
from heads.train import accuracy, train

pytestmark = pytest.mark.usefixtures("few_resamples")
SMALL = {"hidden": [9, 5], "dropout": 0.0, "batch_size": 1000, "learning_rate": 0.02, "patience": 0}
TINY_STEP = {**SMALL, "epochs": 1, "learning_rate": 1e-300}  # leaves the weights as they begin


def nothing(_: dict[str, float]) -> None:
    pass


def blobs(n: int = 150, m: int = 60, d: int = 7, c: int = 4, **more: Any) -> Problem:
    """Overlapping classes of unequal size; one feature is always 0."""
    draw = np.random.default_rng(3)
    y = np.concatenate([np.arange(c), np.minimum(draw.geometric(0.5, n + m - c) - 1, c - 1)])
    X = (draw.normal(size=(c, d))[y] + draw.normal(size=(n + m, d))).astype(np.float32)
    X[:, 2] = 0
    given = {"class_weight": None, "seed": 5, "on_epoch": nothing, **more}
    return Problem(X=X[:n], y=y[:n], n_classes=c, X_val=X[n:], y_val=y[n:], **given)


def keras_model(problem: Problem, arrays: dict[str, np.ndarray], optimizer: Any, dropout: float = 0.0) -> Any:
    """The same net in Keras, with these weights."""
    import keras

    kernels = [arrays[f"kernel{at}"] for at in range(len(arrays) // 2)]
    stack: list[Any] = [keras.Input((problem.X.shape[1],))]
    for kernel in kernels[:-1]:
        stack += [keras.layers.Dense(kernel.shape[1], "relu"), keras.layers.Dropout(dropout)]
    model = keras.Sequential([*stack, keras.layers.Dense(problem.n_classes)])
    model.set_weights([arrays[f"{kind}{at}"] for at in range(len(kernels)) for kind in ("kernel", "bias")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return model


@pytest.mark.parametrize(
    ("optimizer", "class_weight"),
    [("adam", None), ("adam", "balanced"), ("adamw", "balanced"), ("rmsprop", "balanced"), ("sgd", "balanced")],
)
def test_steps_and_history_are_keras_s(optimizer: str, class_weight: str | None) -> None:
    """All rows are one batch, so that their order does not matter."""
    import keras

    history: list[dict[str, float]] = []
    problem = blobs(class_weight=class_weight)
    began = fit_dense(problem, **{**TINY_STEP, "optimizer": optimizer})
    asked = {**SMALL, "optimizer": optimizer, "epochs": 12}
    done = fit_dense(replace(problem, on_epoch=history.append, X_val=problem.X[:0], y_val=problem.y[:0]), **asked)
    spied: list[dict[str, float]] = []
    fit_dense(replace(problem, on_epoch=spied.append), **asked)

    rate = {"class_name": optimizer, "config": {"learning_rate": 0.02}}
    model = keras_model(problem, began, keras.optimizers.get(rate))
    told = model.fit(
        problem.X,
        problem.y,
        sample_weight=class_weights(problem.y, problem.n_classes, class_weight)[problem.y],
        batch_size=1000,
        epochs=12,
        shuffle=False,
        validation_data=(problem.X_val, problem.y_val),
        verbose=0,
    ).history
    names = [f"{kind}{at}" for at in range(3) for kind in ("kernel", "bias")]
    assert list(done) == names
    for name, expected in zip(names, model.get_weights(), strict=True):
        assert done[name].dtype == np.float32
        np.testing.assert_allclose(done[name], expected, rtol=1e-4, atol=2e-5, err_msg=name)
        assert not np.allclose(began[name], expected, atol=1e-3)
    assert [epoch["epoch"] for epoch in history] == list(range(1, 13))
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose([epoch[name] for epoch in history], told[name], rtol=1e-4)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose([epoch[name] for epoch in spied], told[name], rtol=1e-4)


def test_new_kernels_are_glorot_uniform() -> None:
    arrays = fit_dense(blobs(d=200), **{**TINY_STEP, "hidden": [100]})
    limit = np.sqrt(6 / 300)
    spread = np.sort(arrays["kernel0"].ravel()) / limit
    assert abs(spread - np.linspace(-1, 1, spread.size)).max() < 0.02 and -1 <= spread[0] <= spread[-1] <= 1
    assert abs(arrays["kernel1"]).max() == pytest.approx(np.sqrt(6 / 104), rel=0.02)
    assert not arrays["bias0"].any()


@cache
def digits() -> Problem:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))
    X, y = X[rows].astype(np.float32), y[rows]
    X = standardise(X, *standardisation(X[:600]))
    return Problem(X[:600], y[:600], 10, None, 0, X[600:], y[600:], nothing)


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.005), ("sgd", 0.2)])  # Adam overlooks a gradient's scale
def test_results_are_those_of_keras(optimizer: str, rate: float) -> None:
    """The same net with dropout on the digits: Keras's scores are among ours over seeds, and ours among Keras's."""
    asked = {"hidden": [24, 16], "dropout": 0.4, "epochs": 6, "batch_size": 32, "patience": 0}
    asked |= {"optimizer": optimizer, "learning_rate": rate}
    ours: list[list[dict[str, float]]] = [[] for _ in range(24)]
    each = [(replace(digits(), seed=seed, on_epoch=ours[seed].append), asked) for seed in range(24)]
    assert sum(fit.error is None for fit in fit_dense_nets(each)) == 24
    theirs = keras_histories(3, asked)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        for epoch in (0, 5):
            own = np.array([history[epoch][name] for history in ours])
            keras = np.array([history[name][epoch] for history in theirs])
            apart = abs(own.mean() - keras.mean()) / own.std() * np.sqrt(len(keras))
            assert apart < 3.5, (name, epoch, own.mean(), own.std(), keras)


def keras_histories(seeds: int, asked: dict[str, Any]) -> list[dict[str, list[float]]]:
    import keras

    problem, found = digits(), []
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        began = fit_dense(replace(problem, seed=1000 + seed), **{**asked, "epochs": 1, "learning_rate": 1e-300})
        rate = {"class_name": asked["optimizer"], "config": {"learning_rate": asked["learning_rate"]}}
        model = keras_model(problem, began, keras.optimizers.get(rate), asked["dropout"])
        scored = (problem.X_val, problem.y_val)
        told = model.fit(problem.X, problem.y, batch_size=32, epochs=6, validation_data=scored, verbose=0)
        found.append(told.history)
    return found


def test_each_row_is_in_one_batch_of_an_epoch() -> None:
    """Without hidden layers, a row of one feature moves that feature's weights alone, by 1 / rows of its batch."""
    n, c = 70, 3
    y = np.arange(n) % c
    X = np.eye(n, dtype=np.float32)
    asked = {"hidden": [], "optimizer": "sgd", "batch_size": 32, "patience": 0}
    lone = set()
    for seed in range(3):
        problem = Problem(X, y, c, None, seed, X[:0], y[:0], nothing)
        began = fit_dense(problem, **asked, epochs=1, learning_rate=1e-300)["kernel0"]
        done = fit_dense(problem, **asked, epochs=1, learning_rate=0.01)["kernel0"]
        p = np.exp(began) / np.exp(began).sum(axis=1, keepdims=True)
        by = (began - done)[np.arange(n), y] / (p[np.arange(n), y] - 1) / 0.01
        np.testing.assert_allclose(np.sort(by), [1 / 32] * 64 + [1 / 6] * 6, rtol=0.02)
        lone.add(tuple(np.flatnonzero(by > 0.1)))
    assert len(lone) == 3  # the order depends on the seed


def test_the_order_is_new_in_each_epoch() -> None:
    """The rows of the small last batch move most; in two epochs they are others."""
    n, y = 70, np.arange(70) % 2
    X = np.eye(n, dtype=np.float32)
    problem = Problem(X, y, 2, None, 0, X[:0], y[:0], nothing)
    asked = {"hidden": [], "optimizer": "sgd", "batch_size": 69, "patience": 0, "learning_rate": 0.01}
    moved = [fit_dense(problem, **asked, epochs=epochs)["kernel0"] for epochs in (1, 2, 3)]
    last = {int(abs(after - before).max(axis=1).argmax()) for before, after in pairwise(moved)}
    assert len(last) == 2


def various() -> list[tuple[Problem, dict[str, Any]]]:
    """Nets of many kinds, each with and without rows to validate on."""
    kinds: list[dict[str, Any]] = [
        {"hidden": [9, 5]},
        {"hidden": [300], "dropout": 0.0, "optimizer": "adamw", "batch_size": 7},
        {"hidden": [], "optimizer": "sgd", "learning_rate": 0.1},
        {"hidden": [40, 30, 20], "optimizer": "rmsprop", "batch_size": 33, "patience": 1},
    ]
    whole = blobs()
    return [
        (replace(whole, seed=seed, class_weight=weight, X_val=whole.X_val[:m], y_val=whole.y_val[:m]), kind)
        for kind in ({"epochs": 8, "patience": 2, **kind} for kind in kinds)
        for seed, weight, m in ((0, None, 60), (1, "balanced", 0))
    ]


def test_a_net_is_the_same_alone_among_others_and_on_any_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [fit_dense(problem, **params) for problem, params in various()]
    assert len({arrays["kernel0"].tobytes() for arrays in alone}) == len(alone)
    for cores in (1, 2, 5):
        monkeypatch.setattr(nets, "available_cores", lambda cores=cores: cores)
        found = {fit.problem: fit.arrays for fit in fit_dense_nets(reversed(various()))}
        for expected, arrays in zip(reversed(alone), (found[at] for at in range(len(alone))), strict=True):
            assert arrays.keys() == expected.keys()
            assert all(arrays[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize("patience", [1, 3])
def test_a_fit_ends_as_many_epochs_after_the_best_as_it_has_patience(patience: int) -> None:
    history: list[dict[str, float]] = []
    whole = blobs()
    problem = replace(whole, X=whole.X[:30], y=whole.y[:30], on_epoch=history.append)
    asked = {"hidden": [16], "batch_size": 8, "learning_rate": 0.01, "epochs": 200, "patience": patience}
    arrays = fit_dense(problem, **asked)
    losses = [epoch["val_loss"] for epoch in history]
    assert len(losses) < 200 and losses.index(min(losses)) == len(losses) - 1 - patience
    assert val_loss(arrays, problem) == pytest.approx(min(losses), rel=1e-5)
    assert val_loss(arrays, problem) < losses[-1] * (1 - 1e-4)


def val_loss(arrays: dict[str, np.ndarray], problem: Problem) -> float:
    """In float64, by the head itself."""
    head = DenseHead("dense", {"hidden": [0] * (len(arrays) // 2 - 1)}, np.arange(problem.n_classes), arrays)
    scores = head._scores(problem.X_val).astype(float)
    own = scores[np.arange(len(scores)), problem.y_val]
    return float((np.logaddexp.reduce(scores, axis=1) - own).mean())


@pytest.mark.parametrize("rate", [1e30, 1e300])
def test_a_net_that_diverges_ends_after_its_patience(rate: float) -> None:
    """As in Keras: the first validation loss counts as the best, though it is not a number, and none is less."""
    history: list[dict[str, float]] = []
    asked = {"hidden": [5], "optimizer": "sgd", "learning_rate": rate, "epochs": 50, "patience": 3}
    arrays = fit_dense(blobs(on_epoch=history.append), **asked)
    assert len(history) == 4 and not np.isfinite(arrays["kernel0"]).all()
    assert all("val_loss" not in epoch and "val_accuracy" in epoch for epoch in history)
    history.clear()
    fit_dense(blobs(on_epoch=history.append), **{**asked, "patience": 0, "epochs": 9})
    assert len(history) == 9


def test_folds_of_a_shared_matrix_are_as_if_each_had_its_own() -> None:
    whole = blobs()
    X, y = whole.X * [[1, 5, 1, 1, 0.1, 1, 1]] + 3, np.array(["a", "b", "c", "d"])[whole.y]
    X = X.astype(np.float32)
    folds = np.arange(len(X)) % 3
    params = {"hidden": [8], "epochs": 4}

    def shared() -> Iterator[tuple[Problem, dict[str, Any]]]:
        for fold in range(3):
            rows, left_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            mean, scale = standardisation(X[rows])
            told = (X, whole.y, 4, "balanced", 0, X, whole.y, nothing)
            yield SharedProblem(*told, rows=rows, rows_val=left_out, mean=mean, scale=scale), params

    for fit in fit_dense_nets(shared()):
        own, left_out = folds != fit.problem, folds == fit.problem
        head = registry.fit(
            HeadSpec("dense", params, "balanced"), X[own], y[own], validation=(X[left_out], y[left_out])
        )
        assert all(fit.arrays[name].tobytes() == head.arrays[name].tobytes() for name in fit.arrays)


NETS = only("dense", dense=({"hidden": [8], "epochs": 5}, {"hidden": [9, 4], "epochs": 4, "dropout": 0.5}))


@pytest.mark.parametrize("views", [False, True])
def test_the_nets_of_a_comparison_are_those_of_train(views: bool) -> None:
    """Rows of seeds, with and without folds; then the winner, to the last bit."""
    augmented = views_of(DATASET.part("train")) if views else None
    search = replace(NETS, class_weights=(None, "balanced"))
    for folds in (0, 3):
        result = compare(DATASET, search, Evaluation(seeds=2, first_seed=3, folds=folds), augmented=augmented)
        for row in result.leaderboard:
            spec = HeadSpec("dense", row["params"], row["class_weight"])
            each = [right(spec, seed, folds, augmented if "views" in row else None) for seed in (3, 4)]
            assert row["val"] == pytest.approx(np.mean(each)) and row["val_range"] == sorted(each)
        with_views = augmented if result.winner.views else None
        weight = result.leaderboard[result.chosen]["class_weight"]
        won, own = result.winner, train(DATASET, HeadSpec("dense", result.winner.head.params, weight), 3, with_views)
        assert won.head.arrays.keys() == own.head.arrays.keys() and list(won.head.classes) == list(own.head.classes)
        assert all(won.head.arrays[name].tobytes() == own.head.arrays[name].tobytes() for name in own.head.arrays)
        assert won.history == own.history != () and (won.val, won.test) == (own.val, own.test)


def views_of(part: Dataset) -> Dataset:
    draw = np.random.default_rng(0)
    return part.with_views(part.X + draw.normal(size=part.X.shape).astype(np.float32), np.arange(len(part)))


def right(spec: HeadSpec, seed: int, folds: int, augmented: Dataset | None) -> float:
    """Top-1 on validation or over folds, of single fits."""
    rows, val = DATASET.part("train"), DATASET.part("val")
    fitted = rows if augmented is None else augmented
    if not folds:
        return accuracy(registry.fit(spec, fitted.X, fitted.y, seed, (val.X, val.y)), val)
    total, of_image, of_row = 0, rows.folds(folds), fitted.folds(folds)
    for fold in range(folds):
        own, scored = fitted.take(of_row != fold), rows.take(of_image == fold)
        head = registry.fit(spec, own.X, own.y, seed, (scored.X, scored.y))
        total += int((head.predict(scored.X) == scored.y).sum())
    return total / len(rows)


def test_nets_of_few_rows_are_those_of_single_fits() -> None:
    result = compare(DATASET, only("dense", dense=({"hidden": [8], "epochs": 5},)), Evaluation(fewshot=(2,)))
    rows, val, spec = DATASET.part("train"), DATASET.part("val"), HeadSpec("dense", result.winner.head.params)
    each = []
    for draw in range(3):
        some = rows.take(first_of_each(rows.y, by_turns(rows.y, draw), 2))
        each.append(accuracy(registry.fit(spec, some.X, some.y, draw, (val.X, val.y)), val))
    assert result.fewshot is not None and result.fewshot[0]["val_range"] == [min(each), max(each)]


def test_a_net_of_a_comparison_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a part of one class, whose nets cannot begin."""
    dense = registry.FAMILIES["dense"]

    def one_fails(problems: Iterable[tuple[Problem, Any]]) -> Iterator[Fit]:
        return dense.fit_many(
            (replace(problem, y_val=problem.y_val + 4) if params["hidden"] == [9, 4] else problem, params)
            for problem, params in problems
        )

    with monkeypatch.context() as patch:
        patch.setitem(registry.FAMILIES, "dense", replace(dense, fit_many=one_fails))
        good, failed = compare(DATASET, NETS).leaderboard
    assert failed["params"]["hidden"] == [9, 4] and failed["error"].startswith("IndexError: ")
    assert good["params"]["hidden"] == [8] and good["val"] == right(HeadSpec("dense", good["params"]), 0, 0, None)

    rows = DATASET.part("train")
    y = np.where(rows.folds(3) == 0, rows.y, "class 0")  # without fold 0 there is one class
    two = table_of(replace(rows, y=y))
    tried = Experiment([two], NETS.candidates(y, 10, 100)[0]).run(
        [Trial(0, at, 0, fold) for at in (0, 1) for fold in range(3)]
    )
    assert {(trial.part, error) for trial, error in tried.errors.items()} == {
        (0, "HeadError: Expected: training labels of at least two classes. Got: 'class 0'.")
    }
    assert len(tried.outcomes) == 4


def table_of(rows: Dataset) -> Table:
    """Three folds of training rows."""
    return Table({**{name: DATASET.part(name) for name in SPLITS}, "train": rows}, 3)


def test_a_class_that_a_part_lacks_does_not_count_in_its_validation() -> None:
    rows = DATASET.part("train")
    here = rows.folds(3) == 1
    some = here & (np.arange(len(rows)) % 2 == 0)
    y = np.where(some, "another class", rows.y)
    classes, problem = table_of(replace(rows, y=y)).shared(1)
    assert list(classes) == [f"class {number}" for number in range(4)]
    assert problem.rows.tolist() == np.flatnonzero(~here).tolist()
    assert problem.rows_val.tolist() == np.flatnonzero(here & ~some).tolist()
    assert (classes[problem.y[problem.rows]] == y[~here]).all()
    assert (classes[problem.y_val[problem.rows_val]] == y[here & ~some]).all()
    assert problem.X is problem.X_val is rows.X


def test_one_net_that_fails_costs_no_other() -> None:
    good = blobs()
    bad = replace(good, y_val=good.y_val + 4)  # no such classes
    asked = {"hidden": [4], "epochs": 2}
    fits = {fit.problem: fit for fit in fit_dense_nets([(good, asked), (bad, asked), (good, asked)])}
    assert isinstance(fits[1].error, IndexError) and fits[1].arrays == {}
    assert fits[0].error is fits[2].error is None and fits[0].arrays.keys() == fits[2].arrays.keys()
    with pytest.raises(IndexError):
        fit_dense(bad, **asked)
    with pytest.raises(UsageError, match="Parameter epochs"):
        list(fit_dense_nets([(good, asked), (good, {"epochs": 0})]))


def test_problems_are_taken_when_a_core_is_free_and_an_end_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets, "available_cores", lambda: 2)
    taken: list[int] = []
    epochs: list[dict[str, float]] = []

    def problems() -> Iterator[tuple[Problem, dict[str, Any]]]:
        for number in range(9):
            taken.append(number)
            endless = {"hidden": [4], "epochs": 100_000, "patience": 0}
            yield blobs(on_epoch=epochs.append), {"hidden": [4], "epochs": 1} if number == 0 else endless

    fits = fit_dense_nets(problems())
    assert next(fits).problem == 0 and taken == [0, 1, 2]
    fits.close()  # type: ignore[attr-defined]
    told = len(epochs)
    time.sleep(0.05)
    assert len(epochs) == told < 10_000 and taken == [0, 1, 2]


def test_nets_are_trained_without_keras() -> None:
    script = """
import sys
sys.modules["keras"] = sys.modules["tensorflow"] = None  # to import them raises
import numpy as np
from heads import registry
from heads.spec import HeadSpec
X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
y = np.where(X[:, 0] > 0, "a", "b")
head = registry.fit(HeadSpec("dense", {"hidden": [8], "epochs": 30, "learning_rate": 0.02}), X, y, validation=(X, y))
assert (head.predict(X) == y).mean() > 0.9
heavy = [name for name in ("sklearn", "keras", "tensorflow") if sys.modules.get(name)]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_blas_is_limited_until_the_last_thread_is_done() -> None:
    """Of two that train in one process, the first to end must not lift the limit of the other."""
    with threadpool_limits(2):
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        assert threads() == {1}
        first.__exit__(None, None, None)
        assert threads() == {1}
        second.__exit__(None, None, None)
        assert threads() == {2}


def threads() -> set[int]:
    return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}
