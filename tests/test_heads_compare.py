"""Many heads on a dataset: what is tried, chosen, kept for later, and said of the difference."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from featurestore.dataset import Dataset
from featurestore.errors import HeadError, UsageError
from heads import registry, search, trials
from heads.compare import compare
from heads.head import fit_temperature, standardisation, standardise
from heads.results import Outcome, Results, digest, key_of
from heads.search import Candidate, Search
from heads.train import train

pytestmark = pytest.mark.usefixtures("few_resamples")
QUICK = Search(dict.fromkeys(("ncm", "logreg", "svm", "ridge", "knn", "rbf-svm"), ()))


def only(*names, **points):
    """A search of some families: their own grids, or the points given."""
    return Search({name: tuple(points.get(name, ())) for name in names}, (None,))


def make_dataset(n=400, d=10, n_classes=4, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    X = rng.normal(size=(n_classes, d))[y] + noise * rng.normal(size=(n, d))
    return Dataset(
        feature_set="set-1",
        fingerprint="f" * 64,
        X=X.astype(np.float32),
        y=np.array([f"class {i}" for i in y]),
        keys=np.array([i.to_bytes(32, "big") for i in range(n)], "S32"),
        uris=np.array([f"/images/{i}.png" for i in range(n)]),
        splits=np.array(["train", "train", "val", "test"])[np.arange(n) % 4],
    )


DATASET = make_dataset()


@pytest.fixture
def counted(monkeypatch):
    """Counts fits: of single heads, and of values of C in sweeps."""
    counts = {"single": 0, "swept": 0}
    one, many = trials.timed_fit, trials.fit_many

    def timed_fit(*args):
        counts["single"] += 1
        return one(*args)

    def fit_many(*args):
        for fit in many(*args):
            counts["swept"] += 1
            yield fit

    monkeypatch.setattr(trials, "timed_fit", timed_fit)
    monkeypatch.setattr(trials, "fit_many", fit_many)
    return counts


def test_the_history_of_the_kept_head_is_told(monkeypatch):
    monkeypatch.setattr("heads.compare.CURVE_SECONDS", 0)  # no learning curve, which would fit five more nets
    points = {"dense": ({"epochs": 1, "learning_rate": 1e-9}, {"epochs": 3, "learning_rate": 0.01})}
    winner = json.loads(json.dumps(compare(DATASET, only("dense", **points)).to_json()))["winner"]
    assert [row["epoch"] for row in winner["history"]] == [1, 2, 3]


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
    assert other.learning_curve == plain.learning_curve
    for row, same in zip(plain.leaderboard, other.leaderboard, strict=True):
        assert (row["head"], row["params"], row["val"]) == (same["head"], same["params"], same["val"])


def test_the_grid_is_tried_and_the_best_on_validation_wins():
    calls = []
    result = compare(DATASET, QUICK, progress=lambda *call: calls.append((threading.get_ident(), *call)))
    grid = sum(len(registry.FAMILIES[name].grid) for name in QUICK.grids)
    assert len(result.leaderboard) == grid
    assert [call[1:] for call in calls] == [(i, grid) for i in range(1, grid + 1)]
    assert {call[0] for call in calls} == {threading.get_ident()}
    values = [row["val"] for row in result.leaderboard]
    assert values == sorted(values, reverse=True)
    best = [row for row in result.leaderboard if row["val"] == values[0]]
    names = list(registry.FAMILIES)
    assert best[0] == min(best, key=lambda row: names.index(row["head"]))
    alone = train(DATASET, best[0]["head"], best[0]["params"])
    assert result.winner.test == pytest.approx(alone.test, abs=0.011) and result.winner.val == values[0]


def test_a_sweep_finds_what_each_fit_alone_finds():
    """Every row of a sweep against scikit-learn's own fit of the same parameters."""
    parts = {split: DATASET.part(split) for split in ("train", "val")}
    mean, scale = standardisation(parts["train"].X)
    X, X_val = (standardise(part.X, mean, scale) for part in parts.values())
    for row in compare(DATASET, Search({"logreg": ()}, (None, "balanced"))).leaderboard:
        reference = LogisticRegression(C=row["params"]["C"], class_weight=row["class_weight"], tol=1e-8, max_iter=5000)
        reference.fit(X, parts["train"].y)
        assert row["val"] == pytest.approx(reference.score(X_val, parts["val"].y), abs=0.0101), row  # one row of 100


def test_the_json_is_the_contract():
    told = json.loads(json.dumps(compare(DATASET, only("ncm", "knn")).to_json("run", "head", "report.html")))
    assert {"run_id", "feature_set", "metric", "leaderboard", "winner", "n", "report"} <= told.keys()
    assert (told["run_id"], told["metric"], told["report"]) == ("run", "top1", "report.html")
    assert (told["feature_set"], told["chosen_by"]) == ("set-1", "validation")
    first, *others = told["leaderboard"]
    assert first.keys() == {"head", "params", "class_weight", "val", "val_ci", "fit_seconds"}
    for row in others:
        assert row.keys() == first.keys() | {"p_value", "tied"}
        assert row["val_ci"][0] <= row["val"] <= row["val_ci"][1]
        assert row["tied"] == (row["p_value"] >= 0.05)
    assert {"head_id", "head", "params", "val", "test", "test_ci", "calibration"} <= told["winner"].keys()
    assert told["n"] == {"train": 200, "val": 100, "test": 100, "classes": 4}


def test_a_tie_goes_to_the_simpler_head():
    result = compare(make_dataset(noise=0.01), QUICK)
    assert sum(row["val"] == 1 for row in result.leaderboard) > 1
    assert result.winner.head.family == "ncm"
    assert all(row["tied"] and row["p_value"] == 1 for row in result.leaderboard[1:] if row["val"] == 1)


def test_a_difference_that_is_real_is_not_a_tie():
    noisy = make_dataset(n=4000, noise=1.0)
    board = compare(noisy, only("logreg", logreg=({"C": 1.0}, {"C": 1e-9}))).leaderboard
    assert board[0]["params"] == {"C": 1.0} and board[1]["val"] < board[0]["val"] - 0.05
    assert board[1]["p_value"] < 1e-3 and board[1]["tied"] is False


@pytest.mark.parametrize(
    ("first_alone", "second_alone", "p_value", "tied"),
    [
        (5, 0, 0.0625, True),
        (6, 0, 0.03125, False),
        (13, 4, 0.049042, False),
        (22, 10, 0.050102, True),
    ],
)
def test_a_tie_is_a_p_value_of_5_percent_or_more(first_alone, second_alone, p_value, tied):
    """Two feature sets of one number, each wrong on validation rows of its own."""
    sign = np.where(np.arange(400) % 8 < 4, -1.0, 1.0)
    data = replace(DATASET, y=np.where(sign < 0, "a", "b"))
    val = np.flatnonzero(DATASET.splits == "val")
    sets = []
    for name, wrong in (("1", val[:second_alone]), ("2", val[second_alone:][:first_alone])):
        X = sign.copy()
        X[wrong] *= -1
        sets.append(replace(data, X=X[:, None].astype(np.float32), feature_set=name, fingerprint=name * 64))
    first, second = compare(sets, only("ncm")).leaderboard
    assert (first["feature_set"], first["val"]) == ("1", 1 - second_alone / 100)
    assert (second["feature_set"], second["val"]) == ("2", 1 - first_alone / 100)
    assert second["p_value"] == pytest.approx(p_value, abs=1e-6) and second["tied"] is tied


def test_a_candidate_that_fails_is_a_row():
    splits = np.where((DATASET.splits == "train") & (np.arange(400) >= 16), "val", DATASET.splits)
    result = compare(replace(DATASET, splits=splits), only("ncm", "knn", "logreg", logreg=({"C": 1.0},)))
    failed = {row["head"]: row for row in result.leaderboard if row["val"] is None}
    assert len(result.leaderboard) == 4 and failed.keys() == {"knn"}
    assert "at most the 8 training rows. Got: 10" in failed["knn"]["error"]
    json.dumps(result.to_json())


def test_a_value_that_no_fit_could_have_is_refused_before_any(monkeypatch):
    monkeypatch.setattr(trials, "fit_many", lambda *_: pytest.fail("a fit was begun"))
    with pytest.raises(UsageError, match=r"Parameter C: Expected: a number above 0. Got: -1.0"):
        compare(DATASET, only("ncm", "logreg", logreg=({"C": 1.0}, {"C": -1.0})))


def test_a_family_that_fails_costs_neither_the_others_nor_what_it_had(monkeypatch):
    many = trials.fit_many

    def failing(rows, y, n_classes, loss, *rest):
        for i, fit in enumerate(many(rows, y, n_classes, loss, *rest)):
            if loss is registry.FAMILIES["svm"].sweep.loss and i == 3:
                raise MemoryError("no room")
            yield fit

    monkeypatch.setattr(trials, "fit_many", failing)
    rows = compare(DATASET, only("logreg", "svm")).leaderboard
    failed = [row for row in rows if "error" in row]
    assert len(failed) == 8 and {row["head"] for row in failed} == {"svm"}
    assert {row["error"] for row in failed} == {"MemoryError: no room"}


def test_a_fit_that_did_not_converge_says_so(monkeypatch):
    monkeypatch.setattr("heads.lbfgs.MOST_EVALUATIONS", 4)
    rows = compare(DATASET, only("svm", svm=({"C": 1e-6}, {"C": 1.0}))).leaderboard
    assert {row["params"]["C"]: row.get("note") for row in rows} == {1e-6: None, 1.0: "not solved within 4 passes"}


def test_nothing_that_can_be_fitted_is_an_error(monkeypatch):
    def broken(problem):
        raise RuntimeError("no luck")

    monkeypatch.setitem(registry.FAMILIES, "ncm", replace(registry.FAMILIES["ncm"], fit=broken))
    with pytest.raises(HeadError, match="None of 1 heads could be fitted; the first said: RuntimeError: no luck"):
        compare(DATASET, only("ncm"))


def test_random_heads_are_judged_over_seeds(monkeypatch):
    def by_chance(problem):
        coef = np.random.default_rng(problem.seed).normal(size=(problem.X.shape[1], problem.n_classes))
        return {"coef": coef, "intercept": np.zeros(problem.n_classes)}

    random = replace(registry.FAMILIES["ncm"], fit=by_chance, random=True)
    monkeypatch.setitem(registry.FAMILIES, "dense", random)
    result = compare(DATASET, only("ncm", "dense", dense=({},)), seeds=(1, 2))
    each = [train(DATASET, "dense", seed=seed).val for seed in (1, 2)]
    assert each[0] != each[1]
    row = next(row for row in result.leaderboard if row["head"] == "dense")
    assert row["val"] == pytest.approx(np.mean(each)) and row["val_range"] == sorted(each)
    assert "val_range" not in next(row for row in result.leaderboard if row["head"] == "ncm")
    with pytest.raises(UsageError, match="at least one seed"):
        compare(DATASET, only("ncm"), seeds=())


# -- folds -----------------------------------------------------------------------------------------------------------


def test_folds_judge_each_training_row_once():
    result = compare(DATASET, only("ncm", "logreg", logreg=({"C": 0.1},)), folds=5)
    train_rows, folds = DATASET.part("train"), DATASET.part("train").folds(5)
    assert set(folds) == set(range(5))
    for row in result.leaderboard:
        right = 0
        for fold in range(5):
            fit, held = train_rows.take(folds != fold), train_rows.take(folds == fold)
            right += (registry.fit(row["head"], fit.X, fit.y, params=row["params"]).predict(held.X) == held.y).sum()
        assert row["val"] == pytest.approx(right / 200, abs=0.011)  # a sweep standardises by all of train
    assert result.to_json()["chosen_by"] == "5-fold cross-validation"
    with pytest.raises(UsageError, match="at least 2 folds"):
        compare(DATASET, only("ncm"), folds=1)


def test_a_fold_holds_whole_groups_and_never_changes():
    groups = np.array([f"group:{i // 8}" for i in range(400)])
    grouped = replace(DATASET, groups=groups)
    folds = grouped.folds(4)
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    some = np.arange(0, 400, 3)
    assert (grouped.take(some).folds(4) == folds[some]).all()
    assert (np.bincount(folds, minlength=4) > 40).all()


# -- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["fitted", "known", "folds", "views", "views and folds"])
@pytest.mark.parametrize("family", ["ncm", "logreg", "svm", "ridge", "rbf-svm"])
def test_the_winner_has_the_temperature_of_the_validation_rows(family, way):
    """However it comes to be kept: from a sweep, fitted anew, or with views."""
    train_rows, val = DATASET.part("train"), DATASET.part("val")
    options = {"folds": 3 if "folds" in way else 0, "results": Results()}
    if "views" in way:
        options["augmented"] = train_rows.with_views(train_rows.X, np.arange(len(train_rows)))
    if way == "known":
        compare(DATASET, only(family), **options)
    head = compare(DATASET, only(family), **options).winner.head
    expected = fit_temperature(head.scores(val.X), np.searchsorted(head.classes, val.y))
    assert head.arrays["temperature"].item() == pytest.approx(expected) and abs(np.log(expected)) > 0.01


# -- results that are kept -------------------------------------------------------------------------------------------


def test_nothing_is_fitted_twice(tmp_path, counted):
    first = compare(DATASET, QUICK, results=Results(tmp_path))
    done = dict(counted)
    assert done["single"] > 0 and done["swept"] > 0
    again = compare(DATASET, QUICK, results=Results(tmp_path))
    assert counted == done
    assert [(row["head"], row["params"], row["val"]) for row in first.leaderboard] == [
        (row["head"], row["params"], row["val"]) for row in again.leaderboard
    ]
    assert again.winner.head.family == first.winner.head.family
    assert again.winner.test == pytest.approx(first.winner.test, abs=0.011)
    compare(DATASET, Search({"logreg": ({"C": 0.01}, {"C": 123.0})}), results=Results(tmp_path))
    assert counted["swept"] == done["swept"] + 1  # C = 0.01 was known


@pytest.mark.parametrize(
    "change",
    [
        {"y": np.where(np.arange(400) == 0, "class 0", np.where(np.arange(400) == 4, "class 1", DATASET.y))},
        {"fingerprint": "0" * 64},
        {"splits": np.where(np.arange(400) == 0, "test", DATASET.splits)},
    ],
    ids=["labels", "features", "split"],
)
def test_other_data_are_other_results(tmp_path, counted, change):
    compare(DATASET, only("ncm"), results=Results(tmp_path))
    compare(replace(DATASET, **change), only("ncm"), results=Results(tmp_path))
    assert counted["single"] == 2


def test_an_interrupted_comparison_goes_on(tmp_path, counted, monkeypatch):
    def interrupt(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(DATASET, QUICK, results=Results(tmp_path), progress=interrupt)
    kept = len(list(tmp_path.glob("*/*.json")))
    assert kept >= 5
    before = counted["single"] + counted["swept"]
    result = compare(DATASET, QUICK, results=Results(tmp_path))
    grid = sum(len(registry.FAMILIES[name].grid) for name in QUICK.grids)
    assert counted["single"] + counted["swept"] - before == grid - kept
    assert len(result.leaderboard) == grid


def test_a_budget_ends_the_search_and_says_so(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(trials.time, "monotonic", lambda: float(next(clock)))
    result = compare(DATASET, only("logreg", "svm"), results=Results(tmp_path), budget=60.0)
    tried = len(result.leaderboard)
    assert 0 < tried < 22
    assert any(f"{22 - tried} candidates were not tried within 60 s" in note for note in result.winner.notes)
    monkeypatch.undo()
    assert len(compare(DATASET, only("logreg", "svm"), results=Results(tmp_path)).leaderboard) == 22


def test_damaged_results_are_made_anew(tmp_path):
    results = Results(tmp_path)
    key = key_of("data", head="ncm")
    right = np.arange(100) % 3 == 0
    results.put(key, Outcome(right, 1.5))
    known = results.get(key)
    assert (known.right == right).all() and known.seconds == 1.5
    path = next(tmp_path.glob("*/*.json"))
    data = bytearray(path.read_bytes())
    for at in range(len(data)):
        damaged = bytes(data[:at]) + bytes([data[at] ^ 0x10]) + bytes(data[at + 1 :])
        path.write_bytes(damaged)
        found = results.get(key)
        assert found is None
    path.write_bytes(b"")
    assert results.get(key) is None
    assert results.get(key_of("data", head="knn")) is None


def test_columns_cannot_run_into_one_another(monkeypatch):
    assert digest(np.array(["ab", "c"]), np.array(["d"])) != digest(np.array(["ab"]), np.array(["c", "d"]))
    assert digest("ab", "c") != digest("a", "bc")
    keys = np.array([bytes([i]) * 31 + b"\0" for i in range(3)], "S32")
    assert digest(keys) == digest(np.array([f"{i:02x}" * 31 + "00" for i in range(3)]))
    monkeypatch.setattr("heads.results.AT_A_TIME", 2)
    assert digest(np.array(["ab", "", "é"])) == digest("ab\0\0é")


# -- more than one question --------------------------------------------------------------------------------------------


def test_several_feature_sets_are_one_leaderboard():
    worse = make_dataset(noise=3.0)
    worse = replace(worse, feature_set="set-2", fingerprint="e" * 64, y=DATASET.y)
    result = compare([worse, DATASET], only("ncm", "ridge"))
    sets = [row["feature_set"] for row in result.leaderboard]
    assert sets[0] == "set-1" == result.winner.feature_set and sets.count("set-2") == sets.count("set-1") == 8


def test_few_shots_are_drawn_from_each_class():
    result = compare(DATASET, only("ncm", "knn"), fewshot=(1, 5, 50))
    rows = {(row["k"], row["head"]): row for row in result.fewshot}
    assert rows.keys() == {(k, name) for k in (1, 5, 50) for name in ("ncm", "knn")}
    assert rows[1, "knn"]["params"]["k"] == 1
    for row in rows.values():
        assert row["val_range"][0] <= row["val"] <= row["val_range"][1]
    assert rows[1, "ncm"]["val"] < rows[50, "ncm"]["val"]
    with pytest.raises(UsageError, match="--fewshot-k, a whole number from 1"):
        compare(DATASET, only("ncm"), fewshot=(0,))


def test_the_learning_curve_ends_at_the_winner():
    result = compare(make_dataset(n=2000), only("ridge"))
    curve = result.learning_curve
    sizes = [point["n"] for point in curve["points"]]
    assert sizes == [100, 180, 320, 560, 1000]
    assert curve["points"][-1]["val"] == pytest.approx(result.winner.val, abs=0.005)
    assert curve["at_twice"]["n"] == 2000 and curve["at_twice"]["low"] <= curve["at_twice"]["high"]


# -- what is searched --------------------------------------------------------------------------------------------------


def names_of(candidates):
    return {candidate.head for candidate in candidates}


def test_a_default_search_suits_the_data(monkeypatch):
    y = np.repeat(["a", "b"], 100)
    found, notes = Search().candidates(y, 10, 50)
    assert names_of(found) == set(registry.FAMILIES) and notes == []
    assert 30 <= len(found) <= 50 and {candidate.class_weight for candidate in found} == {None}
    unbalanced, _ = Search().candidates(np.repeat(["a", "b"], (300, 100)), 10, 50)
    weighted = [candidate for candidate in unbalanced if candidate.class_weight]
    assert names_of(weighted) == {"logreg", "svm", "ridge"} and len(unbalanced) == len(found) + len(weighted)
    monkeypatch.setattr(search, "RBF_MAX_ROWS", 199)
    found, notes = Search().candidates(y, 10, 50)
    assert "rbf-svm" not in names_of(found)
    assert notes == ["rbf-svm was left out: it is slow for 200 rows and 2 classes."]
    assert names_of(only("rbf-svm").candidates(y, 10, 50)[0]) == {"rbf-svm"}


def test_class_weights_that_are_asked_for_go_to_all_that_can_use_them():
    found, _ = Search({"logreg": (), "knn": (), "dense": ()}, (None, "balanced")).candidates(np.array(["a", "b"]), 2, 1)
    weights = {name: {c.class_weight for c in found if c.head == name} for name in names_of(found)}
    assert weights == {"logreg": {None, "balanced"}, "dense": {None, "balanced"}, "knn": {None}}


def test_options_make_a_search():
    asked = search.from_options(["logreg", "dense"], [0.1, 1.0], [[256], [512, 256]], [None])
    found, _ = asked.candidates(np.array(["a", "b"]), 2, 1)
    assert [(c.head, c.params.get("C", c.params.get("hidden"))) for c in found] == [
        ("logreg", 0.1),
        ("logreg", 1.0),
        ("dense", [256]),
        ("dense", [512, 256]),
    ]
    assert set(search.from_options(C=[1.0]).grids) == {"logreg", "svm", "rbf-svm"}
    assert search.from_options() == Search()
    with pytest.raises(UsageError, match="--C says nothing to ncm, knn"):
        search.from_options(["ncm", "knn"], C=[1.0])
    with pytest.raises(UsageError, match="There is no head 'tree'"):
        search.from_options(["tree"])


def test_numbers():
    assert search.numbers("0.1,1") == [0.1, 1.0]
    assert search.numbers("1e-4:1e2:7") == [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0]
    for wrong in ("", "a", "1:2", "0:1:3", "-1", "1:10:0", "inf", "nan"):
        with pytest.raises(UsageError, match="Expected: numbers"):
            search.numbers(wrong)


def test_a_file_makes_a_search(tmp_path):
    path = tmp_path / "search.toml"
    path.write_text(
        'class_weight = ["balanced"]\n[heads.dense]\nhidden = [[64], [32, 16]]\ndropout = [0.0, 0.5]\n[heads.ncm]\n'
    )
    found, _ = search.from_file(path).candidates(np.array(["a", "b"]), 2, 1)
    assert found[0] == Candidate("ncm", {})
    nets = [(c.params["hidden"], c.params["dropout"], c.class_weight) for c in found[1:]]
    assert nets == [(h, d, "balanced") for h in ([64], [32, 16]) for d in (0.0, 0.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heads = 3", "Expected: class_weight"),
        ("[heads.tree]\nC = [1]", "There is no head 'tree'"),
        ("[heads.logreg]\nK = [1]", "no parameter 'K'"),
        ("[heads.logreg]\nC = 1", "lists of values"),
        ("[head.logreg]\nC = [1]", "Got: head"),
        ('class_weight = ["heavy"]', "none or balanced"),
        ("[heads", "Expected: a TOML file"),
    ],
)
def test_files_that_make_none(tmp_path, text, message):
    path = tmp_path / "search.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        search.from_file(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"Expected: --search, a TOML file .* Got: .*none\.toml, no such file"):
        search.from_file(tmp_path / "none.toml")
