"""The linear probe of CLIP_benchmark: AdamW, its weight decay chosen on validation, then train and validation together.

The search is after Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
(arXiv:2103.00020), A.3; its steps are those of the code, which trains by AdamW instead of L-BFGS.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import softmax

from featurestore.splits import TEST, TRAIN, VAL
from heads.base import CHUNK_ROWS, slices
from heads.evaluation.metrics import balanced_accuracy, confusion
from heads.protocols.base import Parts, Protocol, Row, accuracies, unit_length
from heads.solvers.optimizers import SQUARE_DECAY, adam

DECAYS = np.logspace(-6, 2, 97)
COARSE = 16  # every so many of them are tried first
SPANS = (8, 4, 2, 1)  # then the best one's neighbours at each of these distances
EPOCHS, BATCH, RATE = 20, 512, 0.1
EPSILON = 1e-8  # of PyTorch's AdamW, which adds it to the unbiased root; Keras's Adam adds it to the biased one
SEED = 0


def linear_probe(parts: Parts) -> tuple[list[Row], list[str]]:
    """Choose the weight decay on validation, train on train and validation, and score on test.

    The features have unit length. Every training has the same random start and order of images.
    """
    train, val, test = parts[TRAIN], parts[VAL], parts[TEST]
    classes, labels = np.unique(np.concatenate([train.y, val.y]), return_inverse=True)
    X = unit_length(np.concatenate([train.X, val.X]))
    X, queries = with_ones(X), with_ones(unit_length(test.X))
    fitted, chooses = slice(len(train)), slice(len(train), None)
    right: dict[int, int] = {}

    def peak(tried: list[int]) -> int:
        """Return the first of those with the most validation rows right; each is trained once."""
        new = [at for at in dict.fromkeys(tried) if at not in right]
        if new:
            W = fit(X[fitted], labels[fitted], len(classes), DECAYS[new])
            right.update(zip(new, (_predicted(X[chooses], W) == labels[chooses]).sum(axis=1).tolist(), strict=True))
        return max(tried, key=lambda at: right[at])

    with np.errstate(over="ignore", invalid="ignore"):  # a large weight decay diverges, and its scores are NaN
        best = peak(list(range(0, len(DECAYS), COARSE)))
        for span in SPANS:
            best = peak([max(best - span, 0), best, min(best + span, len(DECAYS) - 1)])
        (W,) = fit(X, labels, len(classes), DECAYS[[best]])
        scores = queries @ W
    matrix = confusion(test.y, classes[scores.argmax(axis=1)], np.union1d(classes, test.y))
    row = {"weight_decay": float(DECAYS[best])} | accuracies(test.y, scores, classes)
    return [row | {"mean_per_class_recall": balanced_accuracy(matrix)}], []


def _predicted(X: np.ndarray, W: np.ndarray) -> np.ndarray:
    """Return the classes of X (n, d + 1) by each of the weights (p, d + 1, c), int (p, n)."""
    return np.concatenate([(X[rows] @ W).argmax(axis=2) for rows in slices(len(X), CHUNK_ROWS)], axis=1)


def with_ones(X: np.ndarray) -> np.ndarray:
    """Return X (n, d) with a last column of ones, for the biases: float32 (n, d + 1)."""
    return np.pad(X, ((0, 0), (0, 1)), constant_values=1)


def fit(X: np.ndarray, y: np.ndarray, c: int, decays: np.ndarray) -> np.ndarray:
    """Train a linear layer per weight decay by AdamW on the cross-entropy; return the weights, float32 (p, d + 1, c).

    The learning rate falls from ``RATE`` to 0 as a cosine. One random stream, seeded with ``SEED``, gives the start,
    uniform up to ``1 / sqrt(d)`` as PyTorch's ``Linear``, and then the order of the rows in each epoch.

    Args:
        X: float32 (n, d + 1), the last column ones.
        y: int (n,), below c.
        c: number of classes.
        decays: float (p,); each decays the biases too.
    """
    random = np.random.default_rng(SEED)
    bound = 1 / math.sqrt(X.shape[1] - 1)
    start = random.uniform(-bound, bound, (X.shape[1], c)).astype(np.float32)
    W = np.repeat(start[None], len(decays), axis=0)
    room, mean, square = (np.zeros_like(W) for _ in range(3))
    steps, step = EPOCHS * -(-len(X) // BATCH), 0
    for _ in range(EPOCHS):
        order = random.permutation(len(X))
        for rows in (order[at] for at in slices(len(X), BATCH)):
            rate = RATE * (1 + math.cos(math.pi * step / steps)) / 2
            step += 1
            errors = softmax(X[rows] @ W, axis=2)
            errors[:, np.arange(len(rows)), y[rows]] -= 1
            gradient = X[rows].T @ (errors / np.float32(len(rows)))
            W *= (1 - rate * decays).astype(np.float32)[:, None, None]
            epsilon = EPSILON * math.sqrt(1 - SQUARE_DECAY**step)
            adam(rate, step, epsilon=epsilon)(W, gradient, room, mean, square)
    return W


LINEAR_PROBE = Protocol(
    "linear layer by AdamW, weight decay of 97 values",
    "after Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, "
    "arXiv:2103.00020, A.3",
    "clip_benchmark/metrics/linear_probe.py of LAION-AI/CLIP_benchmark at commit "
    "48de38c1689fa6d8b4dd53e3370c669c3bb18117",
    linear_probe,
    validates=True,
)
