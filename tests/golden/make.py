"""Write what this format version writes: ``python tests/golden/make.py store tests/golden/v1``.

Or ``journal tests/golden/journal-v1``, a store whose run died before its commit, or ``heads tests/golden/heads-v1``, a
head of each family, or ``datasets tests/golden/datasets``, tables of images. Run it once for a format version, commit
what it wrote, and never write that folder again: the test that reads it proves that what was written long ago is still
read. The first three were written by version 0.1 as it was before files had seals.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from featurestore.journal import PLAN, ShardEntry, Staging
from featurestore.runs import RunRecord
from featurestore.schema import CATALOG, FAILED, LABELS, OK, features_batch
from featurestore.spec import FeatureSpec, Preprocessing
from featurestore.store import FeatureStore
from heads import artifact, registry
from heads.spec import HeadSpec

HALF = FeatureSpec("golden", "ab" * 32, Preprocessing(224, "lite"), "top", "avg", width=6)
SINGLE = FeatureSpec("golden", "cd" * 32, Preprocessing(64, "caffe"), "block", "max", width=3, dtype="float32")
FIRST, SECOND, THIRD = (f"20260{i}01T000000000000Z-embed-00000{i}" for i in (1, 2, 3))


def key(number: int) -> bytes:
    return hashlib.sha256(b"picture %d" % number).digest()


def run(
    store: FeatureStore, run_id: str, spec: FeatureSpec, shards: list[dict[str, int | None]], replaces: str = ""
) -> None:
    """Commit one run: shards of {name of a file: number of its image, None for a broken file}."""
    store.commit(journal(store, run_id, spec, shards, replaces))


def journal(
    store: FeatureStore, run_id: str, spec: FeatureSpec, shards: list[dict[str, int | None]], replaces: str = ""
) -> Staging:
    """What a run leaves that dies before its commit."""
    staging, table = Staging(store.path, run_id), store.table(store.add_set(spec))
    staging.begin(spec.set_name)
    with staging.writer("plan", PLAN) as plan, staging.writer("labels", LABELS) as labels:
        for shard in shards:
            plan.write_batch(pa.RecordBatch.from_pylist([planned(name, name == replaces) for name in shard], PLAN))
            labels.write_batch(pa.RecordBatch.from_pylist([label(name, run_id) for name in shard], LABELS))
    seen: set[int] = set()
    for number, shard in enumerate(shards):
        new = sorted({n for n in shard.values() if n is not None} - seen)
        seen |= set(new)
        vectors = np.array([[(8 * n + j) / 16 for j in range(spec.width)] for n in new])
        staged = table.stage([features_batch(table.schema, np.array([key(n) for n in new], "S32"), vectors, run_id)])
        rows = pa.RecordBatch.from_pylist([catalogued(name, n, run_id) for name, n in shard.items()], CATALOG)
        staging.finish(ShardEntry(number, staged, f"{number}.golden.arrow", len(new), 0, {}, {}), [rows])
    return staging


def planned(name: str, replaces: bool) -> dict[str, object]:
    return {"uri": uri(name), "size": 100, "mtime_ns": 1_700_000_000_123_456_789, "offset": -1, "replaces": replaces}


def label(name: str, run_id: str) -> dict[str, object]:
    """The class is the name's first letter; files named "g…" are a group, "t…" are given to the test split."""
    return {
        "uri": uri(name),
        "label": name[0],
        "split": "test" if name[0] == "t" else None,
        "group": "the group" if name[0] == "g" else None,
        "label_set": "default",
        "run_id": run_id,
    }


def catalogued(name: str, number: int | None, run_id: str) -> dict[str, object]:
    outcome: dict[str, object] = (
        {"status": FAILED, "error_type": "truncated", "error": "The file ends too early."}
        if number is None
        else {"status": OK, "sha256": key(number), "width": 40 + number, "height": 30, "format": "jpeg"}
    )
    return {"uri": uri(name), "size": 100, "mtime_ns": 1_700_000_000_123_456_789, "run_id": run_id} | outcome


def uri(name: str) -> str:
    return f"file:///corpus/{name}.jpg"


def make_store(folder: Path) -> None:
    folder.mkdir()
    store = FeatureStore.create(folder)
    with store.lock():
        one = {f"a{n}": n for n in range(5)} | {"broken": None}
        two = {f"b{n}": n for n in range(5, 10)} | {"b-copy-of-a0": 0, "t10": 10, "g11": 11, "g12": 12}
        run(store, FIRST, HALF, [one, two])
        run(store, SECOND, HALF, [{"a1": 13, "c14": 14}], replaces="a1")
        run(store, THIRD, SINGLE, [{"d15": 15, "d0": 0}])
    record = RunRecord(
        FIRST, "embed", "2026-01-01T00:00:00+00:00", {"source": "/corpus"}, {"embedded": 13}, {"numpy": "2"}
    )
    record.write(store.run_folder(FIRST))
    (folder / "lock").unlink()


def make_journal(folder: Path) -> None:
    folder.mkdir()
    store = FeatureStore.create(folder)
    with store.lock():
        run(store, FIRST, HALF, [{f"a{n}": n for n in range(5)}])
        journal(store, SECOND, HALF, [{"a1": 13, "c14": 14}, {"c15": 15, "broken": None}], replaces="a1")
    (folder / "lock").unlink()


def make_heads(folder: Path) -> None:
    draw = np.random.default_rng(0)
    centers = draw.normal(size=(3, 6))
    y = np.arange(30) % 3
    X = (centers[y] + 0.5 * draw.normal(size=(30, 6))).astype(np.float32)
    names = np.array(["cat", "dog", "ñandú"])[y]
    for family in registry.FAMILIES:
        params = {"hidden": [4], "epochs": 3} if family == "dense" else None
        head = registry.fit(HeadSpec(family, params), X, names, validation=(X, names))
        artifact.save(head, folder / family, {"feature_set": "golden-85b31702", "fingerprint": "f" * 64})
        told = {"X": X[:5].tolist(), "probabilities": head.probabilities(X[:5]).tolist()}
        (folder / family / "expected.json").write_text(json.dumps(told))


def make_datasets(folder: Path) -> None:
    """Write six pictures of 8 × 8 pixels, one of them without a label, with Hugging Face's library."""
    import datasets  # pip install datasets==5.2.0, beside what penult needs

    colours = [np.full((8, 8, 3), (40 * n, 50, 250 - 40 * n), np.uint8) for n in range(6)]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    rows = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(pixels) for pixels in colours], "label": [0, 1, 0, 1, 0, -1]},
        features=datasets.Features(features),
    )
    parts = {"train": rows.select(range(4)), "test": rows.select([4, 5])}
    datasets.DatasetDict(parts).save_to_disk(folder / "disk")
    for number in range(2):  # called as ``push_to_hub`` calls them
        name = f"train-{number:05}-of-00002.parquet"
        parts["train"].shard(2, number, contiguous=True).to_parquet(folder / "hub/data" / name)
    parts["test"].to_parquet(folder / "hub/data/test-00000-of-00001.parquet")


if __name__ == "__main__":
    makers = {"store": make_store, "journal": make_journal, "heads": make_heads, "datasets": make_datasets}
    makers[sys.argv[1]](Path(sys.argv[2]))
