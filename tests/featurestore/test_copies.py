"""Local copies of a bucket's tables: made once, compared with the ledger, bounded, and never written through."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np
import pytest

import builders
from featurestore.errors import StoreCorrupt, UsageError
from featurestore.status import status
from featurestore.storage import buckets, cache, copies, ledger
from featurestore.storage.objects import ObjectStorage
from featurestore.storage.table import Table
from featurestore.storage.versions import _dataset
from featurestore.store import FeatureStore
from object_proxy import Proxy, proxy
from object_servers import ObjectServer


@pytest.fixture
def asked(seaweedfs: ObjectServer, bucket_place: PurePath, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What is asked of the server from here on."""
    with proxy(seaweedfs.endpoint) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        yield made


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two commits and a deletion file."""
    store = FeatureStore.create(tmp_path_factory.mktemp("copies") / "store")
    builders.commit(store, "run-1", builders.pictures(range(600)))
    builders.commit(store, "run-2", [builders.Picture("5", b"other", "a", replaces=True)])
    return Path(store.path)


@pytest.fixture
def store(template: Path, bucket_place: PurePath) -> FeatureStore:
    """That store in a bucket."""
    builders.copy_to(template, bucket_place)
    new_process()
    return FeatureStore(bucket_place)


def new_process() -> None:
    """Forget what a process remembers of tables."""
    _dataset.cache_clear()
    ledger._read.cache_clear()
    ledger.digest.cache_clear()


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "copies" / cache.OBJECTS).rglob("*") if path.is_file())


def test_the_second_read_asks_for_no_file_of_a_table(store: FeatureStore, asked: Proxy, tmp_path: Path) -> None:
    X, y, ids = store.features()
    assert any("/data/" in path for _, path in asked.requests) and len(kept(tmp_path)) > 4
    new_process()
    asked.requests.clear()
    again = FeatureStore(store.path).features()
    assert all(np.array_equal(*pair) for pair in zip((X, y, ids), again, strict=True)) and len(ids) == 600
    assert not [path for _, path in asked.requests if path.endswith((".lance", ".manifest", ".arrow"))]


def test_status_asks_few_things_and_none_twice_of_a_table(store: FeatureStore, asked: Proxy) -> None:
    counted = status(FeatureStore(store.path))
    new_process()
    asked.requests.clear()
    assert status(FeatureStore(store.path)) == counted and counted["catalog"]["ok"] == 600
    assert len(asked.requests) <= 26, asked.requests


def test_narrow_reads_copy_no_vectors(store: FeatureStore, asked: Proxy, tmp_path: Path) -> None:
    """Neither a column of keys nor a few rows are worth a copy of all vectors."""
    name = builders.SPEC.set_name
    keys = store.content_keys(name)
    assert store.vectors(name, keys[:3])[1].all() and len(keys) == 601
    data = {PurePath(path).name for method, path in asked.requests if "/features/" in path and "/data/" in path}
    assert data and not data & {path.name for path in kept(tmp_path)}
    assert store.vectors(name, keys)[1].all()
    assert data <= {path.name for path in kept(tmp_path)}


def test_a_copy_is_compared_with_the_ledger_when_it_is_made(store: FeatureStore, tmp_path: Path) -> None:
    [uri, *_] = [one.uri for one in buckets.listed(f"{store.catalog.path}/data")]
    data, _ = buckets.get(uri)
    other = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    buckets.put(uri, other)
    with pytest.raises(StoreCorrupt, match=r"with sha256 \w{12}. Got: \w{12}; `penult doctor`"):
        store.catalog.read(["uri"])
    assert other not in [path.read_bytes() for path in kept(tmp_path)]
    buckets.put(uri, data)
    assert len(store.catalog.read(["uri"])) == 600
    buckets.put(uri, other)  # after it was copied: it is another object now
    with pytest.raises(StoreCorrupt, match="with sha256"):
        store.catalog.read(["uri"])


def test_a_version_that_was_replaced_is_not_read_from_an_old_copy(store: FeatureStore) -> None:
    table = Table(store.labels.path)
    assert len(table.read(["uri"])) == 600
    builders.commit(store, "run-3", [builders.Picture("new", b"new", "b")])
    assert len(table.read(["uri"])) == 601


def test_nothing_is_written_through_copies(store: FeatureStore, tmp_path: Path) -> None:
    store.features()
    table = cache.place_of(copies.TABLES, str(store.labels.path))
    builders.commit(store, "run-3", [builders.Picture("7", b"7", "c", replaces=True)])
    store.features()
    assert all(path.is_symlink() for path in table.parent.rglob("*") if not path.is_dir())
    assert not [path for path in kept(tmp_path) if not path.stat().st_size]


def test_copies_are_bounded_and_the_oldest_go(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    X = store.features()[0]
    sizes = sum(path.stat().st_size for path in kept(tmp_path))
    other = tmp_path / "copies" / cache.OBJECTS / "old" / "weights"
    other.parent.mkdir()
    other.write_bytes(bytes(1000))
    monkeypatch.setenv("PENULT_CACHE_LIMIT", f"{sizes / 10**6:f}MB")
    os.utime(other, (0, 0))
    before = set(kept(tmp_path))
    builders.commit(store, "run-3", [builders.Picture("new", b"new", "b")])
    store.features()  # the copies of before are in use: none of them goes, and what is new is read as it is
    assert not other.exists() and not other.parent.exists() and before - {other} <= set(kept(tmp_path))
    monkeypatch.setattr(cache, "IN_USE", -1)
    monkeypatch.setenv("PENULT_CACHE_LIMIT", "0.000001MB")
    new_process()
    assert len(store.features()[0]) == len(X) + 1
    monkeypatch.setenv("PENULT_CACHE_LIMIT", "much")
    with pytest.raises(UsageError, match="an amount of memory such as"):
        cache.has_room(1)


def test_without_a_folder_to_write_to_the_bucket_is_read(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a file").write_bytes(b"")
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path / "a file"))
    assert len(store.features()[0]) == 600


def test_a_lease_sees_what_this_process_writes(bucket_place: PurePath, asked: Proxy) -> None:
    storage, folder = ObjectStorage(), bucket_place
    with storage.lease(folder):
        assert storage.list(folder) == [] and storage.stat(folder / "a") is None
        asked.requests.clear()
        assert storage.stats(folder, ["a", "b"]) == {} and storage.list(folder / "b") == [] and not asked.requests
        assert storage.create(folder / "a", b"1") and storage.create(folder / "b" / "c", b"22")
        assert storage.list(folder) == [folder / "a", folder / "b"] and storage.list(folder / "b") == [folder / "b/c"]
        found = storage.stat(folder / "a")
        assert found is not None and found.size == 1
        assert (storage.stat(folder / "b") or found).kind == "folder"
        assert {path: stat.size for path, stat in storage.walk(folder)} == {folder / "a": 1, folder / "b/c": 2}
        assert storage.replace(folder / "a", b"333", found.token)
        assert (storage.stat(folder / "a") or found).size == 3
        storage.move(folder / "a", folder / "d")
        storage.delete(folder / "b")
        assert storage.list(folder) == [folder / "d"]
        buckets.put(str(folder / "e"), b"")  # as another process would
        assert storage.list(folder) == [folder / "d"]
    assert folder / "e" in storage.list(folder)  # and, on some servers, what is left of the prefix "b"


def test_a_lease_sees_what_lance_writes(store: FeatureStore) -> None:
    with store.labels.lease():
        assert store.labels.count() == 600
        assert store.labels.stage([builders.label_rows("run-3", builders.pictures([700]))])


def test_a_commit_looks_at_few_files_one_by_one(store: FeatureStore, asked: Proxy) -> None:
    """The rest is told by one listing of a table for its staged files, its commit and its note."""
    store.features()
    asked.requests.clear()
    builders.commit(store, "run-3", [builders.Picture("new", b"new", "b")])
    looks = [path for method, path in asked.requests if method == "HEAD" and ".lance/" in path]
    assert len(looks) <= 18, looks
