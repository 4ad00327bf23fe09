"""Tables: a commit lands once, whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from threading import Barrier
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lance.commit import CommitConflictError

from builders import Picture, label_rows
from featurestore.errors import StoreCorrupt, StoreError, StoreNotFound
from featurestore.schema import LABELS, LABELS_V1
from featurestore.storage import ledger, versions
from featurestore.storage import table as tables
from featurestore.storage.files import flush, sha256_of
from featurestore.storage.fragments import Replaced
from featurestore.storage.table import KEPT_VERSIONS, MAX_COMMIT_TRIES, Table

NAMES = LABELS.names


@pytest.fixture
def table(place: PurePath) -> Table:
    made = Table(place / "labels.lance")
    made.create(LABELS)
    return made


def rows(run_id: str, uris: range, label_set: str = "default") -> pa.RecordBatch:
    return label_rows(run_id, [Picture(str(i), None, label=run_id) for i in uris], label_set)


def stored(table: Table) -> Counter[tuple[str, str]]:
    read = table.read(["uri", "run_id"])
    return Counter(zip(*(read.column(name).to_pylist() for name in ("uri", "run_id")), strict=True))


def expected(**runs: range) -> Counter[tuple[str, str]]:
    return Counter((str(i), run_id) for run_id, uris in runs.items() for i in uris)


@pytest.mark.everywhere
def test_commit_is_idempotent(table: Table) -> None:
    staged = table.stage([rows("r1", range(5)), rows("r1", range(5, 9))])
    assert table.count() == 0 and not table.has_run("r1")
    before = table.version
    assert table.commit("r1", staged)
    after = table.state()
    assert after["version"] > before and after["rows"] == 9
    assert not table.commit("r1", staged)
    assert not table.commit("r1", table.stage([rows("r1", range(50, 60))]))
    assert table.state() == after
    assert table.has_run("r1") and stored(table) == expected(r1=range(9))


def test_what_lance_panics_at_is_a_sentence(tmp_path: Path) -> None:
    table = Table(tmp_path / "labels.lance", sealed=False)  # no digest is compared first
    table.create(LABELS)
    table.commit("r1", table.stage([rows("r1", range(60))]))
    (path,) = (table.path / "data").iterdir()
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 0x40]) + data[1:])
    with pytest.raises(StoreCorrupt, match=r"Got: the offset [^\n\"]* existing length; `penult doctor`"):
        table.read(NAMES)


@pytest.mark.everywhere
def test_rows_come_back_as_written(table: Table) -> None:
    batch = label_rows("r1", [Picture("é/'\"", None, None, "val", ""), Picture("", None, "x", None, "g")])
    table.commit("r1", table.stage([batch]))
    assert table.read(NAMES).to_pylist() == batch.to_pylist()
    assert table.schema.equals(LABELS)


def test_pinned_version_does_not_move(table: Table) -> None:
    table.commit("r1", table.stage([rows("r1", range(3))]))
    pinned = table.version
    table.commit("r2", table.stage([rows("r2", range(2))]), [Replaced(pa.array(["0", "1"]))])
    assert table.read(["uri"], version=pinned).num_rows == 3
    assert sum(batch.num_rows for batch in table.scan(["uri"], "run_id = 'r1'", version=pinned)) == 3
    assert stored(table) == expected(r2=range(2), r1=range(2, 3))


def together(count: int, work: object) -> list[bool]:
    barrier = Barrier(count)

    def start(number: int) -> bool:
        barrier.wait()
        return work(number)  # type: ignore[operator]

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


@pytest.mark.everywhere
def test_same_commit_from_six_threads_lands_once(table: Table) -> None:
    table.commit("r0", table.stage([rows("r0", range(4))]))
    staged = table.stage([rows("r1", range(10, 17))])
    landed = together(6, lambda _: table.commit("r1", staged))
    assert sorted(landed) == [False] * 5 + [True]
    assert stored(table) == expected(r0=range(4), r1=range(10, 17))


@pytest.mark.everywhere
def test_different_runs_from_six_threads_all_land(table: Table) -> None:
    def work(number: int) -> bool:
        run_id = f"r{number // 2}"  # each run is committed by two threads
        return table.commit(run_id, table.stage([rows(run_id, range(number // 2 * 10, number // 2 * 10 + 5))]))

    assert sum(together(6, work)) == 3
    assert stored(table) == expected(r0=range(5), r1=range(10, 15), r2=range(20, 25))


def test_what_another_writer_takes_back_meanwhile_is_not_missed(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lance removes the transaction of an attempt that lost, perhaps between a look at it and its flush."""
    lost, flushed = table.path / "_transactions" / "7-lost.txn", []

    def vanish_first(path: Path, **options: bool) -> None:
        if path == lost:
            path.unlink()
        flushed.append(path)
        flush(path, **options)

    monkeypatch.setattr(versions, "flush", vanish_first)
    lost.touch()
    assert table.commit("r1", table.stage([rows("r1", range(3))]))
    assert lost in flushed and stored(table) == expected(r1=range(3))


@pytest.mark.everywhere
def test_replaces_deletes_exactly_the_old_rows_in_one_version(table: Table) -> None:
    table.commit("r1", table.stage([rows("r1", range(10))]))
    table.commit("other", table.stage([rows("other", range(10), "second")]))
    before = table.version
    gone = pa.chunked_array([[str(i) for i in range(3, 6)], ["77"]])
    staged = table.stage([rows("r2", range(3, 8))])
    assert table.commit("r2", staged, [Replaced(gone, "label_set = 'default'")])
    kept = expected(r1=range(3), r2=range(3, 8), other=range(10)) + expected(r1=range(6, 10))
    assert stored(table) == kept
    assert table.version == before + 1
    assert not table.commit("r2", staged, [Replaced(gone, "label_set = 'default'")])
    assert stored(table) == kept


def test_replaces_every_row_of_a_fragment(table: Table) -> None:
    table.commit("r1", table.stage([rows("r1", range(4))]))
    table.commit("r2", table.stage([rows("r2", range(4))]), [Replaced(pa.array(list("0123")))])
    table.commit("r3", table.stage([rows("r3", range(1, 3))]), [Replaced(pa.array(list("12")))])
    assert stored(table) == expected(r3=range(1, 3)) + Counter({("0", "r2"): 1, ("3", "r2"): 1})


DAMAGE = {
    "an older one": lambda older, _newest: older,
    "a flipped bit": lambda _older, newest: newest[:-1] + bytes([newest[-1] ^ 1]),
    "nothing in it": lambda _older, _newest: b"",
    "gone": lambda _older, _newest: None,
}


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "checksums"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_rows_are_not_served_where_what_says_which_are_deleted_is_damaged(
    tmp_path: Path, sealed: bool, damage: str
) -> None:
    """Row 5 would come back, beside the one that took its place; no row's own checksum could tell."""
    table = Table(tmp_path / "labels.lance", sealed)
    table.create(LABELS)
    table.commit("r1", table.stage([rows("r1", range(10))]))
    table.commit("r2", table.stage([rows("r2", range(2))]), [Replaced(pa.array(list("01")))])
    (older,) = (name for piece in table.pieces() for name in piece.deletions)
    table.commit("r3", table.stage([rows("r3", range(5, 6))]), [Replaced(pa.array(["5"]))])
    (newest,) = (name for piece in table.pieces() for name in piece.deletions)
    staged, version = table.stage([rows("r4", range(20, 21))]), table.version
    spoilt = DAMAGE[damage]((table.path / older).read_bytes(), (table.path / newest).read_bytes())
    if spoilt is None:
        (table.path / newest).unlink()
    else:
        (table.path / newest).write_bytes(spoilt)
    asked = {
        "read": lambda: table.read(["uri"]),
        "scan": lambda: list(table.scan(["uri"])),
        "count": table.count,
        "count some": lambda: table.count("uri = '5'"),
        "has_run": lambda: table.has_run("r1"),
        "fragment_rows": lambda: list(table.fragment_rows([piece.id for piece in table.pieces()])),
        "commit": lambda: table.commit("r4", staged),
        "exchange": lambda: table.exchange(staged, Replaced(pa.array(["7"]))),
    }
    for name, ask in asked.items():
        with pytest.raises(StoreCorrupt, match=r"_deletions/.*`penult doctor`"):
            pytest.fail(f"{name} gave {ask()}")
    assert table.version == version


@settings(max_examples=25)
@given(runs=st.lists(st.sets(st.integers(0, 6), min_size=1), min_size=1, max_size=6))
def test_replacing_rows_is_a_dictionary_update(runs: list[set[int]]) -> None:
    """Whatever is replaced, whole fragments or parts, the newest row of each uri remains, once."""
    with TemporaryDirectory() as folder:
        table = Table(Path(folder) / "labels.lance")
        table.create(LABELS)
        model: dict[str, str] = {}
        for number, uris in enumerate(runs):
            run_id, names = f"r{number}", [str(uri) for uri in sorted(uris)]
            assert table.commit(run_id, table.stage([rows(run_id, sorted(uris))]), [Replaced(pa.array(names))])
            model |= dict.fromkeys(names, run_id)
            assert stored(table) == Counter(model.items())


def test_replacing_runs_from_six_threads_leave_each_row_once(table: Table) -> None:
    table.commit("r", table.stage([rows("r", range(4))]))
    own = {f"r{number}": 10 + number for number in range(3)}  # what says that the run was here, whoever came after it
    staged = {run_id: table.stage([rows(run_id, [*range(5), uri])]) for run_id, uri in own.items()}

    def work(number: int) -> bool:
        run_id = f"r{number // 2}"  # each run is committed by two threads
        return table.commit(run_id, staged[run_id], [Replaced(pa.array(list("01234")))])

    assert sum(together(6, work)) == 3
    left = stored(table)
    assert sorted(uri for uri, _ in left.elements()) == [*"01", "10", "11", "12", *"234"]
    assert len({run_id for uri, run_id in left if int(uri) < 10}) == 1


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("a bad batch"), OSError("a lost disk"), Interrupted("ctrl-c")])
def test_failing_iterator_raises_its_own_error(table: Table, error: BaseException) -> None:
    table.commit("r1", table.stage([rows("r1", range(3))]))
    before = table.state()

    def failing() -> Iterator[pa.RecordBatch]:
        yield rows("r2", range(3))
        raise error

    with pytest.raises(type(error)) as caught:
        table.stage(failing())
    assert caught.value is error
    assert table.state() == before
    table.commit("r2", table.stage([rows("r2", range(10, 12))]))
    assert stored(table) == expected(r1=range(3), r2=range(10, 12))


def test_staging_nothing_commits_nothing(table: Table) -> None:
    before = table.state()
    assert not table.commit("r1", table.stage([]), [Replaced(pa.array(["0"]))])
    assert not table.commit("r1", table.stage([rows("r1", range(0))]))
    assert table.state() == before


@pytest.mark.everywhere
def test_restage_keeps_the_chosen_rows(table: Table) -> None:
    [staged] = table.stage([rows("r1", range(6)), rows("r1", range(6, 11))])
    uris = [uri for (chunk,) in table.staged_columns(staged, ["uri"]) for uri in chunk.to_pylist()]
    assert uris == [str(i) for i in range(11)]
    keep = pa.array([int(uri) % 3 == 0 for uri in uris])
    again = table.restage(staged, keep)
    assert not any(map(table.staged_damage, again))
    table.commit("r1", again)
    assert stored(table) == expected(r1=range(0, 11, 3))


def data_file(table: Table) -> Path:
    [path] = (table.path / "data").iterdir()
    return path


@pytest.mark.everywhere
def test_intact_staged_files(table: Table) -> None:
    [staged] = table.stage([rows("r1", range(50))])
    assert table.staged_damage(staged, whole=True) is None


@pytest.mark.parametrize("damage", ["truncate", "grow", "empty", "remove"])
def test_damage_of_staged_files_is_noticed(table: Table, damage: str) -> None:
    [staged] = table.stage([rows("r1", range(50))])
    path = data_file(table)
    whole = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"truncate": whole[:-1], "grow": whole + b"\0", "empty": b""}[damage])
    assert path.name in (table.staged_damage(staged) or "")


def test_zeroed_staged_file_is_corrupt(table: Table) -> None:
    """Of the right size, but the disk lost its content."""
    [staged] = table.stage([rows("r1", range(50))])
    path = data_file(table)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert table.staged_damage(staged) is None
    assert path.name in (table.staged_damage(staged, whole=True) or "")
    with pytest.raises(StoreCorrupt, match=r"labels\.lance"):
        list(table.staged_columns(staged, ["uri"]))


def test_create_twice_and_with_another_schema(table: Table) -> None:
    table.commit("r1", table.stage([rows("r1", range(3))]))
    table.create(LABELS)
    assert table.count() == 3
    other_type = LABELS.set(1, pa.field("label", pa.int64()))
    for schema in (LABELS.remove(1), LABELS.append(pa.field("x", pa.int8())), other_type):
        with pytest.raises(StoreCorrupt, match="columns"):
            table.create(schema)
    table.check_schema(LABELS)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match=r"nothing\.lance"):
        Table(tmp_path / "nothing.lance").count()


@pytest.mark.parametrize("damage", [b"", b"\xff" * 300, b"\0" * 7])
def test_unreadable_manifest_is_corrupt(table: Table, damage: bytes) -> None:
    table.commit("r1", table.stage([rows("r1", range(3))]))
    newest(table).write_bytes(damage)
    with pytest.raises(StoreCorrupt, match=r"labels\.lance"):
        table.count()


def test_a_manifest_in_the_place_of_another_is_corrupt(table: Table, tmp_path: Path) -> None:
    """Lance opens it, and would find a table without rows."""
    table.commit("r1", table.stage([rows("r1", range(5))]))
    twin = Table(Path(shutil.copytree(table.path, tmp_path / "twin" / "labels.lance")))
    table.commit("r2", table.stage([rows("r2", range(3))]))
    twin.swap([piece.id for piece in twin.pieces()], [])
    newest(table).write_bytes(newest(twin).read_bytes())
    assert lance.dataset(str(table.path), version=3).count_rows() == 0
    for version in (None, 3):
        with pytest.raises(StoreCorrupt, match="sha256"):
            table.read(NAMES, version=version)
    assert table.read(NAMES, version=2).num_rows == 5
    for read in (table.state, table.count, table.pieces, lambda: table.schema):
        with pytest.raises(StoreCorrupt, match="sha256"):
            read()


def test_files_have_the_version_that_their_table_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version than Lance's own choice: a table may not mix two."""
    assert tables.DATA_STORAGE_VERSION == "2.2"
    monkeypatch.setattr(tables, "DATA_STORAGE_VERSION", "2.1")
    table = Table(tmp_path / "labels.lance")
    table.create(LABELS)
    monkeypatch.undo()
    table.commit("r1", table.stage([rows("r1", range(5))]))
    (fragment,) = lance.dataset(str(table.path)).get_fragments()
    assert [(file.file_major_version, file.file_minor_version) for file in fragment.metadata.files] == [(2, 1)]


def newest(table: Table) -> Path:
    return min((table.path / "_versions").glob("*.manifest"))  # names count down


def test_newest_manifest_is_the_smallest_name(table: Table) -> None:
    first = newest(table)
    table.commit("r1", table.stage([rows("r1", range(3))]))
    assert newest(table) < first


@pytest.mark.everywhere
def test_conditions_and_columns(table: Table) -> None:
    table.commit("r1", table.stage([rows("r1", range(20)), rows("r1", range(5), "second")]))
    assert table.count("label_set = 'second'") == 5
    read = table.read(["label_set", "uri"], "label_set = 'default'")
    assert read.schema.names == ["label_set", "uri"] and read.num_rows == 20
    assert pc.count_distinct(read.column("uri")).as_py() == 20
    batches = list(table.scan(["uri"], batch_rows=4))
    assert max(batch.num_rows for batch in batches) <= 4 and sum(batch.num_rows for batch in batches) == 25


# -- what the ledger, the disk and other writers have to do with it --------------------------------------------------


def files_of(table: Table) -> dict[str, str]:
    """Sha256 of all that Lance has written, by path; its hint is none of what the ledger knows."""
    folders = ("data", "_deletions", "_transactions", "_versions")
    paths = [path for name in folders for path in (table.path / name).glob("*") if path.suffix != ".json"]
    return {path.relative_to(table.path).as_posix(): sha256_of(path) for path in paths}


def test_the_ledger_knows_every_file(table: Table) -> None:
    assert ledger.read(table.path) == ledger.Ledger(1, 0, files_of(table))
    [staged] = table.stage([rows("r1", range(10))])
    told = json.loads(staged)
    assert told["sha256"] == {f"data/{data_file(table).name}": sha256_of(data_file(table))}
    table.commit("r1", [staged])
    table.commit("r2", table.stage([rows("r2", range(4))]), [Replaced(pa.array(list("0123")))])
    assert table.exchange([], Replaced(pa.array(["4", "5", "77"]))) == 2
    assert len(table.pieces()) == 2 and table.pieces()[0] == table.pieces(table.version)[0]
    known = ledger.read(table.path)
    assert (known.version, known.rows) == (table.version, 8) and known.files == files_of(table)
    assert len([name for name in known.files if name.startswith("_deletions/")]) == 2
    piece, other = table.pieces()
    assert (piece.physical_rows, piece.rows, len(piece.data), len(piece.deletions)) == (10, 4, 1, 1)
    assert (other.physical_rows, other.rows, other.deletions) == (4, 4, [])
    (table.path / "_transactions" / "x.tmp").touch()
    ledger.write(table.path, ledger.Ledger(1, 0, {}))
    table.note()
    assert ledger.read(table.path) == ledger.Ledger(
        known.version, 8, {name: sha for name, sha in known.files.items() if name in named(table)}
    )
    before = ledger.read(table.path)
    table.note()
    assert ledger.read(table.path) is before  # not written again


def named(table: Table) -> set[str]:
    """What a ledger begins with: every manifest and transaction, and what the latest version names."""
    pieces = [name for piece in table.pieces() for name in piece.data + piece.deletions]
    return {*pieces, *table.versions().values(), *(n for n in files_of(table) if n.startswith("_transactions/"))}


def test_what_cleanup_has_freed_is_what_is_gone(table: Table) -> None:
    for run in range(6):
        table.commit(f"r{run}", table.stage([rows(f"r{run}", range(3))]), [Replaced(pa.array(list("012")))])
    table.stage([rows("dead", range(50))])

    def size() -> int:
        return sum((table.path / name).stat().st_size for name in files_of(table))

    sizes = [size()]
    for staged_too in (False, True):
        freed = table.cleanup(staged_too)
        sizes.append(size())
        assert freed == sizes[-2] - sizes[-1] > 0
        assert len(table.versions()) == KEPT_VERSIONS and ledger.read(table.path).files.keys() <= files_of(table).keys()
    assert table.cleanup(staged_too=True) == 0 and stored(table) == expected(r5=range(3))


@pytest.mark.parametrize("how", ["commit", "exchange", "swap", "widen"])
def test_other_writers_that_are_always_faster(table: Table, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    table.commit("r1", table.stage([rows("r1", range(3))]))
    staged, before, tries = table.stage([rows("r2", range(2))]), table.state(), []
    monkeypatch.setattr(Table, "land", lambda *_: tries.append(1))  # None: it has not landed
    with pytest.raises(StoreError, match=r"Other writers keep changing|Another writer changes .*stop it, then run"):
        {
            "commit": lambda: table.commit("r2", staged),
            "exchange": lambda: table.exchange(staged, Replaced(pa.array(["7"]))),
            "swap": lambda: table.swap([0], staged),
            "widen": lambda: table.widen(LABELS.append(pa.field("more", pa.int8()))),
        }[how]()
    assert len(tries) == (MAX_COMMIT_TRIES if how == "commit" else 1) and table.state() == before
    for gone, new in (([0], []), ([], staged)):  # either is something to do
        with pytest.raises(StoreError, match="Another writer"):
            table.swap(gone, new)
        with pytest.raises(StoreError, match="Another writer"):
            table.exchange(new, Replaced(pa.array(["1" if gone else "7"])))
    tries.clear()
    assert table.exchange([], Replaced(pa.array(["7"]))) == 0  # nothing to do: no version
    table.swap([], [])
    table.widen(LABELS)
    assert not tries


def test_a_wider_table(tmp_path: Path) -> None:
    table = Table(tmp_path / "labels.lance")
    table.create(LABELS_V1)
    batch = label_rows("r1", [Picture(str(i), None, label="x") for i in range(3)]).select(LABELS_V1.names)
    table.commit("r1", table.stage([batch.cast(LABELS_V1)]))
    version, data = table.version, data_file(table).read_bytes()
    table.widen(LABELS)
    assert (table.version, table.columns(), table.columns(version)) == (version + 1, LABELS.names, LABELS_V1.names)
    assert table.read(["source", "label"]).to_pylist() == [{"source": None, "label": "x"}] * 3
    assert data_file(table).read_bytes() == data and ledger.read(table.path).version == version + 1
    table.widen(LABELS)
    assert table.version == version + 1


def test_versions_by_either_naming(table: Table) -> None:
    """Older Lance counts up; today's names count down from 2 ** 64 - 1, so that the newest is listed first."""
    for run in range(2):
        table.commit(f"r{run}", table.stage([rows(f"r{run}", range(1))]))
    assert table.versions() == {n: f"_versions/{2**64 - 1 - n:020}.manifest" for n in (1, 2, 3)}
    assert list(table.versions()) == [1, 2, 3]
    folder = table.path / "_versions"
    for name in ("x.manifest", "4.manifest.tmp", "-5.manifest", "12.manifest", "7.manifest#1"):
        (folder / name).touch()
    assert list(table.versions()) == [1, 2, 3, 12] and table.versions()[12] == "_versions/12.manifest"


def test_another_run_was_faster_to_create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, path = lance.write_dataset, tmp_path / "labels.lance"

    def slow(schema: pa.Schema) -> None:
        def write(*arguments: object, **options: object) -> None:
            real(schema.empty_table(), str(path), data_storage_version="2.2")
            raise OSError("Dataset already exists")

        monkeypatch.setattr(lance, "write_dataset", write)

    slow(LABELS)
    Table(path).create(LABELS)
    assert Table(path).count() == 0
    shutil.rmtree(path)
    slow(LABELS_V1)
    with pytest.raises(StoreCorrupt, match="columns"):
        Table(path).create(LABELS)
    shutil.rmtree(path)

    def full(*_: object, **__: object) -> None:
        raise OSError("LanceError(IO): No space left on device (os error 28), /src/x.rs:1")

    monkeypatch.setattr(lance, "write_dataset", full)
    with pytest.raises(StoreError, match=r"labels\.lance: No space left on device: make room there"):
        Table(path).create(LABELS)


@pytest.mark.parametrize("left", [0, 10])
def test_a_last_write_that_lance_overlooks(table: Table, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    real = tables.write_fragments

    def write(*arguments: object, **options: object) -> object:
        fragments = real(*arguments, **options)
        os.truncate(data_file(table), left)
        return fragments

    monkeypatch.setattr(tables, "write_fragments", write)
    with pytest.raises(StoreError, match=rf"Got: {left}: make room there, then run the same command again"):
        table.stage([rows("r1", range(9))])


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "checksums"])
@pytest.mark.parametrize("how", ["cut", "longer", "gone"])
def test_data_of_another_size_is_not_waited_for(tmp_path: Path, sealed: bool, how: str) -> None:
    table = Table(tmp_path / "labels.lance", sealed)
    table.create(LABELS)
    table.commit("r1", table.stage([rows("r1", range(9))]))
    size = data_file(table).stat().st_size
    path = data_file(table)
    path.unlink() if how == "gone" else os.truncate(path, {"cut": size - 1, "longer": size + 1}[how])
    got = {"cut": size - 1, "longer": size + 1, "gone": None}[how]
    for ask in (table.count, lambda: list(table.fragment_rows([0])), lambda: table.read(["uri"])):
        with pytest.raises(StoreCorrupt, match=rf"{path.name} of {size} bytes\. Got: {got}; `penult doctor`"):
            ask()
    assert list(table.fragment_rows([])) == []


def test_a_fragment_outside_is_no_fragment_of_a_table(table: Table) -> None:
    [staged] = table.stage([rows("r1", range(3))])
    told = json.loads(staged)
    assert table.staged_damage(json.dumps(told["fragment"])) is None  # older journals hold it bare
    for change in ({"path": "../x.lance"}, {"path": "/etc/passwd"}, {"base_id": 1}):
        files = [file | change for file in told["fragment"]["files"]]
        spoilt = json.dumps(told | {"fragment": told["fragment"] | {"files": files}})
        for ask in (table.staged_damage, lambda text: list(table.staged_columns(text, ["uri"]))):
            with pytest.raises(StoreCorrupt, match="data files inside the table"):
                ask(spoilt)


def test_a_large_hint_is_not_left_for_lance_to_read(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would read it whole, whatever its size."""
    hint, gone, real = table.path / "_versions" / "latest_version_hint.json", list[Path](), Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        gone.append(path)
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    for run, size in enumerate((4096, 4097)):
        hint.write_text(" " * size)
        assert table.commit(f"r{run}", table.stage([rows(f"r{run}", range(3))]))
        assert (hint in gone) == (size > 4096)
    assert table.count() == 6


def test_where_a_folder_cannot_be_locked_nothing_is_cleaned_up(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in range(5):
        table.commit(f"r{run}", table.stage([rows(f"r{run}", range(1))]))

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert table.count() == 5 and table.cleanup() is None and len(table.versions()) == 6
    with Table(table.path / "nothing.lance").lease():
        pass


def test_what_a_commit_has_written_is_flushed_and_nothing_older(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    table.commit("r1", table.stage([rows("r1", range(9))]))
    old = files_of(table)
    for name in old:
        os.utime(table.path / name, (1e9, 1e9))
    flushed: list[Path] = []
    for module in (tables, versions):
        monkeypatch.setattr(module, "flush", lambda path, **_: flushed.append(path))
    staged = table.stage([rows("r2", range(2))])
    new = [table.path / name for name in files_of(table).keys() - old.keys()]
    assert flushed == [*new, table.path / "data", table.path]
    flushed.clear()
    table.commit("r2", staged, [Replaced(pa.array(["0"]))])
    parts = {name: table.path / name for name in ("_deletions", "_transactions", "_versions")}
    written = {table.path / name for name in files_of(table).keys() - old.keys() if not name.startswith("data/")}
    assert {path.parent.name for path in written} == set(parts)
    assert written | set(parts.values()) <= set(flushed) and flushed[-1] == table.path
    assert not {table.path / name for name in old} & set(flushed)
    for path in written:  # a folder after its files
        assert flushed.index(path) < flushed.index(path.parent)
    flushed.clear()
    other = Table(table.path.with_name("other.lance"))
    other.create(LABELS)
    assert set(flushed) >= {other.path / name for name in files_of(other)} | {other.path, other.path.parent}
    assert list(table.stage([])) == []


def test_what_lance_says_without_the_places_in_its_source() -> None:
    for said, words in {
        'External error: "the file is odd", /build/x.rs:12:7': "the file is odd",
        "LanceError(IO): it failed, /build/x.rs:12:7, more": "LanceError(IO): it failed",
        'task 12 panicked with message "an offset"': "an offset",
        "Wrapped error: External error: it is odd": "it is odd",
        "first\nsecond": "first",
        "": "ValueError",
        "x" * 301: "x" * 300,
    }.items():
        assert versions._first_words(ValueError(said)) == words


# --- opened once


def test_a_version_is_opened_once_and_a_table_in_the_place_of_another_anew(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    real = versions.lance.dataset
    monkeypatch.setattr(
        versions.lance,
        "dataset",
        lambda uri, version, **options: opened.append(version) or real(uri, version=version, **options),
    )
    table.commit("r1", table.stage([rows("r1", range(3))]))
    before = len(opened)
    assert [table.count() for _ in range(3)] == [3] * 3 and stored(table) == expected(r1=range(3))
    assert len(opened) <= before + 1
    shutil.rmtree(table.path)
    table.create(LABELS)
    table.commit("r2", table.stage([rows("r2", range(9))]))
    assert stored(table) == expected(r2=range(9))


@pytest.mark.parametrize("refusals", [1, 2, 3])
def test_a_conflict_with_nobody_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int) -> None:
    """A server may say so where it had trouble of its own; after a few times it is believed."""
    table, real, said = Table(tmp_path / "labels.lance"), lance.LanceDataset.commit, list[int]()
    table.create(LABELS)
    table.commit("r1", table.stage([rows("r1", range(3))]))

    def commit(*arguments: Any, **options: Any) -> Any:
        said.append(1)
        if len(said) <= refusals:
            raise CommitConflictError("conflict")
        return real(*arguments, **options)

    monkeypatch.setattr(lance.LanceDataset, "commit", commit)
    staged = table.stage([rows("r2", range(1))])
    if refusals < 3:
        table.swap([piece.id for piece in table.pieces()], staged)
        assert stored(table) == Counter({("0", "r2"): 1}) and len(said) == refusals + 1
    else:
        with pytest.raises(StoreError, match="Another writer changes"):
            table.swap([piece.id for piece in table.pieces()], staged)
        assert stored(table) == Counter({(str(n), "r1"): 1 for n in range(3)})


def test_a_commit_after_somebody_elses_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, said = Table(tmp_path / "labels.lance"), list[int]()
    table.create(LABELS)
    before = table.version
    table.commit("r1", table.stage([rows("r1", range(3))]))
    monkeypatch.setattr(lance.LanceDataset, "commit", lambda *_, **__: said.append(1))
    with pytest.raises(StoreError, match="Another writer changes"):
        table.swap([], table.stage([rows("r2", range(1))]), before)
    assert not said


def test_a_file_that_is_lost_stays_in_the_ledger(tmp_path: Path) -> None:
    """A commit that reads no rows must not make the loss of some unseen."""
    table = Table(tmp_path / "labels.lance")
    table.create(LABELS)
    table.commit("r1", table.stage([rows("r1", range(3))]))
    [lost] = table.pieces()[0].data
    (tmp_path / "labels.lance" / lost).unlink()
    table.swap([], table.stage([rows("r2", range(1))]))
    assert lost in ledger.read(table.path).files
