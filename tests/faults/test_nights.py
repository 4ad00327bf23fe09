"""A week of nights, and a few kills of one; a month and all kills are in the fault battery."""

from __future__ import annotations

import unittest
from contextlib import suppress
from pathlib import Path

import pytest

from faults import nights


def test_a_week_with_kills_is_decided_by_the_rule_and_explained(tmp_path: Path) -> None:
    outcomes = nights.simulated(tmp_path, nights.WEEK, kills=0)  # on the second night and the third
    decisions = [outcome["decision"] for outcome in outcomes]
    assert decisions[0] == decisions[2] == "promoted" and decisions[5:] == ["kept", "unchanged"]
    warned = [{check["name"] for check in night["checks"] if check["status"] == "warn"} for night in outcomes]
    assert warned[2] == {"flips"} and warned[3] == {"failures"} and warned[4] == {"copies"}


@pytest.mark.parametrize("night", [0, 1])
def test_a_night_killed_at_a_step_goes_on(night: int, tmp_path: Path) -> None:
    some = [(name, trial) for name, trial in nights.faults(0, 0) if name.startswith(f"night {night}")]
    played = 0
    for number, (_, trial) in enumerate(some[night::27][: 1 + night]):
        own = tmp_path / str(number)
        own.mkdir()
        with suppress(unittest.SkipTest):  # this night has fewer such calls
            trial(own)
            played += 1
    assert played > night
