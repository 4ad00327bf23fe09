"""A handful of the faults of a store in a bucket; all of them run in the fault battery."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from faults import Trial, objects

QUICK: dict[str, Trial] = {
    "each first try of a put is answered and lost": partial(objects.every_first_try, name="label", how="500 after it"),
    "credentials that expire": partial(
        objects.for_ever, name="embed", harm=objects.EXPIRED[0], nth=150, words="have expired: get new ones"
    ),
    "a run killed": partial(objects.killed, name="embed", nths=[260], after=True),
    "a holder of the lock that slept": partial(
        objects.asleep, point="featurestore.storage.versions:lance.LanceDataset.commit", when="before", nth=1
    ),
}


@pytest.mark.parametrize("name", QUICK)
def test_a_store_in_a_bucket(tmp_path: Path, name: str) -> None:
    QUICK[name](tmp_path)
