"""The sweep engine for linear heads against scikit-learn, in float64 by a function of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.svm import LinearSVC

from heads.base import class_weights, standardisation, standardise
from heads.families.linear import LinearProblem, fit_many
from heads.solvers.lbfgs import Minimizer, Point
from heads.solvers.rows import MemoryRows, StreamedRows
from heads.solvers.sweep import (
    CROSS_ENTROPY,
    SQUARED,
    SQUARED_HINGE,
    LabelledRows,
    Loss,
    Path,
    Solution,
    fits_together,
    solve,
)

FAMILIES = {"cross entropy": CROSS_ENTROPY, "squared hinge": SQUARED_HINGE, "squared": SQUARED}
every_family = pytest.mark.parametrize("family", FAMILIES)
weighted_or_not = pytest.mark.parametrize("kind", [None, "balanced"])
WITHIN = 1e-3  # of the reference's objective, relative


def objective(loss: Loss, coef: np.ndarray, intercept: np.ndarray, Z: np.ndarray, y: np.ndarray, w: np.ndarray, C):
    """``C Σ w loss + ||coef||² / 2`` of coef (d, c), in float64; binary softmax is penalised by the difference."""
    coef, w = coef.astype(float), w.astype(float)[y]
    logits, rows = Z.astype(float) @ coef + intercept.astype(float), np.arange(len(y))
    signs = np.full(logits.shape, -1.0)
    signs[rows, y] = 1
    if loss is SQUARED_HINGE:
        each = w[:, None]
        if logits.shape[1] > 2:  # liblinear weighs a class's rows in its own problem alone
            each = np.where(signs > 0, each, 1.0)
        return C * (each * np.maximum(0, 1 - signs * logits) ** 2).sum() + ((coef**2).sum() + (intercept**2).sum()) / 2
    if loss is SQUARED:
        return C * (w @ (logits - signs) ** 2).sum() + (coef**2).sum() / 2
    margins = logits - logits[rows, y][:, None]
    margins[rows, y] = -np.inf
    losses = np.logaddexp(0, np.logaddexp.reduce(margins, axis=1))
    size = ((coef[:, 1] - coef[:, 0]) ** 2).sum() if coef.shape[1] == 2 else (coef**2).sum()
    return C * (w * losses).sum() + size / 2


def reference(loss: Loss, Z: np.ndarray, y: np.ndarray, w: np.ndarray, C: float) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's ``coef`` (d, c) and ``intercept`` (c,), two columns where it has one."""
    Z, each = Z.astype(float), w.astype(float)[y]
    if loss is CROSS_ENTROPY:
        model = LogisticRegression(C=C, solver="newton-cg", tol=1e-8, max_iter=5000).fit(Z, y, each)
    elif loss is SQUARED_HINGE:
        class_weight = dict(enumerate(w.astype(float)))
        model = LinearSVC(C=C, dual=False, tol=1e-8, max_iter=20_000, class_weight=class_weight).fit(Z, y)
    else:
        model = RidgeClassifier(alpha=1 / (2 * C), solver="svd").fit(Z, y, each)
    coef, intercept = np.atleast_2d(model.coef_).T, model.intercept_
    if coef.shape[1] == 2 or len(w) > 2:
        return coef, intercept
    half = 0.5 if loss is CROSS_ENTROPY else 1.0
    return np.concatenate([-coef, coef], axis=1) * half, np.array([-intercept[0], intercept[0]]) * half


def blobs(n: int, d: int, c: int, apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unequal classes, each with a row at least, and columns of unequal scale."""
    random = np.random.default_rng(seed)
    y = np.concatenate([np.arange(c), np.minimum(random.geometric(1.5 / c, n - c) - 1, c - 1)])
    X = random.normal(size=(c, d))[y] * apart + random.normal(size=(n, d))
    return (X * np.exp(random.normal(size=d))).astype(np.float32), y


def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return X[:600].astype(np.float32), y[:600]


def correlated() -> tuple[np.ndarray, np.ndarray]:
    """Five directions, each column twice, and constant ones."""
    X, y = blobs(150, 5, 4, 0.7)
    mixed = X @ np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32)
    return np.concatenate([mixed, mixed, np.zeros((150, 2)), np.full((150, 1), 7)], axis=1).astype(np.float32), y


def decaying(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions of every size down to where float32 ends."""
    random = np.random.default_rng(2)
    mixing = random.normal(size=(min(n, d), d)) * np.logspace(0, -3.2, min(n, d))[:, None]
    return (random.normal(size=(n, min(n, d))) @ mixing).astype(np.float32), random.integers(0, 3, n)


DATA = {
    "digits": digits,
    "binary, overlapping": lambda: blobs(200, 10, 2, 0.2),
    "binary, separable": lambda: blobs(200, 10, 2, 3.0),
    "n < d": lambda: blobs(40, 90, 3, 0.3),
    "binary, n < d": lambda: blobs(40, 90, 2, 0.3),
    "many classes": lambda: blobs(300, 20, 12, 1.0),
    "n = c": lambda: blobs(15, 10, 15, 1.0),
    "correlated": correlated,
    "decaying, n > d": lambda: decaying(120, 40),
    "decaying, n < d": lambda: decaying(40, 120),
}


def prepared(X: np.ndarray) -> tuple[MemoryRows, np.ndarray]:
    mean, scale = standardisation(X)
    return MemoryRows(X, mean, scale), standardise(X, mean, scale)


def check(rows, Z, y, loss: Loss, path: Path, solutions: list[Solution]) -> None:
    assert [s.at for s in solutions] == list(range(len(path.Cs)))
    for C, solution in zip(path.Cs, solutions, strict=True):
        best = objective(loss, *reference(loss, Z, y, path.class_weights, C), Z, y, path.class_weights, C)
        ours = objective(loss, *rows.basis.weights(solution.W), Z, y, path.class_weights, C)
        weight = C * path.class_weights.astype(float)[y].sum()
        assert solution.objective == pytest.approx(ours / weight, rel=1e-3, abs=1e-9) and solution.converged
        assert -1e-5 < ours / best - 1 < WITHIN, f"C = {C}"


@weighted_or_not
@pytest.mark.parametrize("name", DATA)
@every_family
def test_reaches_the_optimum_of_scikit_learn(family: str, name: str, kind: str | None) -> None:
    loss, (X, y) = FAMILIES[family], DATA[name]()
    rows, Z = prepared(X)
    weights = class_weights(y, y.max() + 1, kind)
    path = Path((1e-4, 1e-2, 1.0, 20.0) if loss is SQUARED_HINGE else (1e-4, 1e-2, 1.0, 100.0), weights)
    check(rows, Z, y, loss, path, list(solve(LabelledRows(rows, y, len(weights)), loss, [path])))


@every_family
def test_extreme_C_on_separable_rows_with_a_class_of_one_row(family: str) -> None:
    loss, (X, y) = FAMILIES[family], blobs(60, 100, 4, 2.0)
    X[:, 3] *= 1e5
    X[:, 4] *= 1e-5
    y[y == 3] = 2
    y[0] = 3
    rows, Z = prepared(X)
    path = Path((1e-8, 1e6), class_weights(y, 4, None))
    tiny, huge = solve(LabelledRows(rows, y, 4), loss, [path])
    check(rows, Z, y, loss, Path((1e-8,), path.class_weights), [tiny])
    coef, intercept = rows.basis.weights(huge.W)
    assert loss is SQUARED or ((Z @ coef + intercept).argmax(axis=1) == y).all()
    if loss is not SQUARED_HINGE:  # at this C liblinear does not converge, and newton-cg ends above its optimum
        best = objective(loss, *reference(loss, Z, y, path.class_weights, 1e6), Z, y, path.class_weights, 1e6)
        assert objective(loss, coef, intercept, Z, y, path.class_weights, 1e6) < best * (1 + WITHIN)


@every_family
def test_predicts_held_out_rows_as_scikit_learn(family: str) -> None:
    loss, (X, y) = FAMILIES[family], load_digits(return_X_y=True)
    rows, Z = prepared(X[:600].astype(np.float32))
    weights = class_weights(y[:600], 10, None)
    held = standardise(X[600:], rows.basis.mean, rows.basis.scale)
    (solution,) = solve(LabelledRows(rows, y[:600], 10), loss, [Path((0.01,), weights)])
    coef, intercept = rows.basis.weights(solution.W)
    ref_coef, ref_intercept = reference(loss, Z, y[:600], weights, 0.01)
    expected = held @ ref_coef + ref_intercept
    last = np.sort(expected, axis=1)[:, -2:]
    clear = last[:, 1] - last[:, 0] > 0.02
    assert clear.mean() > 0.9
    assert ((held @ coef + intercept).argmax(axis=1) == expected.argmax(axis=1))[clear].all()


def test_two_classes_differ_by_the_one_column_of_scikit_learn() -> None:
    X, y = blobs(200, 10, 2, 0.4)
    rows, Z = prepared(X)
    (solution,) = solve(
        LabelledRows(rows, y, 2), CROSS_ENTROPY, [Path((0.1,), class_weights(y, 2, None))], tolerance=1e-9
    )
    coef, intercept = rows.basis.weights(solution.W)
    model = LogisticRegression(C=0.1, tol=1e-10, max_iter=1000).fit(Z.astype(float), y)
    np.testing.assert_allclose(coef[:, 1] - coef[:, 0], model.coef_[0], atol=1e-3)
    np.testing.assert_allclose(intercept[1] - intercept[0], model.intercept_[0], atol=1e-3)


def test_wide_axes_are_orthonormal_down_to_the_smallest_variance() -> None:
    rows, Z = prepared(decaying(40, 120)[0])
    axes = rows.basis.axes
    np.testing.assert_allclose(axes.T @ axes, np.eye(40), atol=1e-5)
    np.testing.assert_allclose(Z @ axes @ axes.T, Z, atol=1e-4)


@every_family
def test_rows_too_wide_to_be_rotated_stay_as_they_are(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory and streamed, where they have one column more than may be rotated."""
    loss, (X, y) = FAMILIES[family], blobs(300, 10, 3, 0.5)
    path = Path((1e-3, 0.1), class_weights(y, 3, None))
    for most, kept in ((10, False), (9, True)):
        monkeypatch.setattr("heads.solvers.rows.MAX_ROTATED", most)
        held, Z = prepared(X)
        streamed = StreamedRows.surveyed(lambda: iter(np.array_split(X, 7)), 300, 300)
        for rows in (held, streamed):
            assert (rows.basis.axes is None) == kept
            if kept:
                np.testing.assert_array_equal(
                    rows.basis.rotate(X), np.c_[standardise(X, rows.basis.mean, rows.basis.scale), np.ones(300)]
                )
                np.testing.assert_allclose(rows.basis.variances, np.square(Z).mean(axis=0), rtol=1e-4)
            check(rows, Z, y, loss, path, list(solve(LabelledRows(rows, y, 3), loss, [path])))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_survey_is_of_all_rows_and_its_sample_of_some(dtype: type) -> None:
    """Mean and scale against NumPy's of all rows, the axes' variances against those of the sample."""
    X = (blobs(5000, 4, 3, 1.0)[0] + [0, 30, -5, 1]).astype(dtype)
    mean, scale = standardisation(X.astype(np.float32))
    for sampled, kept in ((199, False), (200, True), (2500, True)):
        rows = StreamedRows.surveyed(lambda: iter(np.array_split(X, 13)), 5000, sampled, room=17)
        np.testing.assert_allclose(rows.basis.mean, mean, atol=1e-5)
        np.testing.assert_allclose(rows.basis.scale, scale, rtol=1e-5)
        at = np.sort(np.random.default_rng(0).permutation(5000)[:sampled])
        Z = standardise(X[at].astype(np.float32), mean, scale).astype(float)
        np.testing.assert_allclose(rows.basis.variances, np.linalg.eigvalsh(Z.T @ Z / sampled), rtol=1e-3)
        np.testing.assert_allclose(rows.basis.axes.T @ rows.basis.axes, np.eye(4), atol=1e-5)
        assert rows.room == 17 and rows.n == 5000 and (rows.sample is not None) == kept
        if rows.sample is not None:
            assert (rows.sample.at == at).all() and rows.sample.rows.n == sampled
            assert rows.sample.rows.basis is rows.basis
            blocks = np.concatenate([block for _, block in rows.sample.rows.blocks(64)])
            np.testing.assert_allclose(blocks, np.c_[X[at].astype(np.float32) - mean, np.ones(sampled)], atol=1e-4)


def test_problems_are_solved_together_where_there_is_a_sample_and_room() -> None:
    """36 times the weights, in float32: 4 classes of 13 numbers for each of 10 problems."""
    X, y = blobs(3000, 12, 4, 1.0)
    paths = [Path((0.1, 1.0, 10.0), np.ones(4, np.float32)), Path(tuple(range(1, 8)), np.ones(4, np.float32))]
    for sampled, room, expected in ((600, 74_880, True), (600, 74_879, False), (599, 10**9, False)):
        rows = StreamedRows.surveyed(lambda: iter([X]), 3000, sampled, room)
        assert fits_together(LabelledRows(rows, y, 4), paths) is expected
    assert not fits_together(LabelledRows(prepared(X)[0], y, 4), paths)
    roomy = StreamedRows.surveyed(lambda: iter([X]), 3000, 600, 10**9)
    assert fits_together(LabelledRows(roomy, y, 4), paths)
    assert not fits_together(LabelledRows(roomy, y, 4, np.zeros(3000, int)), paths)  # a sample has no folds


@weighted_or_not
@every_family
def test_a_fold_left_out_is_as_if_its_rows_were_not_there(family: str, kind: str | None) -> None:
    loss, (X, y) = FAMILIES[family], blobs(600, 12, 4, 0.5)
    folds = np.random.default_rng(3).integers(0, 3, len(y))
    rows, Z = prepared(X)
    paths = [Path((0.01, 1.0), class_weights(y[folds != f], 4, kind), (f,)) for f in (0, 1, 2)]
    found = list(solve(LabelledRows(rows, y, 4, folds), loss, paths))
    for i, path in enumerate(paths):
        kept = ~np.isin(folds, path.left_out)
        check(rows, Z[kept], y[kept], loss, path, [s for s in found if s.path == i])
    order = np.argsort(folds, kind="stable")
    sorted_rows, _ = prepared(X[order])
    again = {
        (s.path, s.at): s.objective for s in solve(LabelledRows(sorted_rows, y[order], 4, folds[order]), loss, paths)
    }
    assert again == pytest.approx({(s.path, s.at): s.objective for s in found}, rel=1e-4)


@every_family
def test_paths_together_find_what_each_finds_alone_and_drop_out(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, (X, y) = FAMILIES[family], digits()
    rows, _ = prepared(X)
    weights = class_weights(y, 10, None)
    paths = [Path((1e-4,), weights), Path((1e-4, 1e-3, 1e-2, 0.1, 1.0), weights)]
    asked = []
    lower = rows.lower
    monkeypatch.setattr(rows, "lower", lambda W: asked.append(len(W) // 10) or lower(W))
    found = list(solve(LabelledRows(rows, y, 10), loss, paths))
    first, second = ([s for s in found if s.path == i] for i in (0, 1))
    assert [s.at for s in second] == [0, 1, 2, 3, 4]
    assert sum(s.passes for s in first + second) == sum(asked) and sum(s.passes for s in second) == len(asked)
    assert asked == [2] * first[0].passes + [1] * (len(asked) - first[0].passes)
    for C, solution in zip(paths[1].Cs, second, strict=True):
        (alone,) = solve(LabelledRows(rows, y, 10), loss, [Path((C,), weights)])
        assert solution.objective == pytest.approx(alone.objective, rel=5e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@every_family
def test_rows_streamed_in_odd_pieces_are_the_rows_in_memory(family: str, dtype: type) -> None:
    loss, (X, y) = FAMILIES[family], digits()
    X = (X / 16 + 30).astype(dtype)  # far from 0
    held = []

    def read() -> Iterator[np.ndarray]:
        for start in range(0, len(X), 37):
            held.append(len(X[start : start + 37]))
            yield X[start : start + 37]

    rows, Z = prepared(X.astype(np.float32))
    streamed = StreamedRows.surveyed(read, len(X), len(X) // 2)
    assert streamed.n == len(X) and sum(held) == len(X)
    np.testing.assert_allclose(streamed.basis.scale, rows.basis.scale, rtol=1e-5)
    assert all(
        not isinstance(value, np.ndarray) or value.size < X.size / 2
        for value in [*vars(streamed).values(), *vars(streamed.basis).values()]
    )
    path = Path((1e-3, 0.1), class_weights(y, 10, "balanced"))
    found = list(solve(LabelledRows(streamed, y, 10), loss, [path]))
    check(streamed, Z, y, loss, path, found)
    assert sum(held) == len(X) * (1 + sum(s.passes for s in found))


@every_family
def test_rows_streamed_from_a_sample_s_solutions_are_the_rows_in_memory(family: str) -> None:
    """The same problems, followed as a path in memory and solved all at once over streamed rows."""
    loss, (X, y) = FAMILIES[family], blobs(6000, 12, 4, 0.4)
    X = (X / X.std(axis=0) + 3).astype(np.float16)
    problems = [LinearProblem(C, kind) for C in (1e-4, 1e-3, 1e-2, 0.1, 1.0) for kind in (None, "balanced")]
    passes = []

    def read() -> Iterator[np.ndarray]:
        passes.append(1)
        yield from np.array_split(X, 11)

    def objectives(rows: MemoryRows | StreamedRows) -> dict[int, float]:
        Z = standardise(X.astype(np.float32), rows.basis.mean, rows.basis.scale)
        return {
            fit.problem: objective(
                loss,
                fit.coef,
                fit.intercept,
                Z,
                y,
                class_weights(y, 4, problems[fit.problem].class_weight),
                problems[fit.problem].C,
            )
            for fit in fit_many(LabelledRows(rows, y, 4), loss, problems)
        }

    held = objectives(prepared(X.astype(np.float32))[0])
    along = objectives(StreamedRows.surveyed(read, len(X), 1500))  # no room: paths
    several = len(passes)
    passes.clear()
    together = objectives(StreamedRows.surveyed(read, len(X), 1500, room=1 << 20))
    assert len(held) == len(problems)
    assert along == pytest.approx(held, rel=1e-4) and together == pytest.approx(held, rel=1e-4)
    assert len(passes) < several


@given(seed=st.integers(0, 1000), classes=st.integers(1, 6), width=st.integers(1, 12))
@settings(max_examples=25)
def test_lift_is_the_adjoint_of_lower(seed: int, classes: int, width: int) -> None:
    random = np.random.default_rng(seed)
    X = (random.normal(size=(30, width)) + 3).astype(np.float32)
    rows = StreamedRows.surveyed(lambda: iter([X[:13], X[13:]]), 30, 30)
    W, G = random.normal(size=(2, classes, width + 1)).astype(np.float32)
    lowered = rows.lower(W)
    assert np.vdot(lowered, G) == pytest.approx(np.vdot(W, rows.lift(G)), abs=1e-4 * float(np.linalg.norm(lowered) + 1))
    block = np.concatenate([block for _, block in rows.blocks(7)])
    np.testing.assert_allclose(block @ lowered.T, rows.basis.rotate(X) @ W.T, atol=1e-3)


@every_family
def test_the_same_call_gives_the_same_bits(family: str) -> None:
    X, y = blobs(3000, 16, 5, 0.4)
    rows, _ = prepared(X)
    paths = [Path((1e-3, 0.1), class_weights(y, 5, kind)) for kind in (None, "balanced")]
    once, twice = (list(solve(LabelledRows(rows, y, 5), FAMILIES[family], paths)) for _ in range(2))
    assert [(s.path, s.at) for s in once] == [(s.path, s.at) for s in twice]
    assert all((a.W == b.W).all() for a, b in zip(once, twice, strict=True))


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(8, 60),
    d=st.integers(1, 20),
    c=st.integers(2, 5),
    apart=st.sampled_from([0.0, 0.5, 3.0]),
    log_C=st.floats(-4, 1),
    family=st.sampled_from(sorted(FAMILIES)),
    kind=st.sampled_from([None, "balanced"]),
)
@settings(max_examples=60)
def test_no_small_problem_ends_above_the_reference(seed, n, d, c, apart, log_C, family, kind) -> None:
    loss, (X, y) = FAMILIES[family], blobs(n, d, c, apart, seed)
    rows, Z = prepared(X)
    path = Path((10.0**log_C,), class_weights(y, c, kind))
    check(rows, Z, y, loss, path, list(solve(LabelledRows(rows, y, c), loss, [path])))


def quadratic(W: np.ndarray, target: np.ndarray, sizes: np.ndarray, joint: bool) -> Point:
    """``Σ sizes (W - target)² / 2``, with a curvature that is wrong by up to 9."""
    data = (sizes * (W.astype(float) - target) ** 2).sum(axis=1) / 2
    wrong = np.broadcast_to(sizes * np.linspace(1, 9, sizes.shape[-1]), W.shape)
    gradient = sizes * (W - target)
    return Point(W, data.sum(keepdims=True) if joint else data, gradient.astype(np.float32), wrong.astype(np.float32))


@pytest.mark.parametrize("joint", [True, False])
def test_minimizer_finds_the_minimum_of_a_quadratic_and_of_the_next(joint: bool) -> None:
    random = np.random.default_rng(4)
    target, sizes = random.normal(size=(3, 20)), np.exp(random.normal(size=(3, 20)))
    penalised = np.append(np.ones(19), 0).astype(np.float32)
    minimizer = Minimizer(np.zeros((3, 20), np.float32), 1.0, penalised, joint, 1e-8)
    for penalty in (1.0, 0.1):
        if penalty != 1.0:
            minimizer.move(penalty)
        while not minimizer.done:
            minimizer.tell(quadratic(minimizer.trial, target, sizes, joint))
        assert minimizer.evaluations < 40
        np.testing.assert_allclose(minimizer.best.W, sizes * target / (sizes + penalty * penalised), atol=2e-3)


@pytest.mark.parametrize("joint", [True, False])
def test_minimizer_ends_where_no_step_leads_down(joint: bool) -> None:
    """A gradient that promises what the values never show, as rounding does."""
    minimizer = Minimizer(np.ones((2, 5), np.float32), 1e-3, np.ones(5, np.float32), joint, 1e-12)
    ones = np.ones((2, 5), np.float32)
    first = None
    while not minimizer.done:
        first = first if first is not None else minimizer.trial
        data = np.full(1 if joint else 2, 1.0 if minimizer.trial is first else 2.0)
        minimizer.tell(Point(minimizer.trial, data, ones, ones))
    assert minimizer.evaluations < 50
    assert minimizer.best.W is first


@pytest.mark.parametrize(
    ("family", "name", "most"),
    [
        ("cross entropy", "digits", 74),
        ("cross entropy", "many classes", 56),
        ("squared hinge", "digits", 208),
        ("squared hinge", "many classes", 126),
        ("squared", "digits", 32),
        ("squared", "n < d", 35),
    ],
)
def test_a_path_takes_a_handful_of_passes_per_value_of_C(family: str, name: str, most: int) -> None:
    """66, 50, 185, 112, 28 and 31 passes for thirteen values: what is learnt at one is used at the next."""
    loss, (X, y) = FAMILIES[family], DATA[name]()
    weights = class_weights(y, y.max() + 1, None)
    found = list(
        solve(LabelledRows(prepared(X)[0], y, len(weights)), loss, [Path(tuple(np.logspace(-5, 1, 13)), weights)])
    )
    assert sum(s.passes for s in found) <= most and all(s.converged for s in found)


def told(minimizer: Minimizer, data: list[float], gradient: list[float], curvature: float = 1.0) -> None:
    """The next evaluation, of problems of one number each."""
    W = minimizer.trial
    rows = np.array(gradient, np.float32)[:, None]
    minimizer.tell(Point(W, np.array(data, float), rows, np.full(W.shape, curvature, np.float32)))


def one_number(rows: int = 1, tolerance: float = 0.0, joint: bool = False) -> Minimizer:
    """From 0, all but without a penalty."""
    return Minimizer(np.zeros((rows, 1), np.float32), 1e-30, np.ones(1, np.float32), joint, tolerance)


def test_a_step_that_is_too_long_is_shortened_by_the_parabola_through_what_is_known() -> None:
    """From a value of 1 with a slope of -1, by at least half and at most nine tenths."""
    for values, steps in (([2.0, 1.5], [0.25, 0.25 / 6]), ([1.0], [0.5]), ([1e6], [0.1]), ([1e6, 1e6], [0.1, 0.01])):
        minimizer = one_number()
        told(minimizer, [1.0], [-1.0])
        assert minimizer.trial == 1
        for value, step in zip(values, steps, strict=True):
            told(minimizer, [value], [1.0])
            assert minimizer.trial.item() == pytest.approx(step, rel=1e-6) and minimizer.best.W == 0
        assert minimizer.evaluations == 1 + len(values) and not minimizer.done


@pytest.mark.parametrize(("value", "taken"), [(1 - 1e-4 + 1.9e-7, True), (1 - 1e-4 + 2.1e-7, False)])
def test_a_step_is_taken_where_it_leads_down_enough(value: float, taken: bool) -> None:
    """By 1e-4 of what the slope promised, less what float32 cannot tell."""
    minimizer = one_number()
    told(minimizer, [1.0], [-1.0])
    told(minimizer, [value], [-1e-3])
    assert minimizer.best.W.item() == taken and minimizer.objective == pytest.approx(value if taken else 1.0, abs=1e-12)


@pytest.mark.parametrize(("tolerance", "done"), [(0.5, True), (0.499, False)])
def test_the_end_is_where_newton_s_decrement_is_small_beside_the_objective(tolerance: float, done: bool) -> None:
    """Of a value of 1 with a slope of -1 and a curvature of 1 half is left."""
    minimizer = one_number(tolerance=tolerance)
    told(minimizer, [1.0], [-1.0])
    assert (minimizer.done, minimizer.converged) == (done, done)


def test_rows_that_are_problems_of_their_own_step_on_their_own() -> None:
    """The first may step on and has learnt its curvature, the second goes a quarter of the way."""
    minimizer = one_number(rows=2)
    told(minimizer, [1.0, 1.0], [-1.0, -1.0])
    told(minimizer, [0.5, 2.0], [-0.5, 9.0], curvature=3.0)
    best = minimizer.best
    assert best.W.ravel().tolist() == [1, 0] and best.data.tolist() == [0.5, 1.0]
    assert best.gradient.ravel().tolist() == [-0.5, -1] and best.curvature.ravel().tolist() == [3, 1]
    np.testing.assert_allclose(minimizer.trial.ravel(), [2, 0.25], rtol=1e-6)
    assert minimizer.objective == pytest.approx(1.5)


@pytest.mark.parametrize("joint", [True, False])
def test_directions_are_those_of_bfgs(joint: bool) -> None:
    """Against its formula with whole matrices: Nocedal & Wright, (6.17), from Shanno's multiple of the diagonal."""
    random = np.random.default_rng(5)
    penalised = np.append(np.ones(4), 0).astype(np.float32)
    steps = random.normal(size=(6, 3, 5)).astype(np.float32)
    changes = (steps * np.exp(random.normal(size=(3, 5))) + 0.1 * random.normal(size=(6, 3, 5))).astype(np.float32)
    products = (steps * changes).sum(axis=2).astype(float)
    products = products.sum(axis=1, keepdims=True) if joint else products
    W, gradient = random.normal(size=(2, 3, 5)).astype(np.float32)
    curvature = np.exp(random.normal(size=(3, 5))).astype(np.float32)
    pairs = list(zip(steps, changes, 1 / products, strict=True))
    minimizer = Minimizer(W, 0.5, penalised, joint, 1e-12, pairs)
    minimizer.tell(Point(W, np.full(1 if joint else 3, 1e6), gradient, curvature))
    for group in [slice(None)] if joint else [slice(i, i + 1) for i in range(3)]:
        g = (gradient + 0.5 * penalised * W)[group].ravel().astype(float)
        H = np.diag(1 / (curvature + 0.5 * penalised)[group].ravel().astype(float))
        each = [
            (s[group].ravel().astype(float), d[group].ravel().astype(float))
            for s, d in zip(steps, changes, strict=True)
        ]
        s, d = each[-1]
        H *= (s @ d) / (d @ H @ d)
        for s, d in each:
            V = np.eye(len(g)) - np.outer(d, s) / (s @ d)
            H = V.T @ H @ V + np.outer(s, s) / (s @ d)
        np.testing.assert_allclose((minimizer.trial - W)[group].ravel(), -H @ g, rtol=1e-3, atol=1e-4)

    minimizer.move(0.1)
    for (s, d, inverse), step, change in zip(minimizer.pairs, steps, changes, strict=True):
        np.testing.assert_array_equal(s, step)
        np.testing.assert_allclose(d, change - 0.4 * penalised * step, rtol=1e-5, atol=1e-6)
        product = (s * d).sum(axis=1).astype(float)
        product = product.sum(keepdims=True) if joint else product
        good = product > 0
        np.testing.assert_allclose(inverse, np.where(good, 1 / product, 0), rtol=1e-4)


def test_the_last_six_steps_are_kept() -> None:
    random = np.random.default_rng(4)
    target, sizes = random.normal(size=(2, 20)), np.exp(2 * random.normal(size=(2, 20)))
    minimizer = Minimizer(np.zeros((2, 20), np.float32), 1.0, np.ones(20, np.float32), True, 1e-12)
    points, kept = [], []
    for _ in range(12):
        minimizer.tell(quadratic(minimizer.trial, target, sizes, True))
        if not points or minimizer.best is not points[-1]:
            points.append(minimizer.best)
            kept.append(len(minimizer.pairs))
    assert kept[:7] == [0, 1, 2, 3, 4, 5, 6] and set(kept[7:]) == {6}
    last = [after.W - before.W for before, after in zip(points[-7:], points[-6:], strict=False)]
    assert all((step == moved).all() for (step, _, _), moved in zip(minimizer.pairs, last, strict=True))


def test_another_penalty_is_first_tried_along_the_line_that_is_given_if_it_leads_down() -> None:
    for towards, expected in ((0.75, 0.75), (-0.5, None)):
        minimizer = one_number()
        told(minimizer, [1.0], [-1.0])
        told(minimizer, [0.25], [-0.5])  # at 1: the curvature is a half, the minimum at 2
        minimizer.move(1e-20, np.full((1, 1), 1 + towards, np.float32))
        assert minimizer.evaluations == 0 and not minimizer.done
        np.testing.assert_allclose(minimizer.trial.item(), 1 + expected if expected else 2, rtol=1e-6)


def test_an_objective_that_is_not_finite_ends():
    """A penalty that float32 cannot hold once made a fit go on for good."""
    start = np.zeros((1, 3), np.float32)
    minimizer = Minimizer(start, 1.0, np.ones(3, np.float32), joint=True, tolerance=1e-5)
    for evaluations in range(20):
        value = np.array([1.0 if evaluations == 0 else np.nan])
        minimizer.tell(Point(minimizer.trial, value, start + np.float32(1 if evaluations == 0 else np.nan), start + 1))
        if minimizer.done:
            break
    assert minimizer.done and (start == minimizer.best.W).all()
