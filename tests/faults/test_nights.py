"""A week of nights, and a few kills of one; a month and all kills are in the fault battery."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import nights, play_each


def test_a_week_with_kills_has_the_history_of_a_week_without(tmp_path: Path) -> None:
    plain = nights.history(nights.simulated(tmp_path / "plain", nights.WEEK))
    decisions = [night["decision"] for night in plain]
    assert decisions[0] == "promoted" and decisions[6] == "unchanged" and "kept" in decisions
    warned = [{check["name"] for check in night["checks"] if check["status"] == "warn"} for night in plain]
    assert "failures" in warned[3] and "copies" in warned[4]
    killed = nights.history(nights.simulated(tmp_path / "killed", nights.WEEK, kills=3))
    assert killed == plain


@pytest.mark.parametrize("night", [0, 1])
def test_a_night_killed_at_a_step_goes_on(night: int, tmp_path: Path) -> None:
    some = [(name, trial) for name, trial in nights.faults(0, 0) if name.startswith(f"night {night}")]
    play_each(some[night::9], tmp_path)
