"""The lock in a bucket ends with its holder, and who has lost it commits nothing; a bucket that lies is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath

import lance
import pytest

import object_servers
from builders import SPEC, commit, journal, pictures
from featurestore import aliases, header, layout
from featurestore.errors import BucketError, StoreCorrupt, StoreError, StoreLocked
from featurestore.storage import buckets, leases, probe
from featurestore.storage.base import location
from featurestore.storage.leases import Lease, confirm, held
from featurestore.storage.lock import locked
from featurestore.store import FeatureStore
from object_proxy import Proxy, proxy

HOLD = """
import sys, time
from featurestore.storage.base import location
from featurestore.storage.lock import locked
with locked(location(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(bucket_place: PurePath, monkeypatch: pytest.MonkeyPatch) -> PurePath:
    """A place in a bucket; leases are short."""
    monkeypatch.setattr(leases, "EXPIRY", 1.5)
    monkeypatch.setattr(leases, "BEAT", 0.1)
    monkeypatch.setattr(leases, "POLL", 0.05)
    return bucket_place


def lease_of(place: PurePath) -> str:
    return str(place / layout.LOCK)


def state_of(place: PurePath) -> dict[str, object]:
    return json.loads(buckets.get(lease_of(place))[0])


def take(place: PurePath, holder: str) -> Lease:
    """What another process does: this one does not know of it."""
    taken = leases._taken(lease_of(place), holder)
    assert isinstance(taken, Lease)
    return taken


def asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the holders of leases taken from now on beat no more."""
    monkeypatch.setattr(Lease, "_beat", lambda _: None)


def test_a_lease_is_taken_beats_and_is_given_back_and_its_fence_grows(place: PurePath) -> None:
    for fence in (1, 2, 3):
        with held(lease_of(place), "me") as other, held(lease_of(place), "you") as first:
            assert (other, first) == (None, "me") and state_of(place)["fence"] == fence
            before = state_of(place)["beat"]
            time.sleep(0.5)
            assert state_of(place)["beat"] > before  # type: ignore[operator]
    assert state_of(place)["holder"] is None


def test_of_racing_drivers_one_holds_the_lease_and_is_named(place: PurePath) -> None:
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda n: leases._taken(lease_of(place), f"driver {n}"), range(4)))
    (lease,) = (one for one in taken if isinstance(one, Lease))
    assert [one for one in taken if one is not lease] == [lease.state["holder"]] * 3
    lease.release()


def test_a_living_holder_keeps_its_lease_and_a_dead_ones_ends(place: PurePath) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        holder.kill()
    began = time.monotonic()
    with locked(place):
        assert time.monotonic() - began >= leases.EXPIRY and state_of(place)["fence"] == 2
    living = take(place, "a living one")
    with pytest.raises(StoreLocked, match="is locked by a living one"), locked(place):
        pass
    living.release()


def test_a_holder_that_slept_past_its_lease_commits_nothing(place: PurePath, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore.create(place)
    commit(store, "r1", pictures(range(3)))
    asleep(monkeypatch)
    with store.lock():
        staging = journal(store, "r2", [pictures(range(3, 6))])
        tables = (store.catalog, store.labels, store.table(SPEC.set_name))
        before = [table.version for table in tables]
        told = header.read(place)
        thief = take(place, "another driver")
        for act in (
            lambda: store.commit(staging),
            lambda: header.remember(place, [], "set", "r2"),
            lambda: aliases.move(place, "champion", "r1"),
            lambda: store.catalog.cleanup(staged_too=True),
            lambda: staging.remove(),
        ):
            with pytest.raises(StoreLocked, match=r"has lost the lock s3://.*another driver has it: run"):
                act()
        assert [table.version for table in tables] == before
        assert header.read(place) == told and staging.feature_set is not None
    assert state_of(place)["holder"] == "another driver"  # what was lost is not given back
    thief.release()
    with store.lock():
        assert store.recover().runs == ["r2"] and store.catalog.count() == 6


def test_a_holder_that_slept_while_nobody_came_goes_on(place: PurePath, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep(monkeypatch)
    with locked(place):
        time.sleep(2 * leases.EXPIRY)
        confirm(str(place / "x"))
        assert state_of(place)["beat"] == 1
        confirm(str(place / "x"))
        confirm(str(place.with_name("stores")))
        assert state_of(place)["beat"] == 1  # a moment ago, or of no concern
        confirm(str(place / "x"), now=True)
        assert state_of(place)["beat"] == 2


def test_a_beat_that_fails_is_tried_again(
    place: PurePath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failures = buckets.put, iter([BucketError("no way there")])

    def unsteady(*arguments: object) -> str | None:
        if (error := next(failures, None)) is not None:
            raise error
        return real(*arguments)  # type: ignore[arg-type]

    with locked(place):
        monkeypatch.setattr(buckets, "put", unsteady)
        end = time.monotonic() + 10
        while state_of(place)["beat"] < 5 and time.monotonic() < end:  # type: ignore[operator]
            time.sleep(0.05)
        confirm(str(place / "x"), now=True)
    assert f"The lock {lease_of(place)} cannot be renewed: no way there" in caplog.messages


def test_what_is_no_lease_is_held_by_nobody(place: PurePath) -> None:
    for data in (b"", b"[]", b'{"fence": "x"}'):
        buckets.put(lease_of(place), data)
        with locked(place):
            assert state_of(place)["fence"] == 1


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Proxy, PurePath]]:
    """A proxy that drops headers of requests, and a place in a bucket behind it."""
    with object_servers.moto() as server, proxy(server.endpoint) as made:
        for name, value in (server.environment | {"AWS_ENDPOINT_URL": made.endpoint}).items():
            monkeypatch.setenv(name, value)
        yield made, location(f"s3://{server.make_bucket()}/store")


def test_a_bucket_that_ignores_conditions_is_refused(lying: tuple[Proxy, PurePath]) -> None:
    made, place = lying
    for dropped, words in (
        ({"if-none-match", "if-match"}, "4 of 4 created one object"),
        ({"if-match"}, "4 of 4 replaced one version"),
    ):
        made.dropped = dropped
        with pytest.raises(StoreError, match=rf"does not honour conditional writes \({words}.*or on a disk"):
            FeatureStore.create(place)
        assert list(buckets.listed(str(place))) == []


def test_a_bucket_is_proved_once_per_process(place: PurePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_proven", set())
    probe.prove(str(place))
    assert list(buckets.listed(str(place))) == [] and len(probe._proven) == 1
    monkeypatch.setattr(buckets, "put", lambda *_: pytest.fail("proved again"))
    probe.prove(str(place))


def test_a_server_that_refuses_lance_is_no_damage(place: PurePath) -> None:
    store = FeatureStore.create(place)
    commit(store, "r1", pictures(range(3)))
    wrong = store.catalog.options | {"aws_secret_access_key": "wrong"}
    with pytest.raises((OSError, ValueError)) as refused:
        lance.dataset(store.catalog.uri, storage_options=wrong)
    for guard in (store.catalog.reading, store.catalog.writing):
        with pytest.raises(BucketError, match="does not know the credentials for s3://"), guard():
            raise refused.value
    [data] = buckets.level(str(store.catalog.path / "data"))[0]
    buckets.delete(data.uri)
    with pytest.raises(StoreCorrupt, match="penult doctor"), store.catalog.reading():
        store.catalog.open().to_table()
