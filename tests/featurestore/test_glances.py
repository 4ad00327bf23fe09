"""How often a folder of a bucket is listed, and that what was told of it is never too old."""

from __future__ import annotations

from pathlib import PurePath, PurePosixPath

import pytest

from featurestore.storage import buckets
from featurestore.storage.base import Stat, storage_of
from featurestore.storage.glances import Glances, Told
from featurestore.storage.lock import locked

STORE = PurePosixPath("/store")
TABLE = STORE / "labels.lance"


class Bucket:
    """What is there, and how often one looked."""

    def __init__(self) -> None:
        self.there: Told = {}
        self.looks: list[PurePath] = []
        self.glances = Glances(self.look)

    def look(self, folder: PurePath) -> Told:
        self.looks.append(folder)
        return dict(self.there)

    def add(self, name: str) -> str:
        self.there[uri := str(TABLE / name)] = Stat("file", 1, 1, name)
        return uri

    def told(self, *wanted: str) -> set[str]:
        return set(self.glances.over(TABLE / "x", wanted) or ())


def test_a_lease_looks_once_and_again_after_a_write() -> None:
    bucket = Bucket()
    first = bucket.add("1")
    assert bucket.glances.over(TABLE) is None and not bucket.looks
    with bucket.glances.held(TABLE):
        assert bucket.told() == {first}
        second = bucket.add("2")  # somebody else's
        with bucket.glances.held(TABLE):
            assert bucket.told() == bucket.told(second) == {first}
        bucket.glances.drop(TABLE / "2")
        assert bucket.told() == {first, second} and bucket.looks == [TABLE, TABLE]
        bucket.glances.drop(STORE / "catalog.lance")
        assert bucket.told() == {first, second} and len(bucket.looks) == 2
    third = bucket.add("3")
    with bucket.glances.held(TABLE):
        assert bucket.told() == {first, second, third}


def test_under_the_lock_lease_after_lease_looks_once_and_again_for_what_was_not_there() -> None:
    bucket = Bucket()
    first = bucket.add("1")
    with bucket.glances.locked(STORE):
        for _ in range(3):
            with bucket.glances.held(TABLE):
                assert bucket.told(first) == {first}
        assert bucket.told() == {first} and len(bucket.looks) == 1
        second = bucket.add("2")  # a worker's
        with bucket.glances.held(TABLE):
            assert bucket.told(first) == {first}
            assert bucket.told(first, second) == {first, second} and len(bucket.looks) == 2
            missing = str(TABLE / "3")
            assert bucket.told(missing) == {first, second} and len(bucket.looks) == 2  # this lease has looked
        bucket.glances.drop(TABLE)
        third = bucket.add("4")
        with bucket.glances.held(TABLE):
            assert bucket.told() == {first, second, third} and len(bucket.looks) == 3
        with bucket.glances.held(TABLE):
            fourth = bucket.add("5")
    assert bucket.glances.over(TABLE) is None
    with bucket.glances.held(TABLE):
        assert bucket.told() == {first, second, third, fourth}


def test_the_lock_of_one_store_keeps_nothing_of_another() -> None:
    bucket = Bucket()
    with bucket.glances.locked(PurePosixPath("/other")):
        for _ in range(2):
            with bucket.glances.held(TABLE):
                bucket.told()
    assert len(bucket.looks) == 2


def test_under_the_lock_a_bucket_is_listed_once_and_what_a_worker_puts_there_is_found(
    bucket_place: PurePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, storage = bucket_place / "labels.lance", storage_of(bucket_place)
    buckets.put(f"{table}/data/1", b"1")
    listings: list[str] = []
    listed = buckets.listed
    monkeypatch.setattr(buckets, "listed", lambda uri: listings.append(uri) or listed(uri))
    with locked(bucket_place):
        for _ in range(3):
            with storage.lease(table):
                assert storage.stats(table, ["data/1"]).keys() == {"data/1"} and storage.list(table / "data")
        assert listings == [str(table)]
        for number, look in ((2, storage.stats), (3, lambda _, names: {n for n in names if storage.stat(table / n)})):
            buckets.put(f"{table}/data/{number}", b"2")
            with storage.lease(table):
                assert set(look(table, ["data/1", f"data/{number}"])) == {"data/1", f"data/{number}"}
        assert storage.stat(table / "data/4") is None and storage.stat(table / "data").kind == "folder"
