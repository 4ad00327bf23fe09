"""Data checks on evidence made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from builders import key, make_dataset
from featurestore.dataset import Dataset
from featurestore.snapshot import Snapshot
from pipelines.retraining.checks import Evidence, run_checks
from pipelines.retraining.options import CHECKS, ChecksOptions

ONLY = dict.fromkeys(CHECKS, "off")


def dataset(n: int) -> Dataset:
    keys = np.array(sorted(key(b"%d" % number) for number in range(n)), "S32")
    return replace(make_dataset(n), keys=keys)


def found(evidence: Evidence, name: str, **options: object) -> dict[str, object]:
    (row,) = run_checks(replace(ChecksOptions(**ONLY), **{name: "block", **options}), evidence)
    return row


def test_checks_that_are_off_are_not_there() -> None:
    data = dataset(100)
    assert run_checks(ChecksOptions(**ONLY), Evidence(data, None, 0, 0, [])) == []
    names = [row["name"] for row in run_checks(ChecksOptions(), Evidence(data, None, 0, 0, []))]
    assert names == list(CHECKS)


def test_drift_counts_only_if_its_whole_interval_is_above_the_limit() -> None:
    data = dataset(600)
    known = data.take(np.arange(600) < 500)
    shifted = replace(data, X=data.X + 0.35 * (np.arange(600) >= 500)[:, None].astype(np.float32))
    evidence = Evidence(shifted, Snapshot.of(known), 100, 0, [])
    value = found(evidence, "drift", drift_limit=1.0)["value"]
    assert isinstance(value, float) and 0.6 < value < 0.98
    assert found(evidence, "drift", drift_limit=value - 0.01)["status"] == "ok"
    assert found(evidence, "drift", drift_limit=0.5)["status"] == "block"


def test_near_copies_count_where_one_of_the_two_is_new() -> None:
    data = dataset(400)
    train, test = (np.flatnonzero(data.splits == split) for split in ("train", "test"))
    X = data.X.copy()
    X[test[0]], X[test[1]] = X[train[0]], 2 * X[train[1]]  # the cosine knows no length
    copied = replace(data, X=X)
    everything = Evidence(copied, None, 0, 0, [])
    row = found(everything, "copies", copies_limit=0.0, copies_cosine=0.9999)
    assert row["value"] == pytest.approx(2 / len(test)) and row["status"] == "block"
    assert set(row["images"]) == {str(data.uris[test[0]]), str(data.uris[test[1]])}  # type: ignore[arg-type]
    old = Evidence(copied, Snapshot.of(copied), 0, 0, [])
    assert found(old, "copies", copies_limit=0.0, copies_cosine=0.9999)["value"] == 0
    new_train = Evidence(copied, Snapshot.of(copied.take(np.arange(400) != train[1])), 0, 0, [])
    row = found(new_train, "copies", copies_limit=0.0, copies_cosine=0.9999)
    assert row["images"] == [str(data.uris[test[1]])]
    assert found(everything, "copies", copies_limit=2 / len(test), copies_cosine=0.9999)["status"] == "ok"
