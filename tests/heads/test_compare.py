"""Many heads on a dataset: what is tried, chosen, kept for later, and said of the difference."""

import json
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from builders import DATASET, make_dataset, only
from featurestore.errors import HeadError, UsageError
from heads import registry
from heads.base import fit_temperature, standardisation, standardise
from heads.comparison import compare as comparing
from heads.comparison import search, subsampling, trials
from heads.comparison.compare import compare
from heads.comparison.fit_cache import Outcome, Results, digest, key_of
from heads.comparison.space import Evaluation, Search
from heads.comparison.tables import Table
from heads.evaluation import learning_curve, metrics
from heads.evaluation.significance import holm
from heads.families import kernel as machines
from heads.spec import HeadSpec
from heads.train import accuracy, train

pytestmark = pytest.mark.usefixtures("few_resamples")
QUICK = Search(dict.fromkeys(("ncm", "logreg", "svm", "ridge", "knn", "rbf-svm"), ()))


@pytest.fixture
def no_learning_curve(monkeypatch):
    monkeypatch.setattr(comparing, "CURVE_SECONDS", -1)


@pytest.fixture
def counted(monkeypatch):
    """Counts fits: of single heads, of values of C in sweeps, and of nets."""
    counts = {"single": 0, "swept": 0, "nets": 0}
    one, many, dense = trials.timed_fit, trials.fit_many, registry.FAMILIES["dense"]

    def timed_fit(*args):
        counts["single"] += 1
        return one(*args)

    def fit_many(*args):
        for fit in many(*args):
            counts["swept"] += 1
            yield fit

    def fit_nets(problems):
        for fit in dense.fit_many(problems):
            counts["nets"] += 1
            yield fit

    monkeypatch.setattr(trials, "timed_fit", timed_fit)
    monkeypatch.setattr(trials, "fit_many", fit_many)
    monkeypatch.setitem(registry.FAMILIES, "dense", replace(dense, fit_many=fit_nets))
    return counts


def test_the_history_of_the_kept_head_is_told(monkeypatch):
    monkeypatch.setattr(
        "heads.comparison.compare.CURVE_SECONDS", 0
    )  # no learning curve, which would fit five more nets
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
    alone = train(DATASET, HeadSpec(best[0]["head"], best[0]["params"]))
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
    assert told.keys() == {
        "run_id", "feature_set", "metric", "chosen_by", "leaderboard", "winner", "baseline", "n", "notes",
        "learning_curve", "fewshot", "report", "chosen", "simplest",
    }  # fmt: skip
    assert told["winner"]["head_id"] == "head" and told["fewshot"] is None and told["notes"] == []
    assert (told["run_id"], told["metric"], told["report"]) == ("run", "top1", "report.html")
    assert (told["feature_set"], told["chosen_by"]) == ("set-1", "validation")
    first, *others = told["leaderboard"]
    assert first.keys() == {"head", "params", "class_weight", "val", "val_ci", "fit_seconds"}
    for row in others:
        assert row.keys() == first.keys() | {"p_value", "p_corrected", "tied"}
        assert row["val_ci"][0] <= row["val"] <= row["val_ci"][1]
        assert row["tied"] == (row["p_corrected"] >= 0.05)
    assert [row["p_corrected"] for row in others] == holm([row["p_value"] for row in others])
    assert told["winner"].keys() == {
        "head_id", "head", "params", "val", "test", "test_ci", "metrics", "calibration", "abstain", "history",
    }  # fmt: skip
    assert told["n"] == {"train": 200, "val": 100, "test": 100, "classes": 4}


def test_a_tie_goes_to_the_simpler_head():
    result = compare(make_dataset(noise=0.01), QUICK)
    assert sum(row["val"] == 1 for row in result.leaderboard) > 1
    assert result.winner.head.family == "ncm"
    assert all(row["tied"] and row["p_value"] == 1 for row in result.leaderboard[1:] if row["val"] == 1)


@pytest.mark.parametrize("prefer", ["best", "simple"])
def test_the_simplest_tied_head_is_named_and_can_be_kept(prefer):
    """Of all heads that are not significantly worse after Holm's correction, the first family with the smallest C."""
    result = compare(make_dataset(n=800, noise=1.5), QUICK, Evaluation(prefer=prefer))
    board, order = result.leaderboard, list(registry.FAMILIES)
    tied = [at for at, row in enumerate(board) if at == 0 or row["tied"]]

    def simplicity(at):
        return order.index(board[at]["head"]), registry.weight_of_loss(board[at]["head"], board[at]["params"])

    assert result.simplest == min(tied, key=simplicity) > 0
    assert any(row["p_value"] < 0.05 <= row["p_corrected"] for row in board[1:])
    assert result.chosen == (result.simplest if prefer == "simple" else 0)
    chosen = board[result.chosen]
    assert (result.winner.head.family, result.winner.head.params) == (chosen["head"], chosen["params"])
    assert result.winner.val == chosen["val"] and result.learning_curve["params"] == chosen["params"]


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

    def failing(data, loss, problems, start):
        for i, fit in enumerate(many(data, loss, problems, start)):
            if loss is registry.FAMILIES["svm"].loss and i == 3:
                raise MemoryError("no room")
            yield fit

    monkeypatch.setattr(trials, "fit_many", failing)
    rows = compare(DATASET, only("logreg", "svm")).leaderboard
    failed = [row for row in rows if "error" in row]
    assert len(failed) == 8 and {row["head"] for row in failed} == {"svm"}
    assert {row["error"] for row in failed} == {"MemoryError: no room"}


def test_a_fit_that_did_not_converge_says_so(monkeypatch):
    monkeypatch.setattr("heads.solvers.lbfgs.MAX_EVALUATIONS", 4)
    rows = compare(DATASET, only("svm", svm=({"C": 1e-6}, {"C": 1.0}))).leaderboard
    assert {row["params"]["C"]: row.get("note") for row in rows} == {1e-6: None, 1.0: "not solved within 4 passes"}


def test_what_no_comparison_is_made_with():
    for good in (
        {"seeds": 1},
        {"seeds": 100},
        {"first_seed": 2**63 - 1},
        {"first_seed": 2**63 - 100, "seeds": 100},
        {"folds": 2},
        {"folds": 100},
        {"fewshot": (1, 1_000_000)},
        {"budget": 0.0},
        {"budget": 1e9},
    ):
        Evaluation(**good).check()
    for bad, message in (
        ({"seeds": 0}, "--seeds, at least one seed and at most 100. Got: none"),
        ({"seeds": -1}, "--seeds, at least one seed and at most 100. Got: none"),
        ({"seeds": 101}, "--seeds, at least one seed and at most 100. Got: more"),
        ({"seeds": 10**30}, "Got: more"),
        ({"first_seed": -1}, "a seed, a whole number from 0"),
        ({"first_seed": 2**63 - 99, "seeds": 100}, "a seed, a whole number from 0"),
        ({"folds": 1}, "--cv of at least 2 folds and at most 100, or 0 to choose on validation. Got: 1"),
        ({"folds": 101}, "Got: 101"),
        ({"folds": -1}, "Got: -1"),
        ({"fewshot": (1, 0)}, "--fewshot-k, a whole number from 1 to 1,000,000. Got: 0"),
        ({"fewshot": (1_000_001,)}, "Got: 1000001"),
        ({"budget": -0.1}, "--budget in seconds, a number of at least 0"),
        ({"budget": np.inf}, "--budget in seconds"),
        ({"budget": np.nan}, "--budget in seconds"),
    ):
        asked = Evaluation(**bad)
        with pytest.raises(UsageError, match=re.escape(message)):
            asked.check()
        with pytest.raises(UsageError, match=re.escape(message)):
            compare(DATASET, only("ncm"), asked)


class Asked(Search):
    """Tells what it was asked for."""

    def candidates(self, *asked):
        self.asked.append(asked)
        return super().candidates(*asked)


@pytest.mark.parametrize(("folds", "to_score"), [(0, 100), (3, 200)])
def test_a_search_is_asked_for_the_training_rows_and_the_judged_ones(folds, to_score):
    data, asked = DATASET, Asked({"ncm": ()})
    object.__setattr__(asked, "asked", [])
    result = compare(data, asked, Evaluation(folds=folds))
    ((y, width, judged),) = asked.asked
    assert (y == data.part("train").y).all() and (width, judged) == (10, to_score)
    (row,) = result.leaderboard
    assert row["val_ci"] == list(metrics.wilson(row["val"], to_score))


@pytest.mark.parametrize("folds", [0, 4])
def test_the_seconds_are_those_of_one_seed(monkeypatch, folds):
    one = trials.timed_fit
    monkeypatch.setattr(trials, "timed_fit", lambda *args: (one(*args)[0], [1.5, 0.25][args[-1]]))
    family = replace(registry.FAMILIES["ncm"], random=True)
    monkeypatch.setitem(registry.FAMILIES, "ncm", family)
    (row,) = compare(DATASET, only("ncm"), Evaluation(folds=folds, seeds=2)).leaderboard
    assert row["fit_seconds"] == 0.875 * (folds or 1)


def test_a_head_that_is_always_wrong_comes_before_one_that_failed():
    failed = comparing._Entry(0, 0, np.zeros(0), {"val": None})
    wrong = comparing._Entry(0, 1, np.zeros(3, bool), {"val": 0.0})
    assert comparing._ranked([failed, wrong]) == [wrong, failed]
    assert failed.row == {"val": None} and wrong.row == {"val": 0.0}


def test_of_equal_outcomes_the_earlier_candidate_s_head_is_kept():
    right = np.array([True, False])
    order = [trials.Trial(1, 0, 0, -1), trials.Trial(0, 1, 0, -1), trials.Trial(0, 0, 0, -1), trials.Trial(0, 2, 0, -1)]
    tried = trials.Tried()
    for trial in order:
        tried.add(trial, Outcome(right, 1.0), trial)
    assert tried.best == (order[2], order[2])
    tried.add(trials.Trial(1, 3, 0, -1), Outcome(np.array([True, True]), 1.0), "better")
    tried.add(trials.Trial(0, 4, 0, -1), Outcome(np.array([True, True]), 1.0), None)
    assert tried.best == (trials.Trial(1, 3, 0, -1), "better") and len(tried.outcomes) == 6


def test_nothing_that_can_be_fitted_is_an_error(monkeypatch):
    def broken(problem):
        raise RuntimeError("no luck")

    monkeypatch.setitem(registry.FAMILIES, "ncm", replace(registry.FAMILIES["ncm"], fit=broken))
    with pytest.raises(HeadError, match="None of 1 heads could be fitted; the first said: RuntimeError: no luck"):
        compare(DATASET, only("ncm"))
    with pytest.raises(HeadError, match=r"None of 1 heads could .*; the first said: nothing was done within 1e-09 s\."):
        compare(DATASET, only("ncm"), Evaluation(budget=1e-9))


def test_random_heads_are_judged_over_seeds(monkeypatch):
    def by_chance(problem):
        coef = np.random.default_rng(problem.seed).normal(size=(problem.X.shape[1], problem.n_classes))
        return {"coef": coef, "intercept": np.zeros(problem.n_classes)}

    random = replace(registry.FAMILIES["ncm"], fit=by_chance, random=True)
    monkeypatch.setitem(registry.FAMILIES, "dense", random)
    result = compare(DATASET, only("ncm", "dense", dense=({},)), Evaluation(seeds=2, first_seed=1))
    each = [train(DATASET, HeadSpec("dense"), seed=seed).val for seed in (1, 2)]
    assert each[0] != each[1]
    row = next(row for row in result.leaderboard if row["head"] == "dense")
    assert row["val"] == pytest.approx(np.mean(each)) and row["val_range"] == sorted(each)
    assert "val_range" not in next(row for row in result.leaderboard if row["head"] == "ncm")
    with pytest.raises(UsageError, match="at least one seed"):
        compare(DATASET, only("ncm"), Evaluation(seeds=0))


# -- folds -----------------------------------------------------------------------------------------------------------


def test_folds_judge_each_training_row_once():
    result = compare(DATASET, only("ncm", "logreg", logreg=({"C": 0.1},)), Evaluation(folds=5))
    train_rows, folds = DATASET.part("train"), DATASET.part("train").folds(5)
    assert set(folds) == set(range(5))
    for row in result.leaderboard:
        right = 0
        for fold in range(5):
            fit, held = train_rows.take(folds != fold), train_rows.take(folds == fold)
            right += (registry.fit(HeadSpec(row["head"], row["params"]), fit.X, fit.y).predict(held.X) == held.y).sum()
        assert row["val"] == pytest.approx(right / 200, abs=0.011)  # a sweep standardises by all of train
    assert result.to_json()["chosen_by"] == "5-fold cross-validation"
    with pytest.raises(UsageError, match="at least 2 folds"):
        compare(DATASET, only("ncm"), Evaluation(folds=1))


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
    options = {"evaluation": Evaluation(folds=3 if "folds" in way else 0), "results": Results()}
    if "views" in way:
        options["augmented"] = train_rows.with_views(train_rows.X, np.arange(len(train_rows)))
    if way == "known":
        compare(DATASET, only(family), **options)
    head = compare(DATASET, only(family), **options).winner.head
    expected = fit_temperature(head.scores(val.X), np.searchsorted(head.classes, val.y))
    assert head.arrays["temperature"].item() == pytest.approx(expected) and abs(np.log(expected)) > 0.01


# -- results that are kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"search": QUICK},
        {"search": QUICK, "evaluation": Evaluation(folds=3, fewshot=(2,), first_seed=3)},
        {"search": only("dense", dense=({"epochs": 3},))},
        {"search": only("knn"), "augmented": True},
        {"search": only("logreg"), "augmented": True, "evaluation": Evaluation(folds=3)},
    ],
    ids=["a search", "folds and few-shot", "a net", "views", "views and folds"],
)
def test_nothing_is_fitted_twice(tmp_path, counted, options):
    """Neither the candidates nor the winner nor its learning curve; and what is told is the same to the last bit."""
    train_rows = DATASET.part("train")
    if "augmented" in options:
        options = options | {"augmented": train_rows.with_views(train_rows.X + np.float32(0.1), np.arange(200))}
    first = compare(DATASET, **options, results=Results(tmp_path))
    done = dict(counted)
    assert sum(done.values()) > 0
    again = compare(DATASET, **options, results=Results(tmp_path))
    assert counted == done
    assert json.dumps(first.to_json()) == json.dumps(again.to_json())
    assert first.winner.head.arrays.keys() == again.winner.head.arrays.keys()
    assert all((again.winner.head.arrays[name] == array).all() for name, array in first.winner.head.arrays.items())
    assert bool(again.winner.history) == ("dense" in options["search"].grids)


def test_a_comparison_with_more_candidates_fits_only_those(tmp_path, counted, no_learning_curve):
    compare(DATASET, Search({"logreg": ({"C": 0.01},)}), results=Results(tmp_path))
    compare(DATASET, Search({"logreg": ({"C": 0.01}, {"C": 123.0})}), results=Results(tmp_path))
    assert counted == {"single": 0, "swept": 2, "nets": 0}


def test_a_head_that_was_not_kept_or_is_damaged_is_made_again(tmp_path, counted, monkeypatch):
    first = compare(DATASET, only("ncm"), results=Results(tmp_path))
    kept, done = tmp_path / "heads", counted["single"]
    (file,) = kept.glob("*/head.npz")
    file.write_bytes(file.read_bytes()[:-1])
    again = compare(DATASET, only("ncm"), results=Results(tmp_path))
    assert counted["single"] == done + 1 and again.winner.test == first.winner.test
    compare(DATASET, only("ncm"), results=Results(tmp_path))
    assert counted["single"] == done + 1  # it was kept again
    (other,) = kept.iterdir()
    other.rename(kept / ("0" * 64))
    assert Results(tmp_path).head("0" * 64) is None  # it is the head of another fit
    monkeypatch.setattr("heads.comparison.fit_cache.MAX_KEPT", 10)
    compare(DATASET, only("ncm"), results=Results(tmp_path))
    assert counted["single"] == done + 2 and [path.name for path in kept.iterdir()] == ["0" * 64]


@pytest.mark.parametrize(
    "change",
    [
        {"y": np.where(np.arange(400) == 0, "class 0", np.where(np.arange(400) == 4, "class 1", DATASET.y))},
        {"fingerprint": "0" * 64},
        {"splits": np.where(np.arange(400) == 0, "test", DATASET.splits)},
    ],
    ids=["labels", "features", "split"],
)
def test_other_data_are_other_results(tmp_path, counted, no_learning_curve, change):
    compare(DATASET, only("ncm"), results=Results(tmp_path))
    compare(replace(DATASET, **change), only("ncm"), results=Results(tmp_path))
    assert counted["single"] == 2


def test_an_interrupted_comparison_goes_on(tmp_path, counted, no_learning_curve):
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


def test_an_interrupt_ends_the_fits_that_were_not_begun(monkeypatch):
    begun, one = [], trials.timed_fit
    monkeypatch.setattr(trials, "available_cores", lambda: 1)
    monkeypatch.setattr(trials, "timed_fit", lambda *args: begun.append(time.sleep(0.01)) or one(*args))

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(DATASET, only("knn", knn=[{"k": k} for k in range(1, 101)]), progress=interrupt)
    assert len(begun) < 50


@pytest.mark.parametrize(
    "families", [("logreg", "svm"), ("knn",), ("dense",)], ids=["in shared passes", "one by one", "nets"]
)
def test_a_budget_ends_the_search_and_says_so(tmp_path, monkeypatch, families):
    clock = iter(range(0, 10_000, 7))  # past the end of the budget, never just at it
    monkeypatch.setattr(trials.time, "monotonic", lambda: float(next(clock)))
    asked = only(*families, knn=[{"k": k} for k in range(1, 23)], dense=[{"epochs": n} for n in range(1, 23)])
    result = compare(DATASET, asked, Evaluation(budget=60.0), results=Results(tmp_path))
    tried = len(result.leaderboard)
    assert 0 < tried < 22
    told = f"{22 - tried} candidates were not tried within 60 s; the same command goes on with them."
    assert result.winner.notes == (told,) and result.learning_curve is None
    monkeypatch.undo()
    assert len(compare(DATASET, asked, results=Results(tmp_path)).leaderboard) == 22


def test_an_interrupt_ends_the_nets_that_are_trained():
    def interrupt(done, total):
        raise KeyboardInterrupt

    endless, short = {"epochs": 100_000, "patience": 0}, {"epochs": 1}
    before = threading.enumerate()
    with pytest.raises(KeyboardInterrupt):
        compare(DATASET, only("dense", dense=[endless, endless, short]), progress=interrupt)
    assert not [thread for thread in threading.enumerate() if thread not in before]


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
    monkeypatch.setattr("heads.comparison.fit_cache.AT_A_TIME", 2)
    assert digest(np.array(["ab", "", "é"])) == digest("ab\0\0é")


# -- more than one question --------------------------------------------------------------------------------------------


def test_several_feature_sets_are_one_leaderboard():
    worse = make_dataset(noise=3.0)
    worse = replace(worse, feature_set="set-2", fingerprint="e" * 64, y=DATASET.y)
    result = compare([worse, DATASET], only("ncm", "ridge"))
    sets = [row["feature_set"] for row in result.leaderboard]
    assert sets[0] == "set-1" == result.winner.feature_set and sets.count("set-2") == sets.count("set-1") == 8


def test_few_shots_are_drawn_from_each_class():
    result = compare(DATASET, only("ncm", "knn"), Evaluation(fewshot=(1, 5, 50)))
    rows = {(row["k"], row["head"]): row for row in result.fewshot}
    assert rows.keys() == {(k, name) for k in (1, 5, 50) for name in ("ncm", "knn")}
    assert rows[1, "knn"]["params"]["k"] == 1
    for row in rows.values():
        assert row["val_range"][0] <= row["val"] <= row["val_range"][1]
    assert rows[1, "ncm"]["val"] < rows[50, "ncm"]["val"]
    with pytest.raises(UsageError, match="--fewshot-k, a whole number from 1"):
        compare(DATASET, only("ncm"), Evaluation(fewshot=(0,)))


def test_an_order_by_turns_has_each_class_s_share_in_every_beginning():
    y = np.random.default_rng(0).permutation(np.repeat(["a", "b", "c"], (60, 30, 10)))
    order = subsampling.by_turns(y, seed=3)
    assert sorted(order) == list(range(100)) and (order == subsampling.by_turns(y, seed=3)).all()
    assert (order != subsampling.by_turns(y, seed=4)).any()
    for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        so_far = np.cumsum(y[order] == name)
        assert np.abs(so_far - share * np.arange(1, 101)).max() < 2
        rows = order[y[order] == name]
        assert (rows != np.sort(rows)).any()
    firsts = {subsampling.by_turns(y, seed)[0] for seed in range(30)}
    rare = [np.sum(y[subsampling.by_turns(y, seed)[:5]] == "c") for seed in range(200)]
    assert np.mean(rare) == pytest.approx(0.5, abs=0.15)  # a rare class is not among the first each time
    assert len(firsts) > 15 and len(set(y[sorted(firsts)])) == 3  # any row, of any class, may be the first


def test_the_first_of_each_class():
    y, order = np.array(["b", "a", "a", "b", "a", "c"]), np.array([4, 3, 1, 0, 5, 2])
    assert subsampling.first_of_each(y, order, 1).tolist() == [4, 3, 5]
    assert subsampling.first_of_each(y, order, 2).tolist() == [4, 1, 3, 0, 5]
    assert subsampling.first_of_each(y, order, 9).tolist() == [4, 1, 2, 3, 0, 5]


@pytest.mark.parametrize("seeds", [1, 4])
def test_few_shots_are_the_mean_of_fits_to_so_few(seeds):
    """The best of each family, whatever its class weight was, on three draws or as many as there are seeds."""
    asked = replace(
        only("logreg", "knn", logreg=({"C": 1e-5}, {"C": 0.1}), knn=({"k": 7},)), class_weights=("balanced",)
    )
    result = compare(DATASET, asked, Evaluation(seeds=seeds, fewshot=(2, 53)))
    train_rows, val = DATASET.part("train"), DATASET.part("val")
    expected = []
    for k in (2, 53):  # of which one class has fewer
        for name in dict.fromkeys(row["head"] for row in result.leaderboard):
            params = {"C": 0.1} if name == "logreg" else {"k": min(7, k), "metric": "cosine"}
            values = []
            for draw in range(max(3, seeds)):
                order = subsampling.by_turns(train_rows.y, draw)
                rows = np.concatenate([order[train_rows.y[order] == c][:k] for c in np.unique(train_rows.y)])
                some = train_rows.take(rows)
                values.append(accuracy(registry.fit(HeadSpec(name, params), some.X, some.y, seed=draw), val))
            told = {"k": k, "head": name, "params": params, "val": np.mean(values)}
            expected.append(told | {"val_range": [min(values), max(values)]})
    assert result.fewshot == expected


def test_what_few_shot_cannot_have():
    y = np.repeat(["a", "b", "c"], (5, 3, 2000))
    assert list(subsampling.few_shot_notes(y, (1, 3))) == []
    assert list(subsampling.few_shot_notes(y, (4, 2000))) == [
        f"Few-shot with {k} images per class: {fewer} of 3 classes have fewer in train, the smallest 3, "
        "and gave all of theirs."
        for k, fewer in (("4", 1), ("2,000", 2))
    ]
    with pytest.raises(
        UsageError, match=r"--fewshot-k of at most 2,000, what the largest class of train has\. Got: 2001"
    ):
        list(subsampling.few_shot_notes(y, (1, 2001)))
    least = min(np.unique(DATASET.part("train").y, return_counts=True)[1])
    notes = compare(DATASET, only("ncm"), Evaluation(fewshot=(int(least) + 1,))).winner.notes
    assert len(notes) == 1 and notes[0].startswith(f"Few-shot with {least + 1} images per class: 1 of 4 classes have")


def test_the_learning_curve_is_of_the_winner_s_own_fit():
    """Balanced, at its own C, to beginnings of one order; what is expected at twice as many rows is the law's."""
    asked = replace(only("logreg", logreg=({"C": 0.003},)), class_weights=("balanced",))
    curve = compare(DATASET, asked).learning_curve
    train_rows, val = DATASET.part("train"), DATASET.part("val")
    order, points = subsampling.by_turns(train_rows.y, 0), []
    mean, scale = standardisation(train_rows.X)  # of all training rows
    for n in (20, 36, 64, 112, 200):
        some = train_rows.take(order[:n])
        reference = LogisticRegression(C=0.003, class_weight="balanced", tol=1e-8, max_iter=5000)
        reference.fit(standardise(some.X, mean, scale), some.y)
        value = float(reference.score(standardise(val.X, mean, scale), val.y))
        points.append((n, pytest.approx(value, abs=0.0101)))  # one row of 100
    told = curve["points"]
    assert [(point["n"], point["val"]) for point in told] == points
    assert [point["val_ci"] for point in told] == [list(metrics.wilson(point["val"], 100)) for point in told]
    assert (curve["head"], curve["params"]) == ("logreg", {"C": 0.003})
    assert curve["at_twice"] == learning_curve.expect(told, 400)


@pytest.mark.parametrize("family", ["ncm", "rbf-svm"])
@pytest.mark.parametrize("way", ["folds", "views", "folds and views"])
def test_the_learning_curve_is_of_images_scored_on_validation(family, way):
    train_rows, val = DATASET.part("train"), DATASET.part("val")
    options = {"evaluation": Evaluation(folds=3 if "folds" in way else 0, first_seed=2)}
    if "views" in way:
        options["augmented"] = train_rows.with_views(train_rows.X, np.arange(len(train_rows)))
    result = compare(DATASET, only(family), **options)
    spec = HeadSpec(family, result.winner.head.params)
    order = subsampling.by_turns(train_rows.y, 0)
    for point in result.learning_curve["points"]:
        some = train_rows.take(order[: point["n"]])
        assert point["val"] == accuracy(registry.fit(spec, some.X, some.y, 2), val)
    assert [point["n"] for point in result.learning_curve["points"]] == [20, 36, 64, 112, 200]


def test_a_learning_curve_has_no_points_where_no_head_can_be_fitted():
    """One class alone, or fewer rows than neighbours."""
    few = replace(
        DATASET, splits=np.where((DATASET.splits == "train") & (np.arange(400) >= 20), "test", DATASET.splits)
    )
    assert [point["n"] for point in compare(few, only("ncm")).learning_curve["points"]] == [2, 3, 6, 10]
    curve = compare(few, only("knn", knn=({"k": 6},))).learning_curve
    assert [point["n"] for point in curve["points"]] == [6, 10] and curve["at_twice"] is None


def test_no_learning_curve_after_the_budget_or_of_a_slow_head():
    table = Table({name: DATASET.part(name) for name in ("train", "val")})
    spec, train_rows = HeadSpec("ncm"), DATASET.part("train")
    head = registry.fit(spec, train_rows.X, train_rows.y)

    def curve(seconds, left):
        experiment = trials.Experiment([table], [spec], deadline=time.monotonic() + left)
        return comparing._learning_curve(experiment, table, spec, 0, head, seconds)

    assert curve(0.0, left=-1) is None and curve(60.1, left=60) is None
    assert curve(60.0, left=60)["points"] == curve(0.0, left=np.inf)["points"] != []


def test_what_needs_the_rows_in_memory_is_named():
    with pytest.raises(UsageError, match=r"^--cv and several --set cannot be had while training features are streamed"):
        comparing._refuse(folds=3, fewshot=(), sets=True)
    with pytest.raises(UsageError, match=r"^--fewshot-k cannot be had"):
        comparing._refuse(folds=0, fewshot=(1,), sets=False)
    comparing._refuse(folds=0, fewshot=(), sets=False)
    linear = [HeadSpec("logreg", {"C": 1.0}), HeadSpec("ridge", {"alpha": 1.0}, "balanced")]
    others = [HeadSpec("knn", {"k": 1}), HeadSpec("knn", {"k": 2}), HeadSpec("ncm", {})]
    streamed = "The training features were streamed, as they exceed half of --memory-limit: there is no learning curve."
    swept = "logreg, svm, ridge, kernel-logreg, kernel-svm"
    left_out = f"knn, ncm: left out, as only {swept} can be fitted to streamed features."
    assert comparing._streaming(linear) == (linear, [streamed])
    assert comparing._streaming([*others, *linear]) == (linear, [streamed, left_out])
    with pytest.raises(UsageError, match=f"^Within --memory-limit only {swept} can be fitted: raise it"):
        comparing._streaming(others)


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
    assert names_of(found) == set(registry.FAMILIES) - {"rbf-svm"} and notes == []
    assert 30 <= len(found) <= 50 and {candidate.class_weight for candidate in found} == {None}
    unbalanced, _ = Search().candidates(np.repeat(["a", "b"], (300, 100)), 10, 50)
    weighted = [candidate for candidate in unbalanced if candidate.class_weight]
    assert names_of(weighted) == {"logreg", "svm", "ridge"} and len(unbalanced) == len(found) + len(weighted)
    monkeypatch.setattr(machines, "MAX_WORK", 0)
    found, notes = Search().candidates(y, 10, 50)
    assert "kernel-svm" not in names_of(found)
    assert notes == [
        f"{name} was left out: it is slow for 200 rows and 2 classes." for name in ("kernel-logreg", "kernel-svm")
    ]
    for name in ("kernel-svm", "rbf-svm"):
        assert names_of(only(name).candidates(y, 10, 50)[0]) == {name}


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
    assert set(search.from_options(C=[1.0]).grids) == {"logreg", "svm", "kernel-logreg", "kernel-svm"}
    assert search.from_options() == Search() == search.from_options(None, [], [], [])
    assert search.from_options(class_weights=["balanced", None]) == Search({}, ("balanced", None))
    assert search.from_options(["ncm", "svm"], [2.0], None, [None]) == Search(
        {"ncm": (), "svm": ({"C": 2.0},)}, (None,)
    )
    assert search.from_options(hidden=[[8]]) == Search({"dense": ({"hidden": [8]},)})
    assert search.from_options(["knn"]) == Search({"knn": ()})
    with pytest.raises(UsageError, match="--hidden says nothing to svm: no family of these has hidden"):
        search.from_options(["svm"], hidden=[[8]])
    with pytest.raises(UsageError, match="Parameter C"):
        search.from_options(["svm"], C=[1.0, 0.0])
    with pytest.raises(UsageError, match="--C says nothing to ncm, knn"):
        search.from_options(["ncm", "knn"], C=[1.0])
    with pytest.raises(UsageError, match="There is no head 'tree'"):
        search.from_options(["tree"])


def test_the_candidates_are_in_the_table_s_order_each_weight_with_its_whole_grid():
    asked = Search({"knn": ({"k": 1},), "svm": ({"C": 1.0}, {"C": 0.5}), "ncm": ()}, ("balanced", None))
    found, notes = asked.candidates(np.array(["a", "b"]), 2, 1)
    assert notes == [] and found == [
        HeadSpec("ncm", {}),
        HeadSpec("svm", {"C": 1.0}, "balanced"),
        HeadSpec("svm", {"C": 0.5}, "balanced"),
        HeadSpec("svm", {"C": 1.0}),
        HeadSpec("svm", {"C": 0.5}),
        HeadSpec("knn", {"k": 1, "metric": "cosine"}),
    ]


@pytest.mark.parametrize(
    ("rows", "classes", "width", "to_score", "out"),
    [
        (75_000, 100, 428, 1, []),  # 75,000 rows × (428 + 3,072 + 365 × 100) are 3e9
        (75_001, 100, 428, 1, ["kernel-logreg", "kernel-svm"]),
        (75_000, 101, 428, 1, ["kernel-logreg", "kernel-svm"]),
        (75_000, 100, 429, 1, ["kernel-logreg", "kernel-svm"]),
        (1000, 2, 1000, 10**7, []),
        (1000, 2, 1000, 10**7 + 1, ["knn"]),
        (1000, 2, 1001, 10**7, ["knn"]),
        (1001, 2, 1000, 10**7, ["knn"]),
    ],
)
def test_a_default_search_leaves_out_what_is_slow(rows, classes, width, to_score, out):
    y = np.array([f"{i:03}" for i in np.arange(rows) % classes])
    found, notes = Search().candidates(y, width, to_score)
    assert notes == [f"{name} was left out: it is slow for {rows:,} rows and {classes} classes." for name in out]
    assert names_of(found) == set(registry.FAMILIES) - {"rbf-svm", *out}
    named, notes = only("knn", "kernel-svm", "rbf-svm").candidates(y, width, to_score)
    assert names_of(named) == {"knn", "kernel-svm", "rbf-svm"} and notes == []


@pytest.mark.parametrize(("largest", "weights"), [(299, {None}), (300, {None, "balanced"}), (301, {None, "balanced"})])
def test_a_default_search_weighs_classes_from_three_to_one(largest, weights):
    y = np.repeat(["a", "b", "c"], (100, largest, 150))
    assert {candidate.class_weight for candidate in Search().candidates(y, 10, 50)[0]} == weights
    asked, _ = Search(class_weights=("balanced",)).candidates(y, 10, 50)
    assert {c.class_weight for c in asked if c.head in ("logreg", "dense", "rbf-svm")} == {"balanced"}


def test_numbers():
    assert search.numbers("0.1,1") == [0.1, 1.0]
    assert search.numbers("1e-4:1e2:7") == [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0]
    assert search.numbers("3:5:1") == [3.0] and search.numbers("1:2:3") == [1.0, 1.41421, 2.0]
    assert search.numbers("5") == [5.0] and search.numbers("2,1,0.123456789") == [2.0, 1.0, 0.123456789]
    assert len(search.numbers("1:2:1000")) == len(search.numbers(",".join(["1"] * 1000))) == 1000
    shapes = ("", "a", "1:2:3:4", "1:2", "1:2:", "1:2:x", "1:2:2.5", "1,2:3")
    amounts = ("0:1:3", "-1", "0", "1:10:0", "1:10:-1", "1:2:1001", ",".join(["1"] * 1001), "inf", "nan", "1,inf")
    for wrong in shapes:
        with pytest.raises(UsageError, match="Expected: numbers such as") as said:
            search.numbers(wrong)
        assert str(said.value) == f"Expected: numbers such as 0.1,1 or 1e-4:1e2:13. Got: {wrong!r}."
    for wrong in amounts:
        with pytest.raises(UsageError, match="Expected: numbers above 0") as said:
            search.numbers(wrong)
        assert str(said.value) == f"Expected: numbers above 0, up to 1,000 of them. Got: {wrong!r}."


def test_a_file_makes_a_search(tmp_path):
    path = tmp_path / "search.toml"
    path.write_text(
        'class_weight = ["balanced"]\n[heads.dense]\nhidden = [[64], [32, 16]]\ndropout = [0.0, 0.5]\n[heads.ncm]\n'
    )
    found, _ = search.from_file(path).candidates(np.array(["a", "b"]), 2, 1)
    assert found[0] == HeadSpec("ncm", {})
    nets = [(c.params["hidden"], c.params["dropout"], c.class_weight) for c in found[1:]]
    assert nets == [(h, d, "balanced") for h in ([64], [32, 16]) for d in (0.0, 0.5)]
    path.write_text('class_weight = ["none", "balanced"]\n')
    assert search.from_file(path) == Search({}, (None, "balanced"))
    path.write_text("[heads.ncm]\n[heads.logreg]\nC = [1, 0.5]\n")
    assert search.from_file(path) == Search({"ncm": (), "logreg": ({"C": 1}, {"C": 0.5})})


def test_a_file_has_its_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "complete", lambda *_: None)  # which takes its time for so many
    path = tmp_path / "search.toml"
    path.write_text("#" * 2**16)
    assert search.from_file(path) == Search()
    path.write_text("#" * (2**16 + 1))
    with pytest.raises(UsageError, match=r"a TOML file of up to 65,536 bytes. Got: .*search.toml, 65,537 bytes"):
        search.from_file(path)
    ten = [0.1] * 10
    lists = dict.fromkeys(("dropout", "learning_rate"), ten) | {"epochs": [1] * 10, "batch_size": [1] * 10}
    for more, allowed in (({"patience": [1] * 10}, True), ({"patience": [1] * 11}, False)):
        path.write_text("[heads.dense]\n" + "".join(f"{key} = {value}\n" for key, value in (lists | more).items()))
        if allowed:
            assert len(search.from_file(path).grids["dense"]) == 100_000
        else:
            with pytest.raises(UsageError, match=r"in \[heads.dense\]: at most 100,000 combinations. Got: more"):
                search.from_file(path)
    path.write_text("a = " + "[" * 5000)
    with pytest.raises(UsageError, match="Expected: --search, a TOML file"):
        search.from_file(path)
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="Expected: --search, a TOML file"):
        search.from_file(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heads = 3", "Expected: class_weight"),
        ("class_weight = 3", "Expected: class_weight"),
        ('more = 1\nclass_weight = ["none"]', "Got: class_weight, more"),
        ("[heads]\nlogreg = 3", "lists of values"),
        ("[heads.logreg]\nC = [1, -1]", "Parameter C"),
        ("[heads.tree]\nC = [1]", "There is no head 'tree'"),
        ("[heads.logreg]\nK = [1]", "no parameter 'K'"),
        ("[heads.logreg]\nC = 1", "lists of values"),
        ("[head.logreg]\nC = [1]", "Got: head"),
        ('class_weight = ["heavy"]', "none or balanced"),
        ("[heads", "Expected: --search, a TOML file"),
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
