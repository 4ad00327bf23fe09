"""Storages: what each promises, and one in memory, registered from outside, under what is beside the tables."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path, PurePath, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from builders import Picture, catalog_rows
from featurestore import aliases, canary, header
from featurestore.errors import StoreCorrupt, StoreError, StoreLocked, StoreNotFound
from featurestore.journal import PLAN, ShardEntry, Staging, pending
from featurestore.runs import RunRecord
from featurestore.storage import buckets, ledger, lock
from featurestore.storage.base import Stat, Storage, register, storage_of
from featurestore.storage.files import (
    exists,
    is_file,
    is_folder,
    is_link,
    listed,
    read_sealed,
    reading,
    replace_sealed,
    replacing,
    size_of,
    token_of,
    write_sealed,
)
from featurestore.storage.local import LocalStorage
from featurestore.storage.lock import locked, waiting
from featurestore.storage.npz import read_npz, write_npz

pytestmark = pytest.mark.everywhere


class MemoryPath(PurePosixPath):
    """A location that no disk has."""


class MemoryStorage:
    """Files as bytes in a dictionary; folders are the beginnings of names, as in a bucket."""

    grace, links = timedelta(0), True

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.writes: dict[str, int] = {}
        self.held: dict[str, str] = {}

    def stat(self, path: PurePath, follow: bool = True) -> Stat | None:
        if (data := self.files.get(str(path))) is not None:
            return Stat("file", len(data), 0, str(self.writes[str(path)]))
        return Stat("folder", 0, 0, "") if any(name.startswith(f"{path}/") for name in self.files) else None

    def stats(self, folder: PurePath, names: Collection[str]) -> dict[str, Stat]:
        return {name: found for name in names if (found := self.stat(folder / name))}

    @contextmanager
    def open(self, path: PurePath) -> Iterator[io.BytesIO]:
        if str(path) not in self.files:
            raise StoreCorrupt(f"Expected: a file at {path}. Got: none.")
        yield io.BytesIO(self.files[str(path)])

    @contextmanager
    def write(self, path: PurePath, durable: bool = True) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            yield (made := Path(folder) / "made")
            self._put(path, made.read_bytes())

    def create(self, path: PurePath, data: bytes) -> bool:
        return self.replace(path, data, None)

    def replace(self, path: PurePath, data: bytes, token: str | None) -> bool:
        found = self.stat(path)
        if (found.token if found else None) != token:
            return False
        self._put(path, data)
        return True

    def list(self, folder: PurePath) -> list[PurePath]:
        inside = [name[len(f"{folder}/") :] for name in self.files if name.startswith(f"{folder}/")]
        return [folder / name for name in sorted({name.split("/")[0] for name in inside})]

    def walk(self, folder: PurePath) -> Iterator[tuple[PurePath, Stat]]:
        for name in [name for name in self.files if name.startswith(f"{folder}/")]:
            yield MemoryPath(name), self.stat(MemoryPath(name))  # type: ignore[misc]

    def delete(self, path: PurePath) -> None:
        self.files = {n: d for n, d in self.files.items() if n != str(path) and not n.startswith(f"{path}/")}

    def move(self, path: PurePath, to: PurePath) -> None:
        for name in [n for n in self.files if n == str(path) or n.startswith(f"{path}/")]:
            self._put(MemoryPath(str(to) + name[len(str(path)) :]), self.files.pop(name))

    def make_folder(self, path: PurePath) -> None: ...

    def flush(self, path: PurePath, missing_ok: bool = False) -> None: ...

    @contextmanager
    def lock(self, path: PurePath, holder: str) -> Iterator[str | None]:
        if str(path) in self.held:
            yield self.held[str(path)]
            return
        self.held[str(path)] = holder
        yield None
        del self.held[str(path)]

    def confirm(self, path: PurePath) -> None: ...

    @contextmanager
    def lease(self, folder: PurePath, alone: bool = False) -> Iterator[bool]:
        yield True

    def changed(self, path: PurePath) -> None:
        pass

    def uri(self, path: PurePath) -> str:
        return f"memory://{path}"

    def options(self, path: PurePath) -> dict[str, str]:
        return {}

    def refusal(self, error: BaseException, path: PurePath) -> StoreError | None:
        return None

    def local(self, path: PurePath) -> Path:
        raise StoreError(f"{path} is in memory.")

    def _put(self, path: PurePath, data: bytes) -> None:
        self.files[str(path)] = data
        self.writes[str(path)] = self.writes.get(str(path), 0) + 1


@pytest.fixture
def storage() -> MemoryStorage:
    made: Storage = MemoryStorage()
    register(MemoryPath, made)
    assert isinstance(made, MemoryStorage)
    return made


STORE = MemoryPath("/a/store")


# --- what every storage promises: the one on the disk, the one in a bucket, and the one from outside


@pytest.fixture(params=["disk", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, storage: MemoryStorage) -> PurePath:
    """An empty folder of each storage."""
    if request.param == "s3":
        return request.getfixturevalue("bucket_place")
    return tmp_path if request.param == "disk" else STORE


def data_of(path: PurePath) -> bytes:
    with reading(path) as file:
        return file.read()


def test_a_file_is_created_once(place: PurePath) -> None:
    path, at = place / "a.json", storage_of(place)
    assert at.create(path, b"first") and not at.create(path, b"second")
    assert data_of(path) == b"first" and listed(place) == [path]


def test_a_file_is_replaced_only_if_nobody_else_did(place: PurePath) -> None:
    path, at = place / "a.json", storage_of(place)
    assert not at.replace(path, b"0", "a token of nothing") and not exists(path)
    assert at.replace(path, b"1", None) and not at.replace(path, b"2", None) and data_of(path) == b"1"
    token = token_of(path)
    assert at.replace(path, b"3", token) and token_of(path) != token
    assert not at.replace(path, b"4", token) and data_of(path) == b"3" and listed(place) == [path]


def test_a_block_that_fails_replaces_nothing(place: PurePath) -> None:
    with replacing(place / "a") as temporary:
        temporary.write_bytes(b"1")
    with pytest.raises(KeyError), replacing(place / "a") as temporary:
        temporary.write_bytes(b"2")
        raise KeyError
    assert data_of(place / "a") == b"1" and listed(place) == [place / "a"]


def test_folders_are_listed_walked_moved_and_deleted(place: PurePath) -> None:
    at, names = storage_of(place), ("x/b", "x/a", "x/deep/c", "y/d")
    for name in names:
        at.make_folder((place / name).parent)
        assert at.create(place / name, name.encode())
    assert listed(place) == [place / "x", place / "y"]
    assert listed(place / "x") == [place / "x" / name for name in ("a", "b", "deep")]
    assert {path: found.size for path, found in at.walk(place / "x")} == {
        place / name: len(name) for name in names if name.startswith("x/")
    }
    at.move(place / "x", place / "new" / "z")
    assert not exists(place / "x") and data_of(place / "new" / "z" / "deep" / "c") == b"x/deep/c"
    at.delete(place / "new" / "z")
    at.delete(place / "y" / "d")
    at.delete(place / "y" / "never was")
    assert not exists(place / "new" / "z") and list(at.walk(place)) == []


def test_of_a_large_object_little_more_is_read_than_is_asked_for(
    bucket_place: PurePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker reads its part of a plan that may be long; who reads all of it needs few requests."""
    path, data, sizes, get = bucket_place / "plan", os.urandom(9 * 2**20), list[int](), buckets.get
    buckets.put(str(path), data)

    def counted(*arguments: Any) -> Any:
        found = get(*arguments)
        sizes.append(len(found[0]))
        return found

    monkeypatch.setattr(buckets, "get", counted)
    with reading(path) as file:
        file.seek(-10, io.SEEK_END)
        assert file.read() == data[-10:]
        file.seek(4_000_000)
        assert file.read(100_000) == data[4_000_000:4_100_000] and sizes == [2**20, 10, 2**18]
    sizes.clear()
    with reading(path) as file:
        assert b"".join(iter(lambda: file.read(10_000), b"")) == data
    assert [size // 2**20 for size in sizes] == [1, 2, 4, 2]


def test_a_lock_has_one_holder_who_is_named(place: PurePath) -> None:
    at = storage_of(place)
    for _ in range(2):
        with at.lock(place / "lock", "me") as holder, at.lock(place / "lock", "you") as other:
            assert (holder, other) == (None, "me")


# --- waiting for the store's lock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes only where somebody sleeps; ``on_sleep`` is called each time."""
    clock = SimpleNamespace(now=100.0, on_sleep=lambda: None)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        clock.on_sleep()

    monkeypatch.setattr(lock, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


def test_who_waits_for_a_lock_says_for_whom_once_per_minute_and_gives_up(
    place: PurePath, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    with locked(place):
        with waiting(150.5), pytest.raises(StoreLocked, match="locked by process"), locked(place):
            pass
        assert clock.now == 250.5 and len(caplog.messages) == 3
        assert re.fullmatch(rf"{place} is locked by process \d+ on .+ since .+: waiting .+\.", caplog.messages[0])
        with pytest.raises(StoreLocked), locked(place):  # after the block nobody waits
            pass
        assert clock.now == 250.5


def test_who_waits_for_a_lock_gets_it_each_time_anew(place: PurePath, clock: SimpleNamespace) -> None:
    for _ in range(2):
        with ExitStack() as other:
            other.enter_context(locked(place))
            left = iter([None] * 50)
            clock.on_sleep = lambda left=left, other=other: next(left, 1) and other.close()
            with waiting(60.0), locked(place), pytest.raises(StoreLocked), waiting(0.0), locked(place):
                pass
    assert clock.now == 100.0 + 2 * 51


def test_an_error_of_the_block_is_no_reason_to_wait(place: PurePath, clock: SimpleNamespace) -> None:
    with waiting(60.0), pytest.raises(StoreLocked, match="its own"), locked(place):
        raise StoreLocked("its own")
    assert clock.now == 100.0


def test_a_lock_is_waited_for_until_its_process_is_killed(tmp_path: Path) -> None:
    """By flock, for real."""
    code = "import sys, pathlib, time\nfrom featurestore.storage.lock import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(StoreLocked, match=f"locked by process {holder.pid} on"), locked(tmp_path):
            pass
        threading.Timer(0.2, holder.kill).start()
        with waiting(30.0), locked(tmp_path):
            assert holder.wait() == -signal.SIGKILL


# --- what only the disk has: other processes, links


def test_of_racing_writers_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at, token, stat = storage_of(tmp_path), None, LocalStorage.stat

    def slow(*arguments: object) -> Stat | None:
        found = stat(*arguments)  # type: ignore[arg-type]
        time.sleep(0.005)  # so that all have compared before one writes
        return found

    monkeypatch.setattr(LocalStorage, "stat", slow)
    for turn in range(5):
        for write in (
            lambda n: at.create(tmp_path / f"{turn}", b"%d" % n),  # noqa: B023 (called at once)
            lambda n: at.replace(tmp_path / "pointer", b"%d" % n, token),  # noqa: B023
        ):
            with ThreadPoolExecutor(6) as pool:
                assert sum(pool.map(write, range(6))) == 1
        token = token_of(tmp_path / "pointer")


def test_what_a_link_leads_to_is_neither_walked_nor_deleted(tmp_path: Path) -> None:
    at, away, folder = storage_of(tmp_path), tmp_path / "away", tmp_path / "folder"
    away.mkdir()
    folder.mkdir()
    (away / "kept").write_bytes(b"1")
    for link in (folder / "link", tmp_path / "alone"):
        link.symlink_to(away)
        assert is_link(link) and is_folder(link)
    assert [(path.name, found.kind) for path, found in at.walk(folder)] == [("link", "link")]
    at.delete(folder)
    at.delete(tmp_path / "alone")
    assert listed(tmp_path) == [away] and listed(away) == [away / "kept"]


# --- a storage from outside under what a store keeps beside its tables


def test_small_files_and_what_is_there(storage: MemoryStorage) -> None:
    path = STORE / "x" / "y.json"
    assert not exists(path) and size_of(path) is None and token_of(path) is None and listed(STORE) == []
    write_sealed(path, {"a": 1})
    assert (
        is_file(path)
        and is_folder(path.parent)
        and not is_link(path)
        and size_of(path) == len(storage.files[str(path)])
    )
    token = token_of(path)
    replace_sealed(path, {"a": 2}, token)
    assert read_sealed(path) == {"a": 2}
    with pytest.raises(StoreError, match=r"y\.json was changed meanwhile by another run"):
        replace_sealed(path, {"a": 3}, token)
    assert read_sealed(path) == {"a": 2} and listed(STORE) == [STORE / "x"]
    sha256 = write_npz(STORE / "b.npz", {"coef": np.arange(3)})
    assert read_npz(STORE / "b.npz", 4096, sha256)["coef"].tolist() == [0, 1, 2]


def test_what_a_store_keeps_beside_its_tables(storage: MemoryStorage) -> None:
    with pytest.raises(StoreNotFound, match="no penult store at /a/store"):
        header.read(STORE)
    header.create(STORE)
    header.remember(STORE, [], "efficientnet-lite0-00000000", "r1")
    assert header.read(STORE)["last_set"] == "efficientnet-lite0-00000000"
    aliases.move(STORE, "champion", "r1")
    aliases.move(STORE, "champion", "r2")
    assert [move.head_id for move in aliases.history(STORE, "champion")] == ["r1", "r2"]
    record = RunRecord("r1", "train", "2026-01-01T00:00:00+00:00", {}, {})
    record.write(STORE / "runs" / "r1")
    assert RunRecord.read(STORE / "runs" / "r1") == record
    ledger.write(STORE / "t.lance", ledger.Ledger(2, 3, {"data/x": "0"}))
    assert ledger.read(STORE / "t.lance") == ledger.Ledger(2, 3, {"data/x": "0"})
    assert canary.read(STORE / "t.lance") is None
    with locked(STORE), pytest.raises(StoreLocked, match="locked by process"), locked(STORE):
        pass


def test_a_journal(storage: MemoryStorage) -> None:
    staging = Staging(STORE, "r1")
    staging.begin("set-00000000")
    with staging.writer("plan", PLAN) as writer:
        row = {"uri": "a", "size": 1, "mtime_ns": 1, "offset": -1, "replaces": False}
        writer.write_batch(pa.RecordBatch.from_pylist([row], PLAN))
    rows = [catalog_rows("r1", [Picture("a", b"1")])]
    entry = staging.finish(ShardEntry(0, [], "0.rows.arrow", 1, 0, {}, {}), rows)
    assert staging.finish(ShardEntry(0, [], "0.again.arrow", 1, 0, {}, {}), rows) == entry  # the first wins
    staging.note_progress(0, 5)
    assert [one.run_id for one in pending(STORE)] == ["r1"] and staging.damaged() == [staging.folder / "labels.arrow"][
        :0
    ]
    assert list(staging.entries()) == [entry] and staging.watch().read().images == 5
    assert [batch.column("uri").to_pylist() for batch in staging.catalog_rows()] == [["a"]]
    staging.remove()
    assert pending(STORE) == [] and not storage.files
