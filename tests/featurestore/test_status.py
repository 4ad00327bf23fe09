"""What a store holds, counted; and what is forgotten of it: on stores without images, against numbers by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from builders import SPEC, Picture, catalog_rows, commit, key, label_rows
from featurestore import labels
from featurestore.maintenance.removal import forget_removed
from featurestore.runs import STAMP, RunRecord
from featurestore.schema import features_batch
from featurestore.status import failed_files, status
from featurestore.storage.files import read_sealed, write_sealed
from featurestore.store import FeatureStore

NAME = SPEC.set_name


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(tmp_path / "store")


def say(store: FeatureStore, run_id: str, batch: pa.RecordBatch) -> None:
    with store.lock():
        store.commit_labels(run_id, [batch])


def lists(store: FeatureStore, run_id: str, source: str, uris: str, label_set: str = "default") -> None:
    """A source lists images."""
    said = [(f"label of {source}", None, None)] * len(uris)
    say(store, run_id, labels.statements(uris, said, label_set, source, run_id))


def lacks(store: FeatureStore, run_id: str, source: str, uris: str) -> None:
    """A source lists images no longer."""
    rows = labels.statements(uris, [(None, None, None)] * len(uris), "default", source, run_id)
    say(store, run_id, labels.removals(rows, run_id))


def fail(store: FeatureStore, run_id: str, errors: dict[str, str]) -> None:
    """Images that could not be read, by the kind of error."""
    rows = catalog_rows(run_id, [Picture(uri, None) for uri in errors]).to_pylist()
    kinds = [row | {"error_type": errors[row["uri"]], "error": f"It is {errors[row['uri']]}."} for row in rows]
    store.catalog.commit(run_id, store.catalog.stage([pa.RecordBatch.from_pylist(kinds, store.catalog.schema)]))
    with store.lock():
        store.remember()


def test_what_status_says_of_a_set(store: FeatureStore) -> None:
    commit(store, "r1", [Picture(str(i), b"%d" % i) for i in range(6)])
    commit(store, "r2", [Picture("6", b"6"), Picture("7", b"0")], replace(SPEC, layer="other", dtype="float32"))
    first, second = sorted(status(store)["sets"], key=lambda one: -one["rows"])
    table = store.table(NAME)
    size = sum(path.stat().st_size for path in table.path.rglob("*") if path.is_file())
    assert first == {
        "name": NAME,
        "fingerprint": SPEC.fingerprint(),
        "backbone": "fake",
        "layer": "top",
        "pooling": "avg",
        "input_size": 32,
        "precision": "f32",
        "dtype": "float16",
        "width": 8,
        "rows": 6,
        "views": 0,
        "coverage": 6 / 7,
        "version": table.version,
        "bytes": size,
    }
    assert (second["layer"], second["dtype"], second["rows"], second["coverage"]) == ("other", "float32", 2, 2 / 7)
    told = status(store)
    assert told["store"] == str(store.path)
    assert told["versions"] == {"catalog.lance": store.catalog.version, "labels.lance": store.labels.version}
    assert told["bytes"] == sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
    (store.path / "link").symlink_to("/nowhere")
    assert status(store)["bytes"] == told["bytes"] + len("/nowhere")


def test_views_are_counted_per_image(store: FeatureStore) -> None:
    spec = replace(SPEC, augmentation="{}")
    table = store.table(store.add_set(spec))
    assert status(store)["sets"][0]["views"] == 0 and status(store)["sets"][0]["coverage"] == 0.0
    keys = np.array([key(b"0"), key(b"1"), key(b"2"), key(b"0")], "S32")
    rows = features_batch(table.schema, keys, np.ones((4, 8)), "v", np.array([1, 1, 1, 2]))
    table.commit("v", table.stage([rows]))
    (one,) = status(store)["sets"]
    assert (one["rows"], one["views"]) == (3, 1.33)


def test_failures_most_frequent_first(store: FeatureStore) -> None:
    fail(
        store, "r1", {"d": "empty", "c": "truncated", "b": "truncated", "a": "corrupt", "e": "truncated", "f": "empty"}
    )
    commit(store, "r2", [Picture("1", b"1"), Picture("2", b"1")])
    told = status(store)
    assert list(told["failures"].items()) == [("truncated", 3), ("empty", 2), ("corrupt", 1)]
    assert told["catalog"] == {"ok": 2, "failed": 6, "contents": 1, "removed": 0}
    assert failed_files(store)[:2] == [
        {"uri": "a", "error_type": "corrupt", "error": "It is corrupt."},
        {"uri": "b", "error_type": "truncated", "error": "It is truncated."},
    ]
    assert [one["uri"] for one in failed_files(store)] == list("abcdef")


def test_label_sets_largest_first_and_five_examples_of_what_differs(store: FeatureStore) -> None:
    copies = [Picture(f"{i} {copy}", b"%d" % i, copy) for i in range(7) for copy in "ab"]
    commit(store, "r1", copies)
    say(store, "r2", label_rows("r2", [Picture("0 a", None, "x"), Picture("1 a", None, "y")], "few"))
    say(store, "r3", label_rows("r3", [Picture("0 a", None, "x")], "one"))
    say(store, "r4", label_rows("r4", [Picture("0 a", None)], "silent"))
    told = status(store)
    assert list(told["labels"].items()) == [("default", 14), ("few", 2), ("one", 1)]
    differing = sorted(key(b"%d" % i).hex() for i in range(7))
    assert told["differing_labels"] == {
        "default": {"contents": 7, "ambiguous": 7, "examples": differing[:5]},
        "few": {"contents": 0, "ambiguous": 0, "examples": []},
        "one": {"contents": 0, "ambiguous": 0, "examples": []},
    }


def test_the_last_five_runs(store: FeatureStore) -> None:
    for number in range(7):
        record = RunRecord(f"r{number}", f"kind {number}", f"2026-01-0{number + 1}", {}, {}, {})
        record.write(store.run_folder(record.run_id))
    runs = status(store)["runs"]
    assert runs["count"] == 7
    assert runs["last"] == [
        {"run_id": f"r{n}", "kind": f"kind {n}", "started": f"2026-01-0{n + 1}"} for n in range(2, 7)
    ]


# --- sources


def test_what_each_source_lists_has_listed_and_could_not_read(store: FeatureStore) -> None:
    commit(store, "r0", [Picture(uri, uri.encode()) for uri in "abcdef"])
    fail(store, "r1", {"x": "empty", "y": "empty"})
    lists(store, "r2", "/one", "abcx")
    lists(store, "r3", "/two", "cdxy")
    lacks(store, "r4", "/one", "ab")
    lacks(store, "r5", "/two", "y")
    say(store, "r6-label-x", labels.statements(["b"], [("z", None, None)], "default", labels.PEOPLE, "r6-label-x"))
    assert store.removed_uris().to_pylist() == ["a", "b", "y"]
    assert store.sources() == {"/one": (2, 2), "/two": (3, 1)}
    assert store.listed_by(pa.chunked_array([["c", "x", "y", "q"]])) == {"/one": 2, "/two": 2}
    told = status(store)
    assert told["sources"] == [
        {"source": "/one", "listed": 2, "removed": 2, "failed": 1},
        {"source": "/two", "listed": 3, "removed": 1, "failed": 1},
    ]
    assert told["catalog"] == {"ok": 4, "failed": 1, "contents": 4, "removed": 3}
    assert [one["uri"] for one in failed_files(store)] == ["x"]
    assert told["labels"] == {"default": 3}  # c, d and x: nobody lists the others
    rows = {row["uri"]: row["label"] for row in store.label_rows().to_pylist()}
    assert rows == {"c": "label of /two", "d": "label of /two", "x": "label of /two"}
    assert store.people_rows().to_pylist() == [{"uri": "b", "label": "z", "split": None, "group": None}]
    lists(store, "r7", "/one", "c", "second")
    assert store.sources() == {"/one": (2, 2), "/two": (3, 1)}  # images, however many label sets
    known, names = store.membership("/one", "default")
    assert known.count(labels.LISTED) == 2 and known.count(labels.REMOVED) == 2 and "label of /one" in names.values()


def test_images_of_unknown_origin_until_a_source_lists_them(store: FeatureStore) -> None:
    """As in a store of an older penult: of its runs r1 and r2 nothing says what they listed."""
    commit(store, "r1", [Picture("a", b"a", "x"), Picture("b", b"b")])
    commit(store, "r2", [Picture("c", b"c", "y"), Picture("d", b"d")])
    assert not store.unknown_origin and store.count_unnamed() == 0
    path = store.path / "penult.json"
    write_sealed(path, read_sealed(path) | {"unknown_origin": True})
    assert store.unknown_origin and store.count_unnamed() == 2
    assert store.sources() == {None: (2, 0)}
    assert status(store)["sources"] == [{"source": None, "listed": 4, "removed": 0, "failed": 0}]
    lists(store, "r3", "/two", "d")
    assert store.count_unnamed() == 1
    with store.lock():
        store.adopt("/one", [])
        assert store.sources() == {None: (2, 0), "/two": (1, 0)}
        store.adopt("/one", ["r1"])
    assert store.sources() == {None: (1, 0), "/one": (2, 0), "/two": (1, 0)} and store.count_unnamed() == 0
    rows = store.labels.read(["uri", "label", "source", "listed", "run_id"]).to_pylist()
    assert {row["uri"]: tuple(row.values())[1:] for row in rows} == {
        "a": ("x", "/one", True, "r1"),
        "b": (None, "/one", True, "r1"),
        "c": ("y", None, None, "r2"),
        "d": ("label of /two", "/two", True, "r3"),
    }
    with store.lock():
        store.remember()
    assert [one["source"] for one in status(store)["sources"]] == ["/one", "/two", None]
    with store.lock():
        store.adopt("/one", ["r1", "r2"])
    assert store.sources() == {"/one": (3, 0), "/two": (1, 0)}


# --- removed images are forgotten


def ago(seconds: float, kind: str = "embed") -> str:
    return f"{datetime.now(UTC) - timedelta(seconds=seconds):{STAMP}}-{kind}-aaaaaa"


def left(store: FeatureStore) -> dict[str, Any]:
    table = store.table(NAME)
    uris = sorted(store.catalog.read(["uri"]).column("uri").to_pylist())
    said = store.labels.read(["uri", "source"]).to_pylist()
    return {
        "catalog": "".join(uris),
        "features": {bytes(k) for k in table.read(["sha256"]).column("sha256").to_pylist()},
        "said": sorted((row["uri"], row["source"]) for row in said),
    }


def test_what_was_removed_long_ago_is_forgotten(store: FeatureStore) -> None:
    """a and b went long ago, c just now; d's content is a's too; e is listed by another; f's run tells its time."""
    commit(store, ago(9000), [*(Picture(uri, uri.encode()) for uri in "abcef"), Picture("d", b"a")])
    lists(store, ago(8000), "/one", "abcdef")
    lists(store, ago(7000), "/two", "e")
    lacks(store, ago(5000), "/one", "abe")
    people = ago(4000, "label")
    say(store, people, labels.statements(["a"], [("z", None, None)], "default", labels.PEOPLE, people))
    lacks(store, ago(60), "/one", "c")
    record = RunRecord(ago(30), "embed", (datetime.now(UTC) - timedelta(days=9)).isoformat(), {}, {}, {})
    record.write(store.run_folder(record.run_id))
    lacks(store, record.run_id, "/one", "f")  # its record counts, not its id
    before = left(store)
    with store.lock():
        assert forget_removed(store, older_than=10**6) == 0 and left(store) == before
        assert forget_removed(store, older_than=3600) == 3
    assert left(store) == {
        "catalog": "cde",
        "features": {key(content) for content in (b"a", b"c", b"e")},
        "said": sorted([("a", ""), ("c", "/one"), ("d", "/one"), ("e", "/one"), ("e", "/two")]),
    }
    with store.lock():
        assert forget_removed(store, older_than=3600) == 0 and forget_removed(store, older_than=0) == 1
    assert left(store)["catalog"] == "de" and left(store)["features"] == {key(b"a"), key(b"e")}
    with store.lock():
        assert forget_removed(store, older_than=0) == 0


def test_a_run_of_unknown_time_is_never_long_ago(store: FeatureStore) -> None:
    commit(store, "r1", [Picture("0", b"0"), Picture("1", b"1")])
    lists(store, "r2", "/one", "01")
    lacks(store, "r3", "/one", "0")
    with store.lock():
        assert forget_removed(store, older_than=0) == 0
    assert store.removed_uris().to_pylist() == ["0"]
    commit(store, "r4", [Picture("0", b"0", "x")])
    assert store.removed_uris().to_pylist() == []  # whoever that was lists it
