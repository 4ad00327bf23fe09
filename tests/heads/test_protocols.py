"""Published evaluations, each against one that is written anew here: by scikit-learn, or as its paper or code says it.

What is written here shares no code with ``heads.protocols``, and does one thing after the other where that does many
at once: a logistic regression per C, a vote per image, a training per weight decay.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from builders import make_dataset
from featurestore.dataset import Dataset
from featurestore.errors import HeadError, UsageError
from heads.protocols import big_vision
from heads.protocols.table import PROTOCOLS, evaluate

Rows = tuple[np.ndarray, np.ndarray]


def digits(n: int) -> Dataset:
    """The first n of scikit-learn's digits, each as 16 means of four pixels."""
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)
    return replace(make_dataset(n), X=X[:n].astype(np.float32), y=y[:n].astype(str))


def far_from_0() -> Dataset:
    data = make_dataset(480, 12, 8, noise=1.5, seed=1)
    return replace(data, X=data.X + 10)


DATA: dict[str, Callable[[], Dataset]] = {
    "digits": lambda: digits(420),
    "two classes": lambda: make_dataset(480, 6, 2, noise=1.5, seed=3),
    "eight classes, far from 0": far_from_0,
}
MORE = DATA | {
    "100 features": lambda: make_dataset(400, 100, 4, noise=3.0, seed=2),
    "four batches": lambda: make_dataset(4000, 20, 4, noise=2.0, seed=3),
}
of_each = pytest.mark.parametrize("name", DATA)


def parts(data: Dataset) -> tuple[Rows, Rows, Rows]:
    """The features, float64, and labels of train, val and test."""
    rows = [data.splits == split for split in ("train", "val", "test")]
    return tuple((data.X[at].astype(np.float64), data.y[at]) for at in rows)  # type: ignore[return-value]


def both(first: Rows, second: Rows) -> Rows:
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


def without(data: Dataset, split: str) -> Dataset:
    """The dataset with the rows of a split in train."""
    return replace(data, splits=np.where(data.splits == split, "train", data.splits))


# --- DINOv2


def chosen_by_scikit_learn(fitted: Rows, chooses: Rows, test: Rows) -> dict[str, float]:
    """dinov2/eval/log_regression.py with scikit-learn in place of cuML: the same objective, solved to its end."""

    def fit(C: float, rows: Rows) -> LogisticRegression:
        return LogisticRegression(C=C, solver="newton-cholesky", tol=1e-8, max_iter=1000).fit(*rows)

    best, chosen = -1.0, 0.0
    for power in range(45):
        C = 10 ** (-6 + power * 11 / 44)
        accuracy = fit(C, fitted).score(*chooses)
        if accuracy > best:
            best, chosen = accuracy, C
    model = fit(chosen, both(fitted, chooses))
    scores = {"C": chosen, "top1": model.score(*test)}
    if len(model.classes_) > 5:
        scores["top5"] = top_k_accuracy_score(test[1], model.predict_proba(test[0]), k=5, labels=model.classes_)
    return scores


@of_each
def test_dinov2_s_logistic_regression(name: str) -> None:
    data = DATA[name]()
    train, val, test = parts(data)
    (row,) = evaluate(data, "dinov2-logreg").rows
    expected = chosen_by_scikit_learn(train, val, test)
    assert row.pop("top1_ci")[0] < row["top1"]
    assert row == pytest.approx(expected, rel=1e-12)


def test_without_validation_a_tenth_of_train_chooses_C() -> None:
    """Which tenth is this package's own: the original's is PyTorch's random choice."""
    data = without(DATA["two classes"](), "val")
    (X, y), _, test = parts(data)
    order = np.random.default_rng(0).permutation(len(y))
    tenth, rest = order[: len(y) // 10], np.sort(order[len(y) // 10 :])
    (row,) = evaluate(data, "dinov2-logreg").rows
    expected = chosen_by_scikit_learn((X[rest], y[rest]), (X[tenth], y[tenth]), test)
    assert (row["C"], row["top1"]) == pytest.approx((expected["C"], expected["top1"]), rel=1e-12)


def test_what_cannot_be_fitted_well_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_dataset(120, 6, 3)
    with pytest.raises(HeadError, match=r"^Expected: features up to 1e\+12\. Got: larger\."):
        evaluate(replace(data, X=data.X * np.float32(1e13)), "dinov2-logreg")
    monkeypatch.setattr("heads.solvers.lbfgs.MAX_EVALUATIONS", 3)
    (note,) = evaluate(data, "dinov2-logreg").notes
    assert re.fullmatch(r"[1-9][0-9]+ fits did not converge, of C from [0-9.e-]+\.", note)


def voted(train: Rows, test: Rows, k: int) -> tuple[list[str], list[list[str]]]:
    """dinov2/eval/knn.py, one test image after the other: its class, and its classes from the most votes down."""
    X, y = train
    X = X / np.sqrt((X**2).sum(axis=1))[:, None]
    ranked = []
    for row in test[0]:
        similarities = (X * row).sum(axis=1) / np.sqrt((row**2).sum())
        votes = dict.fromkeys(sorted(set(y)), 0.0)
        for at in sorted(range(len(X)), key=lambda i: -similarities[i])[:k]:
            votes[y[at]] += np.exp((similarities[at] - similarities.max()) / 0.07)
        ranked.append(sorted(votes, key=lambda label: -votes[label]))
    return [labels[0] for labels in ranked], ranked


@of_each
def test_dinov2_s_nearest_neighbours(name: str) -> None:
    data = DATA[name]()
    train, _, test = parts(data)
    done = evaluate(data, "dinov2-knn")
    assert [row["k"] for row in done.rows] == [10, 20, 100, 200] and done.notes == []
    for row in done.rows:
        first, ranked = voted(train, test, row["k"])
        assert row["top1"] == accuracy_score(test[1], first)
        if len(set(data.y)) > 5:
            assert row["top5"] == np.mean([own in labels[:5] for own, labels in zip(test[1], ranked, strict=True)])
        else:
            assert "top5" not in row


def test_a_k_above_the_training_images_is_left_out() -> None:
    done = evaluate(make_dataset(200, 6, 3), "dinov2-knn")
    assert [row["k"] for row in done.rows] == [10, 20, 100]
    assert done.notes == ["k of 200: left out, as train has 100 images."]
    with pytest.raises(HeadError, match=r"^Expected: at least 10 training images, the smallest k\. Got: 8\."):
        evaluate(make_dataset(16, 6, 2), "dinov2-knn")


@settings(max_examples=10)
@given(powers=st.lists(st.integers(-6, 6), min_size=120, max_size=120))
@pytest.mark.parametrize("protocol", ["dinov2-knn", "clip-benchmark"])
def test_the_lengths_of_features_do_not_count(protocol: str, powers: list[int]) -> None:
    """A power of 2 changes no bit of what has unit length."""
    data = make_dataset(120, 6, 3)
    longer = replace(data, X=data.X * np.exp2(np.array(powers, np.float32))[:, None])
    assert evaluate(longer, protocol).rows == evaluate(data, protocol).rows


# --- big_vision


def few_shot(train: Rows, test: Rows, shots: int, seed: int) -> float:
    """big_vision/evaluators/fewshot_lsr.py with scikit-learn's ridge on the features with their constant one."""
    random = np.random.default_rng(seed)
    classes = sorted(set(train[1]))
    drawn = [random.permutation(np.where(train[1] == label)[0])[:shots] for label in classes]
    assert [len(rows) for rows in drawn] == [min(shots, np.sum(train[1] == label)) for label in classes]
    X, y = (part[np.concatenate(drawn)] for part in train)
    mean, deviation = X.mean(axis=0), X.std(axis=0) + 1e-5
    targets = np.where(y[:, None] == np.array(classes), 1.0, -1.0)
    Z, Z_test = (np.hstack([(each - mean) / deviation, np.full((len(each), 1), 100.0)]) for each in (X, test[0]))
    model = Ridge(alpha=2.0**10, fit_intercept=False, solver="svd").fit(Z, targets)
    return float(np.mean(np.array(classes)[model.predict(Z_test).argmax(axis=1)] == test[1]))


def hardly_varying() -> Dataset:
    """One column is constant, and another's deviation is about what is added to each."""
    data = make_dataset(400, 8, 3, noise=0.5)
    return replace(data, X=data.X * np.array([0, 1e-5] + 6 * [1], np.float32))


FEW = DATA | {"columns that hardly vary": hardly_varying}


@pytest.mark.parametrize("name", FEW)
def test_big_vision_s_few_shots(name: str) -> None:
    data = FEW[name]()
    train, _, test = parts(data)
    done = evaluate(data, "big-vision-fewshot")
    assert [row["shots"] for row in done.rows] == [1, 5, 10, 25]
    for row in done.rows:
        expected = [few_shot(train, test, row["shots"], seed) for seed in range(3)]
        assert row["top1_by_seed"] == expected
        assert row["top1_range"] == [min(expected), max(expected)]
        assert row["top1"] == pytest.approx(np.mean(expected), rel=1e-12)


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=40), seed=st.integers(0, 9))
def test_shots_are_rows_of_their_class_each_once(labels: list[int], seed: int) -> None:
    y = np.array(labels)
    for of_class, rows in enumerate(big_vision.draws(y, 4, seed)):
        assert sorted(rows) == np.flatnonzero(y == of_class).tolist()


def test_a_class_with_fewer_images_than_shots_gives_all_of_them() -> None:
    data = make_dataset(200, 6, 3)
    rare = np.flatnonzero((data.y == "class 1") & (data.splits == "train"))
    data = data.take(np.setdiff1d(np.arange(len(data)), rare[7:]))
    train, _, test = parts(data)
    done = evaluate(data, "big-vision-fewshot")
    assert done.notes == [
        f"{shots} shots: 1 of 3 classes have fewer images, and gave all of theirs." for shots in (10, 25)
    ]
    assert done.rows[-1]["top1_by_seed"] == [few_shot(train, test, 25, seed) for seed in range(3)]


# --- CLIP_benchmark


def trained(rows: Rows, decay: float) -> Callable[[np.ndarray], np.ndarray]:
    """A linear layer by AdamW as torch.optim documents it, in float64; the random numbers are those of this package."""
    X = rows[0] / np.sqrt((rows[0] ** 2).sum(axis=1))[:, None]
    classes = sorted(set(rows[1]))
    targets = (rows[1][:, None] == np.array(classes)).astype(float)
    random, bound = np.random.default_rng(0), 1 / np.sqrt(X.shape[1])
    start = random.uniform(-bound, bound, (X.shape[1] + 1, len(classes)))
    weights = [start[:-1].copy(), start[-1].copy()]
    means, squares = ([np.zeros_like(each) for each in weights] for _ in range(2))
    t, per_epoch = 0, (len(X) + 511) // 512
    for _ in range(20):
        order = random.permutation(len(X))
        for begin in range(0, len(X), 512):
            at = order[begin : begin + 512]
            logits = X[at] @ weights[0] + weights[1]
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            slope = (p / p.sum(axis=1, keepdims=True) - targets[at]) / len(at)
            rate = 0.5 * (1 + np.cos(np.pi * t / (20 * per_epoch))) * 0.1
            t += 1
            for i, gradient in enumerate((X[at].T @ slope, slope.sum(axis=0))):
                weights[i] = weights[i] * (1 - rate * decay)
                means[i] = 0.9 * means[i] + 0.1 * gradient
                squares[i] = 0.999 * squares[i] + 0.001 * gradient**2
                step = means[i] / (1 - 0.9**t) / (np.sqrt(squares[i] / (1 - 0.999**t)) + 1e-8)
                weights[i] = weights[i] - rate * step

    def predict(Q: np.ndarray) -> np.ndarray:
        Q = Q / np.sqrt((Q**2).sum(axis=1))[:, None]
        return np.array(classes)[(Q @ weights[0] + weights[1]).argmax(axis=1)]

    return predict


def searched(train: Rows, val: Rows) -> float:
    """The weight decay that clip_benchmark/metrics/linear_probe.py chooses."""
    decays = [10 ** (-6 + i / 12) for i in range(97)]

    def find_peak(tried: list[int]) -> int:
        best, most = 0, 0.0
        for i in tried:
            accuracy = float(np.mean(trained(train, decays[i])(val[0]) == val[1]))
            if accuracy > most:
                best, most = i, accuracy
        return best

    peak, span = find_peak([0, 16, 32, 48, 64, 80, 96]), 8
    while span > 0:
        peak = find_peak([max(peak - span, 0), peak, min(peak + span, 96)])
        span //= 2
    return decays[peak]


@pytest.mark.filterwarnings("ignore:overflow encountered")  # a large decay diverges, there as here
@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("name", [*DATA, "100 features", "four batches"])
def test_clip_benchmark_s_linear_probe(name: str) -> None:
    """The last two choose a weight decay that matters, between those that are tried first."""
    data = MORE[name]()
    train, val, test = parts(data)
    (row,) = evaluate(data, "clip-benchmark").rows
    decay = searched(train, val)
    assert name in DATA or decay > 1.1e-6
    predicted = trained(both(train, val), decay)(test[0])
    assert row["weight_decay"] == pytest.approx(decay, rel=1e-12)
    assert row["top1"] == accuracy_score(test[1], predicted)
    assert row["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(test[1], predicted), rel=1e-12)
    assert ("top5" in row) == (len(set(data.y)) > 5)


# --- all of them


def test_what_a_protocol_needs() -> None:
    data = make_dataset(120, 6, 3)
    with pytest.raises(HeadError, match=r"^clip-benchmark chooses on validation, and the val split of set-1 is empty"):
        evaluate(without(data, "val"), "clip-benchmark")
    for name in PROTOCOLS:
        with pytest.raises(HeadError, match=r"^The test split of set-1 is empty"):
            evaluate(without(data, "test"), name)
        with pytest.raises(HeadError, match=r"features that are not finite"):
            evaluate(replace(data, X=np.where(np.arange(6) == 2, np.nan, data.X)), name)
    few = replace(make_dataset(12, 6, 2), splits=np.array(["train"] * 8 + ["test"] * 4))
    with pytest.raises(HeadError, match=r"^There are too few images to choose C on some of them"):
        evaluate(few, "dinov2-logreg")
    with pytest.raises(UsageError, match=r"^There is no protocol 'dino': choose one of dinov2-logreg, dinov2-knn, "):
        evaluate(data, "dino")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_class_that_train_lacks_counts_as_wrong_and_is_told(name: str) -> None:
    data = make_dataset(400, 6, 3)
    some = np.flatnonzero(data.splits == "test")[:30]
    y = data.y.copy()
    y[some] = "zebra"
    done = evaluate(replace(data, y=y), name)
    assert max(row["top1"] for row in done.rows) <= 0.7
    assert done.notes[0] == "test: 30 of 100 rows count as wrong, as train has no row of their class (zebra)."
