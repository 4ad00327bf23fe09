"""The journal of a run: what it says comes back, and what no run has written counts as never written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from builders import SPEC, Picture, catalog_rows, copy_to, journal, label_rows, put, take
from featurestore import heartbeats
from featurestore import journal as module
from featurestore.errors import StoreCorrupt, StoreError
from featurestore.heartbeats import Note, Progress
from featurestore.journal import Staging, pending
from featurestore.labels import with_origin
from featurestore.layout import PLAN, PLANNED_LABELS, RECORD
from featurestore.schema import CATALOG, LABELS, LABELS_V1
from featurestore.storage.files import delete, exists, listed, read_sealed, replacing, sha256_of, write_sealed
from featurestore.store import FeatureStore

SHARDS = [
    [Picture("a", b"a", "cat"), Picture("b", b"b", "cat", replaces=True)],
    [Picture("c", b"c", replaces=True), Picture("d", None)],
]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the journal of a run, r1, that has finished both of its shards and died."""
    store = FeatureStore.create(tmp_path_factory.mktemp("staging") / "store")
    journal(store, "r1", SHARDS)
    return store.path


@pytest.fixture
def staging(template: Path, place: PurePath) -> Staging:
    copy_to(template, place)
    return Staging(place, "r1")


def change(path: PurePath, **values: Any) -> None:
    write_sealed(path, read_sealed(path) | values)


def uris(batches: Any) -> list[str]:
    return [uri for batch in batches for uri in batch.column("uri").to_pylist()]


@pytest.mark.everywhere
def test_a_journal_comes_back(staging: Staging) -> None:
    assert staging.feature_set == SPEC.set_name and staging.damaged() == [] and staging.holds_rows()
    assert [entry.shard for entry in staging.entries()] == [0, 1]
    assert [entry.embedded for entry in staging.entries()] == [2, 1]
    assert uris(staging.catalog_rows()) == ["a", "b", "c", "d"] and uris(staging.label_rows()) == ["a", "b"]
    assert [staging.shard_plan(n).column("uri").to_pylist() for n in (0, 1)] == [["a", "b"], ["c", "d"]]
    assert staging.replaced_uris().to_pylist() == ["b", "c"] and staging.entry(2) is None
    told = read_sealed(staging.folder / RECORD, required=True)
    assert told == {
        "run_id": "r1",
        "feature_set": SPEC.set_name,
        "files": {name: sha256_of(staging.folder / name) for name in (PLAN, PLANNED_LABELS)},
    }
    shards = staging.folder / "shards"
    put(shards / "40.json", take(shards / "0.json"))
    delete(shards / "0.json")
    change(shards / "40.json", shard=40)
    assert [entry.shard for entry in staging.entries()] == [1, 40]  # by number
    for name in ("10.json", "9.json", "x.json"):
        put(shards / name, b"{}")
    assert [path.name for path in staging.damaged()] == ["10.json", "9.json", "x.json"]


WRONG_NOTES = [
    *({"run_id": value} for value in ("other", None, 7)),
    *({"feature_set": value} for value in ("../../x", "", None, 7)),
    *({"files": value} for value in (3, None, [])),
]


@pytest.mark.parametrize("values", WRONG_NOTES, ids=str)
def test_a_note_that_this_run_has_not_written_stands_for_no_work(staging: Staging, values: dict[str, Any]) -> None:
    change(staging.folder / RECORD, **values)
    assert staging.feature_set is None and staging.damaged() == [staging.folder / RECORD]
    assert list(staging.label_rows()) == []


def test_without_a_note_a_run_has_said_nothing(staging: Staging) -> None:
    (staging.folder / RECORD).unlink()
    assert staging.feature_set is None and staging.damaged() == [] and list(staging.label_rows()) == []
    (staging.folder / RECORD).symlink_to("nowhere")
    assert staging.feature_set is None and staging.damaged() == [staging.folder / RECORD]


def fragment(**values: Any) -> str:
    return json.dumps({"fragment": {"files": [{"path": "x.lance", "base_id": None} | values]}})


WRONG_ENTRIES = [
    *({"shard": value} for value in (1, -1, "0", True, None)),
    *({"embedded": value} for value in (-1, "2", True, 1.5)),
    *({"deduplicated": value} for value in (-1, "2", False, None)),
    *({"failures": value} for value in ({"empty": -1}, {"empty": "1"}, {"empty": 1, "corrupt": True}, None, [])),
    *({"worker": value} for value in (3, ["one"], True)),
    *({"seconds": value} for value in ({"decode": "1"}, {"decode": 1.5, "read": None}, None, 3)),
    *({"fragments": value} for value in ("[]", {}, None, ["{"], [3], [None], ["[" * 10**5])),
    *({"fragments": [fragment(path=value)]} for value in ("../x.lance", "/etc/passwd", "", "..", 3)),
    *({"fragments": [fragment(), fragment(base_id=value)]} for value in (0, 1)),
    *({"rows_file": value} for value in ("../0.rows.arrow", "..", "", None, "1.rows.arrow", "nothing.arrow")),
    *({"rows_sha256": value} for value in ("0" * 64, 3)),
    {"more": 1},
]


@pytest.mark.parametrize("values", WRONG_ENTRIES, ids=lambda values: str(values)[:60])
def test_an_entry_that_no_run_writes_stands_for_no_work(staging: Staging, values: dict[str, Any]) -> None:
    path = staging.folder / "shards" / "0.json"
    change(path, **values)
    rows = staging.folder / "shards" / str(values.get("rows_file"))
    assert staging.entry(0) is None and [entry.shard for entry in staging.entries()] == [1]
    assert staging.damaged() in ([path], [path.with_name("0.rows.arrow")], [rows])
    assert uris(staging.catalog_rows()) == ["c", "d"] and staging.replaced_uris().to_pylist() == ["c"]


def test_entries_as_older_and_odder_runs_write_them(staging: Staging) -> None:
    path = staging.folder / "shards" / "0.json"
    sound = read_sealed(path)
    for values in (
        {"failures": {"empty": 0}, "seconds": {"read": 0, "decode": 1.5}, "embedded": 0},
        {"fragments": [fragment(), fragment(path="y.lance")]},
        {"rows_sha256": None},
        {"fragments": []},
    ):
        write_sealed(path, sound | values)
        assert asdict(staging.entry(0)) == sound | values and staging.damaged() == []  # type: ignore[arg-type]
    del sound["rows_sha256"]
    path.write_text(json.dumps(sound))  # no seal
    assert asdict(staging.entry(0)) == sound | {"rows_sha256": None}  # type: ignore[arg-type]
    del sound["embedded"]
    path.write_text(json.dumps(sound))
    assert staging.entry(0) is None and staging.damaged() == [path]


def write_arrow(path: PurePath, batch: pa.RecordBatch) -> None:
    with replacing(path) as temporary, pa.ipc.new_file(temporary, batch.schema) as writer:
        writer.write_batch(batch)


def spoil(how: str) -> Callable[[PurePath], None]:
    """Rows that this run has not written, without a digest that would say so."""
    rows = catalog_rows("r1", SHARDS[0])
    return {
        "another run's": lambda path: write_arrow(path, catalog_rows("r2", SHARDS[0])),
        "some of another run": lambda path: write_arrow(
            path, pa.Table.from_batches([rows, catalog_rows("r2", SHARDS[1])]).combine_chunks().to_batches()[0]
        ),
        "a column less": lambda path: write_arrow(path, rows.drop_columns(["error"])),
        "labels": lambda path: write_arrow(path, label_rows("r1", SHARDS[0])),
        "cut": lambda path: put(path, take(path)[:-40]),
        "empty": lambda path: put(path, b""),
        "no UTF-8": lambda path: put(path, take(path).replace(b"ab", b"a\xff", 1)),
    }[how]


@pytest.mark.everywhere
@pytest.mark.parametrize(
    "how", ["another run's", "some of another run", "a column less", "labels", "cut", "empty", "no UTF-8"]
)
def test_rows_that_this_run_has_not_written(staging: Staging, how: str) -> None:
    entry = staging.folder / "shards" / "0.json"
    change(entry, rows_sha256=None)
    assert staging.damaged() == []
    path = staging.folder / "shards" / "0.rows.arrow"
    spoil(how)(path)
    assert staging.damaged() == [path] and [entry.shard for entry in staging.entries()] == [1]


@pytest.mark.everywhere
def test_a_plan_that_is_damaged(staging: Staging) -> None:
    """All that the finished shards hold is taken for replaced: no row is twice, whatever the plan said."""
    path = staging.folder / PLAN
    data = bytearray(take(path))
    data[len(data) // 2] ^= 1
    put(path, bytes(data))
    assert staging.damaged() == [path] and staging.replaced_uris().to_pylist() == ["a", "b", "c", "d"]
    put(path, b"")
    with pytest.raises(StoreCorrupt, match=r"an Arrow file .*plan\.arrow as it was written"):
        staging.shard_plan(0)
    delete(path)
    with pytest.raises(StoreCorrupt, match=r"a file at .*plan\.arrow. Got: (No such file|none)"):
        staging.shard_plan(0)
    assert staging.damaged() == [path] and staging.replaced_uris().to_pylist() == ["a", "b", "c", "d"]
    assert staging.holds_rows() and len(list(staging.entries())) == 2


@pytest.mark.everywhere
def test_a_file_for_workers_that_is_damaged_is_not_given_out(staging: Staging) -> None:
    staging.attach("graph.bin", b"weights")
    staging.attach("graph.xml", b"graph")
    assert (staging.attached("graph.xml"), staging.attached("graph.bin")) == (b"graph", b"weights")
    assert staging.damaged() == [] and len(list(staging.entries())) == 2
    put(staging.folder / "graph.bin", b"Weights")
    with pytest.raises(StoreCorrupt, match=r"^Expected: .*graph\.bin as it was written\. Got: a damaged file"):
        staging.attached("graph.bin")
    put(staging.folder / "other.bin", b"weights")
    with pytest.raises(StoreCorrupt, match=r"other\.bin as it was written"):
        staging.attached("other.bin")


@pytest.mark.everywhere
def test_labels_that_are_damaged(staging: Staging) -> None:
    path = staging.folder / PLANNED_LABELS
    put(path, take(path)[:-1])
    assert staging.damaged() == [path] and list(staging.label_rows()) == []
    change(staging.folder / RECORD, files={PLAN: None, PLANNED_LABELS: None})
    for batch, good in (
        (label_rows("r1", SHARDS[0]), True),
        (label_rows("r1", SHARDS[0]).select(LABELS_V1.names).cast(LABELS_V1), True),  # an older penult's
        (label_rows("r2", SHARDS[0]), False),
        (catalog_rows("r1", SHARDS[0]), False),
    ):
        write_arrow(path, batch)
        assert staging.damaged() == ([] if good else [path])
        assert uris(staging.label_rows()) == (["a", "b"] if good else [])
        assert all(rows.schema == LABELS for rows in staging.label_rows())
    assert with_origin(label_rows("r1", SHARDS[0])).schema == LABELS


@pytest.mark.everywhere
def test_a_journal_of_an_older_penult_notes_no_digests(staging: Staging) -> None:
    told = read_sealed(staging.folder / RECORD)
    del told["files"]
    put(staging.folder / RECORD, json.dumps(told).encode())
    assert staging.damaged() == [] and uris(staging.label_rows()) == ["a", "b"]
    delete(staging.folder / PLANNED_LABELS)
    assert staging.damaged() == [] and list(staging.label_rows()) == []


@pytest.mark.everywhere
def test_what_holds_rows(staging: Staging) -> None:
    for path in (path for path in listed(staging.folder / "shards") if path.suffix == ".json"):
        delete(path)
    assert staging.holds_rows()  # the labels
    change(staging.folder / RECORD, files={})
    staging = Staging(staging.folder.parent.parent, "r1")  # what one has checked, it does not read again
    assert not staging.holds_rows()  # a file that is not noted was not finished
    assert staging.replaced_uris().to_pylist() == []


def test_what_may_not_be_read_is_not_damaged(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match=r"plan\.arrow may not be read: give this user the right to\.$") as caught:
        staging.shard_plan(0)
    assert not isinstance(caught.value, StoreCorrupt)


@pytest.mark.everywhere
def test_progress_is_what_the_workers_have_said(staging: Staging) -> None:
    watch = staging.watch()
    assert watch.read() == Progress(0, 0)
    for shard, images in ((0, 7), (1, 20), (0, 12)):
        staging.note_progress(shard, images)
    assert watch.read() == Progress(32, 0)  # older workers say no name
    staging.note_progress(0, 13, "one")
    staging.note_progress(1, 21, "two")
    staging.note_progress(2, 0, "two")
    assert watch.read() == Progress(34, 2)
    assert (staging.begun(0), staging.begun(3)) == (Note(13, "one"), None)
    path = staging.folder / "shards" / "2.progress"
    put(path, b"1" * 20)
    assert watch.read() == staging.watch().read() == Progress(34 + int("1" * 20), 2)
    for odd in (b"1" * 21, b"x", b"", b"1 a b", b"1 " + b"n" * 300):
        put(path, odd)
        assert watch.read().images == 34 and staging.begun(2) is None
    delete(staging.folder / "shards")
    assert staging.watch().read() == Progress(0, 0)


def test_a_worker_that_says_nothing_new_is_not_counted_after_a_while(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(heartbeats, "time", SimpleNamespace(monotonic=lambda: now[0]))
    watch = staging.watch()
    staging.note_progress(0, 1, "one")
    staging.note_progress(1, 1, "two")
    assert watch.read() == Progress(2, 2)
    now[0] = 129
    staging.note_progress(1, 2, "two")
    assert watch.read() == Progress(3, 2)
    now[0] = 130
    assert watch.read() == Progress(3, 1)


@pytest.mark.everywhere
def test_only_notes_that_have_changed_are_read_again(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(5):
        staging.note_progress(shard, 1, "one")
    watch, read, plain = staging.watch(), list[str](), heartbeats.read_bytes
    assert watch.read().images == 5
    monkeypatch.setattr(heartbeats, "read_bytes", lambda path, limit: read.append(path.name) or plain(path, limit))
    staging.note_progress(3, 9, "one")
    assert watch.read().images == 13 and read == ["3.progress"]


def test_progress_into_a_folder_that_is_gone_is_lost_without_harm(staging: Staging) -> None:
    delete(staging.folder / "shards")
    staging.note_progress(0, 5)
    assert staging.watch().read() == Progress(0, 0)


@pytest.mark.everywhere
def test_shards_without_an_entry_are_missing(staging: Staging) -> None:
    """Whatever a runner says."""
    assert staging.missing(2) == [] and staging.missing(4) == [2, 3]
    path = staging.folder / "shards" / "0.json"
    put(path, take(path)[:-5])
    assert Staging(staging.folder.parent.parent, "r1").missing(4) == [0, 2, 3]


@pytest.mark.everywhere
def test_images_of_a_shard_that_was_begun_and_not_finished(staging: Staging) -> None:
    for shard in (0, 1):
        staging.note_progress(shard, 1, "one")
    assert list(staging.begun_images()) == []
    delete(staging.folder / "shards" / "1.json")
    assert list(staging.begun_images()) == ["c", "d"]
    delete(staging.folder / "shards" / "1.progress")
    assert list(staging.begun_images()) == []


@pytest.mark.everywhere
def test_a_run_is_open_until_its_journal_is_removed(staging: Staging) -> None:
    assert staging.is_open()
    staging.remove()
    assert not staging.is_open()


# --- written so that a power cut loses nothing


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was flushed, linked, renamed and unlinked, in this order; of paths the names, of temporary ones none."""
    steps: list[str] = []

    def name(path: Path) -> str:
        return "tmp" if path.suffix == ".tmp" else path.name

    def wrap(owner: object, method: str, tell: Callable[..., str]) -> None:
        real = getattr(owner, method)

        def call(*arguments: Any, **options: Any) -> Any:
            steps.append(tell(*arguments))
            return real(*arguments, **options)

        monkeypatch.setattr(owner, method, call)

    wrap(os, "fsync", lambda descriptor: f"flush {name(Path(f'/proc/self/fd/{descriptor}').readlink())}")
    wrap(os, "link", lambda _, to: f"link {name(Path(to))}")
    wrap(Path, "replace", lambda _, to: f"put {name(Path(to))}")
    wrap(shutil, "rmtree", lambda path: f"remove {Path(path).name}")
    return steps


def test_each_step_is_flushed_before_the_next_counts_on_it(tmp_path: Path, did: list[str]) -> None:
    (tmp_path / "store").mkdir()
    staging = Staging(tmp_path / "store", "r1")
    note = ["flush tmp", "put run.json", "flush r1"]
    staging.begin("set-00000000")
    assert did == ["flush r1", "flush staging", "flush store", "flush tmp", "link run.json", "flush r1"]
    did.clear()
    with staging.writer("labels", LABELS) as writer:
        writer.write_batch(label_rows("r1", SHARDS[0]))
        assert not (staging.folder / PLANNED_LABELS).exists()
    assert did == ["flush tmp", "put labels.arrow", "flush r1", *note]
    did.clear()
    entry = module.ShardEntry(0, [], "0.rows.arrow", 2, 0, {}, {})
    done = staging.finish(entry, [catalog_rows("r1", SHARDS[0])])
    rows = staging.folder / "shards" / "0.rows.arrow"
    assert done == replace(entry, rows_sha256=sha256_of(rows))
    rows_first = ["flush tmp", "put 0.rows.arrow", "flush shards"]
    assert did == [*rows_first, "flush tmp", "link 0.json", "flush shards"]
    assert sorted(path.name for path in rows.parent.iterdir()) == ["0.json", "0.rows.arrow"]
    did.clear()
    staging.remove()
    assert did == ["flush r1", "remove r1"] and not staging.folder.exists()
    staging.remove()  # harmless


@pytest.mark.everywhere
def test_a_block_that_fails_leaves_no_file(staging: Staging) -> None:
    before = read_sealed(staging.folder / RECORD)
    with pytest.raises(KeyError), staging.writer("more", CATALOG) as writer:
        writer.write_batch(catalog_rows("r1", SHARDS[0]))
        raise KeyError
    assert not exists(staging.folder / "more.arrow") and read_sealed(staging.folder / RECORD) == before


@pytest.mark.parametrize("dead", ["the note first", "a folder in its place"])
def test_a_removal_that_was_cut_off_is_no_journal(staging: Staging, monkeypatch: pytest.MonkeyPatch, dead: str) -> None:
    if dead == "a folder in its place":
        (staging.folder / RECORD).unlink()
        (staging.folder / RECORD / "x").mkdir(parents=True)
        staging.remove()
        assert not staging.folder.exists()
        return
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    staging.remove()
    assert staging.feature_set is None and (staging.folder / "shards").exists()


@pytest.mark.parametrize("part", ["the journal", "all journals"])
def test_what_a_link_leads_to_is_left_alone(staging: Staging, tmp_path: Path, part: str) -> None:
    moved = staging.folder if part == "the journal" else staging.folder.parent
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    staging.remove()
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before and moved.is_symlink()
    store = staging.folder.parents[1]
    if part == "the journal":
        assert pending(store) == []
    else:
        for ask in (lambda: pending(store), lambda: Staging(store, "r2").begin("x")):
            with pytest.raises(StoreCorrupt, match="a link to another one: remove the link"):
                ask()


def test_journals_that_are_pending(staging: Staging) -> None:
    root = staging.folder.parent
    for name in ("r3", "r10", ".hidden", "x' OR '1'='1", "-r"):
        (root / name).mkdir()
    (root / "r2").touch()
    assert [one.run_id for one in pending(root.parent)] == ["r1", "r10", "r3"]
    shutil.rmtree(root)
    assert pending(root.parent) == []


@pytest.mark.everywhere
def test_a_journal_begins_once(staging: Staging, place: PurePath) -> None:
    with pytest.raises(StoreError, match="one of a run of the same id"):
        Staging(place, "r1").begin("x")
