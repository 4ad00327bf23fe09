"""Each family predicts with numpy what scikit-learn or Keras would predict from the same fit."""

import subprocess
import sys
import tracemalloc
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featurestore.errors import HeadError, UsageError
from heads import registry
from heads.base import MAX_FLOAT, Problem, class_weights, fit_temperature, softmax, standardisation, standardise
from heads.families.linear import C_of_alpha, checked_C
from heads.families.neighbors import fit_ncm
from heads.solvers.sweep import CROSS_ENTROPY, SQUARED, SQUARED_HINGE
from heads.spec import HeadSpec


def problem(n_classes, n=240, d=12, seed=0):
    """Overlapping Gaussian classes of unequal size: no classifier gets them all right."""
    rng = np.random.default_rng(seed)
    y = np.sort(rng.integers(n_classes, size=n) * rng.integers(1, 3, size=n) % n_classes)
    X = rng.normal(size=(n_classes, d))[y] + rng.normal(size=(n, d))
    X[:, 0] = 3  # constant
    X[:, 1] *= 1000
    rows = rng.permutation(n)
    return X[rows].astype(np.float32), np.array([f"class {i}" for i in y[rows]])


def fit_and_split(name, n_classes, seed=0, **spec):
    X, y = problem(n_classes)
    head = registry.fit(HeadSpec(name, **spec), X[:160], y[:160], seed, (X[160:200], y[160:200]))
    return head, (X[:160], y[:160]), X[160:]


def scaled(head, X):
    return standardise(X, head.arrays["mean"], head.arrays["scale"])


@pytest.mark.parametrize("n_classes", [2, 3, 7])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_logreg_is_scikit_learns(n_classes, class_weight):
    from sklearn.linear_model import LogisticRegression

    head, (X, y), new = fit_and_split("logreg", n_classes, params={"C": 0.5}, class_weight=class_weight)
    model = LogisticRegression(C=0.5, max_iter=5000, tol=1e-8, class_weight=class_weight).fit(scaled(head, X), y)
    assert (head.predict(new) == model.predict(scaled(head, new))).all()
    np.testing.assert_allclose(softmax(head.scores(new)), model.predict_proba(scaled(head, new)), atol=5e-3)


@pytest.mark.parametrize("n_classes", [2, 3, 7])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_svm_is_scikit_learns(n_classes, class_weight):
    from sklearn.svm import LinearSVC

    head, (X, y), new = fit_and_split("svm", n_classes, params={"C": 0.02}, class_weight=class_weight)
    model = LinearSVC(C=0.02, dual=False, tol=1e-9, class_weight=class_weight, max_iter=10_000).fit(scaled(head, X), y)
    assert (head.predict(new) == model.predict(scaled(head, new))).all()
    margins, scores = model.decision_function(scaled(head, new)), head.scores(new)
    np.testing.assert_allclose(scores if n_classes > 2 else scores[:, 1], margins, atol=1e-2)


@pytest.mark.parametrize("n_classes", [2, 3, 7])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_ridge_is_scikit_learns(n_classes, class_weight):
    from sklearn.linear_model import RidgeClassifier

    head, (X, y), new = fit_and_split("ridge", n_classes, params={"alpha": 3.0}, class_weight=class_weight)
    model = RidgeClassifier(alpha=3.0, class_weight=class_weight).fit(scaled(head, X).astype(np.float64), y)
    assert (head.predict(new) == model.predict(scaled(head, new))).all()
    margins, scores = model.decision_function(scaled(head, new)), head.scores(new)
    np.testing.assert_allclose(scores if n_classes > 2 else scores[:, 1], margins, atol=1e-2)


@pytest.mark.parametrize("n_classes", [2, 3, 7])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("gamma", ["scale", 0.3])
def test_rbf_svm_is_scikit_learns(n_classes, class_weight, gamma):
    from sklearn.svm import SVC

    params = {"C": 2.0, "gamma": gamma}
    head, (X, y), new = fit_and_split("rbf-svm", n_classes, params=params, class_weight=class_weight)
    model = SVC(**params, class_weight=class_weight, break_ties=True).fit(scaled(head, X), y)
    assert (head.predict(new) == model.predict(scaled(head, new))).all()
    expected = model.decision_function(scaled(head, new))
    scores = head.scores(new)
    np.testing.assert_allclose(scores if n_classes > 2 else scores[:, 1], expected, atol=1e-4)


@pytest.mark.parametrize("n_classes", [2, 7])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_knn_is_scikit_learns(n_classes, metric, k):
    from sklearn.neighbors import KNeighborsClassifier

    head, (X, y), new = fit_and_split("knn", n_classes, params={"k": k, "metric": metric})
    model = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(scaled(head, X), y)
    assert (head.predict(new) == model.predict(scaled(head, new))).all()
    np.testing.assert_allclose(head.probabilities(new), model.predict_proba(scaled(head, new)), atol=1e-9)


@pytest.mark.parametrize("n_classes", [2, 7])
def test_ncm_is_scikit_learns(n_classes):
    from sklearn.neighbors import NearestCentroid

    head, (X, y), new = fit_and_split("ncm", n_classes)
    X, scaled_new = scaled(head, X)[:, 1:], scaled(head, new)[:, 1:]  # it warns of constant columns
    assert (head.predict(new) == NearestCentroid().fit(X, y).predict(scaled_new)).all()


DENSE = {"hidden": (16, 8), "epochs": 6, "batch_size": 32, "learning_rate": 0.01, "patience": 3}


@cache
def dense(n_classes):
    """A fit of seed 0, and new rows."""
    head, _, new = fit_and_split("dense", n_classes, params=DENSE)
    return head, new


@pytest.mark.parametrize("n_classes", [2, 5])
def test_dense_is_keras(n_classes):
    import keras

    head, new = dense(n_classes)
    model = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(16, "relu"),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dense(n_classes),
        ]
    )
    model.set_weights([head.arrays[f"{kind}{i}"] for i in range(3) for kind in ("kernel", "bias")])
    expected = np.asarray(model(scaled(head, new)))
    np.testing.assert_allclose(head.scores(new), expected, atol=1e-4)
    assert (head.predict(new) == head.classes[expected.argmax(axis=1)]).all()
    np.testing.assert_allclose(head.probabilities(new), softmax(expected / head.arrays["temperature"]), atol=1e-5)


def test_dense_depends_on_its_seed_alone():
    first, new = dense(5)
    again, _, _ = fit_and_split("dense", 5, params=DENSE)
    other, _, _ = fit_and_split("dense", 5, params=DENSE, seed=1)
    assert (first.scores(new) == again.scores(new)).all()
    assert not np.allclose(first.scores(new), other.scores(new))


def test_dense_tells_its_epochs_and_keeps_the_weights_of_the_best():
    """Labels without a meaning are learned by heart: with no patience, to the end, on other rows from bad to worse."""
    X, y = problem(3)
    params = {**DENSE, "learning_rate": 0.05, "epochs": 10, "patience": 0}
    head = registry.fit(HeadSpec("dense", params), X[:40], np.roll(y[:40], 7), validation=(X[160:], y[160:]))
    assert [epoch["epoch"] for epoch in head.history] == list(range(1, 11))
    for epoch in head.history:
        assert epoch.keys() == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"}
    best = min(head.history, key=lambda epoch: epoch["val_loss"])
    assert best["val_loss"] < 0.9 * head.history[-1]["val_loss"]
    assert best["val_accuracy"] == pytest.approx(np.mean(head.predict(X[160:]) == y[160:]))
    p = softmax(head.scores(X[160:]))[np.arange(80), np.searchsorted(head.classes, y[160:])]
    assert best["val_loss"] == pytest.approx(-np.log(p).mean(), rel=1e-3)
    stopped = registry.fit(
        HeadSpec("dense", {**params, "patience": 1}), X[:40], np.roll(y[:40], 7), validation=(X[160:], y[160:])
    )
    assert len(stopped.history) < 10
    assert registry.fit(HeadSpec("ncm"), X, y).history == ()


def test_a_history_holds_finite_numbers_alone():
    X, y = problem(3)
    head = registry.fit(HeadSpec("dense", {**DENSE, "optimizer": "sgd", "learning_rate": 1e30, "epochs": 3}), X, y)
    assert len(head.history) == 3 and "loss" not in head.history[-1]
    assert all(np.isfinite(value) for epoch in head.history for value in epoch.values())


def test_dense_balanced_lifts_the_rare_class():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(300, 3)), rng.normal(size=(30, 3)) + 1]).astype(np.float32)
    y = np.array(["common"] * 300 + ["rare"] * 30)
    plain = registry.fit(HeadSpec("dense", DENSE), X, y)
    balanced = registry.fit(HeadSpec("dense", DENSE, "balanced"), X, y)
    assert [epoch.keys() for epoch in plain.history] == [{"epoch", "loss", "accuracy"}] * DENSE["epochs"]
    assert (balanced.predict(X) == "rare").sum() > 1.5 * (plain.predict(X) == "rare").sum()


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_probabilities_are_probabilities_and_chunks_do_not_show(name, monkeypatch):
    head, _, new = fit_and_split(name, 4, params={"epochs": 1} if name == "dense" else {})
    whole = head.probabilities(new)
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-5)
    assert (whole >= 0).all() and whole.shape == (80, 4)
    monkeypatch.setattr("heads.base.CHUNK_ROWS", 7)
    np.testing.assert_allclose(head.probabilities(new), whole, atol=1e-5)
    assert head.scores(new[:0]).shape == (0, 4)
    with pytest.raises(HeadError, match=r"Expected: features of shape \(n, 12\)\. Got: \(80, 5\)"):
        head.predict(new[:, :5])


def test_prediction_needs_numpy_alone(tmp_path):
    from heads import artifact

    X, y = problem(3)
    np.save(tmp_path / "X.npy", X)
    expected = {}
    for name in registry.FAMILIES:
        params = {"epochs": 1} if name == "dense" else {}
        head = registry.fit(HeadSpec(name, params), X, y, validation=(X, y))
        artifact.save(head, tmp_path / name, {})
        expected[name] = head.predict(X)
    script = f"""
import sys, numpy as np
from pathlib import Path
from heads import artifact
X = np.load("X.npy")
for name in {list(registry.FAMILIES)}:
    head, _ = artifact.load(Path(name))
    head.probabilities(X)
    np.save(name + ".npy", head.predict(X))
heavy = [m for m in ("sklearn", "scipy", "keras", "tensorflow") if m in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    for name in registry.FAMILIES:
        assert (np.load(tmp_path / f"{name}.npy") == expected[name]).all()


def test_standardisation_is_scikit_learns():
    from sklearn.preprocessing import StandardScaler

    X, _ = problem(3)
    mean, scale = standardisation(X)
    expected = StandardScaler().fit(X)
    np.testing.assert_allclose(mean, expected.mean_, rtol=1e-5, atol=1e-6)
    varies = X.std(axis=0) > 0
    np.testing.assert_allclose(scale[varies], expected.scale_[varies], rtol=1e-5)
    assert (standardise(X, mean, scale)[:, 0] == 0).all()  # a constant column


def test_nearly_silent_columns_do_not_shout():
    X = np.random.default_rng(0).normal(size=(500, 40)) * np.r_[np.full(30, 2.0), np.full(8, 1e-4), 0, 0]
    _, scale = standardisation(X)
    assert np.allclose(scale[:30], X[:, :30].std(axis=0), rtol=1e-5)
    assert (scale[30:] > 0.15).all() and (scale[30:] < 0.25).all()


def test_columns_that_are_mostly_constant_keep_their_scale():
    X = np.zeros((100, 12))
    X[:, 0] = np.arange(100)
    _, scale = standardisation(X)
    assert np.isclose(scale[0], X[:, 0].std()) and (scale[1:] == 1).all()


@given(hnp.arrays(np.float32, (5, 3), elements=st.floats(-1e6, 1e6, width=32)))
def test_standardised_features_are_finite(X):
    assert np.isfinite(standardise(X, *standardisation(X))).all()


@settings(max_examples=30)
@given(st.floats(0.05, 20), st.integers(0, 100))
def test_temperature_is_recovered(temperature, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4000, 5)) * 2
    p = softmax(logits)
    y = (p.cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1).clip(max=4)
    assert fit_temperature(logits * temperature, y) == pytest.approx(temperature, rel=0.15)


def test_temperature_without_mistakes_is_not_certain():
    scores = np.eye(3)[[0, 1, 2, 0]]
    y = np.array([0, 1, 2, 0])
    p = softmax(scores / fit_temperature(scores, y))[np.arange(4), y]
    np.testing.assert_allclose(p, 1 - 1 / 6, atol=0.01)
    assert fit_temperature(scores[:0], y[:0]) == 1


@settings(max_examples=20)
@given(st.integers(2, 30), st.integers(2, 5), st.integers(0, 1000))
def test_the_temperature_is_where_the_softened_cross_entropy_is_least(n, c, seed):
    """Its derivative by 1 / T is 0 there: the mean logit is the same under the probabilities and under the targets."""
    rng = np.random.default_rng(seed)
    y = rng.integers(c, size=n)
    scores = 3 * rng.normal(size=(n, c)) + 2 * np.eye(c)[y]
    p = softmax(scores / fit_temperature(scores, y))
    targets = np.where(np.arange(c) == y[:, None], 1 - 1 / (n + 2), 1 / (n + 2) / (c - 1))
    hotter, colder = ((softmax(scores * t) * scores).sum() - (targets * scores).sum() for t in (1e-4, 1e4))
    if hotter < 0 < colder:  # else the best is at an end of what is searched
        assert (p * scores).sum() == pytest.approx((targets * scores).sum(), abs=2e-3 * n)


def test_what_all_scores_of_a_row_have_in_common_says_nothing():
    """Neither to probabilities nor to the temperature, however large it is."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=200)
    scores = 10 * rng.normal(size=(200, 3)) + 20 * np.eye(3)[y]
    moved = scores + np.where(np.arange(200) % 2, 3000.0, -3000.0)[:, None]
    np.testing.assert_allclose(softmax(moved), softmax(scores), atol=1e-9)
    assert 4 < fit_temperature(scores, y) < 7
    assert fit_temperature(moved, y) == pytest.approx(fit_temperature(scores, y), rel=1e-3)


def test_balanced_weights_of_a_class_are_those_of_its_share():
    y = np.array([0, 0, 0, 2])
    assert class_weights(y, 3, None).tolist() == [1, 1, 1]
    balanced = class_weights(y, 3, "balanced")
    assert balanced.dtype == np.float32 and balanced == pytest.approx([4 / 9, 0, 4 / 3])
    assert class_weights(y, 3, None).dtype == np.float32


# Each family: its defaults, what compare tries, takes class weights, votes, is random, its loss in sweeps.
TABLE = {
    "ncm": ({}, ({},), False, False, False, None),
    "logreg": (
        {"C": 0.01},
        tuple({"C": C} for C in (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
        True, False, False, (CROSS_ENTROPY, checked_C),
    ),
    "svm": (
        {"C": 0.001},
        tuple({"C": C} for C in (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1)),
        True, False, False, (SQUARED_HINGE, checked_C),
    ),
    "ridge": (
        {"alpha": 1000.0},
        tuple({"alpha": alpha} for alpha in (1e5, 3e4, 1e4, 3e3, 1e3, 300.0, 100.0)),
        True, False, False, (SQUARED, C_of_alpha),
    ),
    "knn": ({"k": 5, "metric": "cosine"}, ({"k": 10}, {"k": 3}), False, True, False, None),
    "kernel-logreg": (
        {"C": 100.0, "gamma": "0.3 scale", "landmarks": 1024},
        ({"C": 30.0}, {"C": 100.0}, {"C": 300.0}),
        True, False, False, (CROSS_ENTROPY, registry.FAMILIES["kernel-logreg"].C),
    ),
    "kernel-svm": (
        {"C": 3.0, "gamma": "0.3 scale", "landmarks": 1024},
        tuple({"C": C, "gamma": gamma} for gamma in ("0.3 scale", "scale") for C in (1.0, 3.0, 10.0)),
        True, False, False, (SQUARED_HINGE, registry.FAMILIES["kernel-svm"].C),
    ),
    "rbf-svm": ({"C": 10.0, "gamma": "scale"}, ({"C": 1.0}, {"C": 10.0}), True, False, False, None),
    "dense": (
        {
            "hidden": [256], "dropout": 0.3, "optimizer": "adam", "learning_rate": 0.001, "epochs": 60,
            "batch_size": 64, "patience": 6,
        },
        ({"hidden": [256]}, {"hidden": [512, 256], "dropout": 0.5}),
        True, False, True, None,
    ),
}  # fmt: skip


def test_the_table_of_families():
    """Known results and stored heads have these parameters; compare gives a tie to the earlier family."""
    rows = {
        name: (
            dict(row.defaults),
            row.grid,
            row.weighted,
            row.votes,
            row.random,
            None if row.loss is None else (row.loss, row.C),
        )
        for name, row in registry.FAMILIES.items()
    }
    assert list(rows) == list(TABLE) and rows == TABLE


def test_parameters_in_words():
    told = registry.complete("dense", {"hidden": (512, 256)})
    assert told["hidden"] == [512, 256] and registry.describe("dense", told) == "hidden 512→256, dropout 0.3"
    odd = registry.complete("dense", {"epochs": 7, "optimizer": "sgd"})
    assert registry.describe("dense", odd) == "hidden 256, dropout 0.3, optimizer sgd, epochs 7"
    assert registry.describe("logreg", {"C": 0.01}) == "C 0.01" and registry.describe("ncm", {}) == ""
    assert registry.describe("knn", {"k": 3, "metric": "cosine"}) == "k 3"


GOOD_DENSE = dict(TABLE["dense"][0])
# family, parameter, the least and the most that are allowed or None, the next below and above that are not
LIMITS = [
    *(
        limits
        for name in ("kernel-logreg", "kernel-svm")
        for limits in (
            (name, "C", 5e-324, MAX_FLOAT, [0, -1e-9, 10**400, np.inf, np.nan, True, "1", None]),
            (name, "gamma", 5e-324, MAX_FLOAT, [0, -1e-9, 10**400, np.inf, np.nan, True, None, [1], "auto", "1"]),
            (name, "gamma", "scale", "2.5 scale", ["0 scale", "-1 scale", "nan scale", "inf scale", "scale 2", ""]),
            (name, "gamma", "1e-300 scale", "1e300 scale", ["1 2 scale", "two scale", "0.3*scale", "0.3 Scale"]),
            (name, "landmarks", 1, 4096, [0, -1, 4097, 1.0, True, "1", None]),
        )
    ),
    ("logreg", "C", 5e-324, MAX_FLOAT, [0, -1e-9, 10**400, np.inf, np.nan, True, "1", None]),
    ("svm", "C", 5e-324, MAX_FLOAT, [0, -1e-9, 10**400, np.inf, np.nan, True, "1", None]),
    ("rbf-svm", "C", 5e-324, MAX_FLOAT, [0, -1e-9, 10**400, np.inf, np.nan, True, "1", None]),
    ("rbf-svm", "gamma", 5e-324, MAX_FLOAT, [0, -1e-9, 10**400, np.inf, np.nan, True, "auto", None]),
    ("ridge", "alpha", 1e-300, MAX_FLOAT, [0, -1e-9, 10**400, np.inf, np.nan, True, "1", None]),
    ("knn", "k", 1, 2**31 - 1, [0, -1, 2**31, 1.0, True, "1", None]),
    ("dense", "hidden", [], [1] * 16, [[1] * 17, [0], [True], [1.5], [2**16 + 1], 256, "1", None]),
    ("dense", "hidden", (1,), [2**16] * 2, []),
    ("dense", "dropout", 0, 0.999, [-1e-9, 1, 1.0, np.nan, False, "0", None]),
    ("dense", "learning_rate", 5e-324, MAX_FLOAT, [0, -1e-9, 10**400, np.inf, np.nan, True, "1", None]),
    ("dense", "epochs", 1, 100_000, [0, -1, 100_001, 1.0, True, "1", None]),
    ("dense", "batch_size", 1, 2**20, [0, -1, 2**20 + 1, 1.0, True, "1", None]),
    ("dense", "patience", 0, 100_000, [-1, 100_001, 1.5, False, True, "1", None]),
    ("dense", "patience", 1, 1, []),
]


@pytest.mark.parametrize(("name", "parameter", "least", "most", "bad"), LIMITS)
def test_each_parameter_has_its_limits(name, parameter, least, most, bad):
    for value in (least, most):
        told = registry.complete(name, {parameter: value})[parameter]
        assert told == (list(value) if isinstance(value, tuple) else value)
    for value in bad:
        with pytest.raises(UsageError, match=f"Parameter {parameter}: Expected: "):
            registry.complete(name, {parameter: value})


def test_every_parameter_has_limits_or_a_list():
    listed = {("knn", "metric"), ("dense", "optimizer")}
    for name, parameter in listed:
        with pytest.raises(UsageError, match=f"Parameter {parameter}: Expected: .*\\. Got: 'other'"):
            registry.complete(name, {parameter: "other"})
    every = {(name, parameter) for name, row in registry.FAMILIES.items() for parameter in row.defaults}
    assert every == listed | {(name, parameter) for name, parameter, *_ in LIMITS}
    for optimizer in ("adam", "adamw", "rmsprop", "sgd"):
        assert registry.complete("dense", {"optimizer": optimizer})["optimizer"] == optimizer
    assert registry.complete("knn", {"metric": "euclidean"}) == {"k": 5, "metric": "euclidean"}


BAD = [
    ("tree", {}, {}, "There is no head 'tree': choose one of ncm, logreg"),
    ("logreg", {"gamma": 1}, {}, "has no parameter 'gamma': choose from C"),
    ("ncm", {"k": 1}, {}, "it has none"),
    ("logreg", {"C": 0}, {}, "Parameter C: Expected: a number above 0. Got: 0"),
    ("svm", {"C": "1"}, {}, "Got: '1'"),
    ("svm", {"max_iter": 2.5}, {}, "max_iter"),
    ("rbf-svm", {"gamma": "auto"}, {}, "gamma"),
    ("knn", {"k": 0}, {}, "above 0"),
    ("knn", {"k": 1000}, {}, "at most the 240 training rows"),
    ("knn", {"metric": "hamming"}, {}, "cosine or euclidean"),
    ("knn", {}, {"class_weight": "balanced"}, "'knn' cannot weight classes"),
    ("logreg", {}, {"class_weight": "even"}, "Class weight"),
    ("dense", {"hidden": 256}, {}, "a list of up to 16 layer widths"),
    ("dense", {"hidden": [10**9]}, {}, "up to 65,536"),
    ("dense", {"epochs": 10**9}, {}, "epochs"),
    ("ncm", {}, {"seed": -1}, "--seed, a whole number from 0"),
    ("logreg", {"C": 10**400}, {}, "Parameter C"),
    ("dense", {"dropout": 1.0}, {}, "dropout"),
    ("dense", {"optimizer": "magic"}, {}, "one of adam"),
    ("dense", {"learning_rate": float("nan")}, {}, "learning_rate"),
    ("dense", {"epochs": True}, {}, "epochs"),
    ("dense", {"patience": -1}, {}, "patience: Expected: a whole number up to 100,000, 0 to never stop early"),
    ("dense", {"patience": False}, {}, "patience"),
]


@pytest.mark.parametrize("name, params, options, message", BAD)
def test_bad_parameters_are_named(name, params, options, message):
    X, y = problem(3)
    with pytest.raises(UsageError, match=message):
        registry.fit(HeadSpec(name, params, options.get("class_weight")), X, y, options.get("seed", 0))


def test_bad_data_is_named():
    X, y = problem(3)
    with pytest.raises(HeadError, match="at least two classes"):
        registry.fit(HeadSpec("ncm"), X, np.full(len(y), "one"))
    with pytest.raises(HeadError, match=r"n labels. Got: shapes \(240, 12\) and \(9,\)"):
        registry.fit(HeadSpec("ncm"), X, y[:9])
    with pytest.raises(HeadError, match=r"validation features of width 12\. Got: 3"):
        registry.fit(HeadSpec("ncm"), X, y, validation=(X[:, :3], y))
    with pytest.raises(HeadError, match=r"Expected: training features \(n, d\) and n labels. Got: shapes \(240,\) and"):
        registry.fit(HeadSpec("ncm"), X[:, 0], y)
    spoilt = X.copy()
    spoilt[7, 2] = np.nan
    spoilt[[9, 9], [0, 5]] = np.inf, -np.inf
    with pytest.raises(HeadError, match=r"^2 of the 240 training rows .* not finite: run penult verify"):
        registry.fit(HeadSpec("ncm"), spoilt, y)
    with pytest.raises(HeadError, match=r"^2 of the 240 validation rows have features that are not finite"):
        registry.fit(HeadSpec("ncm"), X, y, validation=(spoilt, y))
    with pytest.raises(HeadError, match=r"Expected: validation features \(n, d\) and n labels"):
        registry.fit(HeadSpec("ncm"), X, y, validation=(X, y[:9]))
    for seed in (-1, 2**63, 1.5):
        with pytest.raises(UsageError, match="--seed, a whole number from 0"):
            registry.fit(HeadSpec("ncm"), X, y, seed=seed)
    assert registry.fit(HeadSpec("knn", {"k": 240}), X, y, seed=2**63 - 1).predict(X[:1])[0] in y
    with pytest.raises(UsageError, match=r"Parameter k: Expected: at most the 240 training rows. Got: 241"):
        registry.fit(HeadSpec("knn", {"k": 241}), X, y)


def test_validation_rows_of_unknown_classes_are_left_out():
    X, y = problem(3)
    strange = np.where(np.arange(80) < 40, y[160:], "never seen")
    head = registry.fit(HeadSpec("svm"), X[:160], y[:160], validation=(X[160:], strange))
    same = registry.fit(HeadSpec("svm"), X[:160], y[:160], validation=(X[160:200], y[160:200]))
    assert head.arrays["temperature"] == same.arrays["temperature"]
    again = registry.calibrated(head, X[160:], strange)
    assert again.arrays["temperature"] == same.arrays["temperature"] != 1
    assert registry.calibrated(head, X[160:], np.full(80, "never seen")).arrays["temperature"] == 1


def test_every_default_and_grid_is_complete():
    for name, row in registry.FAMILIES.items():
        for params in row.grid:
            assert set(registry.complete(name, params)) == set(row.defaults)
        assert row.about


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_of_many_rows_are_found_in_little_memory(metric):
    """All distances of 2,048 rows to 20,000, with their order, would take 625 MiB; so they are not held at once."""
    from sklearn.neighbors import KNeighborsClassifier

    draw = np.random.default_rng(0)
    X, y = draw.standard_normal((20_000, 8), np.float32), draw.integers(0, 3, 20_000).astype(str)
    head = registry.fit(HeadSpec("knn", {"k": 3, "metric": metric}), X, y)
    wanted = KNeighborsClassifier(3, metric=metric, algorithm="brute").fit(standardise(X, *standardisation(X)), y)
    rows = X[:2048] + np.float32(0.01)
    tracemalloc.start()
    try:
        scores = head.scores(rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 250 * 2**20
    seen = standardise(rows, head.arrays["mean"], head.arrays["scale"])
    assert (scores == wanted.predict_proba(seen)).all(axis=1).mean() > 0.999  # but for ties of float32


def test_nearest_class_mean_of_many_rows_needs_no_copy_in_float64():
    draw = np.random.default_rng(0)
    X, y = draw.standard_normal((40_000, 64), np.float32), draw.integers(0, 5, 40_000)
    problem = Problem(X, y, 5, None, 0, X[:0], y[:0], lambda _: None)
    tracemalloc.start()
    try:
        arrays = fit_ncm(problem)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < X.nbytes, "half of a copy in float64"
    means = np.stack([X[y == label].mean(axis=0, dtype=np.float64) for label in range(5)], axis=1)
    np.testing.assert_allclose(arrays["coef"], means, atol=1e-12)
    np.testing.assert_allclose(arrays["intercept"], -(means**2).sum(axis=0) / 2, atol=1e-12)
