"""verify and repair on stores without images: each damage has its findings, and what a file still holds comes back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePath

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import SPEC, Picture, commit, copy_to, feature_rows, journal, key, pictures, put, take, vector
from featurestore import header
from featurestore.maintenance import repair as repairing
from featurestore.maintenance import verify as verifying
from featurestore.maintenance.repair import Repair, aside_of, finish, put_aside, repair
from featurestore.maintenance.verify import REPAIR, Finding, damaged_files, damaged_pieces, tables_of, verify
from featurestore.runs import RunRecord
from featurestore.storage import ledger
from featurestore.storage.base import storage_of
from featurestore.storage.files import delete, exists, listed, read_sealed, sha256_of, write_sealed
from featurestore.storage.local import LocalStorage
from featurestore.storage.table import Table
from featurestore.store import FeatureStore

NAME = SPEC.set_name
F = f"features/{NAME}.lance"
RUNS = [f"2026010{i}T000000000000Z-embed-aaaaaa" for i in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images; then the content and label of four of them change and eight are new."""
    store = FeatureStore.create(tmp_path_factory.mktemp("repair") / "store")
    commit(store, RUNS[0], pictures(range(12)))
    changed = [Picture(str(i), b"new %d" % i, "z", replaces=True) for i in range(4)]
    commit(store, RUNS[1], [*changed, *pictures(range(12, 20))])
    for run, name in zip(RUNS, ("other-00000000", NAME, "other-00000000", f"{NAME}-views"), strict=True):
        RunRecord(run, "embed", "2026-01-01T00:00:00+00:00", {}, {"feature_set": name}).write(store.run_folder(run))
    (store.run_folder(RUNS[2]) / "run.json").write_text("{}")
    return store.path


@pytest.fixture
def store(template: Path, place: PurePath) -> PurePath:
    copy_to(template, place)
    return place


def rows_of(store: PurePath) -> tuple[list[tuple[str, bytes]], list[tuple[str, str]], set[bytes]]:
    """The catalog, the labels and the contents of the set, as the store gives them."""
    opened = FeatureStore(store)
    catalog = opened.catalog.read(["uri", "sha256"]).to_pylist()
    said = opened.label_rows().to_pylist()
    features = opened.to_arrow(NAME).column("sha256").to_pylist()
    assert len(set(features)) == len(features)
    return (
        sorted((row["uri"], row["sha256"]) for row in catalog),
        sorted((row["uri"], row["label"]) for row in said),
        set(features),
    )


CATALOG_ROWS = sorted((str(i), key(b"new %d" % i if i < 4 else b"%d" % i)) for i in range(20))
LABEL_ROWS = sorted((str(i), "z" if i < 4 else "abc"[i % 3]) for i in range(20))
CONTENTS = {key(b"%d" % i) for i in range(20)} | {key(b"new %d" % i) for i in range(4)}


def newest(store: PurePath, name: str) -> PurePath:
    table = Table(store / name)
    return table.path / table.versions()[max(table.versions())]


def data(store: PurePath, name: str, fragment: int) -> PurePath:
    table = Table(store / name)
    return table.path / table.pieces()[fragment].data[0]


def flip(path: PurePath, at: int) -> None:
    raw = bytearray(take(path))
    raw[at] ^= 1
    put(path, bytes(raw))


def wrong_vectors(path: PurePath, *contents: bytes) -> None:
    """Flip a bit of some vectors."""
    for content in contents:
        flip(path, take(path).index(vector(key(content)).astype(np.float16).tobytes()) + 3)


def found(store: PurePath) -> list[tuple[str, str]]:
    return [(finding.path, finding.problem) for finding in verify(store)]


@pytest.mark.everywhere
def test_an_intact_store(store: PurePath) -> None:
    assert list(verify(store)) == [] and repair(store) == (None, [])
    assert rows_of(store) == (CATALOG_ROWS, LABEL_ROWS, CONTENTS)
    assert verifying.is_store(store) and not verifying.is_store(store / "runs")
    assert list(tables_of(store)) == ["catalog.lance", F, "labels.lance"]
    assert [table.sealed for table in tables_of(store).values()] == [True, False, True]
    delete(store / "penult.json")
    assert verifying.is_store(store)
    delete(store / "catalog.lance")
    assert not verifying.is_store(store)


def header_says(store: PurePath, **values: int) -> None:
    told = read_sealed(store / "penult.json")
    told["tables"]["catalog.lance"] |= values
    write_sealed(store / "penult.json", told)


DAMAGE: dict[str, tuple[Callable[[PurePath], object], list[tuple[str, str]]]] = {
    "no header": (lambda s: delete(s / "penult.json"), [("penult.json", "There is no penult store")]),
    "a damaged header": (lambda s: put(s / "penult.json", b""), [("penult.json", "Expected: JSON in")]),
    "a repair that was killed": (
        lambda s: write_sealed(s / REPAIR, {}),
        [(REPAIR, "a repair was begun and has not ended")],
    ),
    "a set is gone": (lambda s: delete(s / F), [(F, "this table is gone")]),
    "the catalog is gone": (
        lambda s: delete(s / "catalog.lance"),
        [
            ("catalog.lance/ledger.json", "it is gone: nothing says what the files of this table were"),
            ("catalog.lance", "it is at version 0 and was at 3: a manifest is gone"),
        ],
    ),
    "neither header nor catalog": (
        lambda s: (delete(s / "penult.json"), delete(s / "catalog.lance")),
        [
            ("penult.json", "There is no penult store"),
            ("catalog.lance", "it is at version 0 and was at 0: a manifest is gone"),
        ],
    ),
    "what another program has deleted": (lambda s: lance.dataset(s / "labels.lance").delete("uri = '7'"), []),
    "a damaged ledger": (lambda s: put(s / F / "ledger.json", b""), [(f"{F}/ledger.json", "Expected: JSON")]),
    "no ledger": (
        lambda s: delete(s / F / "ledger.json"),
        [(f"{F}/ledger.json", "it is gone: nothing says what the files of this table were")],
    ),
    "a damaged canary": (lambda s: put(s / F / "canary.json", b""), [(f"{F}/canary.json", "Expected: JSON")]),
    "the newest manifest is gone": (
        lambda s: delete(newest(s, "labels.lance")),
        [("labels.lance", "it is at version 2 and was at 3: a manifest is gone")],
    ),
    "more rows than there are": (
        lambda s: header_says(s, rows=21),
        [("catalog.lance", "it has 20 rows and had 21")],
    ),
    "a later version than there is": (
        lambda s: header_says(s, version=4),
        [("catalog.lance", "it is at version 3 and was at 4: a manifest is gone")],
    ),
    "an older version with other rows": (lambda s: header_says(s, version=2, rows=99), []),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_verify_finds(store: PurePath, what: str) -> None:
    spoil, expected = DAMAGE[what]
    spoil(store)
    findings = found(store)
    assert [path for path, _ in findings] == [path for path, _ in expected]
    assert all(said.startswith(words) for (_, said), (_, words) in zip(findings, expected, strict=True)), findings


def test_a_file_that_is_not_what_it_was(store: PurePath) -> None:
    for name in ("catalog.lance", "labels.lance"):
        path = data(store, name, 0)
        before = sha256_of(path)
        flip(path, 50)
        assert found(store) == [
            (path.relative_to(store).as_posix(), f"its sha256 was {before[:12]} and is {sha256_of(path)[:12]}")
        ]
        flip(path, 50)
    delete(path)
    assert found(store) == [(path.relative_to(store).as_posix(), "it is gone")]
    path.mkdir()
    [(where, said)] = found(store)
    assert where == path.relative_to(store).as_posix() and said.startswith("Expected: a file at")


def test_a_manifest_that_cannot_be_read(store: PurePath) -> None:
    path = newest(store, "catalog.lance")
    put(path, b"")
    assert [where for where, _ in found(store)] == [path.relative_to(store).as_posix(), "catalog.lance"]


@pytest.mark.everywhere
def test_images_whose_features_are_damaged_are_named(store: PurePath, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data(store, F, 0)
    wrong_vectors(path, b"3", b"7", b"11")
    ids = {key(content).hex() for content in (b"3", b"7", b"11")}
    where = path.relative_to(store).as_posix()
    first, second = verify(store)
    assert first.path == second.path == where and first.problem.startswith("its sha256 was") and first.rows == ()
    assert second.problem == "3 of 12 rows have a wrong checksum, 12 could be read" and set(second.rows) == ids
    monkeypatch.setattr(verifying, "MAX_ROWS", 2)
    *_, last = verify(store)
    assert last.problem.startswith("3 of 12 rows") and len(last.rows) == 2 and set(last.rows) < ids


def test_damaged_fragments_are_found_by_halves(store: PurePath) -> None:
    opened = FeatureStore(store)
    for run in range(3):
        commit(opened, f"r{run}", pictures(range(100 + 5 * run, 105 + 5 * run)))
    table = opened.table(NAME)
    pieces, read = table.pieces(), list[int]()
    wrong_vectors(table.path / pieces[1].data[0], b"15")
    wrong_vectors(table.path / pieces[4].data[0], b"112", b"110")
    broken = [(piece.id, problem, images) for piece, problem, images in damaged_pieces(table, pieces, read.append)]
    assert [(number, problem) for number, problem, _ in broken] == [
        (pieces[1].id, "1 of 12 rows have a wrong checksum, 12 could be read"),
        (pieces[4].id, "2 of 5 rows have a wrong checksum, 5 could be read"),
    ]
    assert broken[0][2] == (key(b"15").hex(),) and set(broken[1][2]) == {key(c).hex() for c in (b"112", b"110")}
    assert list(damaged_pieces(table, [])) == [] and list(damaged_pieces(table, [pieces[0], *pieces[2:4]])) == []
    read.clear()
    assert list(damaged_pieces(table, pieces[2:3], read.append)) == []
    assert read == [batch.nbytes for batch in table.fragment_rows([pieces[2].id])]


def test_verify_says_how_far_it_is(store: PurePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """In megabytes: files of a sealed table are read once, those of features and then their rows."""
    for name, size in (("catalog.lance", 5_000_000), (F, 4_000_000)):
        (store / name / "junk").touch()
        os.truncate(store / name / "junk", size)
    told = list[tuple[int, int]]()
    assert list(verify(store, lambda done, total: told.append((done, total)))) == []
    assert told and set(told) == {(0, 13)}
    known = ledger.read(store / "catalog.lance")
    files = known.files | {"junk": sha256_of(store / "catalog.lance" / "junk"), "gone": "0" * 64}
    ledger.write(store / "catalog.lance", ledger.Ledger(known.version, known.rows, files))
    told.clear()
    assert list(verify(store, lambda done, total: told.append((done, total)))) == []
    assert told[0][0] == 0 and told[-1] == (5, 13) and told == sorted(told)
    read = list[int]()
    table = Table(store / "catalog.lance")
    assert damaged_files(table, ledger.read(table.path), read.append) == {}
    assert read == [(table.path / name).stat().st_size for name in files if name != "gone"]
    monkeypatch.setattr(verifying, "_size", lambda _: 1_000_000)  # a run has made it larger since
    told.clear()
    list(verify(store, lambda done, total: told.append((done, total))))
    assert told[0] == (0, 3) and told[-1] == (5, 5)


@pytest.mark.everywhere
def test_journals_are_verified(store: PurePath) -> None:
    opened = FeatureStore(store)
    before = set(listed(store / F / "data"))
    staging = journal(opened, "r3", [pictures(range(30, 33)), pictures(range(33, 35))])
    assert found(store) == []
    for path in (staging.folder / "plan.arrow", *sorted(set(listed(store / F / "data")) - before)):
        flip(path, 60)
    findings = found(store)
    assert [path for path, _ in findings] == ["staging/r3/plan.arrow", "staging/r3", "staging/r3"]
    assert findings[0][1] == "it is not what the run has written" and "sha256" in findings[1][1]


# --- repair


def mended(store: PurePath) -> dict[str, Repair]:
    """What was done; then nothing is wrong, and nothing is left to be done."""
    plan, done = repair(store)
    assert plan is not None and exists(store / REPAIR) and read_sealed(store / REPAIR)["rows"] == {}
    finish(store, plan)
    assert list(verify(store)) == [] and repair(store) == (None, [])
    assert header.read(store)["last_set"] == NAME
    return {one.table: one for one in done}


def aside(store: PurePath) -> set[str]:
    """What lies aside, relative to the folder of its repair."""
    paths = (path.relative_to(store / "damaged") for path, _ in storage_of(store).walk(store / "damaged"))
    return {"/".join(path.parts[1:]) for path in paths}


@pytest.mark.everywhere
@pytest.mark.parametrize("name", ["catalog.lance", "labels.lance", F])
def test_the_rows_of_a_lost_version_come_back_from_their_files(store: PurePath, name: str) -> None:
    delete(newest(store, name))
    done = mended(store)
    assert rows_of(store) == (CATALOG_ROWS, LABEL_ROWS, CONTENTS)
    assert done == {name: Repair(name, [], 2, 12, 0)}


def test_rows_that_no_version_had_are_not_brought_back(store: PurePath) -> None:
    """A dead run has staged them: its journal says what becomes of them. Without a ledger nothing tells them apart."""
    staging = journal(FeatureStore(store), "r3", [pictures(range(30, 33))])
    copy_to(store, store.with_name("other"))
    delete(newest(store, F))
    assert mended(store)[F] == Repair(F, [], 2, 12, 0) and staging.damaged() == []
    assert rows_of(store)[2] == CONTENTS
    other = store.with_name("other")
    delete(newest(other, F))
    delete(other / F / "ledger.json")
    assert mended(other)[F] == Repair(F, [], None, 15, 0)
    assert rows_of(other)[2] == CONTENTS | {key(b"%d" % i) for i in (30, 31, 32)}


def test_two_lost_versions(store: PurePath) -> None:
    """The newest manifest cannot be read, the one before is gone: it goes back to the empty table and finds all."""
    table = Table(store / "catalog.lance")
    delete(table.path / table.versions()[2])
    put(newest(store, "catalog.lance"), b"x")
    name = newest(store, "catalog.lance").relative_to(table.path).as_posix()
    done = mended(store)
    assert rows_of(store) == (CATALOG_ROWS, LABEL_ROWS, CONTENTS)
    assert done == {"catalog.lance": Repair("catalog.lance", [name], 1, 20, 0)}
    assert aside(store) == {f"catalog.lance/{name}"}


@pytest.mark.everywhere
def test_rows_that_no_file_holds_are_lost(store: PurePath) -> None:
    path = data(store, "catalog.lance", 1)
    flip(path, 60)
    plan, done = repair(store)
    assert plan is not None and plan.lost == {"catalog.lance": []} and plan.last_set == NAME
    assert [(one.table, one.put_aside, one.restored) for one in done] == [("catalog.lance", [f"data/{path.name}"], 0)]
    assert FeatureStore(store).catalog.count() == 20 - done[0].lost == 8


@pytest.mark.everywhere
def test_features_that_are_damaged_are_lost_and_no_others(store: PurePath) -> None:
    path = data(store, F, 0)
    wrong_vectors(path, b"3", b"7")
    plan, done = repair(store)
    assert plan is not None and plan.lost == {F: sorted(key(content).hex() for content in (b"3", b"7"))}
    assert done == [Repair(F, [f"data/{path.name}"], None, 10, 2)]
    rows = FeatureStore(store).to_arrow(NAME)
    assert set(rows.column("sha256").to_pylist()) == CONTENTS - {key(b"3"), key(b"7")} and rows.num_rows == 22
    runs = FeatureStore(store).table(NAME).read(["run_id"]).column("run_id").to_pylist()
    assert sorted(runs) == [RUNS[1]] * 12 + ["restored"] * 10  # the run id has no checksum
    assert aside(store) == {f"{F}/data/{path.name}"}
    finish(store, plan)
    assert not exists(store / REPAIR) and list(verify(store)) == []


def test_where_a_file_is_gone_the_images_are_not_all_known(store: PurePath) -> None:
    """Of its rows nothing says which they were: the two that are known are not all that is lost."""
    wrong_vectors(data(store, F, 0), b"3", b"7")
    delete(data(store, F, 1))
    plan, done = repair(store)
    assert plan is not None and plan.lost == {F: []} and [(one.restored, one.lost) for one in done] == [(10, 14)]


def test_images_that_came_back_are_not_taken_for_those_that_are_lost(store: PurePath) -> None:
    """Two images are damaged, but another file has them; one that no one can name is gone."""
    opened = FeatureStore(store)
    commit(opened, RUNS[2], pictures([20]))
    table = opened.table(NAME)
    gone, before = data(store, F, 2), set(listed(table.path / "data"))
    table.stage([feature_rows(table.schema, RUNS[2], [b"3", b"7"])])
    (copy,) = set(listed(table.path / "data")) - before
    known = ledger.read(table.path)
    ledger.write(table.path, replace(known, files=known.files | {f"data/{copy.name}": sha256_of(copy)}))
    wrong_vectors(data(store, F, 0), b"3", b"7")
    delete(gone)
    plan, done = repair(store)
    assert plan is not None and plan.lost == {F: []} and [one.lost for one in done] == [1]
    assert FeatureStore(store).to_arrow(NAME).num_rows == 24


def test_an_intact_fragment_gives_way_to_newer_rows_of_a_file(store: PurePath) -> None:
    """The version that replaced rows is lost, and those that it left stand beside what took their place."""
    table = Table(store / "labels.lance")
    delete(newest(store, "labels.lance"))
    assert [piece.rows for piece in table.pieces(2)] == [12]
    assert mended(store)["labels.lance"].restored == 12
    assert rows_of(store)[1] == LABEL_ROWS and sorted(piece.rows for piece in table.pieces()) in ([8, 12], [20])
    assert table.count() == 20


def test_a_set_without_a_manifest_is_known_by_its_files(store: PurePath) -> None:
    delete(store / F / "_versions")
    assert mended(store)[F] == Repair(F, [], None, 24, 0)
    assert rows_of(store) == (CATALOG_ROWS, LABEL_ROWS, CONTENTS)


def test_a_set_of_which_nothing_says_what_it_is(store: PurePath) -> None:
    delete(store / F / "_versions")
    for path in listed(store / F / "data"):  # neither of the files, so that no order of them is the right one
        put(path, b"x")
    plan, done = repair(store)
    one = {repair.table: repair for repair in done}[F]
    assert one.put_aside[-1] == "." and one.lost == 24 and not exists(store / F)
    assert plan is not None and plan.lost[F] == []


@pytest.mark.everywhere
def test_the_journal_of_a_set_that_is_gone_is_put_aside(store: PurePath) -> None:
    journal(FeatureStore(store), "r3", [pictures(range(30, 33))])
    delete(store / F)
    _, done = repair(store)
    assert {one.table: one.put_aside for one in done} == {F: [], "staging/r3": ["."]}
    assert not exists(store / "staging" / "r3") and "staging/r3/run.json" in aside(store)


@pytest.mark.everywhere
def test_a_damaged_journal_ledger_and_canary_are_put_aside(store: PurePath) -> None:
    staging = journal(FeatureStore(store), "r3", [pictures(range(30, 33)), pictures(range(33, 35))])
    flip(staging.folder / "plan.arrow", 60)
    for name in ("ledger.json", "canary.json"):
        put(store / F / name, b"")
    plan, repairs = repair(store)
    finish(store, plan)  # type: ignore[arg-type]
    done = {one.table: one for one in repairs}
    assert done["staging/r3"] == Repair("staging/r3", ["plan.arrow"])
    assert done[F].put_aside == ["ledger.json", "canary.json"] and done[F].lost == 0
    assert aside(store) == {"staging/r3/plan.arrow", f"{F}/ledger.json", f"{F}/canary.json"}
    assert rows_of(store) == (CATALOG_ROWS, LABEL_ROWS, CONTENTS)
    opened = FeatureStore(store)
    with opened.lock():
        assert opened.recover().runs == ["r3"]
    assert list(verify(store)) == [] and opened.catalog.count() == 25


@pytest.mark.everywhere
def test_a_damaged_header_is_made_anew(store: PurePath) -> None:
    """The set written last is what the runs' records say: not views, and not what a damaged record says."""
    put(store / "penult.json", b"x")
    done = mended(store)
    assert done == {"penult.json": Repair("penult.json", ["."])} and aside(store) == {"penult.json"}
    assert FeatureStore(store).unknown_origin and rows_of(store) == (CATALOG_ROWS, LABEL_ROWS, CONTENTS)


def test_a_transaction_costs_no_rows(store: PurePath) -> None:
    path = next(p for p in listed(store / "catalog.lance" / "_transactions") if p.suffix == ".txn")
    flip(path, 5)
    before = FeatureStore(store).catalog.pieces()
    assert mended(store) == {"catalog.lance": Repair("catalog.lance", [f"_transactions/{path.name}"])}
    assert FeatureStore(store).catalog.pieces() == before


KILLED: list[dict[str, object]] = [
    {"rows": {"catalog.lance": "x"}, "lost": {}, "last_set": NAME},
    {"rows": {}, "lost": {F: ["no hex"]}, "last_set": NAME},
    {"rows": [], "lost": {}, "last_set": NAME},
    {"rows": {}, "lost": {}},
    {},
]


@pytest.mark.parametrize("told", KILLED, ids=str)
def test_a_killed_repair_of_which_nothing_can_be_read_begins_with_everything(
    store: PurePath, told: dict[str, object]
) -> None:
    write_sealed(store / REPAIR, told)
    plan, done = repair(store)
    assert plan is not None and sorted(plan.lost) == ["catalog.lance", F, "labels.lance"] and plan.last_set == NAME
    assert all(one.lost == 0 for one in done) and rows_of(store) == (CATALOG_ROWS, LABEL_ROWS, CONTENTS)


@pytest.mark.everywhere
def test_a_killed_repair_goes_on_with_what_it_had_in_hand(store: PurePath) -> None:
    image = key(b"3").hex()
    told = {"rows": {F: 30, "catalog.lance": 20}, "lost": {"labels.lance": [], F: [image]}, "last_set": "other"}
    write_sealed(store / REPAIR, told)
    delete(newest(store, F))  # it has 24 rows left of 30
    plan, done = repair(store)
    assert plan == repairing.Plan({}, {"labels.lance": [], F: []}, "other")
    assert {one.table: one.lost for one in done} == {"catalog.lance": 0, F: 6}


def test_what_is_put_aside_hides_nothing(store: PurePath) -> None:
    folder = aside_of(store)
    assert folder.parent == store / "damaged" and ":" not in folder.name
    for number in range(3):
        (store / "x").write_text(str(number))
        put_aside(store / "x", folder / "a" / "x")
    assert [(folder / "a" / name).read_text() for name in ("x", "x~", "x~~")] == ["0", "1", "2"]
    put_aside(store / "x", folder / "a" / "x")  # nothing there
    (store / "x").symlink_to("nowhere")
    put_aside(store / "x", folder / "a" / "x")
    assert (folder / "a" / "x~~~").is_symlink() and not os.path.lexists(store / "x")
    (store / "x").touch()
    put_aside(store / "x", folder / "a" / "x~~~")  # where a link to nothing lies
    assert (folder / "a" / "x~~~").is_symlink() and (folder / "a" / "x~~~~").is_file()
    assert len(list((folder / "a").iterdir())) == 5


def test_what_is_put_aside_is_flushed(store: PurePath, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(LocalStorage, "flush", lambda _, path: flushed.append(path))
    put_aside(store / F / "data", store / "damaged" / "now" / "data")
    assert set(flushed) == {store / F, store / "damaged" / "now", store / "damaged", store}


def test_findings_are_of_the_table_that_they_name() -> None:
    findings = [Finding(path, "") for path in ("a.lance", "a.lance/data/x", "a.lance2", "b/a.lance", "a.lance-views/x")]
    assert [finding.path for finding in repairing._within("a.lance", findings)] == ["a.lance", "a.lance/data/x"]


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 3)), max_size=12))
def test_of_each_key_the_first_of_the_newest(rows: list[tuple[bytes, int]]) -> None:
    best: dict[bytes, int] = {}
    for number, (name, age) in enumerate(rows):
        if name not in best or age > rows[best[name]][1]:
            best[name] = number
    keys, ages = np.array([name for name, _ in rows], "S16"), np.array([age for _, age in rows], int)
    assert np.flatnonzero(repairing._newest(keys, ages)).tolist() == sorted(best.values())


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"\xff"]), st.integers(0, 4)), max_size=12), st.integers(0, 1))
def test_views_after_a_gap_go(rows: list[tuple[bytes, int]], first_view: int) -> None:
    """Embedding makes the missing views from the first gap on."""
    kept = []
    for number, (content, view) in enumerate(rows):
        before = {other for name, other in rows if name == content}
        if rows.index((content, view)) == number and set(range(first_view, view + 1)) <= before:
            kept += [number] if view >= first_view else []
    digests = pa.array([content.ljust(32, b"x") for content, _ in rows], pa.binary(32))
    keys = repairing.row_keys(digests, pa.array([view for _, view in rows], pa.int16()))
    if any(view < first_view for _, view in rows):
        return  # no such set
    assert np.flatnonzero(repairing._up_to_gaps(keys, first_view)).tolist() == kept
