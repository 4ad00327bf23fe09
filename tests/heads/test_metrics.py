"""Scores against scikit-learn's and against published values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics

from heads.evaluation import metrics as evaluate

CLASSES = np.array(["a", "b", "c", "d"])


@st.composite
def predictions(draw):
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    some = CLASSES[: draw(st.integers(2, 4))]
    return rng.choice(some, n), rng.choice(CLASSES, n)


@given(predictions())
def test_confusion_and_per_class_are_scikit_learns(both):
    y, predicted = both
    matrix = evaluate.confusion(y, predicted, CLASSES)
    assert (matrix == metrics.confusion_matrix(y, predicted, labels=CLASSES)).all()
    got = evaluate.per_class(matrix)
    expected = metrics.precision_recall_fscore_support(y, predicted, labels=CLASSES, zero_division=0)
    for ours, theirs in zip((got.precision, got.recall, got.f1, got.support), expected, strict=True):
        np.testing.assert_allclose(ours, theirs)
    assert evaluate.macro_f1(matrix) == pytest.approx(metrics.f1_score(y, predicted, average="macro", zero_division=0))
    recall = metrics.recall_score(y, predicted, labels=np.unique(y), average="macro", zero_division=0)
    assert evaluate.balanced_accuracy(matrix) == pytest.approx(recall)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_top_k_is_scikit_learns(seed, k):
    rng = np.random.default_rng(seed)
    y, scores = rng.integers(6, size=30), rng.normal(size=(30, 6))
    expected = metrics.top_k_accuracy_score(y, scores, k=k, labels=np.arange(6))
    assert evaluate.top_k(y.astype(str), scores, np.arange(6).astype(str), k) == pytest.approx(expected)


def test_top_1_is_the_share_of_argmax_even_with_equal_scores():
    scores = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    y = np.array(["a", "b", "a"])
    assert evaluate.top_k(y, scores, CLASSES) == np.mean(CLASSES[scores.argmax(axis=1)] == y)
    assert evaluate.top_k(y, scores, CLASSES, 2) == 1


def test_a_class_that_the_head_lacks_is_a_miss():
    scores = np.array([[9, 0, 0, 0], [0, 0, 0, 9]])
    assert evaluate.top_k(np.array(["a", "zebra"]), scores, CLASSES) == 0.5
    assert evaluate.top_k(np.array(["a", "zebra"]), scores, CLASSES, 4) == 0.5
    assert evaluate.summary(np.array(["a", "zebra"]), scores, CLASSES) == pytest.approx(
        {"top1": 0.5, "macro_f1": 1 / 3, "balanced_accuracy": 0.5}
    )


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from([3, 1000]))
def test_curves_are_scikit_learns(seed, n, values):
    """With few values there are ties, with many there are almost none."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    positive[:2] = False, True
    scores = rng.integers(values, size=n) + positive * rng.integers(values) / 2
    roc, pr = evaluate.roc(positive, scores), evaluate.precision_recall(positive, scores)
    assert roc.area == pytest.approx(metrics.roc_auc_score(positive, scores))
    assert pr.area == pytest.approx(metrics.average_precision_score(positive, scores))
    x, y, _ = metrics.roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose((roc.x, roc.y), (x, y))
    precision, recall, _ = metrics.precision_recall_curve(positive, scores)
    np.testing.assert_allclose((pr.x, pr.y), (recall[-2::-1], precision[-2::-1]))


def test_confused_classes_stand_side_by_side():
    """Twelve groups of three classes that are confused with one another alone, in any order."""
    rng = np.random.default_rng(0)
    matrix = np.kron(np.eye(12, dtype=int), np.full((3, 3), 2)) + 10 * np.eye(36, dtype=int)
    shuffled = rng.permutation(36)
    order = evaluate.confusion_order(matrix[np.ix_(shuffled, shuffled)])
    groups = (shuffled[order] // 3).reshape(12, 3)
    assert sorted(order) == list(range(36)) and (groups == groups[:, :1]).all()
    assert sorted(evaluate.confusion_order(np.eye(5, dtype=int))) == list(range(5))


def test_wilson_interval_of_published_examples():
    """Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3."""
    for right, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert evaluate.wilson(right / n, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 1000), st.data())
def test_wilson_interval_holds_the_share(n, data):
    share = data.draw(st.integers(0, n)) / n
    low, high = evaluate.wilson(share, n)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1


@given(st.integers(1, 1000), st.sampled_from([0.5, 0.9, 0.99]), st.data())
def test_wilson_interval_is_scipys(n, confidence, data):
    right = data.draw(st.integers(0, n))
    expected = binomtest(right, n).proportion_ci(confidence, "wilson")
    assert evaluate.wilson(right / n, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("c", [5, 6, 7])
def test_the_five_best_are_told_of_more_than_five_classes(c):
    classes = np.array([f"{i}" for i in range(c)])
    y, scores = classes[[0, 1, c - 1]], np.tile(np.arange(c, 0, -1), (3, 1))
    told = evaluate.summary(y, scores, classes)
    assert told.keys() == {"top1", "macro_f1", "balanced_accuracy"} | ({"top5"} if c > 5 else set())
    assert told["top1"] == pytest.approx(1 / 3) and told.get("top5", 2 / 3) == pytest.approx(2 / 3)


def test_classes_that_are_confused_one_way_stand_side_by_side():
    """By shares of the true class: 8 of 10 are more than 20 of 1000, of two other classes."""
    matrix = np.diag([2, 980, 980, 1000, 10, 0])
    matrix[0, 3], matrix[1, 0], matrix[2, 0] = 8, 20, 20
    order = evaluate.confusion_order(matrix).tolist()
    assert sorted(order) == list(range(6)) and abs(order.index(0) - order.index(3)) == 1
