"""The estimators for scikit-learn against scikit-learn: its own checks, its optimum, its cross-validation."""

from __future__ import annotations

import doctest
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    PredefinedSplit,
    RepeatedKFold,
    ShuffleSplit,
    StratifiedKFold,
    TimeSeriesSplit,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from heads import estimators
from heads.estimators import SweepLinearSVC, SweepLogisticRegressionCV

BOTH = [SweepLogisticRegressionCV, SweepLinearSVC]
PAGE = Path(__file__).parents[2] / "docs" / "estimators.md"
both = pytest.mark.parametrize("kind", BOTH)


def reference(kind: type, **options: Any) -> Any:
    """scikit-learn's estimator of one C, run until nothing moves."""
    if kind is SweepLinearSVC:
        return LinearSVC(dual=False, tol=1e-10, max_iter=100_000, **options)
    return LogisticRegression(solver="newton-cg", tol=1e-10, max_iter=10_000, **options)


def blobs(c: int, n: int = 300, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes of unequal sizes, columns of unequal scale, and far from 0."""
    random = np.random.default_rng(c)
    y = np.concatenate([np.arange(c).repeat(10), np.minimum(random.geometric(1.5 / c, n - 10 * c) - 1, c - 1)])
    X = random.normal(size=(c, d))[y] * 0.4 + random.normal(size=(n, d)) + 2
    order = random.permutation(n)
    return (X * np.exp(random.normal(size=d)))[order], y[order]


DATA = {
    "iris": lambda: load_iris(return_X_y=True),
    "two classes": lambda: blobs(2),
    "five classes": lambda: blobs(5),
    "columns from 0.001 to 1000": lambda: load_breast_cancer(return_X_y=True),
    "fewer rows than columns": lambda: blobs(3, n=60, d=100),
}


@pytest.mark.filterwarnings("ignore:The least populated class:UserWarning")  # of scikit-learn's folds, in its checks
@pytest.mark.filterwarnings("ignore:.*fits did not converge")  # at C = 1e4, on labels that are noise
@parametrize_with_checks([kind() for kind in BOTH])
def test_scikit_learn_s_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.filterwarnings("ignore:.*[Ll]ine.[Ss]earch")  # of the reference, at its optimum
@both
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("weight", [None, "balanced", {0: 3.0, 1: 0.5}])
@pytest.mark.parametrize("name", DATA)
def test_same_coefficients_at_the_same_C(kind: type, name: str, weight: Any, dtype: type) -> None:
    X, y = DATA[name]()
    X = X.astype(dtype)
    if isinstance(weight, dict):
        weight = dict.fromkeys(np.unique(y).tolist(), 1.0) | weight
    for C in (1e-3, 1.0):
        ours = kind(Cs=[C], cv=2, class_weight=weight).fit(X, y)
        theirs = reference(kind, C=C, class_weight=weight).fit(X.astype(float), y)
        assert ours.C_ == C and ours.coef_.dtype == ours.intercept_.dtype == dtype
        assert ours.coef_.shape == theirs.coef_.shape and ours.intercept_.shape == theirs.intercept_.shape
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3 * np.abs(theirs.coef_).max(), rtol=0)
        scores = theirs.decision_function(X.astype(float))
        np.testing.assert_allclose(ours.decision_function(X), scores, atol=1e-3 * np.abs(scores).max(), rtol=0)


@pytest.mark.parametrize("c", [2, 4])
def test_same_probabilities(c: int) -> None:
    X, y = blobs(c)
    ours = SweepLogisticRegressionCV(Cs=[0.5]).fit(X, y)
    theirs = reference(SweepLogisticRegressionCV, C=0.5).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)
    np.testing.assert_allclose(ours.predict_log_proba(X), theirs.predict_log_proba(X), atol=1e-3)


def test_features_far_from_0_lose_nothing_to_float32() -> None:
    """A float32 near a million has steps of 0.06."""
    X, y = blobs(3)
    near, far = (SweepLogisticRegressionCV(Cs=[1.0]).fit(Z, y) for Z in (X, X + 2.0**20))
    np.testing.assert_allclose(far.coef_, near.coef_, atol=1e-4)
    np.testing.assert_allclose(far.predict_proba(X + 2.0**20), near.predict_proba(X), atol=1e-4)


@both
@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("c", [2, 4])
def test_same_scores_and_choice_as_a_grid_search(kind: type, c: int, weight: str | None) -> None:
    """On shuffled splits, whose rows lie anywhere, and values of C in no order."""
    X, y = blobs(c)
    Cs, cv = [1.0, 1e-3, 0.1, 1e-2], StratifiedKFold(4, shuffle=True, random_state=1)
    ours = kind(Cs=Cs, cv=cv, class_weight=weight).fit(X, y)
    theirs = GridSearchCV(reference(kind, class_weight=weight), {"C": sorted(Cs)}, cv=cv).fit(X, y)
    expected = np.array([theirs.cv_results_[f"split{split}_test_score"] for split in range(4)])
    assert ours.Cs_.tolist() == sorted(Cs) and ours.n_iter_.shape == (4, 4) and (ours.n_iter_ > 0).all()
    np.testing.assert_allclose(ours.scores_, expected, atol=0.021)  # a row of a fold, or two, near the border
    assert np.abs(ours.scores_ - expected).mean() < 0.003
    assert len(np.unique(expected)) > 4
    assert ours.scores_.mean(axis=0)[ours.Cs_ == ours.C_] == ours.scores_.mean(axis=0).max()
    np.testing.assert_allclose(
        ours.coef_,
        reference(kind, C=ours.C_, class_weight=weight).fit(X, y).coef_,
        atol=1e-3 * np.abs(ours.coef_).max(),
    )


def test_stands_for_logistic_regression_cv() -> None:
    X, y = load_digits(return_X_y=True)
    X = X[:500] / 16
    options = {"Cs": 4, "cv": 3, "scoring": "neg_log_loss"}
    ours = SweepLogisticRegressionCV(**options).fit(X, y[:500])
    theirs = LogisticRegressionCV(
        **options, l1_ratios=(0,), use_legacy_attributes=False, solver="newton-cholesky", tol=1e-6
    ).fit(X, y[:500])
    np.testing.assert_allclose(ours.Cs_, theirs.Cs_)
    np.testing.assert_allclose(ours.scores_, theirs.scores_[:, 0], atol=1e-3)
    np.testing.assert_allclose(ours.C_, theirs.C_)
    assert ours.score(X, y[:500]) == pytest.approx(theirs.score(X, y[:500]), abs=1e-3)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3 * np.abs(theirs.coef_).max())


def test_without_refit_the_splits_best_are_averaged() -> None:
    X, y = load_iris(return_X_y=True)
    Cs, cv = [1e-3, 0.1, 10.0], StratifiedKFold(3, shuffle=True, random_state=0)
    ours = SweepLogisticRegressionCV(Cs=Cs, cv=cv, refit=False, scoring="neg_log_loss").fit(X, y)
    best = ours.Cs_[ours.scores_.argmax(axis=1)]
    fits = [
        reference(SweepLogisticRegressionCV, C=C).fit(X[fitted], y[fitted])
        for C, (fitted, _) in zip(best, cv.split(X, y), strict=True)
    ]
    np.testing.assert_allclose(ours.C_, best.mean())
    np.testing.assert_allclose(ours.coef_, np.mean([fit.coef_ for fit in fits], axis=0), atol=0.02)
    np.testing.assert_allclose(ours.intercept_, np.mean([fit.intercept_ for fit in fits], axis=0), atol=0.02)
    tied = SweepLinearSVC(Cs=[0.1, 0.1, 0.2], cv=cv, refit=False, scoring=lambda *_: 1.0).fit(X, y)
    np.testing.assert_allclose(tied.C_, 0.1)
    assert tied.Cs_.tolist() == [0.1, 0.2]


@both
def test_scoring_by_name_or_function(kind: type) -> None:
    X, y = blobs(3)
    named, called = (
        kind(Cs=[1e-3, 1.0], scoring=scoring).fit(X, y)
        for scoring in ("balanced_accuracy", lambda model, X, y: balanced_accuracy_score(y, model.predict(X)))
    )
    assert (named.scores_ == called.scores_).all()
    assert not (named.scores_ == kind(Cs=[1e-3, 1.0]).fit(X, y).scores_).all()
    assert named.score(X, y) == balanced_accuracy_score(y, named.predict(X))
    weights = np.arange(len(y))
    assert named.score(X, y, weights) == balanced_accuracy_score(y, named.predict(X), sample_weight=weights)


def splits_that_fit(y: np.ndarray) -> dict[str, Any]:
    part = np.arange(len(y)) % 3
    return {
        "a number": 3,
        "shuffled": KFold(4, shuffle=True, random_state=0),
        "groups": list(GroupKFold(3).split(part, groups=part)),
        "some rows always train": PredefinedSplit(np.where(part == 2, -1, part)),
        "one split": ShuffleSplit(1, random_state=0),
        "masks": [(part != 0, part == 0), (part != 1, part == 1)],
        "an iterator": iter([(np.flatnonzero(part != 0), np.flatnonzero(part == 0))]),
    }


@pytest.mark.parametrize("name", splits_that_fit(np.zeros(9)))
def test_splits_that_share_passes(name: str) -> None:
    X, y = blobs(3, n=150)
    splits = splits_that_fit(y)[name]
    ours = SweepLogisticRegressionCV(Cs=[0.01, 1.0], cv=splits, scoring="neg_log_loss").fit(X, y)
    given = StratifiedKFold(3) if name == "a number" else splits_that_fit(y)[name]
    pairs = list(given) if isinstance(given, list) or name == "an iterator" else list(given.split(X, y))
    assert len(ours.scores_) == len(pairs)
    for scores, (fitted, tested) in zip(ours.scores_, pairs, strict=True):
        for C, score in zip(ours.Cs_, scores, strict=True):
            model = reference(SweepLogisticRegressionCV, C=C).fit(X[fitted], y[fitted])
            expected = np.log(model.predict_proba(X[tested])[np.arange(len(y[tested])), y[tested]]).mean()
            assert score == pytest.approx(expected, abs=2e-3)


REFUSED = {
    "tested twice": RepeatedKFold(n_splits=3, n_repeats=2, random_state=0),
    "shuffled splits": ShuffleSplit(3, random_state=0),
    "a part of the past": TimeSeriesSplit(3),
    "rows in neither": ShuffleSplit(1, train_size=0.5, test_size=0.2, random_state=0),
    "rows in both": [(np.arange(150), np.arange(50))],
    "rows trained on twice": [(np.r_[50:150, 50:60], np.arange(50))],
    "no split": [],
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_splits_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^cv: Expected: splits that test"):
        SweepLinearSVC(cv=REFUSED[name]).fit(*blobs(3, n=150))


def test_a_split_that_trains_on_one_class_is_refused() -> None:
    X, y = blobs(2)
    order = np.argsort(y, kind="stable")
    with pytest.raises(ValueError, match="split 0 trains on one class only"):
        SweepLinearSVC(cv=[(np.flatnonzero(y == 1), np.flatnonzero(y == 0))]).fit(X, y)
    with pytest.raises(ValueError, match="one class"):
        SweepLinearSVC().fit(X[order][:20], y[order][:20])


@pytest.mark.parametrize("c", [2, 3])
@pytest.mark.parametrize(
    "names",
    [np.array(["zebra", "ant", "midge"]), np.array([7, -3, 100]), np.array(["b", "a", "c"], object), [True, False, 2]],
    ids=["strings", "integers", "objects", "truth"],
)
@both
def test_labels_of_any_type(kind: type, names: Any, c: int) -> None:
    X, codes = blobs(c)
    names = np.array(names[:c])
    plain = kind(Cs=[0.1]).fit(X, np.argsort(np.argsort(names))[codes])
    named = kind(Cs=[0.1]).fit(X, names[codes])
    assert named.classes_.tolist() == sorted(names.tolist()) and named.classes_.dtype == names.dtype
    np.testing.assert_allclose(named.coef_, plain.coef_, atol=1e-6)
    assert (named.predict(X) == named.classes_[plain.predict(X)]).all()
    assert (named.predict(X) == names[codes]).mean() > 1 / c


@both
def test_in_a_pipeline_cloned_pickled_and_cross_validated(kind: type) -> None:
    X, y = load_iris(return_X_y=True)
    model = make_pipeline(StandardScaler(), kind(Cs=[0.01, 1.0], cv=3, class_weight="balanced"))
    assert cross_val_score(model, X, y).mean() > 0.9
    twin = clone(model)
    assert twin[-1].get_params() == model[-1].get_params() and not hasattr(twin[-1], "coef_")
    model.fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    assert (again.decision_function(X) == model.decision_function(X)).all() and again.score(X, y) == model.score(X, y)
    assert model[-1].n_features_in_ == 4 and hasattr(model[-1], "predict_proba") == (kind is SweepLogisticRegressionCV)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"Cs": 0}, "Cs: Expected"),
        ({"Cs": True}, "Cs: Expected"),
        ({"Cs": 1.5}, "Cs: Expected"),
        ({"Cs": []}, "Cs: Expected"),
        ({"Cs": [1.0, 0.0]}, "Cs: Expected"),
        ({"Cs": [1.0, -1.0]}, "Cs: Expected"),
        ({"Cs": [1.0, np.inf]}, "Cs: Expected"),
        ({"Cs": [np.nan, 1.0]}, "Cs: Expected"),
        ({"class_weight": "even"}, "class_weight: Expected"),
        ({"class_weight": {0: 1, 1: 0, 2: 1}}, "class_weight: Expected: numbers from 1e-10"),
        ({"class_weight": {0: 1, 1: np.inf, 2: 1}}, "class_weight: Expected: numbers from 1e-10"),
        ({"class_weight": {0: 1, 7: 2}}, "are not in class_weight"),
        ({"scoring": "beauty"}, "beauty"),
    ],
)
def test_parameters_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SweepLogisticRegressionCV(**options).fit(*blobs(3))


@both
def test_features_too_large_for_float32_are_refused(kind: type) -> None:
    X, y = blobs(3)
    for size in (1e13, 1e200, -1e13):
        X[3, 3] = size
        with pytest.raises(ValueError, match="Scale them"):
            kind().fit(X, y)


@both
def test_a_whole_number_of_Cs_is_scikit_learn_s_grid(kind: type) -> None:
    X, y = load_iris(return_X_y=True)
    for count in (3, np.int64(3)):
        np.testing.assert_allclose(kind(Cs=count, cv=2).fit(X, y).Cs_, [1e-4, 1, 1e4])


def test_what_does_not_converge_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = load_iris(return_X_y=True)
    monkeypatch.setattr("heads.solvers.lbfgs.MAX_EVALUATIONS", 20)
    monkeypatch.setattr(estimators, "MAX_EVALUATIONS", 20)
    with pytest.warns(ConvergenceWarning) as told:
        SweepLogisticRegressionCV(Cs=[1e-4, 100.0], cv=3).fit(X, y)
    said = [str(warning.message) for warning in told]
    assert len(said) == 2 and said[0].startswith("3 fits did not converge in 20 passes, of C from 100:")
    assert said[1].startswith("1 fits")


def test_the_page_s_example_does_what_it_says() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    example = doctest.DocTestParser().get_doctest(block, {}, PAGE.name, str(PAGE), 0)
    assert len(example.examples) > 5
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example).failed == 0
