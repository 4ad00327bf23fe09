"""The solver of many linear heads at once: all values of C, class weights and folds share each pass over the features.

A path is one class weight and one choice of rows, such as all but a fold, solved from the smallest C to the largest.
Each problem starts by extrapolating the two solutions before it and keeps their curvature, so that a value of C takes
only a few passes. All paths advance together: one matrix product multiplies a block of features by the weights of all
of them. A solved path drops out.

The objectives are scikit-learn's, ``C Σ w_i loss_i + ||W||² / 2``, divided by ``C Σ w_i``.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np

from featurestore.machine import available_cores
from heads.solvers.blas import one_blas_thread
from heads.solvers.lbfgs import MEMORY, Minimizer, Pair, Point
from heads.solvers.rows import Rows

TOLERANCE = 1e-5  # estimated relative distance of the objective from its minimum; the true one was up to 50 times it
BLOCK_NUMBERS = 1 << 19  # logits that a thread holds at a time: 2 MiB
MIN_BLOCK, MAX_BLOCK = 256, 2048  # rows
AHEAD = 2  # blocks that wait for a thread
LEAST_SHARE = 1e-6  # assumed of a class whose rows are all left out: the logarithm of 0 is not finite
ARRAYS = 4 * MEMORY + 12  # as large as W, held per problem: its pairs and those of its start, points, sums
CURVATURE_FLOOR = 1e-6  # a class whose probabilities are all 0 or 1 has no curvature


@dataclass(frozen=True)
class Loss:
    """The loss of a linear family.

    Attributes:
        evaluate: takes logits (p, c, b), classes int (b,) and weights (p, b) of b rows in p problems. Returns the
            losses (p, g) and the second derivatives (p, c), summed over the rows, and overwrites the logits with the
            derivatives of the losses by them.
        joint: the classes are one problem, and g is 1; else each class against the rest is a problem, and g is c.
        penalise_intercept: as liblinear does.
    """

    evaluate: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    joint: bool
    penalise_intercept: bool


def _cross_entropy(Z: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(y))
    Z -= Z.max(axis=1, keepdims=True)
    own = Z[:, y, rows]
    np.exp(Z, out=Z)
    Z[:, y, rows] = 0
    others = Z.sum(axis=1)  # without the row's own class: float32 cannot tell a probability of 1 - 1e-8 from 1
    more = others + np.expm1(own)
    losses = ((np.log1p(more) - own) * weights).sum(axis=1, dtype=np.float64)
    inverse = 1 / (1 + more)
    Z *= inverse[:, None]
    doubt = others * inverse
    Z[:, y, rows] = doubt  # p (1 - p) is the same for the own class's p and 1 - p
    second = _over_rows(Z, weights) - _over_rows(np.square(Z), weights)
    Z[:, y, rows] = -doubt
    Z *= weights[:, None]
    return losses[:, None], second


def _squared_hinge(Z: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(y))
    sign = np.full(Z.shape[1:], -1, np.float32)
    sign[y, rows] = 1
    Z *= -sign
    Z += 1
    np.maximum(Z, 0, out=Z)
    each = np.repeat(weights[:, None], Z.shape[1], axis=1)
    if Z.shape[1] > 2:  # liblinear: a class's weight counts only in its own problem; in others its rows weigh 1
        each = (each > 0).astype(np.float32)
        each[:, y, rows] = weights
    losses = (np.square(Z) * each).sum(axis=2, dtype=np.float64)
    second = 2 * (each * (Z > 0)).sum(axis=2)
    Z *= -2 * sign
    Z *= each
    return losses, second


def _squared(Z: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    Z += 1
    Z[:, y, np.arange(len(y))] -= 2
    losses = _over_rows(np.square(Z), weights)
    Z *= 2 * weights[:, None]
    return losses, np.repeat(2 * weights.sum(axis=1, keepdims=True), Z.shape[1], axis=1)


CROSS_ENTROPY = Loss(_cross_entropy, joint=True, penalise_intercept=False)  # LogisticRegression
SQUARED_HINGE = Loss(_squared_hinge, joint=False, penalise_intercept=True)  # LinearSVC
SQUARED = Loss(_squared, joint=False, penalise_intercept=False)  # RidgeClassifier, alpha = 1 / (2 C)


@dataclass(frozen=True)
class LabelledRows:
    """What heads are fitted to.

    Attributes:
        rows: n rows.
        y: int (n,), indices of classes.
        n_classes: c.
        groups: int (n,), from 0, the group of each row, such as its fold, if some problems leave groups out; in rows
            sorted by group, left-out rows cost almost no work. None: all rows are of group 0.
    """

    rows: Rows
    y: np.ndarray
    n_classes: int
    groups: np.ndarray | None = None

    @functools.cached_property
    def group_of_row(self) -> np.ndarray:
        """The group of each row, int (n,)."""
        return np.zeros(len(self.y), int) if self.groups is None else self.groups

    def fitted(self, left_out: Sequence[int]) -> np.ndarray:
        """Return the rows, bool (n,), that are fitted if groups are left out."""
        return ~np.isin(self.group_of_row, left_out)


@dataclass(frozen=True)
class Path:
    """Problems that differ only in C.

    Attributes:
        Cs: above 0, ascending.
        class_weights: float32 (c,), of the rows of each class.
        left_out: the groups whose rows are not fitted.
        start: the weights, float32 (c, r + 1), of the solution of a problem close to the first one.
        pairs: the curvature pairs around that solution.
    """

    Cs: tuple[float, ...]
    class_weights: np.ndarray
    left_out: tuple[int, ...] = ()
    start: np.ndarray | None = None
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Solution:
    """A solved problem.

    ``path`` and ``at`` are the numbers of its path and of its C in that path. ``W`` is float32 (c, r + 1) in the rows'
    basis. ``passes`` is the number of passes it took. ``converged`` is false if the passes ended before the problem was
    solved. ``pairs`` are the curvature pairs around the solution.
    """

    path: int
    at: int
    W: np.ndarray
    objective: float
    passes: int
    converged: bool
    pairs: tuple[Pair, ...]


def solve(data: LabelledRows, loss: Loss, paths: Sequence[Path], tolerance: float = TOLERANCE) -> Iterator[Solution]:
    """Solve every problem of every path; yield each solution as it is found.

    Args:
        data: the rows to fit.
        loss: of one of the families.
        paths: each is fitted to rows of at least two classes.
        tolerance: relative limit of the objective's estimated distance from its minimum.
    """
    walks = [_Walk(i, path, loss, _totals(path, data), data.rows, tolerance) for i, path in enumerate(paths)]
    with ExitStack() as stack:
        lanes = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(available_cores())]
        while walks:
            with one_blas_thread():
                points = _evaluate(data, loss, walks, lanes)
                _in_lanes(lanes, _Walk.tell, walks, points)
            for walk in walks:
                yield from walk.solved()
            walks = [walk for walk in walks if not walk.ended]


def solve_from_sample(
    data: LabelledRows, loss: Loss, paths: Sequence[Path], tolerance: float = TOLERANCE
) -> Iterator[Solution]:
    """Solve like ``solve``, in fewer passes over all rows, but with more matrix products per problem; no groups.

    First the paths are solved on the rows' sample, which is in memory. Then all problems are solved on all rows at
    once, each from its solution on the sample.
    """
    sample = data.rows.sample
    assert sample is not None and data.groups is None
    share = len(sample.at) / data.rows.n  # with fewer rows, C grows in proportion: the penalty per row is the same
    nearly = [replace(path, Cs=tuple(C / share for C in path.Cs)) for path in paths]
    starts = list(solve(replace(data, rows=sample.rows, y=data.y[sample.at]), loss, nearly, tolerance))
    each = [
        replace(paths[start.path], Cs=(paths[start.path].Cs[start.at],), start=start.W, pairs=start.pairs)
        for start in starts
    ]
    for solution in solve(data, loss, each, tolerance):
        yield replace(solution, path=starts[solution.path].path, at=starts[solution.path].at)


def fits_together(data: LabelledRows, paths: Sequence[Path]) -> bool:
    """Return whether the rows have no groups but a sample, and room for all problems at once."""
    rows = data.rows
    numbers = ARRAYS * data.n_classes * (len(rows.basis.variances) + 1) * sum(len(path.Cs) for path in paths)
    return data.groups is None and rows.sample is not None and 4 * numbers <= rows.room


class _Walk:
    """A path with the problem of it that is being solved."""

    def __init__(self, index: int, path: Path, loss: Loss, totals: np.ndarray, rows: Rows, tolerance: float) -> None:
        self.index, self.path, self.weight, self.ended = index, path, float(totals.sum()), False
        self._at = 0
        self._previous: np.ndarray | None = None
        # scikit-learn has one vector w for two classes; softmax splits it into ±w / 2, whose penalty is half as large
        self._factor = 2.0 if loss.joint and len(totals) == 2 else 1.0
        self._variances = np.append(rows.basis.variances, np.float32(1))
        penalised = np.ones(len(self._variances), np.float32)
        penalised[-1] = loss.penalise_intercept
        start = np.zeros((len(totals), len(self._variances)), np.float32)
        if path.start is not None:
            start = path.start
        elif loss.joint:  # without features, the best logits are the logarithms of the class shares
            start[:, -1] = np.log(np.maximum(totals / self.weight, LEAST_SHARE))
        self._minimizer = Minimizer(start, self._penalty(0), penalised, loss.joint, tolerance, path.pairs)

    @property
    def trial(self) -> np.ndarray:
        """The weights to evaluate next, float32 (c, r + 1)."""
        return self._minimizer.trial

    def tell(self, evaluated: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Take the sums of losses (g,), gradients (c, r + 1) and second derivatives (c,) over the rows."""
        data, gradient, second = evaluated
        curvature = np.maximum(second / self.weight, CURVATURE_FLOOR)[:, None] * self._variances
        gradient = (gradient / self.weight).astype(np.float32)
        self._minimizer.tell(Point(self.trial, data / self.weight, gradient, curvature.astype(np.float32)))

    def solved(self) -> Iterator[Solution]:
        """Yield the solution if the problem is solved, and go on to the next problem."""
        while self._minimizer.done and not self.ended:
            W, at, Cs = self._minimizer.best.W, self._at, self.path.Cs
            minimizer = self._minimizer
            taken, pairs = minimizer.evaluations, tuple(minimizer.pairs)
            yield Solution(self.index, at, W, minimizer.objective, taken, minimizer.converged, pairs)
            if at + 1 == len(Cs):
                self.ended = True
                return
            towards = None
            if self._previous is not None:
                ratio = np.log(Cs[at + 1] / Cs[at]) / np.log(Cs[at] / Cs[at - 1])
                towards = W + np.float32(min(ratio, 2.0)) * (W - self._previous)
            self._previous, self._at = W, at + 1
            self._minimizer.move(self._penalty(at + 1), towards)

    def _penalty(self, at: int) -> float:
        return self._factor / (float(self.path.Cs[at]) * self.weight)


def _evaluate(
    data: LabelledRows, loss: Loss, walks: Sequence[_Walk], lanes: Sequence[ThreadPoolExecutor]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Evaluate the trials of all walks in one pass over the rows; return the arguments of each ``_Walk.tell``."""
    rows, y, groups = data.rows, data.y, data.group_of_row
    p, c = len(walks), len(walks[0].trial)
    W = rows.lower(np.concatenate([walk.trial for walk in walks]))
    stacked = W.reshape(p, c, -1)
    class_weights = np.stack([walk.path.class_weights for walk in walks])
    fitted = np.ones((p, int(groups.max()) + 1), bool)
    for of_walk, walk in zip(fitted, walks, strict=True):
        of_walk[list(walk.path.left_out)] = False
    most = int(np.clip(BLOCK_NUMBERS // (p * c), MIN_BLOCK, MAX_BLOCK))
    rounds = -(-rows.n // (most * len(lanes)))
    size = -(-rows.n // (rounds * len(lanes)))  # all blocks of a pass are nearly equal, and no lane has more of them
    slots = [(np.zeros((p, 1 if loss.joint else c)), np.zeros_like(stacked), np.zeros((p, c))) for _ in lanes]

    def work(slot: tuple[np.ndarray, np.ndarray, np.ndarray], block: tuple[slice, np.ndarray]) -> None:
        at, X = block
        weights = class_weights[:, y[at]] * fitted[:, groups[at]]
        active = weights.any(axis=1)
        own: slice | np.ndarray = slice(None) if active.all() else np.flatnonzero(active)
        weights, V = weights[own], stacked[own]
        Z = (V.reshape(-1, V.shape[-1]) @ X.T).reshape(len(V), c, len(X))
        losses, second = loss.evaluate(Z, y[at], weights)
        slot[0][own] += losses
        slot[1][own] += (Z.reshape(-1, len(X)) @ X).reshape(V.shape)
        slot[2][own] += second

    _in_lanes(lanes, work, cycle(slots), rows.blocks(size))  # a slot gets the same blocks in every pass
    losses, gradient, second = (sum(parts[1:], parts[0]) for parts in zip(*slots, strict=True))
    gradient = rows.lift(gradient.reshape(p * c, -1)).reshape(p, c, -1)
    return list(zip(losses, gradient, second, strict=True))


def _in_lanes(lanes: Sequence[ThreadPoolExecutor], work: Callable[..., None], *arguments: Iterable[Any]) -> None:
    """Call ``work`` with each of the arguments in turn, each lane with its own ones in order, so sums are reproducible.

    Args:
        lanes: threads; none waits for another.
        work: what is called.
        arguments: as of ``map``; a few are taken ahead.
    """
    waiting: deque[Future[None]] = deque()
    for lane, each in zip(cycle(lanes), zip(*arguments, strict=False), strict=False):
        waiting.append(lane.submit(work, *each))
        if len(waiting) > AHEAD * len(lanes):
            waiting.popleft().result()
    for done in waiting:
        done.result()


def _totals(path: Path, data: LabelledRows) -> np.ndarray:
    """Return the total weight of each class's fitted rows, float64 (c,)."""
    fitted = data.y[data.fitted(path.left_out)]
    return np.bincount(fitted, minlength=len(path.class_weights)) * path.class_weights.astype(float)


def _over_rows(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the sums (p, c) over the rows of values (p, c, b) times weights (p, b)."""
    return (values @ weights[:, :, None])[:, :, 0]
