"""The decision of a night: the challenger against the champion on the same test images, by the recipe's rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.evaluation.difference import Difference, paired_difference, recalls, score_of
from pipelines.retraining.options import KEPT, PROMOTED, PromoteOptions

CALLED = {"top1": "Top-1", "macro_f1": "Macro F1", "mean_recall": "Mean recall"}


@dataclass(frozen=True)
class Ballot:
    """What both heads say of the same n test images, none of which either of them was trained on.

    Attributes:
        y: labels as they are tonight, str (n,).
        challenger: its predictions, str (n,).
        champion: those of the champion, str (n,); None if there is no champion, or it cannot be scored.
        groups: str (n,), images of one group are not independent; None if each stands for itself.
        was_test: which images were in the test split when the champion was made, bool (n,).
        baseline: share of the most frequent training class.
    """

    y: np.ndarray
    challenger: np.ndarray
    champion: np.ndarray | None
    groups: np.ndarray | None
    was_test: np.ndarray
    baseline: float


@dataclass(frozen=True)
class Verdict:
    """What was decided, why, and the scores that it was decided by, as JSON values."""

    decision: str
    reason: str
    champion: dict[str, Any] | None
    challenger: dict[str, Any]
    difference: dict[str, Any] | None
    parts: dict[str, Any]


def decide(rule: PromoteOptions, ballot: Ballot, obstacle: str | None = None, unfit: str | None = None) -> Verdict:
    """Decide whether the challenger takes the champion's place.

    Args:
        rule: of the recipe.
        ballot: what the heads predicted.
        obstacle: why the champion stays whatever the scores say; None if nothing does.
        unfit: why the champion cannot be scored, if it cannot; the challenger then only has to beat the baseline.
    """
    if not len(ballot.y):
        nothing = {"score": None, "ci": None}
        return Verdict(KEPT, "No test image can judge.", None, nothing, None, _parts(rule.metric, ballot))
    challenger = _scored(rule.metric, ballot, ballot.challenger)
    if ballot.champion is None:
        decision, reason = _without_champion(ballot, unfit)
        if obstacle:
            decision, reason = KEPT, obstacle
        return Verdict(decision, reason, None, challenger, None, _parts(rule.metric, ballot))
    difference = paired_difference(rule.metric, ballot.y, ballot.challenger, ballot.champion, ballot.groups)
    reasons = (obstacle, _few(rule, ballot), _not_shown(rule, difference), _below_floor(rule, ballot))
    against = next(filter(None, reasons), None)
    return Verdict(
        KEPT if against else PROMOTED,
        against or f"{_told(rule, difference)}: {_goal(rule)}.",
        _scored(rule.metric, ballot, ballot.champion),
        challenger,
        {
            "value": difference.value,
            "ci": list(difference.ci),
            "p_value": difference.p_value,
            "step": difference.step,
        },
        _parts(rule.metric, ballot),
    )


def _without_champion(ballot: Ballot, unfit: str | None) -> tuple[str, str]:
    """Decide on a challenger that has no rival: it must be better than always naming the most frequent class."""
    why = f"The champion cannot be scored: {unfit}" if unfit else "There was no champion."
    top1 = float((ballot.challenger == ballot.y).mean())
    if top1 > ballot.baseline:
        return PROMOTED, why
    usual = f"always naming the most frequent class ({ballot.baseline:.1%})"
    return KEPT, f"{why} This head, at {top1:.1%}, is no better than {usual}."


def _few(rule: PromoteOptions, ballot: Ballot) -> str | None:
    if len(ballot.y) >= rule.min_test_images:
        return None
    few = f"fewer than min_test_images = {rule.min_test_images:,}"
    return f"Both heads can be scored on {len(ballot.y):,} test images, {few}."


def _not_shown(rule: PromoteOptions, difference: Difference) -> str | None:
    """Return why a difference does not satisfy the rule.

    With the rule "better" a difference must also exceed the Ladder's step, as the same test split is read every night.
    """
    least = _RULES[rule.rule](rule.margin)
    steps = rule.rule == "not-worse" or difference.value > difference.step
    return None if difference.ci[0] > least and steps else f"{_told(rule, difference)}: not {_goal(rule)}."


def _below_floor(rule: PromoteOptions, ballot: Ballot) -> str | None:
    if rule.per_class_floor is None or ballot.champion is None:
        return None
    before = recalls(ballot.y, ballot.champion)
    for name, (recall, n) in recalls(ballot.y, ballot.challenger).items():
        if recall < rule.per_class_floor and recall < before[name][0]:
            return (
                f"The recall of {name!r} would fall from {before[name][0]:.1%} to {recall:.1%} ({n:,} test images), "
                f"below per_class_floor = {rule.per_class_floor:g}."
            )
    return None


_RULES: dict[str, Callable[[float], float]] = {"better": lambda margin: margin, "not-worse": lambda margin: -margin}


def _told(rule: PromoteOptions, difference: Difference) -> str:
    low, high = (100 * end for end in difference.ci)
    return f"{CALLED[rule.metric]} changes by {100 * difference.value:+.1f} points ({low:+.1f} to {high:+.1f})"


def _goal(rule: PromoteOptions) -> str:
    least = 100 * _RULES[rule.rule](rule.margin)
    return f"shown to be above {least:+.1f}" if least else "shown to be above 0"


def _scored(metric: str, ballot: Ballot, predicted: np.ndarray) -> dict[str, Any]:
    value, ci = score_of(metric, ballot.y, predicted, ballot.groups)
    return {"score": value, "ci": list(ci)}


def _parts(metric: str, ballot: Ballot) -> dict[str, Any]:
    """Score apart the images that were in the test split when the champion was made, and those that came since."""
    told: dict[str, Any] = {}
    for name, rows in (("old", ballot.was_test), ("new", ~ballot.was_test)):
        n = int(rows.sum())
        scores = {"champion": ballot.champion, "challenger": ballot.challenger}
        told[name] = {"n": n} | {
            who: None if predicted is None or not n else score_of(metric, ballot.y[rows], predicted[rows])[0]
            for who, predicted in scores.items()
        }
    return told
