"""Scores, their intervals, and the paired difference: against scikit-learn, published values and simulations."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from heads.evaluation import difference, significance
from heads.evaluation.auc import auc
from heads.evaluation.difference import METRICS, paired_difference, recalls, score_of
from heads.evaluation.metrics import wilson

CLASSES = np.array(["a", "b", "c", "d", "e"])
SKLEARN = {
    "top1": metrics.accuracy_score,
    "macro_f1": lambda y, predicted: metrics.f1_score(y, predicted, average="macro", zero_division=0),
    "mean_recall": lambda y, predicted: np.mean(
        metrics.recall_score(y, predicted, labels=np.unique(y), average=None, zero_division=0)
    ),
}


@st.composite
def predictions(draw):
    """Classes that only one head knows, or only the labels, are among them."""
    n = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return [rng.choice(CLASSES[: draw(st.integers(1, 5))], n) for _ in range(3)]


def noisy(rng: np.random.Generator, y: np.ndarray, wrong: float) -> np.ndarray:
    return np.where(rng.random(len(y)) < wrong, rng.choice(CLASSES[:3], len(y)), y)


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(difference, "RESAMPLES", 300)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=15)
@given(predictions(), st.booleans())
def test_values_are_scikit_learns(metric, labels, grouped):
    y, new, old = labels
    groups = np.arange(len(y)).astype(str) if grouped else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(difference, "RESAMPLES", 20)
        value, _ = score_of(metric, y, new, groups)
        assert value == pytest.approx(SKLEARN[metric](y, new))
        expected = SKLEARN[metric](y, new) - SKLEARN[metric](y, old)
        assert paired_difference(metric, y, new, old, groups).value == pytest.approx(expected)


def test_mean_recall_is_balanced_accuracy():
    rng = np.random.default_rng(0)
    y = rng.choice(CLASSES, 60)
    new = noisy(rng, y, 0.5)
    assert score_of("mean_recall", y, new)[0] == pytest.approx(metrics.balanced_accuracy_score(y, new))


@settings(max_examples=20)
@given(predictions())
def test_recalls_are_scikit_learns(labels):
    y, predicted, _ = labels
    expected = metrics.recall_score(y, predicted, labels=np.unique(y), average=None, zero_division=0)
    got = recalls(y, predicted)
    assert list(got) == list(np.unique(y)) and [n for _, n in got.values()] == list(np.unique(y, return_counts=True)[1])
    assert [recall for recall, _ in got.values()] == pytest.approx(list(expected))


def paired(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and predictions with these numbers of images."""
    n = (both, gained, lost, neither)
    return np.repeat("a", sum(n)), np.repeat(["a", "a", "b", "b"], n), np.repeat(["a", "b", "a", "b"], n)


def test_published_intervals_of_paired_proportions():
    """The example of ci.prop.ps of R's statpsych, by one of the authors of the interval."""
    found = paired_difference("top1", *paired(12, 26, 4, 6))
    assert found.ci == pytest.approx((0.2548067, 0.6251933), abs=1e-7)
    assert found.value == pytest.approx(22 / 48)


def test_the_interval_by_hand():
    """8 of 10 gained: (9 - 1) / 12 ± 1.96 sqrt((10 / 12 - (8 / 12)²) / 12), beyond 1."""
    found = paired_difference("top1", *paired(2, 8, 0, 0))
    assert found.ci == pytest.approx((8 / 12 - 1.959964 * (7 / 18 / 12) ** 0.5, 1))
    assert found.p_value == pytest.approx(2 / 2**8)


def test_the_step_is_the_standard_error_of_the_paired_losses():
    y, new, old = paired(50, 20, 10, 20)
    losses = (new != y).astype(float) - (old != y)
    expected = losses.std(ddof=1) / len(y) ** 0.5
    assert paired_difference("top1", y, new, old).step == pytest.approx(expected)
    by_groups = paired_difference("top1", y, new, old, np.arange(100).astype(str))  # each image its own group
    assert by_groups.step == pytest.approx(expected, rel=0.06)
    assert by_groups.value == pytest.approx(0.1)


def test_the_p_value_of_the_bootstrap_is_that_of_a_normal_difference():
    y, new, old = paired(500, 165, 135, 200)
    found = paired_difference("top1", y, new, old, np.arange(1000).astype(str))
    assert found.p_value == pytest.approx(2 * NormalDist().cdf(-0.03 / found.step), rel=0.3)


@pytest.mark.parametrize("groups", [None, np.repeat(["x", "y", "z"], 20)])
@pytest.mark.parametrize("metric", METRICS)
def test_heads_that_agree_differ_by_nothing(metric, groups):
    y = np.tile(CLASSES[:3], 20)
    predicted = noisy(np.random.default_rng(0), y, 0.3)
    found = paired_difference(metric, y, predicted, predicted, groups)
    assert found.value == 0 and found.p_value == 1 and found.ci[0] < 0 < found.ci[1]
    assert found.step == 0


@pytest.mark.parametrize("metric", METRICS)
def test_the_better_head_and_the_worse_one_mirror_each_other(metric):
    rng = np.random.default_rng(3)
    y = rng.choice(CLASSES, 400)
    new, old = noisy(rng, y, 0.1), noisy(rng, y, 0.4)
    better, worse = paired_difference(metric, y, new, old), paired_difference(metric, y, old, new)
    assert better.value == pytest.approx(-worse.value) and better.ci == pytest.approx((-worse.ci[1], -worse.ci[0]))
    assert better.ci[0] > 0 and better.p_value == pytest.approx(worse.p_value) and better.p_value < 0.01


@pytest.mark.parametrize("metric", METRICS)
def test_equal_runs_give_equal_numbers(metric, few_resamples):
    rng = np.random.default_rng(3)
    y = rng.choice(CLASSES, 50)
    new, old, groups = noisy(rng, y, 0.2), noisy(rng, y, 0.3), rng.choice(CLASSES, 50)
    one, again, other = (paired_difference(metric, y, new, old, groups, seed) for seed in (5, 5, 6))
    assert one == again and one.ci != other.ci and one.value == other.value


def test_chunks_do_not_change_what_is_drawn(few_resamples, monkeypatch):
    rng = np.random.default_rng(3)
    y = rng.choice(CLASSES, 50)
    new, old = noisy(rng, y, 0.2), noisy(rng, y, 0.3)
    whole = paired_difference("macro_f1", y, new, old)
    monkeypatch.setattr(difference, "CHUNK_NUMBERS", 50 * 7)
    assert paired_difference("macro_f1", y, new, old) == whole


@pytest.mark.parametrize("metric", METRICS)
def test_groups_widen_an_interval(metric):
    """Ten images per group that are right or wrong together are worth as much as one."""
    rng = np.random.default_rng(1)
    y = rng.choice(CLASSES[:3], 60)
    new, old = noisy(rng, y, 0.2), noisy(rng, y, 0.4)
    y, new, old = (np.repeat(part, 10) for part in (y, new, old))
    groups = np.repeat(np.arange(60), 10).astype(str)
    alone, together = paired_difference(metric, y, new, old), paired_difference(metric, y, new, old, groups)
    assert width(together.ci) == pytest.approx(10**0.5 * width(alone.ci), rel=0.15)
    assert together.step == pytest.approx(10**0.5 * alone.step, rel=0.15)
    assert width(score_of(metric, y, new, groups)[1]) > 2 * width(score_of(metric, y, new)[1])
    assert alone.value == pytest.approx(together.value)


@pytest.mark.parametrize("metric", METRICS)
def test_one_group_says_nothing(metric):
    y = np.tile(CLASSES[:3], 20)
    new, old, one = y, noisy(np.random.default_rng(0), y, 0.3), np.repeat("one", 60)
    found = paired_difference(metric, y, new, old, one)
    assert found.value > 0 and found.p_value == 1 and found.ci[0] < 0 and found.ci[1] > 0.9
    low, high = score_of(metric, y, new, one)[1]
    assert (low, high) == wilson(1, 1)


def test_perfect_predictions_have_an_interval():
    y = np.tile(CLASSES[:3], 20)
    assert score_of("macro_f1", y, y) == (1, wilson(1, 60)) == score_of("top1", y, y)


def test_one_image():
    y, other = np.array(["a"]), np.array(["b"])
    for metric in METRICS:
        found = paired_difference(metric, y, y, other)
        assert found.value == 1 and found.ci[0] < 0 and found.p_value == 1 and np.isfinite(found.step)


@pytest.mark.parametrize("groups", [8, 30])
def test_the_p_value_agrees_with_the_interval(groups, few_resamples):
    """Below 0.05 if 0 is outside, also with the wider intervals of few groups."""
    rng = np.random.default_rng(0)
    outside = []
    for _ in range(40):
        y = rng.choice(CLASSES[:3], 10 * groups)
        new, old = noisy(rng, y, 0.3), noisy(rng, y, 0.45)
        found = paired_difference("macro_f1", y, new, old, np.repeat(np.arange(groups), 10).astype(str))
        outside.append(not found.ci[0] <= 0 <= found.ci[1])
        assert outside[-1] == (found.p_value < 0.05) or abs(found.p_value - 0.05) < 0.02
    assert 3 < sum(outside) < 40


@pytest.mark.parametrize(("metric", "groups"), [("top1", None), ("top1", 40), ("macro_f1", None), ("mean_recall", 8)])
def test_intervals_hold_the_true_difference_as_often_as_they_say(metric, groups, monkeypatch):
    """200 test sets of 200 images; images of a group share their difficulty. The truth is that of a large set."""
    monkeypatch.setattr(difference, "RESAMPLES", 199)
    rng = np.random.default_rng(7)

    def images(n: int, of: int | None) -> tuple[np.ndarray, ...]:
        unit = np.arange(n) if of is None else np.repeat(np.arange(of), n // of)
        hard = np.where(rng.random(unit.max() + 1) < 0.4, 0.6, 0.1)[unit]
        y = rng.choice(CLASSES[:3], n, p=[0.5, 0.3, 0.2])
        return y, noisy(rng, y, hard * 0.8), noisy(rng, y, hard), unit.astype(str)

    y, new, old, _ = images(200_000, groups and 1000 * groups)
    truth = SKLEARN[metric](y, new) - SKLEARN[metric](y, old)
    held = []
    for _ in range(200):
        y, new, old, unit = images(200, groups)
        low, high = paired_difference(metric, y, new, old, unit if groups else None).ci
        held.append(low <= truth <= high)
    assert 0.91 <= np.mean(held) <= 0.985


def width(ci: tuple[float, float]) -> float:
    return ci[1] - ci[0]


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1), st.booleans())
def test_auc_is_scikit_learns_and_its_variance_that_of_all_pairs(m, n, seed, ties):
    rng = np.random.default_rng(seed)
    positive = rng.permutation(np.repeat([True, False], [m, n]))
    scores = rng.integers(4, size=m + n) if ties else rng.normal(size=m + n)
    value, (low, high) = auc(positive, scores)
    assert value == pytest.approx(metrics.roc_auc_score(positive, scores))
    assert 0 <= low <= value <= high <= 1 and low < high
    if min(m, n) == 1:
        assert (low, high) == wilson(value, 1)
        return
    pairs = np.sign(scores[positive][:, None] - scores[~positive]) / 2 + 0.5
    half = 1.959964 * (pairs.mean(axis=1).var(ddof=1) / m + pairs.mean(axis=0).var(ddof=1) / n) ** 0.5
    if half > 1e-9:
        assert (low, high) == pytest.approx((max(0, value - half), min(1, value + half)), abs=1e-6)


def test_published_auc():
    """The example of the package pauc: 0.708, from 0.378 to 1.000."""
    positive = np.array([0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1], bool)
    scores = np.array([0.1, 0.35, 0.24, 0.8, 0.2, 0.85, 0.13, 0.85, 0.74, 0.58, 0.71, 0.25])
    value, ci = auc(positive, scores)
    assert (value, *ci) == pytest.approx((0.708, 0.378, 1), abs=5e-4)


def test_rows_told_apart_without_an_error_have_an_interval():
    positive = np.repeat([True, False], [10, 40])
    assert auc(positive, positive * 1.0) == (1, wilson(1, 10))
    assert auc(positive, -1.0 * positive) == (0, wilson(0, 10))
    assert auc(positive, np.zeros(50)) == (0.5, wilson(0.5, 10))


@pytest.mark.parametrize("shift", [0, 1])
def test_auc_intervals_hold_the_true_area_as_often_as_they_say(shift):
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    positive = np.repeat([True, False], [40, 60])
    truth = norm.cdf(shift / 2**0.5)
    ends = np.array([auc(positive, rng.normal(size=100) + shift * positive)[1] for _ in range(600)])
    assert 0.92 <= np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])) <= 0.98


def test_the_p_value_of_independent_images_is_mcnemars():
    y, new, old = paired(50, 20, 8, 5)
    assert paired_difference("top1", y, new, old).p_value == significance.mcnemar(new == y, old == y)
