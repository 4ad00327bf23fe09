"""The definition of a family: what the other modules need to fit, tune, compare and export heads of one kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.base import Head, Problem
from heads.solvers.kernels import Kernel
from heads.solvers.sweep import Loss

HALF_DECADES = tuple(float(f"{digit}e{power}") for power in range(-6, 2) for digit in (1, 3))


@dataclass(frozen=True)
class Fit:
    """One of many fits: the number of its problem, the head's arrays, seconds; or the ``error`` that ended it."""

    problem: int
    arrays: dict[str, np.ndarray]
    seconds: float
    error: Exception | None = None


FitMany = Callable[[Iterable[tuple[Problem, Mapping[str, Any]]]], Iterator[Fit]]


@dataclass(frozen=True)
class Family:
    """One row of the table of families.

    Attributes:
        about: a description, one line.
        fit: fits a ``Problem`` with the parameters as keywords and returns the head's arrays.
        head: the class that predicts from those arrays.
        defaults: every parameter with its default.
        grid: the parameters that ``compare`` tries, those not given at their defaults, the most regular first.
        check: takes all parameters as keywords, raises UsageError for invalid ones.
        version: of the fits' meaning: outcomes that were kept of another version are not found.
        votes: whether scores are shares of votes, used as probabilities; otherwise they are logits with a temperature.
        weighted: whether it takes ``class_weight="balanced"``.
        random: whether the fit depends on its seed beyond the solver's tolerance.
        loss: of a linear family, whose fits share their passes over the features; None for others.
        fit_many: fits many problems, each with all its parameters, side by side; yields each fit as soon as it is done.
            A problem is taken when there is room for it, and may be a ``SharedProblem``. Arrays are those of ``fit``,
            to the last bit. None: a comparison calls ``fit`` in threads.
        kernel: takes all parameters as keywords, returns the kernel whose features the family is linear in; None: it is
            linear in the features as they are.
        C: takes all parameters as keywords, returns the weight of the loss relative to the penalty (smaller is more
            regular); None if the family has no penalty.
        searched: whether a comparison with the default search tries it.
        is_slow: takes the numbers of training rows, classes, rows to score and features; returns whether a comparison
            with the default search leaves the family out.

    Example: see ``heads.registry.register``.
    """

    about: str
    fit: Callable[..., dict[str, np.ndarray]]
    head: type[Head]
    defaults: Mapping[str, Any]
    grid: tuple[Mapping[str, Any], ...]
    check: Callable[..., object] = dict  # accepts any keywords
    version: int = 1
    votes: bool = False
    weighted: bool = True
    random: bool = False
    loss: Loss | None = None
    fit_many: FitMany | None = None
    kernel: Callable[..., Kernel] | None = None
    C: Callable[..., float] | None = None
    searched: bool = True
    is_slow: Callable[[int, int, int, int], bool] = lambda _rows, _classes, _to_score, _width: False
