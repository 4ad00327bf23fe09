"""Kernel heads are scikit-learn's kernel machines, and a comparison shares their features."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import LinearSVC
from test_compare import make_dataset, only
from test_streaming import TIGHT, compare, make, scores, told
from threadpoolctl import threadpool_limits

from featurestore.dataset import Dataset
from featurestore.errors import HeadError
from heads import artifact, registry
from heads.base import Head, softmax, standardise
from heads.comparison import tables
from heads.comparison.compare import compare as compare_heads
from heads.comparison.fit_cache import Results
from heads.comparison.space import Evaluation, Search
from heads.comparison.tables import Table
from heads.comparison.trials import Experiment, Trial
from heads.families.kernel import kernel_of
from heads.solvers import kernels
from heads.solvers.kernels import Kernel, KernelFeatures
from heads.solvers.rows import Rows, StreamedRows
from heads.spec import HeadSpec
from heads.train import train

FAMILIES = ("kernel-logreg", "kernel-svm")
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """LAPACK's threads wait for each other where tests run side by side."""
    with threadpool_limits(1):
        yield


@cache
def digits(n_classes: int = 10, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(y < n_classes))[:n]
    return X[rows].astype(np.float32), np.array([f"digit {label}" for label in y[rows]])


def fitted(name: str, X: np.ndarray, y: np.ndarray, class_weight: str | None = None, **params: Any) -> Head:
    return registry.fit(HeadSpec(name, params, class_weight), X, y)


def standard(head: Head, X: np.ndarray) -> np.ndarray:
    return standardise(X, head.arrays["mean"], head.arrays["scale"]).astype(np.float64)


def exact_features(head: Head, X: np.ndarray) -> np.ndarray:
    """Features whose inner products are the exact kernel of scikit-learn, about the mean of the landmarks'."""
    landmarks, gamma = head.arrays["landmarks"].astype(np.float64), head.arrays["gamma"].item()
    values, vectors = np.linalg.eigh(rbf_kernel(landmarks, gamma=gamma))
    kept = values > 1e-10
    root = vectors[:, kept] / np.sqrt(values[kept])
    return (rbf_kernel(standard(head, X), landmarks, gamma=gamma) - rbf_kernel(landmarks, gamma=gamma).mean(0)) @ root


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize(("n_classes", "gamma"), [(2, 0.05), (3, "scale"), (10, "0.3 scale")])
@pytest.mark.parametrize("landmarks", [60, 300])
def test_kernel_svm_is_scikit_learns(
    n_classes: int, gamma: float | str, landmarks: int, class_weight: str | None
) -> None:
    """Its squared hinge on the exact kernel if every row is a landmark, else on the landmarks' features."""
    X, y = digits(n_classes)
    head = fitted("kernel-svm", X[:300], y[:300], class_weight, C=2.0, gamma=gamma, landmarks=landmarks)
    model = LinearSVC(C=2.0, dual=False, tol=1e-8, class_weight=class_weight, max_iter=100_000)
    model.fit(exact_features(head, X[:300]), y[:300])
    margins, found = model.decision_function(exact_features(head, X)), head.scores(X)
    np.testing.assert_allclose(found if n_classes > 2 else found[:, 1], margins, atol=0.03)
    assert np.mean(head.predict(X) == model.predict(exact_features(head, X))) > 0.99
    assert len(head.arrays["landmarks"]) == min(landmarks, 300)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize(("n_classes", "gamma"), [(2, 0.05), (3, "scale"), (10, "0.3 scale")])
def test_kernel_logreg_is_scikit_learns(n_classes: int, gamma: float | str, class_weight: str | None) -> None:
    X, y = digits(n_classes)
    head = fitted("kernel-logreg", X[:120], y[:120], class_weight, C=10.0, gamma=gamma)
    model = LogisticRegression(C=10.0, tol=1e-7, class_weight=class_weight, max_iter=10_000)
    model.fit(exact_features(head, X[:120]), y[:120])
    np.testing.assert_allclose(softmax(head.scores(X)), model.predict_proba(exact_features(head, X)), atol=0.01)


@pytest.mark.parametrize(("gamma", "multiple"), [("scale", 1.0), ("0.25 scale", 0.25), (0.01, None)])
def test_gamma_is_a_number_or_the_scale_of_scikit_learn(gamma: float | str, multiple: float | None) -> None:
    X, y = digits(3)
    head = fitted("kernel-svm", X, y, gamma=gamma)
    Z = standard(head, X)
    expected = gamma if multiple is None else multiple / (Z.shape[1] * Z.var())
    assert head.arrays["gamma"] == pytest.approx(expected, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40), m=st.integers(1, 40), d=st.integers(1, 5), gamma=st.floats(0.01, 10), seed=st.integers(0, 99)
)
def test_inner_products_of_features_are_those_of_nystroms_method(
    n: int, m: int, d: int, gamma: float, seed: int
) -> None:
    """``K(X, L) K(L, L)^-1 K(L, X)``, whatever the rows: some equal, some far apart; exact among landmarks."""
    draw = np.random.default_rng(seed)
    X = np.round(draw.normal(size=(n, d)), 1).astype(np.float32)
    landmarks = X[Kernel(gamma, False, m).choose(n)]
    assert len(landmarks) == min(n, m)
    features = Kernel(gamma, False, m).features(landmarks)
    found = features.of(kernels.squared_distances(X, landmarks))
    inverse = np.linalg.pinv(rbf_kernel(landmarks.astype(float), gamma=gamma), 1e-8, hermitian=True)
    across = rbf_kernel(X.astype(float), landmarks.astype(float), gamma=gamma)
    np.testing.assert_allclose(found @ found.T, across @ inverse @ across.T, atol=3e-3)
    own = features.of(kernels.squared_distances(landmarks, landmarks))
    np.testing.assert_allclose(own @ own.T, rbf_kernel(landmarks, gamma=gamma), atol=2e-3)
    np.testing.assert_allclose(own.mean(axis=0), features.centre, atol=2e-3)


def test_landmarks_are_a_draw_of_all_rows_without_labels() -> None:
    draws = Kernel(1.0, False, 30).choose(1000)
    assert len(set(draws)) == 30 and draws.max() > 500 and (draws == Kernel(9.0, True, 30).choose(1000)).all()
    assert (Kernel(1.0, False, 60).choose(1000)[:30] == draws).all()
    assert sorted(Kernel(1.0, False, 30).choose(20)) == list(range(20))


@every_family
@pytest.mark.parametrize("gamma", [5e-324, 1e-30, 1e30, 1.7e308, "1e-300 scale", "1e300 scale"])
def test_any_gamma_gives_a_head_of_finite_numbers(name: str, gamma: float | str, tmp_path: Path) -> None:
    """The kernel is 1 everywhere, or 0 between rows that differ."""
    X, y = digits(3, 90)
    head = fitted(name, np.concatenate([X, X[:5]]), np.concatenate([y, y[:5]]), gamma=gamma)
    artifact.save(head, tmp_path, {})
    assert np.isfinite(head.scores(1e3 * X)).all()


@every_family
def test_rows_that_are_all_equal_are_a_problem_too(name: str) -> None:
    head = fitted(name, np.ones((6, 4), np.float32), np.array(["a", "b"] * 3))
    np.testing.assert_allclose(head.probabilities(np.ones((1, 4), np.float32)), [[0.5, 0.5]], atol=1e-3)


@every_family
def test_curved_boundaries_are_found(name: str) -> None:
    """A ball in its shell, of which a linear head sees nothing."""
    X = np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32)
    y = np.where((X**2).sum(axis=1) < 4.35, "ball", "shell")
    assert np.mean(fitted("logreg", X[:400], y[:400]).predict(X[400:]) == y[400:]) < 0.7
    assert np.mean(fitted(name, X[:400], y[:400]).predict(X[400:]) == y[400:]) > 0.9


# -- comparisons -----------------------------------------------------------------------------------------------------


@cache
def dataset() -> Dataset:
    return make_dataset(n=400, noise=1.2)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts how often distances and features are made."""
    counted = {"distances": 0, "features": 0}
    distances, features = tables.all_squared_distances, Kernel.features

    def counting_distances(*arguments: Any) -> np.ndarray:
        counted["distances"] += 1
        return distances(*arguments)

    def counting_features(*arguments: Any) -> KernelFeatures:
        counted["features"] += 1
        return features(*arguments)

    monkeypatch.setattr(tables, "all_squared_distances", counting_distances)
    monkeypatch.setattr(Kernel, "features", counting_features)
    return counted


GRID = tuple({"C": C, "gamma": gamma} for C in (1.0, 10.0) for gamma in ("0.3 scale", "scale", 0.02))


@pytest.mark.parametrize("folds", [0, 4])
def test_all_values_of_C_families_and_folds_share_features(made: dict[str, int], folds: int) -> None:
    """One matrix of distances for all gammas, and features per gamma."""
    table = Table({name: dataset().part(name) for name in ("train", "val")}, folds)
    candidates = [
        HeadSpec(name, registry.complete(name, point), weight)
        for name in FAMILIES
        for point in GRID
        for weight in (None, "balanced")
    ]
    parts = range(folds) if folds else [tables.HOLD_OUT]
    trials = [Trial(0, at, 0, part) for at in range(len(candidates)) for part in parts]
    tried = Experiment([table], candidates).run(trials)
    assert len(tried.outcomes) == len(trials) and not tried.errors
    assert made == {"distances": 1, "features": 3}


@every_family
@pytest.mark.parametrize("landmarks", [40, 1024])
def test_a_comparison_fits_what_training_fits(name: str, landmarks: int) -> None:
    """All fits at once or one alone: the same head, also as winner and at the end of its learning curve."""
    grid = tuple({**point, "landmarks": landmarks} for point in GRID[:3])
    result = compare_heads(dataset(), Search({name: grid}))
    for row in result.leaderboard:
        alone = train(dataset(), HeadSpec(name, row["params"]))
        assert row["val"] == pytest.approx(alone.val, abs=0.011)
    winner, alone_head = result.winner.head, train(dataset(), HeadSpec(name, result.winner.head.params)).head
    X = dataset().X
    assert (winner.arrays["landmarks"] == alone_head.arrays["landmarks"]).all()
    np.testing.assert_allclose(winner.scores(X), alone_head.scores(X), atol=0.03 * np.abs(alone_head.scores(X)).max())
    assert np.mean(winner.predict(X) == alone_head.predict(X)) > 0.99
    assert result.learning_curve is not None
    assert result.learning_curve["points"][-1]["val"] == pytest.approx(result.winner.val, abs=0.011)


@every_family
def test_a_fold_s_rows_are_left_out(name: str) -> None:
    """Other labels of the fold change nothing of the fit that leaves it out, only which of its rows are right."""
    part = {split: dataset().part(split) for split in ("train", "val")}
    table = Table(part, 4)
    spoilt = part["train"].y.copy()
    spoilt[table.groups == 2] = np.roll(spoilt[table.groups == 2], 1)
    other = Table({**part, "train": replace(part["train"], y=spoilt)}, 4)
    spec = HeadSpec(name, registry.complete(name, {"landmarks": 50}))
    right = [
        Experiment([one], [spec]).run([Trial(0, 0, 0, 2)]).outcomes[Trial(0, 0, 0, 2)].right for one in (table, other)
    ]
    own = part["train"].y[table.groups == 2], spoilt[table.groups == 2]
    differ = own[0] != own[1]
    assert differ.any() and (right[0][~differ] == right[1][~differ]).all() and not (right[0] & right[1])[differ].any()


@pytest.mark.parametrize("way", ["folds", "views", "few-shot"])
@every_family
def test_kernels_are_compared_in_every_way(name: str, way: str, tmp_path: Path, made: dict[str, int]) -> None:
    """And the same comparison again fits nothing."""
    train_rows = dataset().part("train")
    options: dict[str, Any] = {"evaluation": Evaluation(folds=3 if way == "folds" else 0)}
    if way == "few-shot":
        options["evaluation"] = Evaluation(fewshot=(3,))
    if way == "views":
        options["augmented"] = train_rows.with_views(train_rows.X + np.float32(0.1), np.arange(len(train_rows)))
    first = compare_heads(dataset(), only(name), **options, results=Results(tmp_path))
    assert all(row["val"] > 0.5 for row in first.leaderboard) and first.learning_curve is not None
    done = dict(made)
    again = compare_heads(dataset(), only(name), **options, results=Results(tmp_path))
    assert made == done
    assert json.dumps(first.to_json()) == json.dumps(again.to_json())


@every_family
def test_a_head_gives_its_weights_back(name: str) -> None:
    """From which the fits of its learning curve start."""
    table = Table({split: dataset().part(split) for split in ("train", "val")})
    prepared = table.rows(kernel_of(1.0, "scale", 1024))
    draw = np.random.default_rng(0)
    coef, intercept = (
        draw.normal(size=(prepared.rows.basis.axes.shape[1], 4)).astype(np.float32),
        np.ones(4, np.float32),
    )
    head = registry.family(name).head(name, {}, np.array(list("abcd")), prepared.arrays(coef, intercept))
    back = prepared.start(head)
    assert back is not None
    np.testing.assert_allclose(back[0], coef, atol=2e-2)
    np.testing.assert_allclose(back[1], intercept, atol=2e-2)


# -- streaming -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return make(tmp_path_factory.mktemp("kernels") / "store", patch)


KERNELS = """
[heads.kernel-logreg]
C = [1.0, 30.0]
landmarks = [25]
[heads.kernel-svm]
C = [0.1, 3.0]
gamma = ["scale", 0.2]
landmarks = [25]
"""


def test_streamed_kernels_are_those_in_memory(store: Path, tmp_path: Path) -> None:
    """The same landmarks in another order of rows; with a sample that is large enough to start from."""
    (tmp_path / "search.toml").write_text(KERNELS)
    search = ("--search", str(tmp_path / "search.toml"))
    held = told(compare(Path(shutil.copytree(store, tmp_path / "held")), *search, "--memory-limit", "1GB"))
    streamed = told(compare(Path(shutil.copytree(store, tmp_path / "other")), *search, "--memory-limit", TIGHT))
    assert any("streamed" in note for note in streamed["notes"])
    row = 1 / streamed["n"]["val"]
    assert len(scores(held)) == 6
    assert scores(held) == pytest.approx(scores(streamed), abs=1.01 * row)
    heads = [
        artifact.load(tmp_path / folder / "runs" / result["run_id"])[0]
        for folder, result in (("held", held), ("other", streamed))
    ]
    if heads[0].params == heads[1].params and heads[0].family == heads[1].family:
        assert (heads[0].arrays["landmarks"] == heads[1].arrays["landmarks"]).all()
    assert streamed["winner"]["test"] == pytest.approx(held["winner"]["test"], abs=2.01 / streamed["n"]["test"])


def test_features_for_which_there_is_no_room_are_an_error_that_says_so() -> None:
    """The operating system refuses files above 8 KiB."""
    stored = kernels.StoredFeatures(8)
    rows = np.arange(800, dtype=np.float16).reshape(100, 8)
    stored.append(rows)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, most[1]))
    try:
        with pytest.raises(
            HeadError, match=r"do not fit in .*: set TMPDIR to a folder with more room, or lower landmarks"
        ):
            stored.append(np.zeros((10_000, 8), np.float16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5), width=st.integers(1, 6), piece=st.integers(1, 30))
def test_stored_features_are_read_as_they_were_written(sizes: list[int], width: int, piece: int) -> None:
    X = np.random.default_rng(0).normal(size=(sum(sizes), width)).astype(np.float16)
    stored = kernels.StoredFeatures(width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "PIECE_ROWS", piece)
        assert list(stored.read()) == []
        for part in np.split(X, np.cumsum(sizes)[:-1]):
            stored.append(part)
        for _ in range(2):
            pieces = list(stored.read())
            assert {len(one) for one in pieces[:-1]} <= {piece}
            np.testing.assert_array_equal(np.concatenate(pieces), X)


# -- rows ------------------------------------------------------------------------------------------------------------


def blocks_of(rows: Rows, size: int) -> np.ndarray:
    """All rows of one pass, each at the place that its block names."""
    out = np.full((rows.n, len(rows.basis.variances) + 1), np.nan, np.float32)
    for at, block in rows.blocks(size):
        out[at] = block
    return out


@pytest.mark.parametrize("basis_rows", [50, 10_000])
def test_rows_in_memory_are_centred_features_in_a_basis_of_their_own(
    monkeypatch: pytest.MonkeyPatch, basis_rows: int
) -> None:
    monkeypatch.setattr(kernels, "BASIS_ROWS", basis_rows)
    monkeypatch.setattr(kernels, "BLOCK_ROWS", 64)
    X, _ = digits(10, 300)
    X = X / 10
    features = Kernel(0.02, False, 20).features(X[:20])
    squared = kernels.squared_distances(X, features.landmarks)
    rows = kernels.KernelRows.in_memory(features, squared).rows
    found = blocks_of(rows, 77)
    expected = features.of(squared) - features.centre
    np.testing.assert_allclose(found, rows.basis.rotate(features.of(squared)), atol=1e-4)
    np.testing.assert_allclose(found[:, :-1] @ rows.basis.axes.T, expected, atol=1e-4)
    moments = found[:, :-1].T @ found[:, :-1] / len(X)
    np.testing.assert_allclose(np.diag(moments), rows.basis.variances, rtol=1e-3)
    apart = moments / np.sqrt(np.outer(rows.basis.variances, rows.basis.variances)) - np.eye(len(moments))
    assert np.abs(apart).max() < (0.01 if basis_rows > 300 else 0.9)


def test_streamed_rows_are_the_features_of_the_pieces() -> None:
    X = np.random.default_rng(0).normal(2, 3, size=(450, 4)).astype(np.float16)
    at = np.cumsum([7, 100, 1, 150])

    def read() -> Iterator[np.ndarray]:
        return iter(np.split(X, at))

    plain = StreamedRows.surveyed(read, len(X), 50, room=123)
    Z = standardise(X.astype(np.float32), plain.basis.mean, plain.basis.scale)
    features = Kernel(0.5, True, 3).features(Z[:3])
    rows = kernels.KernelRows.streamed(features, plain, read, 200).rows
    expected = features.of(kernels.squared_distances(Z, features.landmarks)) - features.centre
    found = blocks_of(rows, 60)
    np.testing.assert_allclose(found[:, :-1], expected, atol=2e-3)
    assert (found[:, -1] == 1).all() and rows.room == 123
    assert rows.sample is not None and len(set(rows.sample.at)) == 200 and rows.sample.rows.basis is rows.basis
    np.testing.assert_allclose(blocks_of(rows.sample.rows, 60), found[rows.sample.at], atol=1e-6)
    few = kernels.KernelRows.streamed(features, plain, read, 149).rows
    assert few.sample is None  # of three features it takes 150 rows
