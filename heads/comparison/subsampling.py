"""Choices of some of the training rows: an order by turns of the classes, and the first k of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from featurestore.errors import UsageError


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
