"""Compaction and cleanup: no row lost or twice, few rewrites, few files, and harmless to interrupt anywhere."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from unittest import mock

import lance
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import Picture, commit, journal, label_rows, pictures
from faults.longrun import STEPS, Crash, Model, Step, few_rows_a_tier
from featurestore import header
from featurestore.errors import StoreError
from featurestore.maintenance import gc as collection
from featurestore.maintenance.gc import collect
from featurestore.schema import LABELS
from featurestore.storage import compaction, ledger
from featurestore.storage import table as tables_module
from featurestore.storage.base import Stat
from featurestore.storage.compaction import LARGE, MAX_DELETED, TIER, tend, worth_merging
from featurestore.storage.files import sha256_of
from featurestore.storage.fragments import Piece, Replaced
from featurestore.storage.local import LocalStorage
from featurestore.storage.table import KEPT_VERSIONS, Pin, Table
from featurestore.store import FeatureStore
from pipelines.maintenance import doctor, gc, verify

MOST_SMALL = 3 * (TIER - 1) + 1

# --- which fragments are merged: on numbers alone

sizes = st.one_of(st.integers(1, 3), st.integers(1, 40), st.integers(200, 300), st.integers(1000, 2 * LARGE))


@given(st.lists(st.tuples(sizes, st.integers(0, 400)), max_size=80))
def test_merging_leaves_few_small_fragments_and_goes_on_until_it_does(made: list[tuple[int, int]]) -> None:
    """Whatever is there, merging ends, and what stays small is bounded."""
    pieces = [Piece(n, rows, max(rows - gone, 0), [], []) for n, (rows, gone) in enumerate(made)]
    total = sum(piece.rows for piece in pieces)
    for _ in range(4):
        chosen = worth_merging(pieces)
        assert len(set(chosen)) == len(chosen) and set(chosen) <= {piece.id for piece in pieces}
        merged = sum(piece.rows for piece in pieces if piece.id in chosen)
        pieces = [piece for piece in pieces if piece.id not in chosen]
        pieces += [Piece(1000 + len(pieces), merged, merged, [], [])] if merged else []
        assert len([piece for piece in pieces if piece.rows < LARGE]) <= MOST_SMALL
        assert all(piece.rows >= (1 - MAX_DELETED) * piece.physical_rows for piece in pieces)
    assert worth_merging(pieces) == []
    assert sum(piece.rows for piece in pieces) == total


def test_what_is_merged_exactly() -> None:
    """Sixteen fragments of one size are, of fewer than 16, 256 or 2,048 rows; and whatever is mostly deleted."""

    def merged(*sizes: tuple[int, int] | int) -> int:
        pairs = [(size, size) if isinstance(size, int) else size for size in sizes]
        return len(worth_merging([Piece(n, physical, rows, [], []) for n, (rows, physical) in enumerate(pairs)]))

    assert (TIER, LARGE) == (16, 2048)
    for smallest, largest in ((0, 15), (16, 255), (256, 2047)):
        tier = [smallest, largest] * 8
        assert merged(*tier) == 16 and merged(*tier, largest) == 17 and merged(*tier[1:]) == 0
        assert merged(*tier[1:], largest + 1) == 0
    assert merged(*[2048] * 40) == 0 and merged(*[1] * 15, *[16] * 15, *[256] * 15) == 0
    assert merged((5, 10), (4, 10), (2048, 4096), (2047, 4096)) == 2
    assert worth_merging(
        [Piece(9, 10, 4, [], []), *(Piece(n, 1, 1, [], []) for n in (20, 3, *range(30, 44)))]
    ) == sorted([9, 20, 3, *range(30, 44)])


def test_a_large_fragment_is_left_alone() -> None:
    pieces = [Piece(n, LARGE, LARGE, [], []) for n in range(100)]
    assert worth_merging(pieces) == []
    half = [Piece(n, 2 * LARGE, LARGE, [], []) for n in range(100)]
    assert worth_merging(half) == []


@given(st.lists(sizes, min_size=1, max_size=400))
def test_a_row_is_written_again_three_times_at_most(appended: list[int]) -> None:
    """Fragments of many rows stand for many rows of one life: (rows, times written again) a fragment."""
    pieces: dict[int, tuple[int, int]] = {}
    for number, rows in enumerate(appended):
        pieces[number] = (rows, 0)
        chosen = worth_merging([Piece(id, rows, rows, [], []) for id, (rows, _) in pieces.items()])
        if chosen:
            gone = [pieces.pop(id) for id in chosen]
            pieces[-number - 1] = (sum(rows for rows, _ in gone), 1 + max(times for _, times in gone))
        assert max(times for _, times in pieces.values()) <= 3


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30), st.randoms()), max_size=150))
def test_where_rows_are_replaced_the_work_stays_in_proportion(steps: list[tuple[int, int, object]]) -> None:
    """Each step appends some rows and takes others away; what is written again is bounded by what came and went."""
    pieces: list[list[int]] = []  # rows, physical rows
    came = went = again = 0
    with mock.patch.object(compaction, "TIER", 3), mock.patch.object(compaction, "LARGE", 20):
        for rows, gone, random in steps:
            for _ in range(gone):
                if left := [piece for piece in pieces if piece[0]]:
                    random.choice(left)[0] -= 1  # type: ignore[attr-defined]
                    went += 1
            pieces.append([rows, rows])
            came += rows
            chosen = worth_merging([Piece(n, physical, rows, [], []) for n, (rows, physical) in enumerate(pieces)])
            merged = sum(pieces[n][0] for n in chosen)
            again += merged
            pieces = [piece for n, piece in enumerate(pieces) if n not in chosen]
            pieces += [[merged, merged]] if merged else []
            assert again <= 3 * (came + went)


# --- on tables; merged and cleaned up far more often than with the real figures


@pytest.fixture
def table(place: PurePath) -> Iterator[Table]:
    made = Table(place / "labels.lance")
    made.create(LABELS)
    with few_rows_a_tier():
        yield made


def add(table: Table, run: int, count: int = 1, replaces: list[str] | None = None) -> None:
    uris = replaces or [f"{run}/{number}" for number in range(count)]
    rows = label_rows(f"r{run}", [Picture(uri, None, "abc"[run % 3], None, None) for uri in uris])
    table.commit(f"r{run}", table.stage([rows]), [Replaced(pa.array(replaces))] if replaces else [])


def stored(table: Table) -> Counter[tuple[object, ...]]:
    return Counter(tuple(row.values()) for row in table.read(LABELS.names).to_pylist())


def named_files(table: Table) -> set[str]:
    """What the versions that are left name."""
    pieces = [piece for version in table.versions() for piece in table.pieces(version)]
    return {name for piece in pieces for name in piece.data + piece.deletions}


def files(table: Table) -> set[str]:
    return {f"{name}/{path.name}" for name in ("data", "_deletions") for path in (table.path / name).glob("*")}


@pytest.mark.everywhere
def test_tend_keeps_every_row_with_every_column(table: Table) -> None:
    for run in range(compaction.TIER):
        add(table, run, 2)
    add(table, 99, replaces=["0/0", "1/1"])
    before = stored(table)
    tend(table)
    assert len(table.pieces()) == 1
    assert stored(table) == before and len(before) == 2 * compaction.TIER
    assert all(map(table.has_run, ["r0", "r1", "r2", "r99"])), "a commit that is tried again would land twice"
    version = table.version
    tend(table)
    assert table.version == version, "there was nothing to do"


def test_what_is_merged_is_flushed_and_in_the_ledger(table: Table) -> None:
    for run in range(compaction.TIER):
        add(table, run)
    with mock.patch.object(tables_module, "flush", wraps=tables_module.flush) as flush:
        tend(table)
    flushed = {call.args[0] for call in flush.call_args_list}
    [piece] = table.pieces()
    assert {table.path / piece.data[0], table.path / "data"} <= flushed
    known = ledger.read(table.path)
    assert (known.version, known.rows) == (table.version, compaction.TIER)
    assert known.files[piece.data[0]] == sha256_of(table.path / piece.data[0])


@pytest.mark.everywhere
def test_fragments_mostly_deleted_are_written_again(table: Table) -> None:
    add(table, 0, 40)
    add(table, 1, replaces=[f"0/{number}" for number in range(21)])
    before = stored(table)
    tend(table)
    assert stored(table) == before
    assert [(piece.physical_rows, piece.deletions) for piece in table.pieces()] == [(21, []), (19, [])]


def test_versions_and_files_stay_few(table: Table) -> None:
    for run in range(25):
        add(table, run)
        tend(table)
        assert len(table.versions()) <= compaction.MAX_VERSIONS
        assert len(table.pieces()) <= 25 // compaction.LARGE + 3 * (compaction.TIER - 1) + 1
        assert files(table) == named_files(table)
    assert table.count() == 25
    add(table, 99)
    table.cleanup()
    assert len(table.versions()) == KEPT_VERSIONS


def test_nothing_is_cleaned_up_while_somebody_reads(table: Table) -> None:
    add(table, 0)
    pin = Pin(table)
    rows = table.read(["uri"], version=pin.version)
    for run in range(1, 2 * compaction.MAX_VERSIONS):
        add(table, run)
        tend(table)
    assert table.cleanup(staged_too=True) is None
    assert table.read(["uri"], version=pin.version) == rows
    last = pin.version
    del pin
    tend(table)
    assert len(table.versions()) == KEPT_VERSIONS and last not in table.versions()


def test_a_tag_of_the_users_own_holds_its_version_and_nothing_else(table: Table) -> None:
    add(table, 0)
    lance.dataset(table.path).tags.create("mine", tagged := table.version)
    for run in range(1, 2 * compaction.MAX_VERSIONS):
        add(table, run)
        tend(table)
    assert len(table.versions()) <= compaction.MAX_VERSIONS and tagged in table.versions()


def test_rows_that_another_program_deletes_meanwhile_do_not_come_back(table: Table) -> None:
    for run in range(compaction.TIER):
        add(table, run, 2)
    merged = table.stage

    def stage(rows: Iterator[pa.RecordBatch]) -> list[str]:
        staged = merged(rows)
        lance.dataset(table.path).delete("uri = '1/1'")
        return staged

    with mock.patch.object(table, "stage", stage), pytest.raises(StoreError, match="Another writer"):
        tend(table)
    assert table.count() == 2 * compaction.TIER - 1
    tend(table)
    assert table.count() == 2 * compaction.TIER - 1 and len(table.pieces()) == 1


def test_a_store_reads_on_after_another_program_has_cleaned_it_up(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "store")
    for run in range(3):
        commit(store, f"r{run}", pictures(range(5 * run, 5 * run + 5)))
    before = store.dataset()
    for table in (store.catalog, store.labels, store.table(before.feature_set)):
        dataset = lance.dataset(table.path)
        dataset.optimize.compact_files()
        dataset.cleanup_old_versions(retain_versions=1, delete_unverified=True)
    after = FeatureStore(store.path).dataset()
    assert after.ids.tolist() == before.ids.tolist() and after.y.tolist() == before.y.tolist()


def test_deletions_of_a_dead_commit_go_with_the_rest(table: Table) -> None:
    """Lance itself keeps them as long as the version that they were made from."""
    add(table, 0, 9)
    with pytest.raises(Crash), crashing(tables_module.lance.LanceDataset, "commit", after=False):
        add(table, 1, replaces=["0/1"])
    assert files(table) > named_files(table)
    table.cleanup(staged_too=True)
    assert files(table) == named_files(table)
    assert table.count() == 9


# --- interrupted anywhere


def crashing(owner: object, name: str, after: bool, nth: int = 1) -> mock._patch:
    real, calls = getattr(owner, name), iter(range(1, 99))

    def call(*arguments: object, **options: object) -> object:
        now = next(calls) == nth
        if now and not after:
            raise Crash
        done = real(*arguments, **options)
        if now:
            raise Crash
        return done

    return mock.patch.object(owner, name, call)


MOMENTS = {
    "stage": (Table, "stage", 1),
    "commit": (tables_module.lance.LanceDataset, "commit", 1),
    "flush": (Table, "flush_version", 1),
    "note": (Table, "note", 1),
    "clean up": (tables_module.lance.LanceDataset, "cleanup_old_versions", 1),
    "note what is gone": (Table, "note", 2),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", MOMENTS)
def test_the_next_run_finishes_what_tend_has_begun(table: Table, step: str, after: bool) -> None:
    owner, name, nth = MOMENTS[step]
    for run in range(compaction.MAX_VERSIONS):
        add(table, run, 1 + run % 2)
    before = stored(table)
    with pytest.raises(Crash), crashing(owner, name, after, nth):
        tend(table)
    assert stored(Table(table.path)) == before
    add(table, 99)
    before = stored(table)
    tend(table)
    assert stored(table) == before
    assert len(table.versions()) <= compaction.MAX_VERSIONS and len(table.pieces()) <= compaction.TIER
    known = ledger.read(table.path)
    assert known.version == table.version
    assert all((table.path / name).exists() for name in known.files)
    table.cleanup(staged_too=True)
    assert files(table) == named_files(table)


def test_the_header_knows_what_tidying_up_has_made(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "store")
    with few_rows_a_tier():
        for run in range(compaction.MAX_VERSIONS + 1):
            commit(store, f"r{run}", pictures(range(2 * run, 2 * run + 2)))
            tables = [store.catalog, store.labels, store.table(store.resolve())]
            told = header.read(store.path)["tables"]
            assert told == {table.path.relative_to(store.path).as_posix(): table.state() for table in tables}
        with store.lock():
            store.commit_labels("r99", [label_rows("r99", [Picture("x", None, "a")])])
        assert header.read(store.path)["tables"]["labels.lance"] == store.labels.state()
        assert all(len(table.versions()) <= compaction.MAX_VERSIONS for table in tables)


def test_a_failure_to_tidy_up_fails_no_commit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureStore.create(tmp_path / "store")
    with mock.patch.object(compaction, "tend", side_effect=StoreError("the disk is full")):
        commit(store, "r1", pictures(range(9)))
    assert "the disk is full" in caplog.text
    assert store.catalog.count() == store.labels.count() == 9
    assert FeatureStore(store.path).catalog.count() == 9


# --- penult gc


def aged(path: Path, seconds: float = 1000) -> Path:
    for one in [path, *path.rglob("*")]:
        os.utime(one, (time.time() - seconds,) * 2, follow_symlinks=False)
    return path


def test_gc_removes_what_nobody_needs_and_nothing_else(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "store")
    with few_rows_a_tier():
        for run in range(compaction.MAX_VERSIONS):
            commit(store, f"r{run}", pictures(range(2 * run, 2 * run + 2)))
    before = sorted(row["uri"] for row in store.catalog.read(["uri"]).to_pylist())
    path = store.path
    with store.lock():  # a run whose journal was lost with its staged fragments
        journal(store, "dead", [pictures(range(900, 910))]).remove()
    left = ["runs/20260101T000000000000Z-train-000000/head.npz", ".penult.json.1.tmp", "results/00/.00.json.1.tmp"]
    left += ["damaged/x/catalog.lance/data/1.lance", "finetune/key/checkpoint.npz", "backbones/.w.h5.1.tmp"]
    left += ["catalog.lance/.ledger.json.1.tmp", "labels.lance/_transactions/.tmp1ct588"]
    left += ["labels.lance/_versions/18446744073709551600.manifest#1"]
    left += [f"features/{store.resolve()}.lance/{name}" for name in (".canary.json.1.tmp", "_transactions/.tmp1")]
    left += ["runs/20260101T000000000000Z-train-000001/.head.json.1.tmp"]
    kept = ["runs/20260101T000000000000Z-train-000001/run.json", "backbones/w.h5", "results/00/00.json", "notes.txt"]
    for name in left + kept:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x" * 100)
    tables = [store.catalog, store.labels, *map(store.table, store.sets())]
    with store.lock():
        assert collect(path, tables, older_than=1000)["unfinished"] == 0
        assert all((path / name).exists() for name in left)
        for name in left:
            aged(path / name, 2000)
            aged((path / name).parent, 2000)
        freed = collect(path, tables, older_than=1000)
    assert not [name for name in left if (path / name).exists()]
    assert all((path / name).exists() for name in kept)
    assert freed["unfinished"] == 100 * (len(left) - 1) and freed["put aside"] == 100
    for table in tables:
        assert files(table) == named_files(table)
        assert len(table.versions()) <= KEPT_VERSIONS
    again = FeatureStore(path)
    assert sorted(row["uri"] for row in again.catalog.read(["uri"]).to_pylist()) == before


def test_gc_first_keeps_what_a_dead_run_had_finished(tmp_path: Path) -> None:
    """Its staged fragments are in no version yet: to anyone who does not read the journal they look like waste."""
    store = FeatureStore.create(tmp_path / "store")
    commit(store, "r1", pictures(range(9)))
    with store.lock():
        journal(store, "r2", [pictures(range(9, 19)), pictures(range(19, 29))], finished=1)
    gc(store.path, 0)
    again = FeatureStore(store.path)
    assert sorted(row["uri"] for row in again.catalog.read(["uri"]).to_pylist()) == sorted(map(str, range(19)))
    assert again.to_arrow().num_rows == len(again.dataset()) == 19  # every checksum holds
    assert verify(store.path) == [] and not list((store.path / "staging").iterdir())


def test_tidying_up_after_one_dead_run_leaves_the_next_ones_work(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "store")
    with store.lock(), mock.patch.object(compaction, "MAX_VERSIONS", 1):  # cleaned up after each
        for run in (1, 2, 3):
            journal(store, f"r{run}", [pictures(range(2 * run, 2 * run + 2))])
        assert store.recover().runs == ["r1", "r2", "r3"]
    assert FeatureStore(store.path).to_arrow().num_rows == 6
    assert verify(store.path) == []


def test_doctor_goes_back_to_a_version_that_gc_has_kept(tmp_path: Path) -> None:
    """Even where the newest manifest and the one before it are damaged."""
    store = FeatureStore.create(tmp_path / "store")
    for run in range(3):
        commit(store, f"r{run}", pictures(range(5 * run, 5 * run + 5)))
    gc(store.path, 0)
    before = sorted(row["uri"] for row in store.catalog.read(["uri"]).to_pylist())
    for table in (store.catalog, store.table(store.resolve())):
        newest = max(table.versions())
        assert list(table.versions()) == [newest - 2, newest - 1, newest]
        for version in (newest - 1, newest):
            (table.path / table.versions()[version]).write_bytes(bytes(99))
        done = {one.table: one for one in doctor(store.path).repairs}[table.path.relative_to(store.path).as_posix()]
        assert done.back_to == newest - 2 and done.lost == 0
    again = FeatureStore(store.path)
    assert sorted(row["uri"] for row in again.catalog.read(["uri"]).to_pylist()) == before
    assert again.to_arrow().num_rows == 15 and verify(store.path) == []


def test_gc_keeps_the_newest_outcomes(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "store")
    for number in range(6):
        path = store.path / "results" / f"{number % 2}0" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        os.utime(path, (1000 + number,) * 2)
    with mock.patch.object(collection, "MAX_RESULTS", 4):
        assert gc(store.path, 0)["kept outcomes"] == 4
    assert sorted(path.stem for path in store.path.glob("results/*/*.json")) == ["2", "3", "4", "5"]
    for number in range(6):
        folder = store.path / "results" / "heads" / str(number)
        folder.mkdir(parents=True)
        (folder / "head.json").write_text("{}")
        for path in (folder / "head.json", folder):
            os.utime(path, (1000 + number,) * 2)
    with mock.patch.object(collection, "MAX_HEADS", 4):
        assert gc(store.path, 0)["kept outcomes"] == 4
    assert sorted(path.name for path in store.path.glob("results/heads/*")) == ["2", "3", "4", "5"]


def test_what_gc_has_freed_and_what_is_not_old_enough(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "store")
    path, tables = store.path, [store.catalog, store.labels]
    made = {
        "runs/dead/a/x": 10,
        "runs/dead/y": 20,
        "runs/live/z": 30,
        "finetune/key/checkpoint.npz": 40,
        "damaged/now/x": 50,
        "damaged/file": 60,
        "backbones/.w.h5.1.tmp": 70,
    }
    for name, size in made.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x" * size)
    (path / "runs" / "dead" / "link").symlink_to("/nowhere")
    for name in ("runs", "finetune", "damaged", "backbones"):
        aged(path / name)
    os.utime(path / "runs" / "live" / "z", None)
    (outside := tmp_path / "outside").mkdir()
    (outside / "mine").touch()
    aged(outside)
    (path / "results").symlink_to(outside)
    with store.lock():
        freed = collect(path, tables, older_than=500)
    link = len("/nowhere")
    assert freed == {"old versions": 0, "unfinished": 30 + link + 40 + 70, "put aside": 110, "kept outcomes": 0}
    assert [one.name for one in (path / "runs").iterdir()] == ["live"] and (outside / "mine").exists()
    assert not list((path / "damaged").iterdir()) and not list((path / "finetune").iterdir())
    with store.lock():
        assert collect(path, tables, older_than=0)["unfinished"] == 30
    for run in range(5):
        add(store.labels, run)
    with store.lock():
        freed = collect(path, tables, older_than=0)
    assert freed["old versions"] > 0 and len(store.labels.versions()) == KEPT_VERSIONS


def test_gc_says_which_table_somebody_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureStore.create(tmp_path / "store")
    pin = Pin(store.labels)
    gc(store.path, 0)
    assert [f"{store.labels.path} is being read" in message for message in caplog.messages] == [True]
    caplog.clear()
    del pin
    gc(store.path, 0)
    assert not caplog.messages


def test_what_vanishes_while_gc_looks_is_left_to_its_run(tmp_path: Path) -> None:
    """A file that another process renames meanwhile is seen under neither name."""
    store = FeatureStore.create(tmp_path / "store")
    run = store.path / "runs" / "20260101T000000000000Z-train-000000"
    run.mkdir(parents=True)
    (run / "head.npz").write_bytes(b"x")
    (run / "half").touch()
    aged(run)
    real = LocalStorage.walk

    def walk(storage: LocalStorage, folder: Path) -> Iterator[tuple[Path, Stat]]:
        yield from [one for one in real(storage, folder) if one[0].name != "half"]
        if folder == run:
            (run / "half").rename(run / "head.json")

    began = time.time()
    with mock.patch.object(LocalStorage, "walk", walk), mock.patch.object(time, "time", lambda: began):
        assert gc(store.path, 0)["unfinished"] == 0
    assert (run / "head.npz").exists() and (run / "head.json").exists()


# --- anything in any order, against a dictionary


steps = st.tuples(st.sampled_from(STEPS), st.integers(0, 29))


@settings(max_examples=2)
@given(st.lists(steps, min_size=10, max_size=20))
def test_any_history_agrees_with_a_dictionary(steps: list[Step]) -> None:
    with TemporaryDirectory() as folder, few_rows_a_tier():
        model = Model(Path(folder) / "store")
        model.play(steps)
        model.finish()
