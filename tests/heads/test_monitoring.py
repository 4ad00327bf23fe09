"""Drift between old and new images, and near-copies, on small made-up features."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.monitoring import copies, drift
from heads.monitoring.copies import near_copies
from heads.monitoring.drift import Drift

CLASSES = np.array(["cat", "dog", "fox"])
WIDTH = 8
CENTRES = np.random.default_rng(9).normal(size=(3, WIDTH)).astype(np.float32) * 3


def images(n: int, shares: list[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features around the centres of their classes, and the classes."""
    rng = np.random.default_rng(seed)
    at = rng.choice(3, n, p=shares)
    return (CENTRES[at] + rng.normal(size=(n, WIDTH))).astype(np.float32), CLASSES[at]


def measured(*arguments) -> Drift:
    found = drift.drift(*arguments)
    assert found is not None
    return found


def test_a_shuffled_split_of_the_same_rows_is_no_drift():
    """The interval holds 0.5 as often as it says, and areas are not below 0.5 on average, as they were in folds of
    unlike classes."""
    found = []
    for seed in range(60):
        X, y = images(200, [0.6, 0.3, 0.1], seed)
        found.append(measured(X[60:], y[60:], X[:60], y[:60], seed))
    assert 0.88 <= np.mean([one.ci[0] <= 0.5 <= one.ci[1] for one in found]) <= 1
    assert np.mean([one.auc for one in found]) == pytest.approx(0.5, abs=0.03)


def test_shifted_rows_are_drift_and_the_score_says_which():
    old, new = images(400, [0.4, 0.3, 0.3], 1), images(150, [0.4, 0.3, 0.3], 2)
    new[0][:75] += 2.5  # half of the new images
    found = measured(*old, *new)
    assert found.auc > 0.7 and found.ci[0] > 0.5
    assert found.scores.shape == (150,) and found.scores[:75].min() > np.median(found.scores[75:])
    new[0][75:] += 2.5
    assert measured(*old, *new).auc > 0.98


def test_another_mix_of_classes_alone_is_no_drift():
    old, new = images(1500, [0.8, 0.15, 0.05], 1), images(400, [0.1, 0.2, 0.7], 2)
    found = measured(*old, *new)
    assert found.ci[0] <= 0.5 <= found.ci[1] and found.auc < 0.56


def test_a_class_that_only_new_images_have_is_drift():
    old, new = images(600, [0.6, 0.4, 0], 1), images(200, [0.3, 0.2, 0.5], 2)
    found = measured(*old, *new)
    assert found.auc > 0.65 and found.ci[0] > 0.5
    assert found.scores[new[1] == "fox"].mean() > 2 + found.scores[new[1] != "fox"].mean()


def test_no_class_in_common_is_drift():
    old, new = images(100, [1, 0, 0], 1), images(50, [0, 0.5, 0.5], 2)
    assert measured(*old, *new).auc > 0.98


def test_one_image_of_a_known_class_does_not_draw_all_old_rows_into_one_fold():
    """Left out with that fold, the models would know no old row."""
    old, new = images(200, [0.9, 0.1, 0], 1), images(60, [0, 0, 1], 2)
    new[1][0] = "cat"
    assert measured(*old, *new).auc > 0.9
    old_y, new_y = np.repeat(CLASSES, [1, 1, 900]), np.repeat([*CLASSES, "owl"], [3, 3, 1, 90])
    assert drift._draw(old_y, new_y, np.random.default_rng(0))[0].size == 3  # not 900 foxes of one pair


def test_equal_runs_give_equal_numbers():
    old, new = images(300, [0.4, 0.3, 0.3], 1), images(90, [0.4, 0.3, 0.3], 2)
    one, again, other = (measured(*old, *new, seed) for seed in (4, 4, 5))
    assert (one.auc, one.ci) == (again.auc, again.ci) and (one.scores == again.scores).all()
    assert one.auc != other.auc


def test_too_few_rows_give_no_answer():
    old, few = images(300, [0.4, 0.3, 0.3], 1), images(19, [0.4, 0.3, 0.3], 2)
    assert drift.drift(*old, *few) is None
    assert drift.drift(*few, *old) is None
    enough = images(20, [1, 0, 0], 3)
    assert drift.drift(*images(30, [0, 0.5, 0.5], 4), *enough) is not None
    mostly_other = np.repeat(CLASSES, [10, 40, 0])
    assert drift.drift(images(50, [1, 0, 0], 5)[0], mostly_other, *enough) is None  # ten old cats


def test_rows_that_are_not_drawn_are_scored_too(monkeypatch):
    """By the mean of models of which none has seen them."""
    monkeypatch.setattr(drift, "MAX_ROWS", 40)
    old, new = images(300, [0.4, 0.3, 0.3], 1), images(200, [0.4, 0.3, 0.3], 2)
    new[0][:] += 2.5
    found = measured(*old, *new)
    assert np.isfinite(found.scores).all() and np.mean(found.scores > 0) > 0.95
    assert found.ci[0] < 0.95  # of 40 rows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=4, max_size=4),
    st.lists(st.integers(0, 60), min_size=4, max_size=4),
    st.integers(5, 90),
)
def test_rows_are_drawn_in_equal_shares_and_kept_together(in_new, in_old, most):
    names = np.array(["a", "b", "c", "d"])
    rng = np.random.default_rng(0)
    new_y, old_y = (rng.permutation(np.repeat(names, counts)) for counts in (in_new, in_old))
    if not len(new_y):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "MAX_ROWS", most)
        old, new, old_folds, new_folds = drift._draw(old_y, new_y, rng)
    assert len(np.unique(old)) == len(old) == len(old_folds) <= most
    assert len(np.unique(new)) == len(new) == len(new_folds) <= most
    both = np.intersect1d(old_y, new_y[new])
    if np.isin(new_y[new], old_y).sum() < drift.FOLDS:
        return
    ratio = sum(np.sum(old_y[old] == name) for name in both) / sum(np.sum(new_y[new] == name) for name in both)
    assert ratio == int(ratio) and set(old_y[old]) == set(both)
    for name in both:
        for fold in range(drift.FOLDS):
            in_fold = (
                np.sum((y == name) & (at == fold)) for y, at in ((old_y[old], old_folds), (new_y[new], new_folds))
            )
            assert next(in_fold) == ratio * next(in_fold)


def test_as_many_old_rows_are_drawn_as_help():
    """Two rare old foxes do not keep the other classes from a hundred old images."""
    old_y, new_y = np.repeat(CLASSES, [500, 500, 2]), np.repeat(CLASSES, [10, 10, 2])
    old, new, *_ = drift._draw(old_y, new_y, np.random.default_rng(0))
    assert len(new) == 20 and len(old) == 1000


def searched(test: np.ndarray, X: np.ndarray, size: int, least: float) -> copies.Copies:
    keys = [f"key {i}" for i in range(len(X))]
    return near_copies(test, ((X[at : at + size], keys[at : at + size]) for at in range(0, len(X), size)), least)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 60), st.integers(1, 25), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_near_copies_are_those_of_a_search_by_brute_force(n, m, size, tile, seed):
    rng = np.random.default_rng(seed)
    test, X = (rng.normal(size=(k, 5)).astype(np.float32) for k in (n, m))
    X[: m // 3] = test[rng.integers(n, size=m // 3)] * rng.uniform(0.1, 9, (m // 3, 1))  # copies of any length
    expected = (test / np.linalg.norm(test, axis=1, keepdims=True)) @ (X / np.linalg.norm(X, axis=1, keepdims=True)).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "TILE_ROWS", tile)
        found = searched(test, X, size, 0.9)
    np.testing.assert_allclose(found.cosine, expected.max(axis=1), atol=1e-5)
    for i, key in enumerate(found.key):
        if key is None:
            assert expected[i].max() < 0.9 + 1e-5
        else:
            assert expected[i].max() > 0.9 - 1e-5 and expected[i, int(key[4:])] == pytest.approx(
                expected[i].max(), abs=1e-5
            )


def test_the_first_of_equal_copies_is_named_and_the_least_counts():
    test = np.eye(3, 4, dtype=np.float16) * 100
    X = np.array([[3, 4, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]], np.float16)
    found = searched(test, X, 2, 0.8)
    assert list(found.key) == ["key 1", "key 0", None]
    assert found.cosine.dtype == np.float32 and list(found.cosine) == pytest.approx([1, 0.8, 0])
    assert found.cosine.max() <= 1


def test_features_of_zeros_are_like_nothing():
    found = searched(np.zeros((2, 4), np.float32), np.zeros((3, 4), np.float32), 2, 0.5)
    assert list(found.cosine) == [0, 0] and list(found.key) == [None, None]


def test_nothing_to_search():
    found = near_copies(np.ones((2, 4), np.float32), iter([]), 0.9)
    assert list(found.cosine) == [-1, -1] and list(found.key) == [None, None]
    assert near_copies(np.ones((0, 4), np.float32), [(np.ones((2, 4)), ["a", "b"])], 0.9).key.shape == (0,)
