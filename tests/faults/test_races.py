"""A handful of the races; all of them run in the fault battery."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from faults import Trial, races

QUICK: dict[str, Trial] = {
    "readers beside a writer": partial(races.many_readers, whats=["dataset", "status"], runs=8),
    "a reader stopped": partial(races.stopped_reader, seed=1, stops=2),
    "a pinned reader killed": partial(races.pinned_reader, killed=True, runs=8),
    "a commit that ends after the labels": partial(races.half_a_commit, after="labels"),
    "a store made by two runs": races.made_twice,
    "gc twice at once": races.gc_twice,
    "a file replaced": partial(races.changed_file, how="replaced"),
    "a file moved away": partial(races.changed_file, how="moved away"),
    "a file that grows while it is read": races.growing_file,
    "a tar replaced": partial(races.replaced_tar, order="reversed"),
    "a folder grows": partial(races.changing_folder, how="grows", nth=11),
    "a folder is renamed": partial(races.changing_folder, how="is renamed", nth=15),
}


@pytest.mark.parametrize("name", QUICK)
def test_race(tmp_path: Path, name: str) -> None:
    QUICK[name](tmp_path)
