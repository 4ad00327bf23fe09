"""What the machine gives the process."""

import os

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
