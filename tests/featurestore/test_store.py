"""The store: opened only if intact, committed exactly once, read back as written."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path, PurePath

import numpy as np
import pyarrow as pa
import pytest

import builders
import featurestore
from builders import (
    SPEC,
    Picture,
    catalog_rows,
    commit,
    copy_to,
    feature_rows,
    journal,
    key,
    label_rows,
    pictures,
    vector,
)
from featurestore import header, labels, layout
from featurestore.errors import (
    FormatError,
    HeadError,
    SpecMismatch,
    StoreCorrupt,
    StoreError,
    StoreLocked,
    StoreNotFound,
    UsageError,
)
from featurestore.index import CHANGED, NEW, pair_digests, text_digests
from featurestore.journal import ShardEntry, Staging, pending
from featurestore.labels import ELSEWHERE, LISTED
from featurestore.reader import FEW_KEYS
from featurestore.runs import LIBRARIES, RunRecord, is_run_id, library_versions, new_run_id, time_of
from featurestore.schema import CATALOG, LABELS, features_batch, features_schema, keys_of, vectors_of
from featurestore.sets import EMBEDDED, FAILED_BEFORE, NOT_IN_SET
from featurestore.spec import Preprocessing
from featurestore.splits import TEST, TRAIN, VAL, Split
from featurestore.status import status
from featurestore.storage import compaction, ledger
from featurestore.storage.files import delete, listed, read_bytes, read_sealed, replacing, write_sealed, write_text
from featurestore.storage.fragments import Replaced
from featurestore.storage.table import Table
from featurestore.store import FeatureStore

NAME = SPEC.set_name


@pytest.fixture
def store(place: PurePath) -> FeatureStore:
    return FeatureStore.create(place)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = FeatureStore.create(tmp_path_factory.mktemp("filled") / "store")
    commit(store, "r1", pictures(range(60)))
    return Path(store.path)


@pytest.fixture
def filled(template: Path, place: PurePath) -> FeatureStore:
    copy_to(template, place)
    return FeatureStore(place)


def uris(table: Table) -> list[str]:
    return sorted(table.read(["uri"]).column("uri").to_pylist())


def contents(store: FeatureStore, name: str = NAME) -> list[bytes]:
    return sorted(keys_of(store.table(name).read(["sha256"]).column("sha256")).tolist())


def expected_rows(ids: np.ndarray, width: int = SPEC.width) -> np.ndarray:
    rows = np.stack([vector(bytes.fromhex(i), width) for i in ids])
    return rows.astype(np.float16).astype(np.float32)


# -- open ----------------------------------------------------------------------------------------------------------


def test_the_package_gives_the_store() -> None:
    assert featurestore.FeatureStore is FeatureStore
    with pytest.raises(AttributeError, match="module 'featurestore' has no attribute 'Table'"):
        featurestore.Table  # noqa: B018


def test_create_is_repeatable(tmp_path: Path) -> None:
    made = FeatureStore.create(tmp_path / "a" / "b")
    commit(made, "r1", pictures(range(3)))
    assert FeatureStore.create(tmp_path / "a" / "b").catalog.count() == 3
    assert FeatureStore(str(tmp_path / "a" / "b")).sets() == [NAME]


def test_create_uses_an_empty_folder_and_completes_a_half_made_store(tmp_path: Path) -> None:
    assert FeatureStore.create(tmp_path).sets() == []
    (tmp_path / "penult.json").unlink()
    assert FeatureStore.create(tmp_path).catalog.count() == 0


def test_create_refuses_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UsageError, match="not a penult store"):
        FeatureStore.create(tmp_path)
    with pytest.raises(UsageError, match="not a penult store"):
        FeatureStore.create(tmp_path / "holiday.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize(
    "name", ["a b", "a%20b", "a#b?c", "it's", "a:b", "a:/b", "S3:/x", "memory:x", "ü日本", "-x", "x//y/../z"]
)
def test_a_store_may_be_called_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    commit(FeatureStore.create(name), "r1", pictures(range(3)))
    assert len(FeatureStore(name).dataset().X) == 3


@pytest.mark.parametrize("name", [os.fsdecode(b"a\xff"), "a\nb", "ftp://bucket/store", "ab:/x", "a+1:/x"])
def test_or_nearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"a folder( here|,) or a place"):
        FeatureStore.create(name)
    assert not list(tmp_path.iterdir())


def test_no_store(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreNotFound, match="penult embed"):
            FeatureStore(path)


@pytest.mark.everywhere
def test_newer_format_is_refused(store: FeatureStore) -> None:
    header = store.path / "penult.json"
    write_sealed(header, read_sealed(header) | {"format_version": 3})
    with pytest.raises(FormatError, match="newer penult"):
        FeatureStore(store.path)


@pytest.mark.parametrize("schema", [CATALOG, LABELS], ids=["catalog", "labels"])
@pytest.mark.parametrize("change", ["a column less", "another type"])
def test_a_table_with_other_columns_is_corrupt(store: FeatureStore, schema: pa.Schema, change: str) -> None:
    other = schema.set(0, pa.field("uri", pa.large_string())) if change == "another type" else schema.remove(6)
    path = (store.catalog if schema is CATALOG else store.labels).path
    shutil.rmtree(path)
    Table(path).create(other)
    with pytest.raises(StoreCorrupt, match=f"Expected in {path}: columns"):
        FeatureStore(store.path)


def test_damaged_header_is_corrupt(store: FeatureStore) -> None:
    (store.path / "penult.json").write_bytes(b"\0" * 100)
    with pytest.raises(StoreCorrupt, match=r"penult\.json"):
        FeatureStore(store.path)


def ledger_path(store: FeatureStore) -> Path:
    return store.catalog.path / "ledger.json"


WRONG_HEADERS: list[dict[str, object]] = [
    *({"format_version": value} for value in ("2", True, None, 2.0)),
    *({"tables": value} for value in (None, [], 3, {"catalog.lance": 3}, {"catalog.lance": {}})),
    *({"tables": {"catalog.lance": {"rows": 0} | value}} for value in ({}, {"version": "1"}, {"version": True})),
    *({"tables": {"catalog.lance": {"version": 1} | value}} for value in ({}, {"rows": None}, {"rows": 0.0})),
]


@pytest.mark.parametrize("values", WRONG_HEADERS, ids=str)
def test_a_header_that_no_penult_writes(store: FeatureStore, values: dict[str, object]) -> None:
    path = store.path / layout.HEADER
    write_sealed(path, read_sealed(path) | values)
    with pytest.raises(StoreCorrupt, match=r"Expected in .*penult\.json: (format_version|version)"):
        FeatureStore(store.path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format_version": 2}', '{"tables": {}}', "3"])
def test_a_header_of_other_json(store: FeatureStore, text: str) -> None:
    (store.path / layout.HEADER).write_text(text)
    with pytest.raises(StoreCorrupt, match="format_version and tables"):
        FeatureStore(store.path)


def test_a_digit_of_the_format_version_that_flipped_is_no_newer_penult(store: FeatureStore) -> None:
    path = store.path / layout.HEADER
    for version, other in ((2, 3), (1, 9), (2, 0)):
        write_sealed(path, read_sealed(path) | {"format_version": version})
        path.write_text(path.read_text().replace(f'"format_version": {version}', f'"format_version": {other}'))
        with pytest.raises(StoreCorrupt, match=rf"format version {version}\. Got: {other};"):
            FeatureStore(store.path)
        path.write_text(path.read_text().replace(f'"format_version": {other}', f'"format_version": {version}'))
    for sealed in (True, False):  # what a newer penult seals it may seal otherwise
        told = read_sealed(path) | {"format_version": 3}
        write_sealed(path, told) if sealed else path.write_text(json.dumps(told))
        with pytest.raises(FormatError, match="has format version 3, this penult reads up to 2: install a newer"):
            FeatureStore(store.path)
        write_sealed(path, told | {"format_version": 2})


@pytest.mark.everywhere
def test_a_header_tells_tables_that_are_not_what_they_were(filled: FeatureStore) -> None:
    path = filled.path / layout.HEADER
    sound = read_sealed(path)
    now = sound["tables"]["catalog.lance"]
    assert now == {"version": filled.catalog.version, "rows": 60}

    def told(name: str, **values: int) -> None:
        write_sealed(path, sound | {"tables": sound["tables"] | {name: now | values}})

    for values in ({"version": now["version"] - 1, "rows": 7}, {}):  # another program may have written since
        told("catalog.lance", **values)
        FeatureStore(filled.path)
    for values in ({"rows": 59}, {"rows": 61}, {"version": now["version"] + 1}):
        told("catalog.lance", **values)
        with pytest.raises(StoreCorrupt, match=rf"version {now['version']} with 60 rows; `penult doctor`"):
            FeatureStore(filled.path)
    told("other.lance")
    with pytest.raises(StoreCorrupt, match=rf"a table .*other\.lance at version {now['version']}\. Got: none"):
        FeatureStore(filled.path)


@pytest.mark.everywhere
def test_what_a_header_remembers(filled: FeatureStore) -> None:
    told = header.read(filled.path)
    assert (told["last_set"], told["last_run"], told["format_version"]) == (NAME, "r1", 2)
    assert told["tables"] == {
        "catalog.lance": filled.catalog.state(),
        "labels.lance": filled.labels.state(),
        f"features/{NAME}.lance": filled.table(NAME).state(),
    }
    header.remember(filled.path, [], last_run="r0")  # an older one
    assert header.read(filled.path) == told
    header.remember(filled.path, [], last_set="other", last_run="r2")
    assert header.read(filled.path) == told | {"last_set": "other", "last_run": "r2"}
    filled.remember()
    assert header.read(filled.path)["tables"] == told["tables"]
    assert not filled.unknown_origin and "unknown_origin" not in told


WRONG_LEDGERS: list[tuple[dict[str, object], str]] = [
    ({"table": "labels.lance"}, "another table's"),
    ({"table": None}, "another table's"),
    *(({"version": value}, "something else") for value in (None, "1", True, 1.0)),
    *(({"rows": value}, "something else") for value in (None, "1", False)),
    *(({"files": value}, "something else") for value in (None, [], {"data/x": 3}, {"data/x": "a", "data/y": None})),
]


@pytest.mark.parametrize(("values", "words"), WRONG_LEDGERS, ids=str)
def test_a_ledger_that_no_penult_writes(store: FeatureStore, values: dict[str, object], words: str) -> None:
    write_sealed(ledger_path(store), read_sealed(ledger_path(store)) | values)
    with pytest.raises(StoreCorrupt, match=rf"ledger\.json.*{words}.*`penult doctor`"):
        store.catalog.count()


def test_a_ledger_without_a_seal_or_that_leads_nowhere(store: FeatureStore) -> None:
    told = read_sealed(ledger_path(store))
    ledger_path(store).write_text(json.dumps(told))
    with pytest.raises(StoreCorrupt, match="a seal in"):
        store.catalog.count()
    ledger_path(store).unlink()
    assert store.catalog.count() == 0 and ledger.read(store.catalog.path) == ledger.Ledger(0, 0, {})
    ledger_path(store).symlink_to("ledger.json")
    with pytest.raises(StoreCorrupt, match=r"a file at .*ledger\.json\. Got: Too many levels"):
        store.catalog.count()


def test_a_ledger_is_read_anew_when_it_was_written_anew(store: FeatureStore) -> None:
    path = store.catalog.path
    for number in range(3):
        ledger.write(path, ledger.Ledger(1, number, {"data/x": "0" * 64}))
        assert ledger.read(path).rows == number
    assert (ledger.damage(path / "data" / "x", "0" * 64, None) or "").endswith("Got: no such file")
    with pytest.raises(StoreCorrupt, match="no such file; `penult doctor`"):
        ledger.check(path, ["data/other", "data/x"], {})
    ledger.check(path, ["data/other"], {})  # a file that it does not know passes


def tables_of(store: FeatureStore) -> dict[str, Table]:
    return {"catalog": store.catalog, "labels": store.labels, "features": store.table(NAME)}


@pytest.mark.parametrize("name", ["catalog", "labels", "features"])
@pytest.mark.parametrize("loss", ["zeros", "lost", "everything"])
def test_lost_version_is_noticed(filled: FeatureStore, name: str, loss: str) -> None:
    table = tables_of(filled)[name]
    manifests = sorted((table.path / "_versions").glob("*.manifest"))
    if loss == "zeros":  # what a power cut leaves of a file that was not flushed
        manifests[0].write_bytes(b"\0" * manifests[0].stat().st_size)
    elif loss == "lost":
        manifests[0].unlink()
    else:
        table.path.rename(filled.path / "staging" / "away")
    with pytest.raises(StoreCorrupt, match=table.path.name.replace(".", r"\.")):
        FeatureStore(filled.path)


# -- lock ----------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from featurestore.store import FeatureStore
with FeatureStore(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_of_another_process_is_released_by_its_death(store: FeatureStore) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(store.path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(StoreLocked, match=f"process {holder.pid} ") as caught, store.lock():
                pass
            assert caught.value.exit_code == 75
        finally:
            holder.send_signal(signal.SIGKILL)
        holder.wait()
        with store.lock():
            pass


def test_lock_within_one_process(store: FeatureStore) -> None:
    with store.lock(), pytest.raises(StoreLocked, match=f"process {os.getpid()} "), FeatureStore(store.path).lock():
        pass
    with pytest.raises(ZeroDivisionError), store.lock():
        raise ZeroDivisionError
    with store.lock():
        pass


def test_who_holds_the_lock(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.path / "lock"
    with store.lock():
        said = path.read_text()
    since = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
    assert re.fullmatch(rf"process {os.getpid()} on {re.escape(os.uname().nodename)} since {since}", said)
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # a colleague with the same group may run the next job
    path.write_text("x" * 500)  # of somebody before; the shorter text takes its place whole
    with store.lock():
        assert len(path.read_text()) == len(said)
    for held, name in ((b"", "another run"), (b"\xff you \n", "\ufffd you"), (b"y" * 300, "y" * 200)):
        path.write_bytes(held)
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(StoreLocked, match=rf"store is locked by {name}: wait for it to end"), store.lock():
                pass

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.ftruncate", full)
    with store.lock(), pytest.raises(StoreLocked), store.lock():
        pass
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match=r"store/lock: Is a directory: look after that disk"), store.lock():
        pass


# -- sets ----------------------------------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_resolve(store: FeatureStore) -> None:
    with pytest.raises(StoreNotFound, match="no features yet"):
        store.resolve()
    other = replace(SPEC, layer="other")
    first, second = store.add_set(SPEC), store.add_set(other)
    assert store.sets() == sorted([first, second])
    assert store.resolve(first) == first
    assert store.resolve(first[:-1]) == first
    for wrong in ("fake", "", "nothing"):
        with pytest.raises(StoreNotFound, match="Expected: one feature set"):
            store.resolve(wrong)
    for spec, run_id in ((SPEC, "r1"), (other, "r2"), (SPEC, "r3")):
        time.sleep(0.01)
        commit(store, run_id, pictures([int(run_id[1])]), spec)
        assert store.resolve() == spec.set_name  # the last one written


def test_a_whole_name_wins_over_a_beginning(store: FeatureStore) -> None:
    store.add_set(SPEC)
    Table(store.path / "features" / "fake.lance").create(features_schema(SPEC))
    assert store.resolve("fake") == "fake"


def test_a_folder_that_may_not_be_listed_is_not_empty(filled: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    (filled.path / "runs").mkdir()

    def denied(path: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    for ask, folder in ((filled.sets, "features"), (filled.runs, "runs"), (filled.catalog.versions, "_versions")):
        with pytest.raises(StoreError, match=f"{folder}: Permission denied: give this user"):
            ask()


@pytest.mark.everywhere
def test_add_set_twice(filled: FeatureStore) -> None:
    before = filled.table(NAME).state()
    assert filled.add_set(SPEC) == NAME
    assert filled.table(NAME).state() == before
    assert filled.spec(NAME) == SPEC


def test_add_set_refuses_another_spec_of_that_name(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add_set(SPEC)
    other = replace(SPEC, preprocessing=Preprocessing(64, "lite"))
    monkeypatch.setattr(type(SPEC), "set_name", NAME)  # as if eight hex digits collided
    with pytest.raises(SpecMismatch, match="input_size=64"):
        store.add_set(other)


def test_require(filled: FeatureStore) -> None:
    filled.require(NAME, SPEC.fingerprint())
    with pytest.raises(SpecMismatch, match="Expected: features with fingerprint") as caught:
        filled.require(NAME, replace(SPEC, precision="bf16").fingerprint())
    assert SPEC.fingerprint()[:12] in str(caught.value)


def test_a_set_with_the_spec_of_another(filled: FeatureStore) -> None:
    other = filled.path / "features" / "other-00000000.lance"
    filled.table(NAME).path.rename(other)
    (other / layout.LEDGER).unlink()  # which names its table
    with pytest.raises(StoreCorrupt, match=rf"the features of other-00000000\. Got: those of {NAME}"):
        filled.spec("other-00000000")


# -- commit --------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """Stands for a kill: nothing catches it."""


def crash_at_commit(monkeypatch: pytest.MonkeyPatch, number: int, after: bool) -> None:
    """Die before or after the commit of the given number: 0 features, 1 labels, 2 catalog."""
    real, calls = Table.commit, iter(range(9))

    def commit(self: Table, *args: object, **options: object) -> bool:
        now = next(calls) == number
        if now and not after:
            raise Crash
        landed = real(self, *args, **options)  # type: ignore[arg-type]
        if now:
            raise Crash
        return landed

    monkeypatch.setattr(Table, "commit", commit)


CRASHES = {
    f"{when} {what}": lambda patch, n=number, a=after: crash_at_commit(patch, n, a)
    for number, what in enumerate(("features", "labels", "catalog"))
    for when, after in (("before", False), ("after", True))
} | {
    "before the ledger": lambda patch: patch.setattr(header, "remember", crash),
    "before removing the journal": lambda patch: patch.setattr(Staging, "remove", crash),
}


def crash(*_args: object) -> None:
    raise Crash


@pytest.mark.parametrize("where", CRASHES)
def test_commit_is_completed_after_a_crash_at_any_step(
    filled: FeatureStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The second run adds 40 files, changes 10 and repeats 5 known contents under new names."""
    changed = [Picture(str(i), b"new %d" % i, label="d", replaces=True) for i in range(10)]
    copies = [Picture(f"copy {i}", b"%d" % i, label="abc"[i % 3]) for i in range(20, 25)]
    rows = changed + pictures(range(60, 100)) + copies + [Picture("bad", None)]
    with filled.lock(), monkeypatch.context() as patch, pytest.raises(Crash):
        staging = journal(filled, "r2", [rows[:30], rows[30:]])
        CRASHES[where](patch)
        filled.commit(staging)
    for expected_ids in (["r2"], []):  # the second recovery has nothing to do
        again = FeatureStore(filled.path)
        with again.lock():
            assert again.recover().runs == expected_ids
        assert uris(again.catalog) == sorted([str(i) for i in range(100)] + [c.uri for c in copies] + ["bad"])
        assert uris(again.labels) == sorted([str(i) for i in range(100)] + [c.uri for c in copies])
        assert contents(again) == sorted([key(b"%d" % i) for i in range(100)] + [key(p.content) for p in changed])
        labels = {row["uri"]: row["label"] for row in again.label_rows().to_pylist()}
        assert [labels[str(i)] for i in range(10)] == ["d"] * 10
        found = {row["uri"]: row["sha256"] for row in again.catalog.read(["uri", "sha256"]).to_pylist()}
        assert found["3"] == key(b"new 3") and found["13"] == key(b"13") and found["bad"] is None
        assert pending(again.path) == []
    FeatureStore(filled.path)


@pytest.mark.everywhere
@pytest.mark.parametrize("table", ["catalog", "labels", "features"])
def test_a_note_that_a_killed_run_owes_is_made_by_the_next(filled: FeatureStore, table: str) -> None:
    """Lance has the version, the ledger not yet: until it has, nothing tells damage to it."""
    one = tables_of(filled)[table]
    current = ledger.read(one.path)
    ledger.write(one.path, ledger.Ledger(current.version - 1, 0, {}))
    with filled.lock():
        assert filled.recover().runs == []
    known = ledger.read(one.path)
    assert (known.version, known.rows) == (
        current.version,
        current.rows,
    ) and current.files.items() <= known.files.items()


@pytest.mark.everywhere
def test_a_journal_that_another_run_has_committed(filled: FeatureStore) -> None:
    with filled.lock():
        staging = journal(filled, "r2", [pictures([60])])
        staging.remove()
        with pytest.raises(StoreError, match=r"The journal .*r2 is gone: .*lock was not honoured.*store/lock alone"):
            filled.commit(staging)
    assert filled.catalog.count() == 60


@pytest.mark.everywhere
def test_only_finished_shards_are_recovered(store: FeatureStore) -> None:
    rows = pictures(range(30))
    journal(store, "r1", [rows[:10], rows[10:20], rows[20:]], finished=2)
    with store.lock():
        assert store.recover().runs == ["r1"]
    assert uris(store.catalog) == sorted(str(i) for i in range(20))
    assert len(contents(store)) == 20
    assert store.labels.count() == 30  # labels belong to the plan, not to a shard


def test_a_run_that_died_before_its_first_word_is_forgotten(filled: FeatureStore) -> None:
    (filled.path / "staging" / "r9" / "shards").mkdir(parents=True)
    with filled.lock():
        assert filled.recover().runs == []  # it had finished nothing
    assert pending(filled.path) == []


@pytest.mark.everywhere
def test_shards_with_the_same_content_embed_it_once(store: FeatureStore) -> None:
    """Two workers may meet the same bytes at the same time, in one run or in the next."""
    one = [Picture("a0", b"same"), Picture("a1", b"first")]
    two = [Picture("b0", b"same"), Picture("b1", b"second"), Picture("b2", b"same")]
    three = [Picture("c0", b"same")]
    with store.lock():
        store.commit(journal(store, "r1", [one, two, three]))
        store.commit(journal(store, "r2", [[Picture("d0", b"second"), Picture("d1", b"third")]]))
    assert contents(store) == sorted(map(key, (b"same", b"first", b"second", b"third")))
    assert uris(store.catalog) == ["a0", "a1", "b0", "b1", "b2", "c0", "d0", "d1"]
    assert store.to_arrow().num_rows == 4  # every checksum still holds


@pytest.mark.everywhere
def test_catalog_rows_without_features_are_dropped(store: FeatureStore) -> None:
    """A shard took a content for embedded by another shard, which then died."""
    rows = [Picture("0", b"0"), Picture("gone", b"never embedded"), Picture("bad", None)]
    with store.lock():
        staging = journal(store, "r1", [rows])
        entry = read_sealed(staging.folder / "shards" / "0.json")
        table = store.table(NAME)
        entry["fragments"] = table.restage(entry["fragments"][0], pa.array([True, False]))
        write_sealed(staging.folder / "shards" / "0.json", entry)
        store.commit(staging)
    assert uris(store.catalog) == ["0", "bad"]
    assert contents(store) == [key(b"0")]


def test_a_shard_whose_fragment_is_damaged_is_left_to_the_next_run(
    filled: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    before = {name: table.state() for name, table in tables_of(filled).items() if name != "labels"}
    with filled.lock():
        journal(filled, "r2", [pictures(range(60, 70))])
        newest = max((filled.table(NAME).path / "data").iterdir(), key=lambda p: p.stat().st_mtime_ns)
        damaged = bytearray(newest.read_bytes())
        damaged[50] ^= 1
        newest.write_bytes(damaged)
        assert filled.recover().runs == ["r2"] and newest.name in caplog.text
        assert {name: table.state() for name, table in tables_of(filled).items() if name != "labels"} == before
        filled.commit(journal(filled, "r3", [pictures(range(60, 70))]))
    assert filled.catalog.count() == filled.table(NAME).count() == before["catalog"]["rows"] + 10


def test_recovery_says_what_was_damaged(filled: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    with filled.lock():
        staging = journal(filled, "r2", [pictures([60]), pictures([61])])
        (staging.folder / "shards" / "0.json").write_bytes(b"x")
        assert filled.recover().runs == ["r2"]
    assert [
        f"{path} is damaged: what it stands for is embedded anew." for path in [staging.folder / "shards/0.json"]
    ] == (caplog.messages)
    assert uris(filled.catalog) == sorted([*map(str, range(60)), "61"]) and filled.labels.count() == 62


@pytest.mark.everywhere
def test_first_to_finish_a_shard_wins(store: FeatureStore) -> None:
    staging = journal(store, "r1", [pictures(range(4))])
    won = staging.entry(0)
    assert won is not None
    late = replace(won, rows_file="0.late.arrow", embedded=77)
    assert staging.finish(late, []) == won
    assert [path.name for path in listed(staging.folder / "shards")] == ["0.json", "0.rows.arrow"]
    assert list(staging.entries()) == [won]


# -- labels --------------------------------------------------------------------------------------------------------


def relabel(store: FeatureStore, run_id: str, rows: list[Picture], label_set: str = "default") -> None:
    with store.lock():
        store.commit_labels(run_id, [label_rows(run_id, rows, label_set)])


@pytest.mark.everywhere
def test_relabelling_replaces_rows_of_its_label_set(filled: FeatureStore) -> None:
    relabel(filled, "r2", [Picture(str(i), None, "z") for i in range(5)], "second")
    relabel(filled, "r3", [Picture(str(i), None, "x") for i in range(3)])
    assert filled.labels.count() == 65
    assert sorted(filled.dataset().y) == sorted([*"xxx", *("abc"[i % 3] for i in range(3, 60))])
    assert set(filled.dataset(label_set="second").y) == {"z"}
    assert len(filled.label_rows("second")) == 5
    FeatureStore(filled.path)


def test_no_labels_make_no_version(filled: FeatureStore) -> None:
    before = filled.labels.state()
    with filled.lock():
        filled.commit_labels("r2", [])
    assert filled.labels.state() == before


@pytest.mark.parametrize("name", ["", "a b", "x' OR 'a' = 'a", "a" * 65, "é/"])
def test_label_set_names(filled: FeatureStore, name: str) -> None:
    with pytest.raises(UsageError, match="label set"):
        filled.dataset(label_set=name)


def test_how_many_images_a_label_set_speaks_of(filled: FeatureStore) -> None:
    assert filled.count_labels("default") == 60 and filled.count_labels("other") == 0
    relabel(filled, "r2", [Picture("0", None), Picture("1", None, None, VAL), Picture("2", None, None, None, "g")])
    assert filled.count_labels("default") == 59  # nothing is said of one of them any more
    old = filled.labels.version
    with filled.lock():
        filled.commit_labels("r3", [labels.statements("012", [("x", None, None)] * 3, "default", "/a", "r3")])
    assert filled.count_labels("default") == 60 and filled.count_labels("default", old) == 59
    with filled.lock():
        filled.commit_labels(
            "r4", [labels.removals(filled.labels.read(LABELS.names, "source = '/a'").to_batches()[0], "r4")]
        )
    assert filled.removed_uris().to_pylist() == [] and filled.count_labels("default") == 59
    assert filled.label_rows("default", old).num_rows == 60


def test_readers_see_the_last_whole_commit(filled: FeatureStore) -> None:
    """Another is under way: of the tables, one has its rows and one not yet."""
    versions = {table.path.name: table.version for table in (filled.catalog, filled.labels)}
    staged = filled.labels.stage([label_rows("r2", [Picture("0", None, "new")])])
    filled.labels.commit("r2", staged, [Replaced(pa.array(["0"]))])
    with filled.whole() as at:
        assert at == versions and filled.labels.version == versions["labels.lance"] + 1
        assert filled.labels.cleanup() is filled.catalog.cleanup() is None  # somebody reads
    assert "new" not in filled.dataset().y and filled.labels.cleanup() is not None
    with filled.lock():
        filled.remember()
    assert "new" in filled.dataset().y
    told = read_sealed(filled.path / layout.HEADER)
    told["tables"]["labels.lance"]["version"] = 99  # cleaned up by another tool, say: the latest stands in its place
    write_sealed(filled.path / layout.HEADER, told)
    with filled.whole() as at:
        assert at == {"catalog.lance": versions["catalog.lance"]}


def test_an_older_store_is_brought_up_once(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.path / layout.HEADER
    before = path.read_bytes()
    header.bring_up(store.path)
    assert path.read_bytes() == before
    told = read_sealed(path)
    write_sealed(path, told | {"format_version": 1})
    assert store.unknown_origin
    header.bring_up(store.path)
    assert read_sealed(path) == told | {"unknown_origin": True} and store.unknown_origin
    assert told.keys() == {"format_version", "created", "tables"} and (told["format_version"], told["tables"]) == (
        2,
        {},
    )


# -- what is known -------------------------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_known_files(filled: FeatureStore) -> None:
    other = replace(SPEC, layer="other")
    commit(filled, "r2", [*pictures([70]), Picture("bad", None)], other)

    def ask(name: str, *files: tuple[str, int, int]) -> list[int]:
        asked, sizes, mtimes = zip(*files, strict=True)
        return filled.known_files(name).lookup(text_digests(asked), pair_digests(sizes, mtimes)).tolist()  # type: ignore[arg-type]

    files = [("3", 1, 1), ("70", 1, 1), ("bad", 1, 1), ("3", 2, 1), ("3", 1, 2), ("new", 1, 1)]
    assert ask(NAME, *files) == [EMBEDDED, NOT_IN_SET, FAILED_BEFORE, CHANGED, CHANGED, NEW]
    assert ask(other.set_name, *files) == [NOT_IN_SET, EMBEDDED, FAILED_BEFORE, CHANGED, CHANGED, NEW]


@pytest.mark.everywhere
def test_what_a_source_listed(filled: FeatureStore) -> None:
    def listed(run_id: str, label_set: str, **said: tuple[str | None, str | None, str | None]) -> None:
        with filled.lock():
            filled.commit_labels(run_id, [labels.statements(said, said.values(), label_set, "file:///s", run_id)])

    listed("r2", "default", u0=("a", None, None), u1=("a", "test", "g"), u2=("b", None, None))
    listed("r3", "other", u0=("c", None, None), u9=("c", None, None))
    with filled.lock():
        gone = pa.RecordBatch.from_pydict({"uri": ["u2"], "label_set": ["default"], "source": ["file:///s"]})
        filled.commit_labels("r4", [labels.removals(gone, "r4")])
    known, names = filled.membership("file:///s", "default")
    asked = [("u0", "a", None, None), ("u1", "a", "test", None), ("u2", None, None, None), ("u5", None, None, None)]
    keys = text_digests([row[0] for row in asked])
    assert known.count(LISTED, ELSEWHERE) == 3  # u0, u1 and u9
    states = known.lookup(keys, labels.said_digests([row[1:] for row in asked], names))
    assert states.tolist() == [LISTED, CHANGED, CHANGED, NEW]
    old = [names.get(labels.label_digest(value)) for value in known.values(keys)]
    assert old == ["a", "a", None, None] and labels.label_digest(known.values(keys)[2]) not in names
    assert known.unseen(LISTED, ELSEWHERE).tolist() == text_digests(["u9"]).tolist()
    assert filled.removed_uris().to_pylist() == ["u2"]


# -- datasets ------------------------------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_dataset_is_what_was_written(filled: FeatureStore) -> None:
    data = filled.dataset()
    assert (data.feature_set, data.fingerprint, data.excluded) == (NAME, SPEC.fingerprint(), {})
    assert data.X.dtype == np.float32 and data.X.shape == (60, SPEC.width)
    assert data.ids.tolist() == sorted(key(b"%d" % i).hex() for i in range(60))
    assert np.array_equal(data.X, expected_rows(data.ids))
    assert [data.ids[k] for k in range(60)] == [key(uri.encode()).hex() for uri in data.uris]
    assert data.y.tolist() == ["abc"[int(uri) % 3] for uri in data.uris]


@pytest.mark.everywhere
def test_features_of_a_split(filled: FeatureStore) -> None:
    parts = {split: filled.features(NAME, split) for split in (TRAIN, VAL, TEST)}
    X, y, ids = filled.features()
    assert sum(len(part[0]) for part in parts.values()) == len(X) == 60
    data = filled.dataset()
    assert np.array_equal(X, data.X) and np.array_equal(y, data.y) and np.array_equal(ids, data.ids)
    for split, (part_X, part_y, part_ids) in parts.items():
        assert np.array_equal(part_X, expected_rows(part_ids))
        assert part_y.tolist() == data.y[data.splits == split].tolist()
        assert part_ids.tolist() == data.ids[data.splits == split].tolist()
    assert filled.features(NAME, "train")[0].flags.owndata


def test_float32_sets_are_exact(store: FeatureStore) -> None:
    spec = replace(SPEC, dtype="float32", width=7)
    commit(store, "r1", pictures(range(20)), spec)
    X, _, ids = store.features()
    assert np.array_equal(X, np.stack([vector(bytes.fromhex(i), 7) for i in ids]))


def test_digests_with_trailing_zeros_are_found(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:

    real = builders.key
    monkeypatch.setattr(builders, "key", lambda content: real(content)[: 32 - len(content)] + b"\0" * len(content))
    rows = [Picture(str(n), b"x" * n, "ab"[n % 2]) for n in range(1, 32)]
    commit(store, "r1", rows)
    data = store.dataset()
    assert data.ids.tolist() == sorted(builders.key(p.content).hex() for p in rows)
    assert np.array_equal(data.X, expected_rows(data.ids))


def test_newest_label_wins(store: FeatureStore) -> None:
    commit(store, "r1", [Picture("old/0", b"0", "old"), Picture("1", b"1", "one")])
    commit(store, "r2", [Picture("new/0", b"0", "new")])  # the file was moved to another folder
    data = store.dataset()
    assert dict(zip(data.uris, data.y, strict=True)) == {"new/0": "new", "1": "one"}
    assert data.excluded == {}
    assert status(store)["differing_labels"]["default"] == {
        "contents": 1, "ambiguous": 0, "examples": [key(b"0").hex()],
    }  # fmt: skip


def test_copies_labelled_differently_by_one_run_are_ambiguous(store: FeatureStore) -> None:
    commit(store, "r0", [Picture("z", b"both", "cat"), Picture("y", b"same", "cat")])
    commit(
        store,
        "r1",
        [
            Picture("a", b"both", "cat"),
            Picture("b", b"both", "dog"),
            Picture("c", b"same", "cat"),
            Picture("d", b"same", "cat"),
        ],
    )
    data = store.dataset()
    assert data.ids.tolist() == [key(b"same").hex()] and data.y.tolist() == ["cat"]
    assert data.excluded == {"ambiguous label": 1}
    assert status(store)["differing_labels"]["default"] == {
        "contents": 1, "ambiguous": 1, "examples": [key(b"both").hex()],
    }  # fmt: skip
    relabel(store, "r2", [Picture("a", None, "dog")])  # one newer word settles it
    assert store.dataset().excluded == {} and sorted(store.dataset().y) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("named", "strongest"),
    [
        ([TRAIN, VAL], VAL),
        ([VAL, TRAIN, TEST], TEST),
        ([None, TRAIN], TRAIN),
        ([None, VAL], VAL),
        ([TEST, TRAIN], TEST),
    ],
)
def test_strongest_split_of_copies_wins(store: FeatureStore, named: list[str | None], strongest: str) -> None:
    copies = [Picture(f"copy{i}", b"same", "a", split) for i, split in enumerate(named)]
    commit(store, "r1", [*copies, Picture("unnamed", b"other", "b")])
    data = store.dataset()
    assert data.splits[data.ids == key(b"same").hex()].tolist() == [strongest]


def test_groups_stay_together(store: FeatureStore) -> None:
    rows = [Picture(str(i), b"%d" % i, "ab"[i % 2], group=f"g{i // 5}") for i in range(300)]
    commit(store, "r1", rows)
    data = store.dataset()
    group = [int(uri) // 5 for uri in data.uris]
    assert len(set(zip(group, data.splits.tolist(), strict=True))) == 60
    assert set(data.splits) == {TRAIN, VAL, TEST}


def test_adding_pictures_moves_nobody(filled: FeatureStore) -> None:
    before = filled.dataset()
    commit(filled, "r2", pictures(range(60, 120)))
    after = filled.dataset()
    assert len(after) == 120
    assert after.splits[np.isin(after.ids, before.ids)].tolist() == before.splits.tolist()
    other_seed = filled.dataset(split=Split(seed=1))
    assert other_seed.splits.tolist() != after.splits.tolist()
    assert set(filled.dataset(split=Split(0, 0)).splits) == {TRAIN}


def test_labels_without_features_are_counted(filled: FeatureStore) -> None:
    other = replace(SPEC, layer="other")
    commit(filled, "r2", [*pictures(range(60, 64)), Picture("unlabelled", b"u"), Picture("bad", None, "a")], other)
    assert len(filled.dataset(NAME)) == 60
    assert filled.dataset(NAME).excluded == {"no features in this set": 4}
    data = filled.dataset(other.set_name)
    assert len(data) == 4 and data.excluded == {"no features in this set": 60}
    assert np.array_equal(data.X, expected_rows(data.ids))


def test_no_labels_is_a_head_error(store: FeatureStore) -> None:
    commit(store, "r1", [Picture("0", b"0"), Picture("1", b"1", split=TRAIN)])
    for label_set in ("default", "other"):
        with pytest.raises(HeadError, match="penult label"):
            store.dataset(label_set=label_set)
    with pytest.raises(StoreNotFound):
        store.dataset("nothing")


@pytest.mark.parametrize("asked", [0, 1, 7, FEW_KEYS, FEW_KEYS + 1, 2 * FEW_KEYS])
def test_vectors_of_few_and_many_keys(store: FeatureStore, asked: int) -> None:
    """Every second key asked for is in the set; the set holds others too."""
    commit(store, "r1", pictures(range(2 * FEW_KEYS)))
    there = [key(b"%d" % i) for i in range(asked)]
    missing = [key(b"missing %d" % i) for i in range(asked)]
    keys = np.sort(np.array((there + missing)[::2], "S32")) if asked else np.empty(0, "S32")
    X, found = store.vectors(NAME, keys)
    assert X.shape == (len(keys), SPEC.width) and X.dtype == np.float32
    assert found.tolist() == np.isin(keys, np.array(there, "S32")).tolist()
    assert not X[~found].any()
    if found.any():
        assert np.array_equal(X[found], expected_rows([k.ljust(32, b"\0").hex() for k in keys[found].tolist()]))


# -- plain access --------------------------------------------------------------------------------------------------


def test_arrow_and_batches_agree(filled: FeatureStore) -> None:
    commit(filled, "r2", pictures(range(60, 75)))
    table = filled.to_arrow()
    assert table.column_names == ["sha256", "view", "vector", "checksum"] and table.num_rows == 75
    assert table.schema.field("vector").type == pa.list_(pa.float16(), SPEC.width)
    batches = list(filled.batches(NAME, batch_rows=16))
    assert max(batch.num_rows for batch in batches) <= 16
    streamed = {
        k: v for b in batches for k, v in zip(keys_of(b.column(0)).tolist(), vectors_of(b.column(2)), strict=True)
    }
    assert len(streamed) == 75
    for row in table.to_pylist():
        assert np.array_equal(streamed[row["sha256"].rstrip(b"\0")], np.array(row["vector"], np.float16))
        assert np.array_equal(vector(row["sha256"]).astype(np.float16), np.array(row["vector"], np.float16))


@pytest.mark.everywhere
def test_empty_set_reads_as_empty(store: FeatureStore) -> None:
    store.add_set(SPEC)
    assert store.to_arrow().num_rows == 0
    assert len(store.content_keys(NAME)) == 0


def test_plain_lancedb_reads_the_same(filled: FeatureStore) -> None:
    import lancedb

    table = lancedb.connect(filled.path / "features").open_table(NAME)
    read = {row["sha256"].hex(): row["vector"] for row in table.to_arrow().to_pylist()}
    X, _, ids = filled.features()
    assert sorted(read) == ids.tolist()
    assert np.array_equal(np.array([read[i] for i in ids], np.float32), X)
    database = lancedb.connect(filled.path)
    assert {"catalog", "labels"} <= set(database.list_tables().tables)
    assert database.open_table("catalog").count_rows() == database.open_table("labels").count_rows() == 60


# -- damage --------------------------------------------------------------------------------------------------------


def data_files(table: Table) -> list[Path]:
    return listed(table.path / "data")  # type: ignore[return-value]


def test_flipped_bit_in_a_vector_names_the_image(filled: FeatureStore) -> None:
    [path] = data_files(filled.table(NAME))
    raw = path.read_bytes()
    victim = key(b"17")
    at = raw.index(vector(victim).astype(np.float16).tobytes())
    for offset in (0, 1, 2 * SPEC.width - 1):
        damaged = bytearray(raw)
        damaged[at + offset] ^= 0x10
        path.write_bytes(damaged)
        for read in (filled.to_arrow, filled.dataset, lambda: filled.vectors(NAME, np.array([victim], "S32"))):
            with pytest.raises(StoreCorrupt, match=victim.hex()):
                read()
    path.write_bytes(raw)
    assert len(filled.dataset()) == 60


def test_swapped_vectors_are_noticed(filled: FeatureStore) -> None:
    [path] = data_files(filled.table(NAME))
    raw = path.read_bytes()
    one, two = (vector(key(c)).astype(np.float16).tobytes() for c in (b"1", b"2"))
    path.write_bytes(raw.replace(one, b"?" * len(one)).replace(two, one).replace(b"?" * len(one), two))
    with pytest.raises(StoreCorrupt, match="wrong checksum"):
        filled.to_arrow()


def test_any_flipped_bit_is_an_error_or_harmless(filled: FeatureStore) -> None:
    """Anywhere in the file, Lance's own metadata too: right numbers or StoreCorrupt, never wrong numbers."""
    [path] = data_files(filled.table(NAME))
    raw, intact = path.read_bytes(), filled.to_arrow()
    outcomes: Counter[str] = Counter()
    for bit in np.random.default_rng(0).choice(8 * len(raw), 150, replace=False).tolist():
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert FeatureStore(filled.path).to_arrow().equals(intact)
            outcomes["harmless"] += 1
        except StoreCorrupt:
            outcomes["noticed"] += 1
    assert outcomes["noticed"] > 50


@pytest.mark.everywhere
def test_lost_data_file_is_corrupt(filled: FeatureStore) -> None:
    for table, read in ((filled.table(NAME), filled.to_arrow), (filled.labels, filled.label_rows)):
        [path] = data_files(table)
        raw = read_bytes(path, 2**20)
        delete(path)
        with pytest.raises(StoreCorrupt, match=table.path.name):
            read()
        for data in (raw[: len(raw) // 2], raw):
            with replacing(path) as temporary:
                temporary.write_bytes(data)
            if data != raw:
                with pytest.raises(StoreCorrupt, match=table.path.name):
                    read()


# -- status and runs -----------------------------------------------------------------------------------------------


@pytest.mark.everywhere
def test_status_counts(filled: FeatureStore) -> None:
    other = replace(SPEC, layer="other", dtype="float32")
    extra = [Picture("copy", b"0", "a"), Picture("bad", None), Picture("worse", None)]
    commit(filled, "r2", [*pictures(range(60, 90)), *extra], other)
    relabel(filled, "r3", [Picture("0", None, "q")], "second")
    record = RunRecord("r2", "embed", "2026-01-01T00:00:00+00:00", {"a": 1}, {"b": [None]}, {"python": "3"})
    record.write(filled.run_folder("r2"))
    found = status(filled)
    assert found["catalog"] == {"ok": 91, "failed": 2, "contents": 90, "removed": 0}
    assert found["failures"] == {"empty": 2}
    assert found["labels"] == {"default": 91, "second": 1}
    sets = {one["name"]: one for one in found["sets"]}
    assert {name: (one["rows"], round(one["coverage"], 3)) for name, one in sets.items()} == {
        NAME: (60, 0.667), other.set_name: (31, 0.344),
    }  # fmt: skip
    one = sets[other.set_name]
    assert (one["fingerprint"], one["backbone"], one["dtype"], one["width"], one["layer"]) == (
        other.fingerprint(), "fake", "float32", 8, "other",
    )  # fmt: skip
    assert found["runs"] == {
        "count": 1,
        "last": [{"run_id": "r2", "kind": "embed", "started": "2026-01-01T00:00:00+00:00"}],
    }
    assert found["bytes"] > sum(one["bytes"] for one in sets.values()) > 0
    json.dumps(found)


def test_status_of_an_empty_store(store: FeatureStore) -> None:
    found = status(store)
    assert (found["sets"], found["failures"], found["labels"]) == ([], {}, {})
    assert found["catalog"] == {"ok": 0, "failed": 0, "contents": 0, "removed": 0}


def test_ids_are_behind_those_of_all_runs(store: FeatureStore) -> None:
    late, later = (f"{year}0101T000000000000Z-embed-aaaaaa" for year in (2990, 2991))
    first = store.new_run_id("train")
    assert re.fullmatch(r"\d{8}T\d{12}Z-train-[0-9a-f]{6}", first) and first < late
    assert abs((time_of(first) - datetime.now(UTC)).total_seconds()) < 60  # type: ignore[operator]
    assert new_run_id("x", after=late).startswith("29900101T000000000001Z-x-")
    assert new_run_id("x", after="no id") < late and new_run_id("x", after=first) > first
    for place in ("runs", "staging"):
        (store.path / place / late).mkdir(parents=True)
        assert store.new_run_id("train").startswith("29900101T000000000001Z-train-")
        (store.path / place / late).rename(store.path / place / "no id")
    header.remember(store.path, [], last_run=later)
    assert store.new_run_id("train").startswith("29910101T000000000001Z-train-")


def test_a_store_of_an_older_penult_has_its_newest_run_in_its_labels(store: FeatureStore) -> None:
    path = store.path / layout.HEADER
    commit(store, "19900101T000000000000Z-embed-aaaaaa", pictures(range(2)))
    relabel(store, "29900101T000000000000Z-label-aaaaaa", [Picture("0", None, "x")])
    relabel(store, "29800101T000000000000Z-label-aaaaaa", [Picture("1", None, "x")])
    told = read_sealed(path)
    assert told["last_run"] == "29900101T000000000000Z-label-aaaaaa"
    del told["last_run"]
    write_sealed(path, told)
    assert store.new_run_id("train").startswith("29900101T000000000001Z-train-")


WRONG_RECORDS: list[dict[str, object]] = [
    *({name: 3} for name in ("kind", "started", "parameters", "result", "versions")),
    *({name: None} for name in ("run_id", "kind", "started", "parameters", "result", "versions")),
    {"run_id": "other"},
    {"parameters": "x"},
    {"kind": {}},
]


@pytest.mark.parametrize("values", WRONG_RECORDS, ids=str)
def test_a_record_that_no_run_writes(store: FeatureStore, values: dict[str, object]) -> None:
    record = RunRecord("r1", "train", "now", {}, {}, {})
    record.write(store.run_folder("r1"))
    path = store.run_folder("r1") / "run.json"
    write_sealed(path, read_sealed(path) | values)
    words = "of run r1 in .* Got: another run's" if values == {"run_id": "other"} else f"Got: no {next(iter(values))}"
    with pytest.raises(StoreCorrupt, match=words):
        store.runs()
    write_sealed(path, asdict(record) | {"more": "a newer penult's"})
    assert store.runs() == [record]


def test_names_of_runs() -> None:
    assert all(map(is_run_id, ("r1", "20260101T000000000000Z-embed-a1b2c3", "0", "a.b_c-d", "Z")))
    assert not any(map(is_run_id, ("", "-a", ".a", "_a", "a b", "a'b", "a/b", "é", "a\n", None, 3)))


@pytest.mark.everywhere
def test_run_records(store: FeatureStore) -> None:
    ids = [new_run_id("train") for _ in range(3)]
    assert len(set(ids)) == 3 and [i.rsplit("-", 1)[0] for i in ids] == sorted(i.rsplit("-", 1)[0] for i in ids)
    records = [RunRecord(i, "train", "now", {"head": "é"}, {}) for i in ids]
    for record in records:
        record.write(store.run_folder(record.run_id))
    assert store.runs() == sorted(records, key=lambda record: record.run_id)
    assert RunRecord.read(store.run_folder(ids[1])) == records[1]
    assert records[0].versions == library_versions() and library_versions().keys() == {"python", *LIBRARIES}
    with pytest.raises(StoreNotFound, match="penult runs"):
        RunRecord.read(store.run_folder("nothing"))
    write_text(store.run_folder(ids[0]) / "run.json", "{")
    with pytest.raises(StoreCorrupt, match=r"run\.json"):
        store.runs()


def test_a_row_stays_until_another_takes_its_place(tmp_path: Path) -> None:
    """A copy's features were left to a shard that died: the catalog keeps what it knew of the copy."""
    store = FeatureStore.create(tmp_path / "store")
    commit(store, "r1", list(pictures(range(3))))
    again = list(pictures(range(3), replaces=True))
    other = replace(SPEC, pooling="max")
    staging = journal(store, "r2", [again[:1], again[1:]], other, finished=0)
    table = store.table(other.set_name)
    fragments = table.stage([feature_rows(table.schema, "r2", [b"1"])])
    staging.finish(ShardEntry(1, fragments, "1.rows.arrow", 1, 1, {}, {}), [catalog_rows("r2", again[1:])])
    with store.lock():
        store.commit(staging)
    rows = store.catalog.read(["uri", "run_id"]).to_pylist()
    assert sorted((row["uri"], row["run_id"]) for row in rows) == [("0", "r1"), ("1", "r2"), ("2", "r1")]
    assert len(store.dataset(SPEC.set_name)) == 3


# -- views, and vectors that stay in the store ---------------------------------------------------------------------


def add_views(store: FeatureStore, seed: int, views: dict[bytes, list[int]]) -> str:
    """A set of augmented views of contents, by their numbers; the vector of a view is 100 a view more than its own."""
    spec = replace(SPEC, augmentation=json.dumps({"seed": seed}), dtype="float32")
    table = store.table(store.add_set(spec))
    rows = [(key(content), view) for content, numbers in views.items() for view in numbers][::-1]
    keys, numbers = np.array([k for k, _ in rows], "S32"), np.array([v for _, v in rows], np.int16)
    vectors = np.stack([vector(k) + 100 * v for k, v in rows])
    table.commit(f"v{seed}", table.stage([features_batch(table.schema, keys, vectors, f"v{seed}", numbers)]))
    return spec.set_name


@pytest.fixture
def single(store: FeatureStore) -> FeatureStore:
    """Ten images in a set of single precision, the set that a set of views belongs to."""
    commit(store, "r1", pictures(range(10), split=TRAIN), replace(SPEC, dtype="float32"))
    return store


def test_training_rows_and_after_them_their_views(single: FeatureStore) -> None:
    data = single.dataset(split=Split(0, 0))
    with pytest.raises(UsageError, match=r"has no views: `penult embed SOURCE --views 2` makes some"):
        single.augmented(data, 2)
    one = add_views(single, 1, {b"%d" % i: [1, 2, 3] for i in range(12)})
    assert single.views_sets(data.feature_set) == [one] and single.resolve() == data.feature_set
    for name in (None, one):
        more = single.augmented(data, 2, name)
        assert len(more) == 30 and np.array_equal(more.X[:10], data.X)
        order = [(row, view) for row in range(10) for view in (1, 2)]
        assert more.ids[10:].tolist() == [data.ids[row] for row, _ in order]
        assert np.array_equal(more.X[10:], [data.X[row] + np.float32(100 * view) for row, view in order])
    two = add_views(single, 2, {b"%d" % i: [1, 2] if i else [1] for i in range(10)})
    assert single.views_sets(data.feature_set) == sorted([one, two])
    with pytest.raises(UsageError, match="views of several kinds: name one with --views-set, of"):
        single.augmented(data, 2)
    with pytest.raises(UsageError, match=r"Expected: --views-set, one of \[.*\]\. Got: 'three'"):
        single.augmented(data, 2, "three")
    assert len(single.augmented(data, 1, two)) == 20 and len(single.augmented(data, 3, one)) == 40
    with pytest.raises(UsageError, match=rf"{two} holds 19 of the 20 views that training needs"):
        single.augmented(data, 2, two)
    other = replace(SPEC, augmentation="{}")  # of the set of half precision, which is not there
    single.add_set(other)
    assert single.views_sets(data.feature_set) == sorted([one, two])


def test_what_is_known_of_views(single: FeatureStore) -> None:
    name = add_views(single, 1, {b"0": [1, 2, 3], b"1": [1], b"2": [1, 2]})
    keys, counts = single.view_counts(name)
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == {
        np.array([key(b"%d" % i)], "S32")[0]: n for i, n in enumerate((3, 1, 2))
    }
    assert keys.tolist() == sorted(keys.tolist())
    for view, contents in ((None, b"012"), (1, b"012"), (2, b"02"), (3, b"0"), (4, b"")):
        known = single.content_keys(name, view)
        assert known.tolist() == np.sort(np.array([key(bytes([c])) for c in contents], "S32")).tolist()
        files = single.known_files(name, view).lookup(
            text_digests([str(i) for i in range(4)]), pair_digests(np.ones(4, int), np.ones(4, int))
        )
        assert files.tolist() == [
            EMBEDDED if b"%d" % i in [bytes([c]) for c in contents] else NOT_IN_SET for i in range(4)
        ]
    X, rows = single.views(name, np.sort(np.array([key(b"2"), key(b"0"), key(b"9")], "S32")), 2)
    names = np.sort(np.array([key(b"2"), key(b"0"), key(b"9")], "S32"))[rows].tolist()
    assert sorted(names) == sorted(np.array([key(b"0"), key(b"0"), key(b"2"), key(b"2")], "S32").tolist())
    assert rows.tolist() == sorted(rows.tolist()) and len(X) == 4
    empty, none = single.views(name, np.empty(0, "S32"), 2)
    assert empty.shape == (0, 8) and none.tolist() == []


def test_a_view_that_no_set_of_views_has_takes_no_other_views_place(single: FeatureStore) -> None:
    name = add_views(single, 1, {b"%d" % i: [1, 2, 0] for i in range(3)})
    keys = np.sort(np.array([key(b"%d" % i) for i in range(3)], "S32"))
    X, rows = single.views(name, keys, 2)
    assert rows.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(X, [vector(k) + np.float32(100 * view) for k in keys.tolist() for view in (1, 2)])


def test_vectors_stay_in_the_store_above_half_the_memory(filled: FeatureStore) -> None:
    commit(filled, "r2", pictures(range(60, 70)), replace(SPEC, layer="other"))  # labelled, and not in this set
    size = 60 * SPEC.width * 4
    for limit, stays in ((2 * size, False), (2 * size - 1, True)):
        data = filled.dataset(NAME, memory_limit=limit)
        assert (data.stored is not None) == stays and len(data) == 60
        assert data.X.shape == ((60, 0) if stays else (60, 8)) and data.width == 8
    held, keys = filled.dataset(NAME), data.keys
    commit(filled, "r3", pictures(range(70, 80)))  # another fragment, of which none is wanted
    assert np.array_equal(data.read().X, held.X) and data.read().stored is None
    assert np.array_equal(data.part(TRAIN).read().X, held.part(TRAIN).X)
    stored, found = filled.stored(NAME, keys[::2], 77)
    assert (stored.n, stored.width, stored.memory_limit, found.tolist()) == (30, 8, 77, [True] * 30)
    assert np.array_equal(stored.read(), held.X[::2]) and sorted(stored.order.tolist()) == list(range(30))
    commit(filled, "r4", pictures(range(80, 90)))
    assert np.array_equal(stored.read(), held.X[::2])  # one version of the set, whatever comes
    mask = np.arange(30) % 3 == 0
    for some, expected in ((stored.take(mask), held.X[::2][mask]), (stored.take(np.array([7, 2])), held.X[[14, 4]])):
        assert np.array_equal(some.read(), expected) and some.n == len(expected)
        assert np.array_equal(some.take(np.array([1])).read(), expected[1:2])
    missing = np.sort(np.concatenate([keys[:3], np.array([b"\1" * 32, b"\xfe" * 32], "S32")]))
    stored, found = filled.stored(NAME, missing, 77)
    assert (
        found.tolist() == np.isin(missing, keys).tolist()
        and sorted(stored.order.tolist()) == np.flatnonzero(found).tolist()
    )


# -- making and opening --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        *((name, False) for name in ("features", "catalog.lance", "labels.lance", "lock", ".penult.json.a1b2.tmp")),
        *((name, True) for name in ("runs", "staging", ".penult.json", "x.penult.json.a1.tmp", "lock2", ".DS_Store")),
    ],
)
def test_what_a_run_that_died_may_have_left_of_a_new_store(tmp_path: Path, name: str, foreign: bool) -> None:
    path = tmp_path / name
    path.touch() if name.endswith(("lock", ".tmp")) else path.mkdir()
    if foreign:
        with pytest.raises(UsageError, match="is not a penult store and not an empty folder: name another"):
            FeatureStore.create(tmp_path)
        assert [one.name for one in tmp_path.iterdir()] == [name]
    else:
        assert FeatureStore.create(tmp_path).sets() == []


def test_the_set_written_last(store: FeatureStore) -> None:
    names = [store.add_set(replace(SPEC, layer=layer)) for layer in ("a", "b")]
    assert store.resolve() == sorted(names)[-1]  # none was written
    for last in names:
        header.remember(store.path, [], last_set=last)
        assert store.resolve() == last
    header.remember(store.path, [], last_set="gone")
    assert store.resolve() == sorted(names)[-1]
    views = store.add_set(replace(SPEC, layer="a", augmentation="{}"))
    assert store.resolve(views) == views and store.sets() == sorted([*names, views])
    with pytest.raises(StoreNotFound, match="Got: none of"):
        store.resolve(views[:-1])


def test_a_journal_of_views_leaves_the_last_set(filled: FeatureStore) -> None:
    spec = replace(SPEC, augmentation="{}")
    commit(filled, "r2", pictures([60]), spec)
    assert header.read(filled.path)["last_set"] == NAME and header.read(filled.path)["last_run"] == "r2"


def test_a_commit_writes_the_header_once(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the tables are tidied up: what it notes is their last state."""
    written: list[object] = []
    real = header.replace_sealed
    monkeypatch.setattr(header, "replace_sealed", lambda path, told, token: written.append(real(path, told, token)))
    for number in range(compaction.TIER):  # the last of which merges fragments
        written.clear()
        commit(store, f"r{number:02}", pictures(range(3 * number, 3 * number + 3)))
        assert len(written) == 1
        tables = (store.catalog, store.labels, store.table(store.sets()[0]))
        states = {table.path.relative_to(store.path).as_posix(): table.state() for table in tables}
        assert header.read(store.path)["tables"] == states
    assert len(store.catalog.pieces()) == 1


@pytest.mark.everywhere
def test_a_header_that_somebody_else_wrote_meanwhile_is_left_alone(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, path = header.read, store.path / "penult.json"

    def read(folder: Path) -> dict[str, object]:
        told = real(folder)
        write_sealed(path, told | {"last_run": "theirs"})  # the lock was not honoured
        return told

    monkeypatch.setattr(header, "read", read)
    with pytest.raises(StoreError, match=r"penult\.json was changed meanwhile by another run"):
        header.remember(store.path, [], last_run="ours")
    assert real(store.path)["last_run"] == "theirs"
