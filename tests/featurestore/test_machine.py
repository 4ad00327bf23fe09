"""What the machine gives the process."""

import os
from pathlib import Path

import pytest

from featurestore import machine


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process to some cores")
def test_only_cores_that_the_process_may_use_count() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert machine.available_cores() == len(before)


def test_a_system_that_binds_no_process_tells_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for told, cores in ((7, 7), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda told=told: told)
        assert machine.available_cores() == cores


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({}, 8),
        ({"": "max 100000"}, 8),
        ({"": "250000 100000"}, 3),  # two and a half
        ({"": "50000 100000"}, 1),
        ({"": "max 100000", "pod": "400000 100000", "pod/box": "max 100000"}, 4),
        ({"pod": "400000 100000", "pod/box": "20000 10000"}, 2),
        ({"pod/other": "100000 100000"}, 8),
        ({"pod": "nonsense"}, 8),
        ({"": "1600000 100000"}, 8),
    ],
)
def test_a_share_of_the_cores_counts_as_so_many(
    limits: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, told in limits.items():
        (tmp_path / "groups" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name / "cpu.max").write_text(f"{told}\n")
    (tmp_path / "own").write_text("1:cpu:/else\n0::/pod/box\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    machine._quota.cache_clear()
    assert machine.available_cores() == cores
    machine._quota.cache_clear()


def test_without_control_groups_all_cores_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "OWN", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    machine._quota.cache_clear()
    assert machine.available_cores() == 8
    machine._quota.cache_clear()
