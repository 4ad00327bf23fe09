"""A handful of the trials with the same work done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import twice


@pytest.mark.parametrize("other", ["embed", "embed-other"], ids=["one corpus", "two"])
def test_two_runs_at_once(tmp_path: Path, other: str) -> None:
    twice.at_once(tmp_path, ["embed", other], 0.2)


@pytest.mark.parametrize("lock", [True, False], ids=["with the lock", "without"])
def test_a_committer_that_slept(tmp_path: Path, lock: bool) -> None:
    twice.asleep(tmp_path, "featurestore.storage.table:lance.LanceDataset.commit", "before", 1, lock)


def test_a_journal_replayed_at_once(tmp_path: Path) -> None:
    twice.replayed_at_once(tmp_path, "featurestore.store:FeatureStore.commit", "before", 1)
