"""What a family is: all that the rest of penult needs to know to fit, tune, compare and export heads of one kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.base import Head
from heads.solvers.sweep import Loss

HALF_DECADES = tuple(float(f"{digit}e{power}") for power in range(-6, 2) for digit in (1, 3))


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        about: one line for people.
        fit: fits a ``Problem`` with the parameters as keywords and returns the head's arrays.
        head: the class that predicts from those arrays.
        defaults: every parameter with its default.
        grid: what ``compare`` tries, each over the defaults, the most regular first.
        check: raises UsageError for parameters, as keywords, that no fit could have.
        votes: scores are shares of votes, probabilities as they are; those of others are logits with a temperature.
        weighted: takes ``class_weight="balanced"``.
        random: the fit depends on its seed beyond the solver's tolerance.
        loss: of linear families, whose fits share their passes over the features.
        C: of the parameters, as keywords, the weight of the loss beside the penalty: a smaller one is more regular.
        is_slow: whether a comparison that was not told what to try leaves the family out: of training rows, classes,
            rows to score and width.

    Example:
        >>> register("ridge-10", replace(family("ridge"), about="ridge, alpha 10", defaults={"alpha": 10.0}))
    """

    about: str
    fit: Callable[..., dict[str, np.ndarray]]
    head: type[Head]
    defaults: Mapping[str, Any]
    grid: tuple[Mapping[str, Any], ...]
    check: Callable[..., object] = dict  # which takes anything
    votes: bool = False
    weighted: bool = True
    random: bool = False
    loss: Loss | None = None
    C: Callable[..., float] | None = None
    is_slow: Callable[[int, int, int, int], bool] = lambda _rows, _classes, _to_score, _width: False
