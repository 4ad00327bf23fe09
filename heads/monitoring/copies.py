"""Near-copies: for each image of one split, the image of another that is most like it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.base import slices

TILE_ROWS = 2048  # of either side; a tile of cosines takes 16 MiB


@dataclass(frozen=True)
class Copies:
    """What each of n images is most like.

    Attributes:
        cosine: float32 (n,), the largest cosine of its features with those of any row that was searched; -1 if there
            was none.
        key: object (n,), the key of the first row with that cosine; None where it is below ``least``.
    """

    cosine: np.ndarray
    key: np.ndarray


def near_copies(
    test: np.ndarray, blocks: Iterable[tuple[np.ndarray, Sequence[Any] | np.ndarray]], least: float
) -> Copies:
    """Search all rows of the blocks for the most similar one of each test image; exact, in one pass.

    Memory besides ``test`` and a block: float32 copies of ``test`` and of ``TILE_ROWS`` rows, and their cosines.

    Args:
        test: float (n, d).
        blocks: of float (b, d), and the keys of these rows, (b,).
        least: the least cosine of a near-copy.
    """
    unit = _unit(test)
    cosine, key = np.full(len(test), -1, np.float32), np.full(len(test), None, object)
    for X, keys in blocks:
        named = np.asarray(keys, object)
        for there in slices(len(X), TILE_ROWS):
            others = _unit(X[there]).T
            for here in slices(len(test), TILE_ROWS):
                cosines = unit[here] @ others
                nearest = cosines.argmax(axis=1)
                found = cosines[np.arange(len(nearest)), nearest]
                better = found > cosine[here]
                cosine[here][better] = found[better]
                key[here][better] = named[there][nearest[better]]
    key[cosine < least] = None
    return Copies(np.minimum(cosine, 1), key)


def _unit(X: np.ndarray) -> np.ndarray:
    """Return the rows at length 1, float32; rows of zeros stay, and so are like no other."""
    X = X.astype(np.float32)
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    X /= np.where(lengths > 0, lengths, 1)
    return X
