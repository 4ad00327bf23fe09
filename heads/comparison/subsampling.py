"""Fits to fewer training rows: the learning curve of a head, and its scores on few rows per class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from featurestore.dataset import Dataset
from featurestore.errors import HeadError, UsageError
from heads.evaluation import learning_curve as learning
from heads.evaluation import metrics
from heads.spec import HeadSpec
from heads.train import accuracy, timed_fit

CURVE_SHARES = (0.1, 0.18, 0.32, 0.56, 1.0)  # of the training rows


def learning_curve(spec: HeadSpec, train: Dataset, val: Dataset) -> dict[str, Any]:
    """Return a head's validation scores over the number of training rows, and the score to expect at twice all."""
    order = by_turns(train.y, seed=0)
    points = []
    for share in CURVE_SHARES:
        rows = order[: round(share * len(train))]
        try:
            head, _ = timed_fit(spec, train.take(rows), val, 0)
        except (HeadError, UsageError):  # only one class, or too few rows for these parameters
            continue
        value = accuracy(head, val)
        points.append({"n": len(rows), "val": value, "val_ci": list(metrics.wilson(value, len(val)))})
    expected = learning.expect(points, 2 * len(train))
    return {"head": spec.head, "params": spec.params, "points": points, "at_twice": expected}


def few_shot(spec: HeadSpec, train: Dataset, val: Dataset, k: int, draws: int) -> dict[str, Any]:
    """Score a head that is fitted, without class weights, to k rows per class: the mean and range over draws."""
    params = {name: min(value, k) if name == "k" else value for name, value in spec.params.items()}
    values = []
    for draw in range(draws):
        some = train.take(first_of_each(train.y, by_turns(train.y, draw), k))
        head, _ = timed_fit(HeadSpec(spec.head, params), some, val, draw)
        values.append(accuracy(head, val))
    return {
        "k": k,
        "head": spec.head,
        "params": params,
        "val": float(np.mean(values)),
        "val_range": [min(values), max(values)],
    }


def few_shot_notes(y: np.ndarray, ks: Sequence[int]) -> Iterator[str]:
    """Yield a note for each k if some classes of training labels y (n,) have fewer than k images.

    Raises:
        UsageError: every class has fewer than k, so that each draw would be the whole train split.
    """
    counts = np.unique(y, return_counts=True)[1]
    for k in ks:
        if k > counts.max():
            raise UsageError(
                f"Expected: --fewshot-k of at most {counts.max():,}, what the largest class of train has. Got: {k}."
            )
        if fewer := int((counts < k).sum()):
            yield (
                f"Few-shot with {k:,} images per class: {fewer} of {len(counts)} classes have fewer in train, "
                f"the smallest {counts.min():,}, and gave all of theirs."
            )


def by_turns(y: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order of the rows, int (n,), in which any first m rows have about the class shares of y (n,)."""
    draw = np.random.default_rng(seed)
    shuffled = draw.permutation(len(y))
    _, codes, counts = np.unique(y[shuffled], return_inverse=True, return_counts=True)
    by_class = np.argsort(codes, kind="stable")
    place = np.empty(len(y))
    starts = np.cumsum(counts) - counts
    place[by_class] = (np.arange(len(y)) - starts[codes[by_class]] + draw.random(len(y))) / counts[codes[by_class]]
    return shuffled[np.argsort(place, kind="stable")]


def first_of_each(y: np.ndarray, order: np.ndarray, k: int) -> np.ndarray:
    """Return the first k rows of each class in an order of the rows y (n,)."""
    _, codes = np.unique(y[order], return_inverse=True)
    by_class = np.argsort(codes, kind="stable")
    counts = np.bincount(codes)
    turn = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[by_class[turn < k]]
