"""A store is copied whole, to and from a bucket, and a copy that ended early goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path, PurePath

import pytest

from builders import SPEC, Picture, commit, journal, pictures
from featurestore import layout
from featurestore.errors import PenultError, StoreError, StoreLocked, StoreNotFound, UsageError
from featurestore.maintenance import transfer
from featurestore.maintenance.transfer import copy_store
from featurestore.maintenance.verify import verify
from featurestore.storage.base import storage_of
from featurestore.storage.files import delete, exists, make_folder, read_sealed, reading, write_text
from featurestore.storage.lock import locked
from featurestore.store import FeatureStore

RUN = "20260101T000000000000Z-train-000000"


def made(place: PurePath) -> FeatureStore:
    """A store with images, a result, and finished shards of a run that died."""
    store = FeatureStore.create(place)
    commit(store, store.new_run_id("embed"), list(pictures(range(20))))
    make_folder(store.run_folder(RUN))
    write_text(store.run_folder(RUN) / layout.REPORT, "a report")
    with store.lock():
        journal(store, store.new_run_id("embed"), [[Picture("late", b"late")], [Picture("later", b"later")]], SPEC, 1)
    return store


def contents(store: PurePath) -> dict[str, bytes]:
    """The bytes of all files but for the lock."""
    found = {}
    for path, _ in storage_of(store).walk(store):
        if path.name != layout.LOCK:
            with reading(path) as file:
                found[path.relative_to(store).as_posix()] = file.read()
    return found


@pytest.mark.parametrize("way", ["disk to disk", "disk to bucket", "bucket to disk"])
def test_a_copy_is_the_store(way: str, tmp_path: Path, bucket_place: PurePath) -> None:
    places = {"disk": iter([tmp_path / "a", tmp_path / "b"]), "bucket": iter([bucket_place])}
    here, there = (next(places[word]) for word in way.split(" to "))
    store, told = made(here), list[tuple[int, int]]()
    copied = copy_store(here, there, lambda *now: told.append(now))
    kept = contents(here)
    assert contents(there) == kept and "late" in store.catalog.read(["uri"]).column("uri").to_pylist()
    assert (copied.files, copied.bytes) == (copied.copied_files, copied.copied_bytes)
    assert copied.bytes == sum(map(len, kept.values())) and copied.files == len(kept) == len(told)
    assert not list(verify(there))
    again = FeatureStore(there)
    assert again.dataset().keys.tolist() == store.dataset().keys.tolist()
    commit(again, again.new_run_id("embed"), [Picture("new", b"new")])
    assert again.catalog.count() == store.catalog.count() + 1, "the two are stores of their own"


def test_a_copy_that_ended_early_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, to, real = made(tmp_path / "store"), tmp_path / "copy", transfer._carry
    calls, lock = iter(range(1000)), threading.Lock()

    def dying(path: PurePath, there: PurePath) -> bool:
        with lock:
            if next(calls) >= 9:
                raise StoreError("the network is gone")
        return real(path, there)

    monkeypatch.setattr(transfer, "_carry", dying)
    with pytest.raises(StoreError, match="the network is gone"):
        copy_store(store.path, to)
    monkeypatch.undo()
    assert exists(to / layout.COPYING) and not exists(to / layout.HEADER), "what is not whole is no store"
    with pytest.raises(StoreNotFound):
        FeatureStore(to)
    half = next(path for path in sorted(to.rglob("*.lance")) if path.is_file())
    half.write_bytes(bytes(half.stat().st_size))  # as a power cut may leave it
    delete(store.run_folder(RUN))
    copied = copy_store(store.path, to)
    assert contents(to) == contents(store.path), "a file that went since is not in the copy"
    assert 0 < copied.copied_files < copied.files


def test_a_copy_of_which_the_note_alone_is_left_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, to, real = made(tmp_path / "store"), tmp_path / "copy", transfer.delete

    def dying(path: PurePath) -> None:
        if path == to / layout.COPYING:
            raise StoreError("the network is gone")
        real(path)

    monkeypatch.setattr(transfer, "delete", dying)
    with pytest.raises(StoreError, match="the network is gone"):
        copy_store(store.path, to)
    monkeypatch.undo()
    note = (to / layout.COPYING).read_bytes()
    assert exists(to / layout.HEADER)
    assert copy_store(store.path, to).copied_files == 0, "all was there"
    assert contents(to) == contents(store.path)
    (to / layout.COPYING).write_bytes(note)
    commit(FeatureStore(to), FeatureStore(to).new_run_id("embed"), [Picture("new", b"new")])
    with pytest.raises(StoreError, match=r"a store at .* already"):
        copy_store(store.path, to)


def test_what_is_read_back_must_be_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real = made(tmp_path / "store"), transfer.sha256_of
    monkeypatch.setattr(transfer, "sha256_of", lambda path: "0" * 64 if path.suffix == ".lance" else real(path))
    with pytest.raises(StoreError, match=r"Expected: .*\.lance as it was written.*run the same command again"):
        copy_store(store.path, tmp_path / "copy")
    assert not exists(tmp_path / "copy" / layout.HEADER)


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda a, b: FeatureStore.create(b), StoreError, "a store at .* already"),
        (lambda a, b: write_text(_folder(b) / "thesis.txt", "mine"), StoreError, "not empty, thesis.txt is there"),
        (lambda a, b: transfer._begin(FeatureStore.create(a.parent / "other").path, _folder(b)), StoreError, "another"),
        (lambda a, b: (a / "runs" / "link").symlink_to(a.parent), StoreError, "link is no file but a link"),
    ],
)
def test_what_would_not_be_a_copy_is_refused(
    spoil: Callable[[Path, Path], object], error: type[PenultError], said: str, tmp_path: Path
) -> None:
    store = made(tmp_path / "store")
    spoil(tmp_path / "store", tmp_path / "copy")
    with pytest.raises(error, match=said):
        copy_store(store.path, tmp_path / "copy")


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_place_within_the_other_and_a_store_at_work_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made(tmp_path / "store")
    for one, other in ((store.path, store.path / "copy"), (store.path, store.path), (store.path, store.path.parent)):
        with pytest.raises(UsageError, match="neither within the other"):
            copy_store(one, other)
    monkeypatch.chdir(tmp_path)
    for other in (Path("store/copy"), Path("other/../store"), Path("store") / ".." / "store" / "copy"):
        with pytest.raises(UsageError, match="neither within the other"):
            copy_store(store.path, other)
    with store.lock(), pytest.raises(StoreLocked):
        copy_store(store.path, tmp_path / "copy")
    assert not exists(tmp_path / "copy")
    with locked(_folder(tmp_path / "copy")), pytest.raises(StoreLocked, match="copy is locked"):
        copy_store(store.path, tmp_path / "copy")
    copy_store(store.path, tmp_path / "copy")
    assert read_sealed(tmp_path / "copy" / layout.HEADER)["created"]
