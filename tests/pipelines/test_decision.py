"""The rule by which a night promotes, on ballots made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.retraining.decision import Ballot, decide
from pipelines.retraining.options import PromoteOptions

N = 200
RULE = PromoteOptions()


def ballot(gained: int = 0, lost: int = 0, both_right: int = 100, n: int = N, baseline: float = 0.5) -> Ballot:
    """Images of two classes in turn; on ``gained`` only the challenger is right, on ``lost`` only the champion."""
    y = np.array(["a", "b"] * (n // 2))
    wrong = np.where(y == "a", "b", "a")
    numbers = np.arange(n)
    new = np.where((numbers < both_right + gained), y, wrong)
    old = np.where(
        (numbers < both_right) | ((numbers >= both_right + gained) & (numbers < both_right + gained + lost)), y, wrong
    )
    return Ballot(y, new, old, None, numbers < 50, baseline)


def test_better_is_promoted_and_the_reason_gives_the_numbers() -> None:
    found = decide(RULE, ballot(gained=40, lost=10))
    assert found.decision == "promoted"
    assert found.reason == "Top-1 changes by +15.0 points (+8.2 to +21.5): shown to be above 0."
    assert found.challenger["score"] == 0.7 and found.champion is not None and found.champion["score"] == 0.55
    assert found.difference is not None and found.difference["value"] == pytest.approx(0.15)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (12, 8), (5, 1), (8, 12), (3, 30)])
def test_what_is_not_shown_to_be_better_is_kept_out(gained: int, lost: int) -> None:
    found = decide(RULE, ballot(gained, lost))
    assert found.decision == "kept" and found.reason.endswith("not shown to be above 0.")


def test_a_margin_must_be_exceeded_by_the_whole_interval() -> None:
    votes = ballot(gained=40, lost=10)
    assert decide(replace(RULE, margin=0.08), votes).decision == "promoted"
    found = decide(replace(RULE, margin=0.09), votes)
    assert found.decision == "kept" and found.reason.endswith("not shown to be above +9.0.")


def test_not_worse_allows_what_lies_within_the_margin() -> None:
    votes = ballot(gained=3, lost=3)
    rule = replace(RULE, rule="not-worse")
    assert decide(replace(rule, margin=0.05), votes).decision == "promoted"
    assert decide(replace(rule, margin=0.01), votes).decision == "kept"
    assert decide(replace(rule, margin=0.05), ballot(gained=3, lost=20)).decision == "kept"


def test_few_test_images_decide_nothing() -> None:
    votes = ballot(gained=20, lost=0, both_right=5, n=28)
    found = decide(RULE, votes)
    assert found.decision == "kept"
    assert found.reason == "Both heads can be scored on 28 test images, fewer than min_test_images = 30."
    assert decide(replace(RULE, min_test_images=28), votes).decision == "promoted"


def test_no_class_may_fall_below_the_floor_unless_the_champion_is_as_low() -> None:
    y = np.array(["rare"] * 20 + ["common"] * 180)
    old = np.where(np.arange(200) < 100, "rare", "common")
    new = np.where(np.arange(200) < 8, "rare", "common")
    votes = Ballot(y, new, old, None, np.ones(200, bool), 0.9)
    assert decide(RULE, votes).decision == "promoted"
    found = decide(replace(RULE, per_class_floor=0.5), votes)
    assert found.decision == "kept"
    assert found.reason == (
        "The recall of 'rare' would fall from 100.0% to 40.0% (20 test images), below per_class_floor = 0.5."
    )
    assert decide(replace(RULE, per_class_floor=0.4), votes).decision == "promoted"
    assert (
        decide(replace(RULE, per_class_floor=0.5), replace(votes, champion=np.where(y == "rare", "x", old))).decision
        == "promoted"
    )


def test_the_metric_is_the_recipes() -> None:
    y = np.array(["rare"] * 20 + ["common"] * 180)
    old = np.full(200, "common")
    new = np.where(np.arange(200) < 45, "rare", "common")
    votes = Ballot(y, new, old, None, np.ones(200, bool), 0.9)
    assert decide(RULE, votes).decision == "kept"  # top-1 falls
    for metric in ("mean_recall", "macro_f1"):
        found = decide(replace(RULE, metric=metric), votes)
        assert found.decision == "promoted", found.reason
    mean_recall = decide(replace(RULE, metric="mean_recall"), votes)
    assert mean_recall.challenger["score"] == pytest.approx((1 + 155 / 180) / 2)


def test_an_obstacle_keeps_the_champion_whatever_the_scores() -> None:
    found = decide(RULE, ballot(gained=40), obstacle="The champion is of a later date.")
    assert (found.decision, found.reason) == ("kept", "The champion is of a later date.")
    first = replace(ballot(gained=90), champion=None)
    assert decide(RULE, first, obstacle="Later.").decision == "kept"


def test_the_first_head_must_beat_the_most_frequent_class() -> None:
    first = replace(ballot(both_right=120), champion=None)
    assert decide(RULE, first).decision == "promoted"
    found = decide(RULE, replace(first, baseline=0.55))
    assert found.decision == "kept" and "60.0% from 53.1% up against 55.0%" in found.reason


def test_a_champion_that_cannot_be_scored_is_replaced_and_its_trouble_is_said() -> None:
    found = decide(RULE, replace(ballot(both_right=150), champion=None), unfit="its file is damaged.")
    assert (found.decision, found.reason) == ("promoted", "The champion cannot be scored: its file is damaged.")


def test_no_test_image_decides_nothing() -> None:
    none = np.array([], str)
    found = decide(RULE, Ballot(none, none, None, None, np.zeros(0, bool), 0.0))
    assert found.decision == "kept" and found.challenger["score"] is None


def test_old_and_new_test_images_are_scored_apart() -> None:
    parts = decide(RULE, ballot(gained=40, lost=10)).parts
    assert parts["old"] == {"n": 50, "champion": 1.0, "challenger": 1.0}
    assert parts["new"]["n"] == 150
    assert parts["new"]["challenger"] == pytest.approx(90 / 150) and parts["new"]["champion"] == pytest.approx(60 / 150)
