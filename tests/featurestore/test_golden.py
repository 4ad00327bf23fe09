"""What format version 1 wrote is read for ever: a store, a journal and heads, made once by tests/golden/make.py."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import CountingEngine
from featurestore.journal import pending
from featurestore.runs import RunRecord
from featurestore.spec import FeatureSpec, Preprocessing
from featurestore.status import status
from featurestore.store import FeatureStore
from heads import artifact, registry
from pipelines.embedding.embed import embed

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
JOURNAL, HEADS = GOLDEN.with_name("journal-v1"), GOLDEN.with_name("heads-v1")
HALF, SINGLE = "golden-85b31702", "golden-024c8ebe"
FIRST, SECOND, THIRD = (f"20260{i}01T000000000000Z-embed-00000{i}" for i in (1, 2, 3))

# file: (number of its image, label, split); the assignment must never change
LABELLED = {
    "a1": (13, "a", "train"),  # the file was replaced by the second run
    "a2": (2, "a", "train"),
    "a3": (3, "a", "train"),
    "a4": (4, "a", "train"),
    "b5": (5, "b", "test"),
    "b6": (6, "b", "train"),
    "b7": (7, "b", "train"),
    "b8": (8, "b", "val"),
    "b9": (9, "b", "val"),
    "c14": (14, "c", "train"),
    "d0": (0, "d", "train"),  # its copies a0 and b-copy-of-a0 were labelled by an older run
    "g11": (11, "g", "train"),  # a group
    "g12": (12, "g", "train"),
    "t10": (10, "t", "test"),  # given by the corpus
}


def key(number: int) -> bytes:
    return hashlib.sha256(b"picture %d" % number).digest()


def uri(name: str) -> str:
    return f"file:///corpus/{name}.jpg"


def vector(number: int, width: int) -> list[float]:
    return [(8 * number + j) / 16 for j in range(width)]


def digests(folder: Path) -> dict[Path, str]:
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def golden(tmp_path: Path) -> Iterator[FeatureStore]:
    """A copy of the golden store; reading it must leave every file as it is."""
    shutil.copytree(GOLDEN, tmp_path / "golden")
    yield FeatureStore(tmp_path / "golden")
    assert digests(tmp_path / "golden") == digests(GOLDEN)


def test_specs(golden: FeatureStore) -> None:
    assert golden.sets() == [SINGLE, HALF]
    half = FeatureSpec("golden", "ab" * 32, Preprocessing(224, "lite"), "top", "avg", 6, "f32", "float16", 1)
    single = FeatureSpec("golden", "cd" * 32, Preprocessing(64, "caffe"), "block", "max", 3, "f32", "float32", 1)
    for name, spec, fingerprint in (
        (HALF, half, "85b31702c77f682a79b2e426e7037837eab126f9a573b7b20978063f782d0445"),
        (SINGLE, single, "024c8ebefe5747a0c2a6910ac2f5d2239189b7bed8c505811cc07e2799be4f28"),
    ):
        assert golden.spec(name) == spec
        assert golden.spec(name).fingerprint() == fingerprint and spec.set_name == name
        golden.require(name, fingerprint)


@pytest.mark.parametrize(("name", "numbers", "width"), [(HALF, range(15), 6), (SINGLE, (0, 15), 3)])
def test_every_vector(golden: FeatureStore, name: str, numbers: range, width: int) -> None:
    stored = {row["sha256"]: (row["view"], row["vector"]) for row in golden.to_arrow(name).to_pylist()}
    assert stored == {key(n): (0, vector(n, width)) for n in numbers}
    X, found = golden.vectors(name, np.sort(np.array([key(n) for n in range(17)], "S32")))
    assert found.sum() == len(numbers) and X[found].sum() == sum(sum(vector(n, width)) for n in numbers)


def test_labels_and_splits(golden: FeatureStore) -> None:
    data = golden.dataset(HALF)
    rows = zip(data.uris, data.ids, data.X.tolist(), data.y, data.splits, strict=True)
    found = {str(uri): (identity, x, label, split) for uri, identity, x, label, split in rows}
    assert found == {
        uri(name): (key(n).hex(), vector(n, 6), label, split) for name, (n, label, split) in LABELLED.items()
    }
    assert data.excluded == {"no features in this set": 1}
    other = golden.dataset(SINGLE)
    assert sorted(other.uris) == [uri("d0"), uri("d15")] and set(other.splits) == {"train"}
    assert golden.label_rows().num_rows == 18


def test_catalog(golden: FeatureStore) -> None:
    rows = {row["uri"]: row for row in golden.catalog.read(golden.catalog.schema.names).to_pylist()}
    assert len(rows) == golden.catalog.count() == 18
    assert rows[uri("a1")] == {
        "uri": uri("a1"),
        "sha256": key(13),
        "size": 100,
        "mtime_ns": 1_700_000_000_123_456_789,
        "width": 53,
        "height": 30,
        "format": "jpeg",
        "status": "ok",
        "error_type": None,
        "error": None,
        "run_id": SECOND,
    }
    assert rows[uri("broken")] == {
        "uri": uri("broken"),
        "sha256": None,
        "size": 100,
        "mtime_ns": 1_700_000_000_123_456_789,
        "width": None,
        "height": None,
        "format": None,
        "status": "failed",
        "error_type": "truncated",
        "error": "The file ends too early.",
        "run_id": FIRST,
    }
    copies = sorted(u for u, row in rows.items() if row["sha256"] == key(0))
    assert copies == [uri("a0"), uri("b-copy-of-a0"), uri("d0")]
    assert {row["run_id"] for row in rows.values()} == {FIRST, SECOND, THIRD}


def test_run_record(golden: FeatureStore) -> None:
    assert golden.runs() == [
        RunRecord(FIRST, "embed", "2026-01-01T00:00:00+00:00", {"source": "/corpus"}, {"embedded": 13}, {"numpy": "2"})
    ]


def test_status(golden: FeatureStore) -> None:
    found = status(golden)
    assert found["catalog"] == {"ok": 17, "failed": 1, "contents": 15, "removed": 0}
    assert found["sources"] == [{"source": None, "listed": 18, "removed": 0, "failed": 1}]
    assert found["failures"] == {"truncated": 1} and found["labels"] == {"default": 18}
    assert {one["name"]: one["rows"] for one in found["sets"]} == {HALF: 15, SINGLE: 2}
    assert found["differing_labels"]["default"] == {"contents": 1, "ambiguous": 0, "examples": [key(0).hex()]}


def test_a_new_run_goes_on_from_it(tmp_path: Path) -> None:
    from builders import Picture, journal

    shutil.copytree(GOLDEN, tmp_path / "golden")
    store = FeatureStore(tmp_path / "golden")
    new = [Picture(uri("a2"), b"new", "z", replaces=True), Picture(uri("copy"), b"picture 9", "b")]
    with store.lock():
        store.commit(journal(store, "20260401T000000000000Z-embed-000004", [new], store.spec(HALF)))
    data = FeatureStore(store.path).dataset(HALF)
    kept = {name: row[1:] for name, row in LABELLED.items() if name not in ("a2", "b9")}
    after = {str(u): (str(y), str(s)) for u, y, s in zip(data.uris, data.y, data.splits, strict=True)}
    assert {name: after[uri(name)] for name in kept} == kept
    assert after[uri("a2")][0] == "z" and len(data) == 14
    assert store.table(HALF).count() == 16 and store.catalog.count() == 19
    assert store.to_arrow(HALF).num_rows == 16  # every checksum holds


def test_its_corpus_is_what_the_next_listing_says(tmp_path: Path, engine: CountingEngine) -> None:
    """No run of then noted which source lists an image: a source takes over what runs of its own have embedded."""
    shutil.copytree(GOLDEN, tmp_path / "golden")
    store = FeatureStore(tmp_path / "golden")
    listed = [name for name in (*LABELLED, "a0", "broken", "b-copy-of-a0") if name not in ("b5", "broken", "d0")]
    rows = "".join(f"{uri(name)},{name[0]}\n" for name in listed)
    manifest = tmp_path / "corpus.csv"
    manifest.write_text("uri,label\n" + rows)
    with store.lock():
        store.recover()
        assert store.labels.columns()[-2:] == ["source", "listed"] and len(store.label_rows()) == 18
        assert json.loads((store.path / "penult.json").read_text())["format_version"] == 2
        store.adopt(manifest.as_uri(), [FIRST])
        store.remember()
    assert [(one["source"], one["listed"]) for one in status(store)["sources"]] == [(manifest.as_uri(), 14), (None, 4)]
    assert store.label_rows().sort_by("uri").column("run_id").to_pylist().count(FIRST) == 14
    result = embed(str(manifest), store.path)
    assert result.removed == 2 and result.failed == len(listed)  # no image of then is there any more
    assert sorted(store.removed_uris().to_pylist()) == [uri("b5"), uri("broken")]
    assert status(store)["sources"][1] == {"source": None, "listed": 4, "removed": 0, "failed": 2}


def test_a_journal_is_committed(tmp_path: Path) -> None:
    """A run that an older version began, and that died before its commit."""
    shutil.copytree(JOURNAL, tmp_path / "golden")
    store = FeatureStore(tmp_path / "golden")
    assert [staging.damaged() for staging in pending(store.path)] == [[]]
    with store.lock():
        assert store.recover().runs == [SECOND]
    rows = {row["uri"]: row for row in store.catalog.read(["uri", "sha256", "run_id"]).to_pylist()}
    assert len(rows) == store.catalog.count() == 8
    assert rows[uri("a1")] == {"uri": uri("a1"), "sha256": key(13), "run_id": SECOND}
    assert rows[uri("broken")]["sha256"] is None
    data = store.dataset(HALF)
    assert sorted(data.uris) == [uri(name) for name in ("a0", "a1", "a2", "a3", "a4", "c14", "c15")]
    assert not pending(store.path)


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_a_head_predicts_what_it_did(family: str) -> None:
    head, meta = artifact.load(HEADS / family, fingerprint="f" * 64)
    told = json.loads((HEADS / family / "expected.json").read_text())
    assert head.family == family and head.classes.tolist() == ["cat", "dog", "ñandú"] and meta["feature_set"] == HALF
    np.testing.assert_allclose(head.probabilities(np.float32(told["X"])), told["probabilities"], rtol=1e-5, atol=1e-7)


def test_golden_is_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.parent.rglob("*") if path.is_file()) < 450_000
