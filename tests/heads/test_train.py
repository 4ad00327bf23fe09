"""One head on a dataset: what is fitted, scored and said."""

import json
from dataclasses import replace

import numpy as np
import pytest

from builders import DATASET, make_dataset
from featurestore.dataset import Dataset
from featurestore.errors import HeadError, UsageError
from heads import registry
from heads.base import softmax
from heads.comparison.compare import compare
from heads.comparison.space import Search
from heads.evaluation import calibration
from heads.evaluation.metrics import wilson
from heads.spec import HeadSpec
from heads.train import gained, misclassified, train


def test_train_scores_what_it_says():
    result = train(DATASET, HeadSpec("logreg", {"C": 0.1}))
    fit, val, test = (DATASET.part(split) for split in ("train", "val", "test"))
    same = registry.fit(HeadSpec("logreg", {"C": 0.1}), fit.X, fit.y)
    assert (result.head.arrays["coef"] == same.arrays["coef"]).all()
    assert result.val == np.mean(same.predict(val.X) == val.y)
    assert result.test == result.metrics["top1"] == np.mean(same.predict(test.X) == test.y)
    assert result.test_ci == wilson(result.test, 100)
    assert result.n == {"train": 200, "val": 100, "test": 100, "classes": 4}
    assert 0.15 < result.baseline < 0.4
    told = json.loads(json.dumps(result.to_json("run", "id")))
    assert told.keys() == {
        "run_id", "head_id", "feature_set", "head", "params", "val", "val_ci", "fit_seconds", "test", "test_ci",
        "metrics", "baseline", "n", "notes", "history", "calibration", "abstain", "without_views",
    }  # fmt: skip
    assert (told["run_id"], told["head_id"], told["feature_set"]) == ("run", "id", "set-1")
    assert (told["head"], told["params"]) == ("logreg", {"C": 0.1})
    assert told["val_ci"] == list(result.val_ci) == list(wilson(result.val, 100))
    assert told["history"] == told["notes"] == [] and told["without_views"] is None
    names, counts = np.unique(fit.y, return_counts=True)
    assert result.baseline == np.mean(test.y == names[counts.argmax()])
    weighted = train(DATASET, HeadSpec("logreg", {"C": 0.1}, "balanced"))
    same = registry.fit(HeadSpec("logreg", {"C": 0.1}, "balanced"), fit.X, fit.y, validation=(val.X, val.y))
    assert all((weighted.head.arrays[name] == array).all() for name, array in same.arrays.items())
    assert (weighted.head.arrays["coef"] != result.head.arrays["coef"]).any()


def test_a_head_with_views_is_told_beside_the_same_head_without():
    fit, val = DATASET.part("train"), DATASET.part("val")
    X = np.random.default_rng(5).normal(size=(400, 10)).astype(np.float32) + np.repeat(fit.X, 2, axis=0)
    augmented = fit.with_views(X, np.repeat(np.arange(200), 2))
    result, plain = (
        train(DATASET, HeadSpec("knn", {"k": 3}), augmented=augmented),
        train(DATASET, HeadSpec("knn", {"k": 3})),
    )
    same = registry.fit(HeadSpec("knn", {"k": 3}), augmented.X, augmented.y)
    assert (result.head.arrays["vectors"] == same.arrays["vectors"]).all() and result.views == 2 and plain.views == 0
    assert result.val == np.mean(same.predict(val.X) == val.y) != plain.val
    row, without = result.row(), plain.row()
    assert row.keys() == without.keys() | {"views", "note"} and row["views"] == 2
    assert row["note"] == gained(2, result.val, plain.val)
    assert result.without_views.keys() == without.keys() == {"head", "params", "val", "val_ci", "fit_seconds"}
    assert {**result.without_views, "fit_seconds": 0} == {**without, "fit_seconds": 0}
    assert result.to_json()["without_views"] == result.without_views and result.n == plain.n
    assert gained(3, 0.55, 0.5) == "with 3 views per image: +5.0 points on validation over the images alone"
    assert gained(1, 0.5, 0.625, "here") == "with 1 views per image: -12.5 points here over the images alone"


def test_what_cannot_be_asked_for():
    with pytest.raises(UsageError, match="'knn' cannot weight classes"):
        train(DATASET, HeadSpec("knn", class_weight="balanced"))
    with pytest.raises(UsageError, match="There is no head 'tree'"):
        train(DATASET, HeadSpec("tree"))


@pytest.mark.parametrize("name", ["ncm", "logreg", "svm", "rbf-svm", "dense"])
def test_calibration_is_that_of_the_test_split(name):
    result = train(DATASET, HeadSpec(name, {"epochs": 3} if name == "dense" else {}))
    test, told = DATASET.part("test"), result.calibration
    temperature = result.head.arrays["temperature"].item()
    assert told["temperature"] == temperature != 1
    for when, t in (("before", 1), ("after", temperature)):
        p, right = softmax(result.head.scores(test.X) / t).max(axis=1), result.head.predict(test.X) == test.y
        assert told[f"ece_{when}"] == pytest.approx(calibration.expected_calibration_error(p, right))
        assert sum(row["n"] for row in told[when]) == len(test)
    assert {row["target"] for row in result.abstain} == set(calibration.TARGETS)


def test_the_temperature_calibrates():
    """Logistic regression that is all but free, on few rows that overlap, is far too sure of itself."""
    result = train(make_dataset(1200, d=100, noise=8.0), HeadSpec("logreg", {"C": 100.0}))
    assert result.calibration["temperature"] > 2
    assert result.calibration["ece_after"] < 0.06 < 0.2 < result.calibration["ece_before"]


def test_votes_have_no_temperature_but_may_abstain():
    result = train(DATASET, HeadSpec("knn", {"k": 10}))
    assert result.calibration is None and result.head.arrays["temperature"] == 1
    p, test = result.head.probabilities(DATASET.part("test").X).max(axis=1), DATASET.part("test")
    row = result.abstain[0]
    assert 0 < row["threshold"] < 1 and row["n"] == np.sum(p >= row["threshold"])
    answered = p >= row["threshold"]
    assert row["accuracy"] == pytest.approx(np.mean((result.head.predict(test.X) == test.y)[answered]))


def test_neither_temperature_nor_threshold_comes_from_the_test_split():
    test = DATASET.splits == "test"
    other = train(replace(DATASET, y=np.where(test, np.roll(DATASET.y, 4), DATASET.y)), HeadSpec("logreg"))
    plain = train(DATASET, HeadSpec("logreg"))
    assert other.test < plain.test and other.calibration["ece_after"] > plain.calibration["ece_after"]
    assert other.calibration["temperature"] == plain.calibration["temperature"]
    assert [row["threshold"] for row in other.abstain] == [row["threshold"] for row in plain.abstain]


def test_misclassified_rows_are_the_mistakes():
    test = DATASET.part("test")
    head = train(DATASET, HeadSpec("logreg")).head
    rows = misclassified(head, test)
    predicted, probabilities = head.predict(test.X), head.probabilities(test.X)
    assert len(rows) == (predicted != test.y).sum() > 3
    assert [row["probability"] for row in rows] == sorted((row["probability"] for row in rows), reverse=True)
    for row in rows:
        at = list(test.uris).index(row["uri"])
        assert (row["true"], row["predicted"]) == (test.y[at], predicted[at]) and test.y[at] != predicted[at]
        assert row["probability"] == probabilities[at].max()
    assert misclassified(head, test.take(predicted == test.y)) == []


@pytest.mark.parametrize("job", [lambda d: train(d, HeadSpec("ncm")), lambda d: compare(d, Search({"ncm": ()}))])
def test_datasets_that_cannot_be_used(job):
    unlabelled = Dataset("set-1", "f" * 64, *(getattr(DATASET, f)[:0] for f in ("X", "y", "keys", "uris", "splits")))
    with pytest.raises(HeadError, match="no labelled rows: import labels"):
        job(unlabelled)
    for split in ("train", "val", "test"):
        other = "test" if split == "train" else "train"
        with pytest.raises(HeadError, match=f"The {split} split of set-1 is empty"):
            job(replace(DATASET, splits=np.where(DATASET.splits == split, other, DATASET.splits)))
    one = np.where(DATASET.splits == "train", "class 1", DATASET.y)
    with pytest.raises(HeadError, match="at least two classes to train on; the train split has only 'class 1'"):
        job(replace(DATASET, y=one))
    X = DATASET.X.copy()
    X[3, 3] = np.inf
    X[[399, 399], [0, 9]] = np.nan, -np.inf
    with pytest.raises(HeadError, match=r"^2 of 400 rows of set-1 .* /images/3\.png"):
        job(replace(DATASET, X=X))


@pytest.mark.parametrize(("more", "names"), [(5, "z0, z1, z2, z3, z4"), (6, "z0, z1, z2, z3, z4, …")])
def test_classes_that_train_lacks_are_named_up_to_five(more, names):
    y, val = DATASET.y.astype("<U20"), np.flatnonzero(DATASET.splits == "val")
    y[val[: 2 * more]] = [f"z{i // 2}" for i in range(2 * more)]
    y[3] = "z0"
    assert train(replace(DATASET, y=y), HeadSpec("ncm")).notes == (
        f"val: {2 * more} of 100 rows count as wrong, as train has no row of their class ({names}).",
        "test: 1 of 100 rows count as wrong, as train has no row of their class (z0).",
    )


def test_classes_that_train_lacks_are_told_and_count_as_wrong():
    y = DATASET.y.astype("<U20")
    y[3] = "zebra"  # row 3 is of the test split
    result = train(replace(DATASET, y=y), HeadSpec("ncm"))
    plain = train(DATASET, HeadSpec("ncm"))
    assert result.notes == ("test: 1 of 100 rows count as wrong, as train has no row of their class (zebra).",)
    assert plain.test - result.test in (0, pytest.approx(0.01))
    assert result.metrics["balanced_accuracy"] < plain.metrics["balanced_accuracy"]
