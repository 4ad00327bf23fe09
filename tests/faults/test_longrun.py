"""A short one of the long runs; all of them run in the fault battery."""

from __future__ import annotations

from pathlib import Path

from faults import longrun


def test_many_runs_leave_a_small_store(tmp_path: Path) -> None:
    with longrun.few_rows_a_tier():
        longrun.many_runs(tmp_path, runs=18)
