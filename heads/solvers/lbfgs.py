"""L-BFGS that asks for evaluations instead of calling a function, so that many problems share each pass over the data.

Liu & Nocedal 1989, "On the limited memory BFGS method for large scale optimization", Mathematical Programming 45, with
a diagonal initial Hessian given at every point. ``move`` goes on to another penalty and keeps the curvature pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MEMORY = 6  # pairs kept; 8, 12 and 20 did not save passes on real features
SUFFICIENT = 1e-4  # Armijo's constant (Nocedal & Wright 2006, "Numerical Optimization", chapter 3)
NOISE = 2e-7  # relative error of float32 sums: smaller differences of the objective are ignored
MAX_EVALUATIONS = 500  # per problem

Pair = tuple[np.ndarray, np.ndarray, np.ndarray]  # a step, the gradient's change along it, 1 / their product


@dataclass(frozen=True)
class Point:
    """A point with its evaluation.

    Attributes:
        W: float32 (c, r).
        data: float64 (g,), the objective without the penalty; g is 1, or c if each row of W is its own problem.
        gradient: float32 (c, r), of ``data``.
        curvature: float32 (c, r), above 0, approximately the diagonal of the Hessian of ``data``.
    """

    W: np.ndarray
    data: np.ndarray
    gradient: np.ndarray
    curvature: np.ndarray


class Minimizer:
    """Minimise ``data(W) + penalty / 2 * ||W[:, penalised]||²`` for one W, or for each row of it on its own.

    Evaluate ``trial`` and ``tell`` the result until ``done``; the solution is then ``best.W``.
    """

    def __init__(
        self,
        start: np.ndarray,
        penalty: float,
        penalised: np.ndarray,
        joint: bool,
        tolerance: float,
        pairs: Sequence[Pair] = (),
    ) -> None:
        """
        Args:
            start: float32 (c, r).
            penalty: above 0.
            penalised: float32 (r,), 1 for a penalised column of W, else 0.
            joint: the rows of W are one problem; else each is its own.
            tolerance: relative limit of the objective's estimated distance from its minimum.
            pairs: of another minimizer of nearly the same objective.
        """
        self.trial, self.done, self.evaluations = start, False, 0
        self._penalty, self._penalised, self._joint, self._tolerance = penalty, penalised, joint, tolerance
        self.pairs = list(pairs)
        self._point: Point | None = None
        self._direction = self._slope = self._step = np.zeros(0)
        self._stalled = False

    @property
    def best(self) -> Point:
        """The best point so far; available after the first ``tell``."""
        assert self._point is not None
        return self._point

    @property
    def objective(self) -> float:
        """The objective with the penalty at the best point, summed over the problems."""
        return float(self._value(self.best).sum())

    @property
    def converged(self) -> bool:
        """Whether it is done and did not stop at ``MAX_EVALUATIONS``."""
        return self.done and self.evaluations < MAX_EVALUATIONS

    def tell(self, trial: Point) -> None:
        """Take the evaluation of ``trial`` and choose the next trial."""
        self.evaluations += 1
        if self._point is None:
            self._point = trial
        elif self._accept(trial):
            self._stalled = False
        elif not self._step.max() >= 1e-3:  # or NaN: no descent that float32 can resolve
            self.done, self._stalled, self.pairs = self._stalled, True, []  # the second time in a row ends it
            self._step = np.ones_like(self._step)
        else:
            self._aim(self._direction, self._step)
            return
        if not self.done:
            self._descend()

    def move(self, penalty: float, towards: np.ndarray | None = None) -> None:
        """Go on from the solution with another penalty; try ``towards`` (c, r) first, if it is a descent direction."""
        change = penalty - self._penalty
        self._penalty, self.done, self._stalled, self.evaluations = penalty, False, False, 0
        pairs, self.pairs = self.pairs, []
        for step, difference, _ in pairs:
            self._remember(step, difference + change * self._penalised * step)
        if towards is not None:
            direction = towards - self.best.W
            self._slope = self._dot(self._gradient(self.best), direction)
            if self._slope.sum() < 0:
                self._aim(direction, np.ones_like(self._slope))
                return
        self._descend()

    def _accept(self, trial: Point) -> bool:
        """Step to the trial where its value is low enough, else shorten the step by quadratic interpolation.

        Return whether any row stepped.
        """
        old, before = self.best, self._value(self.best)
        value = self._value(trial)
        allowed = before + SUFFICIENT * self._step * np.minimum(self._slope, 0) + NOISE * np.abs(before)
        good = value <= allowed
        excess = np.maximum(value - before - self._step * self._slope, 1e-30)
        shorter = np.clip(-self._slope * self._step / (2 * excess), 0.1, 0.5) * self._step
        if not good.any():
            self._step = shorter
            return False
        new = trial if good.all() else _mixed(good, trial, old)
        self._remember(new.W - old.W, self._gradient(new) - self._gradient(old))
        self._step = np.where(good, 1.0, shorter)  # a row that did not step takes a shorter one next
        self._point = new
        return True

    def _remember(self, step: np.ndarray, difference: np.ndarray) -> None:
        product = self._dot(step, difference)
        useful = product > 1e-9 * np.sqrt(self._dot(step, step) * self._dot(difference, difference))
        if useful.any():
            inverse = np.divide(1.0, product, out=np.zeros_like(product), where=useful)
            self.pairs = [*self.pairs[-MEMORY + 1 :], (step, difference, inverse)]

    def _descend(self) -> None:
        """Aim along the quasi-Newton direction; set ``done`` if the minimum is within the tolerance."""
        gradient, curvature = self._gradient(self.best), self.best.curvature + self._penalty * self._penalised
        q, shares = gradient.copy(), []
        for step, difference, inverse in reversed(self.pairs):
            share = inverse * self._dot(step, q)
            q -= _column(share) * difference
            shares.append(share)
        q /= curvature
        if self.pairs:  # Shanno's scaling, by the newest pair
            step, difference, inverse = self.pairs[-1]
            length = inverse * self._dot(difference, difference / curvature)
            q *= _column(np.divide(1.0, length, out=np.ones_like(length), where=length > 0))
        for (step, difference, inverse), share in zip(self.pairs, reversed(shares), strict=True):
            q += _column(share - inverse * self._dot(difference, q)) * step
        slope = -self._dot(gradient, q)
        decrement = -slope.sum() / 2  # Newton's decrement: estimates how much lower the minimum is
        self.done = self.done or decrement <= self._tolerance * self.objective or self.evaluations >= MAX_EVALUATIONS
        self._slope = slope
        self._aim(-q, self._step if self._step.shape == slope.shape else np.ones_like(slope))

    def _aim(self, direction: np.ndarray, step: np.ndarray) -> None:
        self._direction, self._step = direction, step
        self.trial = self.best.W + _column(step) * direction

    def _value(self, point: Point) -> np.ndarray:
        return point.data + self._penalty / 2 * self._dot(point.W, point.W * self._penalised)

    def _gradient(self, point: Point) -> np.ndarray:
        return point.gradient + self._penalty * self._penalised * point.W

    def _dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        each = np.einsum("ij,ij->i", a, b).astype(np.float64)
        return each.sum(keepdims=True) if self._joint else each


def _mixed(good: np.ndarray, a: Point, b: Point) -> Point:
    """Return a point with the rows of ``a`` where ``good``, else those of ``b``."""
    rows = good[:, None]
    return Point(
        np.where(rows, a.W, b.W),
        np.where(good, a.data, b.data),
        np.where(rows, a.gradient, b.gradient),
        np.where(rows, a.curvature, b.curvature),
    )


def _column(values: np.ndarray) -> np.ndarray:
    """Return float64 (g,) as float32 (g, 1), so that no (c, r) array becomes float64."""
    return values.astype(np.float32)[:, None]
