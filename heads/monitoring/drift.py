"""Drift: whether a classifier can tell new images from old ones of the same classes, and which look new."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from heads.base import CHUNK_ROWS, slices, standardisation, standardise
from heads.evaluation.auc import auc
from heads.families.linear import LinearProblem, fit_many
from heads.solvers.rows import MemoryRows
from heads.solvers.sweep import CROSS_ENTROPY, LabelledRows

MAX_ROWS = 5000  # of each side
MIN_ROWS = 20  # of each side: with fewer, the interval is about as wide as the scale
FOLDS = 5
C = 0.01  # on digits, 0.001 saw a small shift less well and 0.0001 much less
CONFIDENCE = 2 * NormalDist().cdf(NormalDist().inv_cdf(0.975) * math.sqrt(2)) - 1  # see drift


@dataclass(frozen=True)
class Drift:
    """How well new images are told from old ones.

    Attributes:
        auc: the area under the ROC curve, 0.5 if they look the same, 1 if every new one looks new.
        ci: its 95 % interval.
        scores: float64 (m,), of each new image: the logarithm of the odds that it is a new one rather than an old one.
    """

    auc: float
    ci: tuple[float, float]
    scores: np.ndarray


def drift(old: np.ndarray, old_y: np.ndarray, new: np.ndarray, new_y: np.ndarray, seed: int = 0) -> Drift | None:
    """Tell new images from old ones by a classifier two-sample test.

    Lopez-Paz & Oquab 2017, "Revisiting classifier two-sample tests" (arXiv:1610.06545), with the area under the ROC
    curve as its statistic: a logistic regression is fitted to images of both sides, in folds, and each image is scored
    by the one that was not fitted to it. If the classes of new and old images have other shares, that alone tells the
    sides apart: so images are drawn such that the classes that both sides have are equally frequent on both. Of a
    class that only new images have, all may be drawn: they are what is new.

    Scores in folds depend on each other: if images of one fold look by chance like those of another, that counts twice,
    as each helps to fit the model that scores the other. Without drift this doubles the variance of the area, so the
    interval is wider than that of independent scores by the root of 2.

    Args:
        old: float32 (n, d).
        old_y: str (n,), their classes.
        new: float32 (m, d).
        new_y: str (m,), their classes.
        seed: of the draw and the folds.

    Returns:
        None with fewer than ``MIN_ROWS`` images drawn of either side. Images that were not drawn are scored by the mean
        of the folds' models.
    """
    old_rows, new_rows, old_folds, new_folds = _draw(old_y, new_y, np.random.default_rng(seed))
    if min(len(old_rows), len(new_rows)) < MIN_ROWS:
        return None
    fold = np.concatenate([old_folds, new_folds])
    is_new = np.repeat([0, 1], [len(old_rows), len(new_rows)])
    order = np.argsort(fold, kind="stable")
    models = _Models.fit(np.concatenate([old[old_rows], new[new_rows]])[order], is_new[order], fold[order])
    scores = models.scores(new, np.full(len(new), -1))
    scores[new_rows] = models.scores(new[new_rows], new_folds)
    drawn = np.concatenate([models.scores(old[old_rows], old_folds), scores[new_rows]])
    return Drift(*auc(is_new == 1, drawn, CONFIDENCE), scores)


@dataclass(frozen=True)
class _Models:
    """The models of all folds: ``coef`` (FOLDS, d) and ``intercept`` (FOLDS,) of standardised features."""

    mean: np.ndarray
    scale: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray

    @classmethod
    def fit(cls, X: np.ndarray, is_new: np.ndarray, fold: np.ndarray) -> _Models:
        """Fit a model without each fold, to rows sorted by fold."""
        mean, scale = standardisation(X)
        data = LabelledRows(MemoryRows(X, mean, scale), is_new, 2, fold)
        problems = [LinearProblem(C, "balanced", (left_out,)) for left_out in range(FOLDS)]
        fits = sorted(fit_many(data, CROSS_ENTROPY, problems), key=lambda fit: fit.problem)
        coef = np.stack([fit.coef[:, 1] - fit.coef[:, 0] for fit in fits])
        return cls(mean, scale, coef, np.stack([fit.intercept[1] - fit.intercept[0] for fit in fits]))

    def scores(self, X: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """Return the score of each row by the model without its fold, or by the mean of all for -1; float64 (n,)."""
        coef = np.vstack([self.coef, self.coef.mean(axis=0)])
        intercept = np.append(self.intercept, self.intercept.mean())
        chunks = [standardise(X[rows], self.mean, self.scale) @ coef.T for rows in slices(len(X), CHUNK_ROWS)]
        return (np.concatenate(chunks) + intercept)[np.arange(len(X)), fold].astype(np.float64)


def _draw(old_y: np.ndarray, new_y: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return the numbers of the rows that are drawn of old and new, and the folds of these.

    Of a class that both sides have, ``ratio`` old rows are drawn for each new one and are in its fold. Where there are
    fewer, not all new rows of that class are drawn. The ratio is that for which ``1 / old + 1 / new`` is least: about
    so, the variance of the area falls with the rows.

    Without such pairs in the folds, a class that happened to be frequent among the new rows of some folds would be rare
    among those of the others, and areas would be below 0.5 without any drift.
    """
    classes, codes = np.unique(np.concatenate([old_y, new_y]), return_inverse=True)
    old, new = np.split(codes, [len(old_y)])
    some = random.permutation(len(new))[:MAX_ROWS]
    in_old, in_new = (np.bincount(side, minlength=len(classes)) for side in (old, new[some]))
    shared = (in_old > 0) & (in_new > 0)
    if in_new[shared].sum() < FOLDS:  # too few to keep old rows in every fold: any old rows will do
        any_old = random.permutation(len(old))[:MAX_ROWS]
        return any_old, some, np.arange(len(any_old)) % FOLDS, np.arange(len(some)) % FOLDS

    def kept(ratio: int) -> np.ndarray:
        """Return how many new rows of each class are drawn, int (c,)."""
        return np.where(shared, np.minimum(in_new, in_old // ratio), in_new)

    def variance(ratio: int) -> float:
        pairs, m = int(kept(ratio)[shared].sum()), int(kept(ratio).sum())
        return 1 / (ratio * pairs) + 1 / m if pairs >= FOLDS and ratio * pairs <= MAX_ROWS else np.inf

    ratios = {1, MAX_ROWS // int(in_new[shared].sum()), *(in_old[shared] // in_new[shared]).tolist()} - {0}
    ratio = min(sorted(ratios), key=variance)
    new_rows = _first(new, some, kept(ratio))
    old_rows = _first(old, random.permutation(len(old)), np.where(shared, ratio * kept(ratio), 0))
    folds = np.arange(len(new_rows)) % FOLDS
    return old_rows, new_rows, np.repeat(folds[shared[new[new_rows]]], ratio), folds


def _first(codes: np.ndarray, order: np.ndarray, quota: np.ndarray) -> np.ndarray:
    """Return the first ``quota`` (c,) rows of each class in an order of rows, class by class; ``codes`` int (n,)."""
    rows = order[np.argsort(codes[order], kind="stable")]
    starts = np.searchsorted(codes[rows], np.arange(len(quota)))
    return rows[np.arange(len(rows)) - starts[codes[rows]] < quota[codes[rows]]]
