"""Views in a comparison: judged as every other row is, on images that the fit has seen in no form."""

import json
from dataclasses import replace

import numpy as np
import pytest

from builders import make_dataset, only
from featurestore.errors import UsageError
from heads import registry
from heads.comparison import compare as comparing
from heads.comparison import trials
from heads.comparison.compare import compare
from heads.comparison.fit_cache import Results
from heads.comparison.space import Evaluation
from heads.evaluation.significance import holm, mcnemar
from heads.spec import HeadSpec

pytestmark = pytest.mark.usefixtures("few_resamples")
BIG = make_dataset(n=2000, noise=1.5)
DATASET = BIG.take(np.arange(400))
TRAIN, VAL = DATASET.part("train"), DATASET.part("val")
THREE = only("ncm", "knn", knn=({"k": 10}, {"k": 1}))


def with_views(noise, of=TRAIN, count=2, last_first=False):
    """The rows, and after them ``count`` of each with some noise: little adds little, and much does harm.

    ``last_first`` gives the views of the last to the first.
    """
    rows = np.repeat(np.arange(len(of)), count)
    drawn = np.random.default_rng(1).normal(size=(len(rows), of.width))
    X = (of.X[rows] + noise * drawn).astype(np.float32)
    return of.with_views(X, rows[::-1] if last_first else rows)


def fresh_views():
    """Views that are worth more than the images: other rows of the same classes."""
    rows = np.repeat(np.arange(len(TRAIN)), 2)
    others = {name: iter(BIG.X[400:][BIG.y[400:] == name]) for name in np.unique(TRAIN.y)}
    return TRAIN.with_views(np.stack([next(others[name]) for name in TRAIN.y[rows]]), rows)


def right_of(row, augmented, folds):
    """What a row's fits get right, by fits of our own."""
    fitted = augmented if row.get("views") else TRAIN

    def predicted(fit, judged):
        return registry.fit(HeadSpec(row["head"], row["params"]), fit.X, fit.y).predict(judged.X) == judged.y

    if not folds:
        return predicted(fitted, VAL)
    here, there = TRAIN.folds(folds), fitted.folds(folds)
    return np.concatenate([predicted(fitted.take(there != f), TRAIN.take(here == f)) for f in range(folds)])


@pytest.mark.parametrize("folds", [0, 4])
@pytest.mark.parametrize(("noise", "place"), [(None, "first"), (0.5, "between"), (100.0, "last")])
def test_every_row_is_judged_alike_and_against_the_first(folds, noise, place, monkeypatch):
    again = []
    timed_fit = trials.timed_fit
    monkeypatch.setattr(trials, "timed_fit", lambda *args: again.append(len(args[1])) or timed_fit(*args))
    augmented = fresh_views() if noise is None else with_views(noise)
    result = compare(DATASET, THREE, Evaluation(folds=folds), augmented=augmented)
    board = result.leaderboard
    rights = [right_of(row, augmented, folds) for row in board]
    assert [row["val"] for row in board] == [right.mean() for right in rights]
    assert [row["val"] for row in board] == sorted((row["val"] for row in board), reverse=True)
    assert not {"p_value", "p_corrected", "tied"} & board[0].keys()
    p_values = [mcnemar(rights[0], right) for right in rights[1:]]
    for row, p_value, corrected in zip(board[1:], p_values, holm(p_values), strict=True):
        assert (row["p_value"], row["p_corrected"], row["tied"]) == (p_value, corrected, corrected >= 0.05)
    at = [row.get("views") for row in board].index(2)
    assert place == ("first" if at == 0 else "last" if at == len(board) - 1 else "between")
    best = next(row["val"] for row in board if "views" not in row)
    where = "over the folds" if folds else "on validation"
    assert board[at]["note"] == (
        f"with 2 views per image: {100 * (board[at]['val'] - best):+.1f} points {where} over the images alone."
    )
    assert (result.winner.views, len(board)) == (2 if at == 0 else 0, 4)
    assert again.count(len(augmented)) == (at == 0 if folds else 1)  # the winner of folds alone is fitted anew
    fitted = augmented if at == 0 else TRAIN
    own = registry.fit(HeadSpec(board[0]["head"], board[0]["params"]), fitted.X, fitted.y, validation=(VAL.X, VAL.y))
    assert all((own.arrays[name] == array).all() for name, array in result.winner.head.arrays.items())
    assert own.arrays.keys() == result.winner.head.arrays.keys()
    json.dumps(result.to_json())


def test_a_fold_never_sees_views_of_the_images_that_it_judges():
    """Views that are the images themselves, with labels by chance: whoever saw one knows its label."""
    by_chance = np.random.default_rng(3).choice(["a", "b"], len(DATASET))
    groups = np.array([f"group:{row // 3}" for row in range(len(DATASET))])
    data = replace(DATASET, y=by_chance, groups=groups)
    board = compare(
        data, only("knn", knn=({"k": 1},)), Evaluation(folds=4), augmented=with_views(0, of=data.part("train"))
    ).leaderboard
    assert [row.get("views") for row in board].count(2) == 1
    assert all(row["val"] < 0.65 for row in board)


def test_a_sweep_with_views_is_cross_validated_too():
    """As in any sweep, standardised by all that is fitted in some fold."""
    augmented = with_views(0.5)
    board = compare(DATASET, only("logreg", logreg=({"C": 0.1},)), Evaluation(folds=4), augmented=augmented).leaderboard
    for row in board:
        assert row["val"] == pytest.approx(right_of(row, augmented, 4).mean(), abs=0.016)
    assert {row.get("views") for row in board} == {None, 2}


def test_views_are_judged_over_the_same_seeds(monkeypatch):
    def by_chance(problem):
        coef = np.random.default_rng(problem.seed).normal(size=(problem.X.shape[1], problem.n_classes))
        return {"coef": coef, "intercept": np.zeros(problem.n_classes)}

    family = replace(registry.FAMILIES["ncm"], fit=by_chance, random=True)
    monkeypatch.setitem(registry.FAMILIES, "dense", family)
    augmented = with_views(0.5)
    result = compare(DATASET, only("dense", dense=({},)), Evaluation(seeds=3, first_seed=1), augmented=augmented)
    for row in result.leaderboard:
        fitted = augmented if row.get("views") else TRAIN
        heads = [registry.fit(HeadSpec("dense"), fitted.X, fitted.y, seed=seed) for seed in (1, 2, 3)]
        each = [np.mean(head.predict(VAL.X) == VAL.y) for head in heads]
        assert row["val"] == pytest.approx(np.mean(each)) and row["val_range"] == [min(each), max(each)]
    assert len(set(each)) > 1 and len(result.leaderboard) == 2


def test_views_that_cannot_be_fitted_are_the_last_row(monkeypatch):
    plain = registry.FAMILIES["ncm"]

    def small(problem):
        if len(problem.y) > len(TRAIN):
            raise MemoryError("no room")
        return plain.fit(problem)

    monkeypatch.setitem(registry.FAMILIES, "ncm", replace(plain, fit=small))
    result = compare(DATASET, only("ncm"), augmented=with_views(0.5))
    first, last = result.leaderboard
    assert (first.get("views"), last["views"], last["val"], last["error"]) == (None, 2, None, "MemoryError: no room")
    assert result.winner.views == 0


def test_what_is_kept_of_views_is_of_those_very_views(tmp_path, monkeypatch):
    fits = []
    timed_fit = trials.timed_fit
    monkeypatch.setattr(trials, "timed_fit", lambda *args: fits.append(len(args[1])) or timed_fit(*args))

    def board(augmented):
        fits.clear()
        told = compare(DATASET, only("ncm"), results=Results(tmp_path), augmented=augmented).leaderboard
        return [(row.get("views"), row["val"]) for row in told]

    monkeypatch.setattr(comparing, "CURVE_SECONDS", -1)
    first = board(with_views(0.5))
    assert fits == [200, 600]
    assert board(with_views(0.5)) == first and fits == []
    others = [with_views(100.0), with_views(0.5, count=1), with_views(0.5, last_first=True)]
    for number, other in enumerate(others):
        board(other)
        assert fits == [len(other)], number


def test_views_of_several_feature_sets_are_refused():
    other = replace(DATASET, feature_set="set-2", fingerprint="e" * 64)
    with pytest.raises(UsageError, match="--views goes with one feature set"):
        compare([DATASET, other], only("ncm"), augmented=with_views(0.5))


def test_a_budget_that_ends_before_the_views_is_told(monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(trials.time, "monotonic", lambda: float(next(clock)))
    result = compare(DATASET, only("ncm", "knn"), Evaluation(budget=35.0), augmented=with_views(0.5))
    assert not any("views" in row for row in result.leaderboard)
    assert "The views were not tried within 35 s; the same command goes on with them." in result.winner.notes
