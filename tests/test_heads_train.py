"""One head and many heads on a dataset: what is fitted, chosen, scored and reported."""

import json
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from featurestore.dataset import Dataset
from featurestore.errors import HeadError, UsageError
from heads import registry
from heads.compare import compare
from heads.evaluate import wilson
from heads.train import convergence_notes, misclassified, train

QUICK = ["ncm", "logreg", "svm", "knn", "rbf-svm"]


def make_dataset(n=400, d=10, n_classes=4, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    X = rng.normal(size=(n_classes, d))[y] + noise * rng.normal(size=(n, d))
    return Dataset(
        feature_set="set-1",
        fingerprint="f" * 64,
        X=X.astype(np.float32),
        y=np.array([f"class {i}" for i in y]),
        ids=np.array([f"{i:064x}" for i in range(n)]),
        uris=np.array([f"/images/{i}.png" for i in range(n)]),
        splits=np.array(["train", "train", "val", "test"])[np.arange(n) % 4],
    )


DATASET = make_dataset()


def test_train_scores_what_it_says():
    result = train(DATASET, "logreg", {"C": 0.1})
    fit, val, test = (DATASET.part(split) for split in ("train", "val", "test"))
    same = registry.fit("logreg", fit.X, fit.y, params={"C": 0.1})
    assert (result.head.arrays["coef"] == same.arrays["coef"]).all()
    assert result.val == np.mean(same.predict(val.X) == val.y)
    assert result.test == result.metrics["top1"] == np.mean(same.predict(test.X) == test.y)
    assert result.test_ci == wilson(result.test, 100)
    assert result.n == {"train": 200, "val": 100, "test": 100, "classes": 4}
    assert 0.15 < result.baseline < 0.4
    told = json.loads(json.dumps(result.to_json("run", "id")))
    assert {"run_id", "head_id", "val", "test", "test_ci", "fit_seconds", "n"} <= told.keys()


def test_misclassified_rows_are_the_mistakes():
    test = DATASET.part("test")
    head = train(DATASET, "logreg").head
    rows = misclassified(head, test)
    predicted, probabilities = head.predict(test.X), head.probabilities(test.X)
    assert len(rows) == (predicted != test.y).sum() > 3
    assert [row["probability"] for row in rows] == sorted((row["probability"] for row in rows), reverse=True)
    for row in rows:
        at = list(test.uris).index(row["uri"])
        assert (row["true"], row["predicted"]) == (test.y[at], predicted[at]) and test.y[at] != predicted[at]
        assert row["probability"] == probabilities[at].max()
    assert misclassified(head, test.take(predicted == test.y)) == []


def test_the_history_of_the_kept_head_is_told(monkeypatch):
    grid = ({"epochs": 1, "learning_rate": 1e-9}, {"epochs": 3, "learning_rate": 0.01})
    monkeypatch.setitem(registry.FAMILIES, "dense", replace(registry.FAMILIES["dense"], grid=grid))
    winner = json.loads(json.dumps(compare(DATASET, ["dense"]).to_json()))["winner"]
    assert [row["epoch"] for row in winner["history"]] == [1, 2, 3]
    assert train(DATASET, "ncm").to_json()["history"] == []


def test_the_test_split_cannot_reach_the_fit():
    """Garbage in the test split changes neither the choice nor the head."""
    plain = compare(DATASET, QUICK)
    test = DATASET.splits == "test"
    garbage = np.where(test[:, None], 1e6 * np.random.default_rng(0).normal(size=DATASET.X.shape), DATASET.X)
    other = compare(replace(DATASET, X=garbage.astype(np.float32)), QUICK)
    assert other.winner.test < plain.winner.test
    assert other.winner.head.family == plain.winner.head.family
    for key, array in plain.winner.head.arrays.items():
        assert (other.winner.head.arrays[key] == array).all()
    for row, same in zip(plain.leaderboard, other.leaderboard, strict=True):
        assert (row["head"], row["params"], row["val"]) == (same["head"], same["params"], same["val"])


def test_compare_tries_the_grid_and_picks_the_best_on_validation():
    calls = []
    result = compare(DATASET, QUICK, progress=lambda *call: calls.append((threading.get_ident(), *call)))
    grid = sum(len(registry.FAMILIES[name].grid) for name in QUICK)
    assert len(result.leaderboard) == grid
    assert [call[1:3] for call in calls] == [(i, grid) for i in range(1, grid + 1)]
    assert {call[0] for call in calls} == {threading.get_ident()}
    values = [row["val"] for row in result.leaderboard]
    assert values == sorted(values, reverse=True)
    best = [row for row in result.leaderboard if row["val"] == values[0]]
    names = list(registry.FAMILIES)
    assert best[0] == min(best, key=lambda row: names.index(row["head"]))
    alone = train(DATASET, best[0]["head"], best[0]["params"])
    assert result.winner.test == alone.test and result.winner.val == values[0]


def test_compare_json_is_the_contract():
    told = json.loads(json.dumps(compare(DATASET, ["ncm", "knn"]).to_json("run", "head", "report.html")))
    assert {"run_id", "feature_set", "metric", "leaderboard", "winner", "n", "report"} <= told.keys()
    assert (told["run_id"], told["metric"], told["report"]) == ("run", "top1", "report.html")
    assert told["feature_set"] == "set-1"
    for row in told["leaderboard"]:
        assert row.keys() == {"head", "params", "val", "val_ci", "fit_seconds"}
        assert row["val_ci"][0] <= row["val"] <= row["val_ci"][1]
    assert {"head_id", "head", "params", "val", "test", "test_ci"} <= told["winner"].keys()
    assert told["n"] == {"train": 200, "val": 100, "test": 100, "classes": 4}


def test_a_tie_goes_to_the_simpler_head():
    result = compare(make_dataset(noise=0.01), QUICK)
    assert sum(row["val"] == 1 for row in result.leaderboard) > 1
    assert result.winner.head.family == "ncm"


def test_a_candidate_that_fails_is_a_row():
    splits = np.where((DATASET.splits == "train") & (np.arange(400) >= 16), "val", DATASET.splits)
    result = compare(replace(DATASET, splits=splits), ["ncm", "knn"])
    assert len(result.leaderboard) == 3
    failed = result.leaderboard[-1]
    assert failed["val"] is None and "at most the 8 training rows. Got: 10" in failed["error"]
    json.dumps(result.to_json())


def test_nothing_that_can_be_fitted_is_an_error(monkeypatch):
    def broken(problem):
        raise RuntimeError("no luck")

    monkeypatch.setitem(registry.FAMILIES, "ncm", replace(registry.FAMILIES["ncm"], fit=broken))
    with pytest.raises(HeadError, match="None of 1 heads could be fitted; the first said: RuntimeError: no luck"):
        compare(DATASET, ["ncm"])


def test_convergence_is_a_note_of_its_own_row(monkeypatch):
    grid = ({"C": 1.0, "max_iter": 2}, {"C": 0.01})
    monkeypatch.setitem(registry.FAMILIES, "logreg", replace(registry.FAMILIES["logreg"], grid=grid))
    result = compare(DATASET, ["ncm", "logreg"])
    noted = [row for row in result.leaderboard if "note" in row]
    assert [row["params"].get("max_iter") for row in noted] == [2]
    assert "converge" in noted[0]["note"]
    assert any("converge" in note for note in train(DATASET, "logreg", grid[0]).notes)
    assert train(DATASET, "logreg", grid[1]).notes == ()


def test_other_warnings_go_their_way():
    with pytest.warns(UserWarning, match="something else"), convergence_notes() as said:
        warnings.warn("it did not converge.", ConvergenceWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
        assert said() == ["it did not converge."]
        assert said() == []


def test_class_weights_are_left_out_where_a_head_cannot_use_them():
    result = compare(DATASET, ["ncm", "logreg"], class_weight="balanced")
    for row in result.leaderboard:
        assert ("fitted without class weights" in row.get("note", "")) == (row["head"] == "ncm")
    with pytest.raises(UsageError, match="'knn' cannot weight classes"):
        train(DATASET, "knn", class_weight="balanced")


def test_slow_heads_are_left_out_of_large_data(monkeypatch):
    monkeypatch.setattr("heads.compare.RBF_MAX_ROWS", 199)
    monkeypatch.setattr("heads.compare.SVM_MAX_WORK", 7999)
    monkeypatch.delitem(registry.FAMILIES, "dense")  # not what is tested, and slow
    result = compare(DATASET)
    assert {row["head"] for row in result.leaderboard} == {"ncm", "logreg", "knn"}
    assert result.winner.notes == (
        "rbf-svm was left out: it is slow for 200 rows and 4 classes.",
        "svm was left out: it is slow for 200 rows and 4 classes.",
    )
    assert {row["head"] for row in compare(DATASET, ["rbf-svm", "svm"]).leaderboard} == {"rbf-svm", "svm"}
    monkeypatch.setattr("heads.compare.RBF_MAX_ROWS", 200)
    monkeypatch.setattr("heads.compare.SVM_MAX_WORK", 8000)
    assert compare(DATASET).winner.notes == ()


def test_random_heads_are_judged_over_seeds(monkeypatch):
    def by_chance(problem):
        coef = np.random.default_rng(problem.seed).normal(size=(problem.X.shape[1], problem.n_classes))
        return {"coef": coef, "intercept": np.zeros(problem.n_classes)}

    random = replace(registry.FAMILIES["ncm"], fit=by_chance, random=True)
    monkeypatch.setitem(registry.FAMILIES, "dense", random)
    result = compare(DATASET, ["ncm", "dense"], seeds=(1, 2))
    each = [train(DATASET, "dense", seed=seed).val for seed in (1, 2)]
    assert each[0] != each[1]
    row = next(row for row in result.leaderboard if row["head"] == "dense")
    assert row["val"] == pytest.approx(np.mean(each)) and row["val_range"] == sorted(each)
    assert "val_range" not in next(row for row in result.leaderboard if row["head"] == "ncm")
    with pytest.raises(UsageError, match="at least one seed"):
        compare(DATASET, ["ncm"], seeds=())


@pytest.mark.parametrize("job", [lambda d: train(d, "ncm"), lambda d: compare(d, ["ncm"])])
def test_datasets_that_cannot_be_used(job):
    unlabelled = Dataset("set-1", "f" * 64, *(getattr(DATASET, f)[:0] for f in ("X", "y", "ids", "uris", "splits")))
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
    with pytest.raises(HeadError, match=r"1 of 400 rows of set-1 .* /images/3\.png"):
        job(replace(DATASET, X=X))
    with pytest.raises(UsageError, match="There is no head 'tree'"):
        compare(DATASET, ["tree"])


def test_classes_that_train_lacks_are_told_and_count_as_wrong():
    y = DATASET.y.astype("<U20")
    y[3] = "zebra"  # row 3 is of the test split
    result = train(replace(DATASET, y=y), "ncm")
    plain = train(DATASET, "ncm")
    assert result.notes == ("test: 1 of 100 rows count as wrong, as train has no row of their class (zebra).",)
    assert plain.test - result.test in (0, pytest.approx(0.01))
    assert result.metrics["balanced_accuracy"] < plain.metrics["balanced_accuracy"]
