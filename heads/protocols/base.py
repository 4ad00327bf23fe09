"""What a published evaluation is, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.dataset import Dataset
from heads.evaluation.metrics import top_k, wilson

SHORTEST = 1e-12  # the length that a shorter vector is divided by, as torch.nn.functional.normalize has it
MANY = 5  # with more classes, top-5 says something

Parts = Mapping[str, Dataset]
Row = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """A published evaluation.

    Attributes:
        about: what it fits, in a few words.
        paper: where it is described.
        code: the file of the original, and the commit that it was read at.
        evaluate: takes the rows of each split; returns a row per result, its settings first, and notes. A row has
            "top1", the share of test images that are right.
        validates: whether it needs rows in the validation split.
    """

    about: str
    paper: str
    code: str
    evaluate: Callable[[Parts], tuple[list[Row], list[str]]]
    validates: bool = False


def unit_length(X: np.ndarray) -> np.ndarray:
    """Return the rows of X (n, d) divided by their Euclidean length, float32; a row of zeros stays."""
    return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), SHORTEST)


def accuracies(y: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> Row:
    """Return "top1" with its 95 % Wilson interval "top1_ci", and, with more than five classes, "top5".

    Args:
        y: str (n,), n > 0. A class that is not in ``classes`` counts as a miss.
        scores: (n, c).
        classes: str (c,), sorted.
    """
    top1 = top_k(y, scores, classes)
    row: Row = {"top1": top1, "top1_ci": list(wilson(top1, len(y)))}
    return row | ({"top5": top_k(y, scores, classes, 5)} if len(classes) > MANY else {})
