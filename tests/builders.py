"""Small feature stores without images, as a run of the embedding pipeline would have left them, and datasets."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import pyarrow as pa

from featurestore.dataset import Dataset
from featurestore.journal import PLAN, ShardEntry, Staging
from featurestore.schema import CATALOG, FAILED, LABELS, OK, features_batch
from featurestore.spec import FeatureSpec, Preprocessing
from featurestore.storage.base import storage_of
from featurestore.storage.files import make_folder, read_bytes, replacing
from featurestore.store import FeatureStore
from heads.comparison.space import Search

SPEC = FeatureSpec("fake", "0" * 64, Preprocessing(32, "lite"), "top", "avg", 8)


def put(path: PurePath, data: bytes) -> None:
    """Write a file, on a disk or in a bucket."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def take(path: PurePath) -> bytes:
    """Read a file, on a disk or in a bucket."""
    return read_bytes(path, 2**30)


def copy_to(folder: PurePath, place: PurePath) -> None:
    """Copy a folder to where nothing is, on a disk or in a bucket."""
    if isinstance(folder, Path) and isinstance(place, Path):
        shutil.copytree(folder, place)
        return
    for path, _ in storage_of(folder).walk(folder):
        to = place / path.relative_to(folder)
        make_folder(to.parent)
        put(to, take(path))


@dataclass(frozen=True)
class Picture:
    """One source file; without content it is one that could not be read."""

    uri: str
    content: bytes | None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    replaces: bool = False


def pictures(numbers: Iterable[int], **options: object) -> list[Picture]:
    """Images "0", "1", … in three classes."""
    return [Picture(str(i), b"%d" % i, label="abc"[i % 3], **options) for i in numbers]  # type: ignore[arg-type]


def key(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def vector(digest: bytes, width: int = SPEC.width) -> np.ndarray:
    """The features of a content, float32 (width,): a fixed function of its digest."""
    return np.random.default_rng(list(digest)).normal(size=width).astype(np.float32)


def journal(
    store: FeatureStore, run_id: str, shards: Sequence[Sequence[Picture]], spec: FeatureSpec = SPEC, finished: int = 99
) -> Staging:
    """Write a run's journal as the pipeline does, each shard embedding all its contents; commit nothing."""
    staging, table = Staging(store.path, run_id), store.table(store.add_set(spec))
    staging.begin(spec.set_name)
    with staging.writer("plan", PLAN) as writer:
        for shard in shards:
            rows = [{"uri": p.uri, "size": 1, "mtime_ns": 1, "offset": -1, "replaces": p.replaces} for p in shard]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, PLAN))
    labelled = [p for shard in shards for p in shard if p.label or p.split]
    with staging.writer("labels", LABELS) as writer:
        if labelled:
            writer.write_batch(label_rows(run_id, labelled))
    for number, shard in enumerate(shards[:finished]):
        contents = list(dict.fromkeys(p.content for p in shard if p.content is not None))
        batches = [feature_rows(table.schema, run_id, contents)] if contents else []
        staging.finish(
            ShardEntry(number, table.stage(batches), f"{number}.rows.arrow", len(contents), 0, {}, {}),
            [catalog_rows(run_id, shard)],
        )
    return staging


def commit(store: FeatureStore, run_id: str, rows: Sequence[Picture], spec: FeatureSpec = SPEC) -> str:
    """Run the whole way; return the feature set's name."""
    with store.lock():
        store.commit(journal(store, run_id, [rows], spec))
    return spec.set_name


def feature_rows(schema: pa.Schema, run_id: str, contents: Sequence[bytes]) -> pa.RecordBatch:
    digests = [key(content) for content in contents]
    width = schema.field("vector").type.list_size
    return features_batch(schema, np.array(digests, "S32"), np.stack([vector(d, width) for d in digests]), run_id)


def label_rows(run_id: str, rows: Sequence[Picture], label_set: str = "default") -> pa.RecordBatch:
    values = [
        {"uri": p.uri, "label": p.label, "split": p.split, "group": p.group, "label_set": label_set, "run_id": run_id}
        for p in rows
    ]
    return pa.RecordBatch.from_pylist(values, LABELS)


def catalog_rows(run_id: str, rows: Sequence[Picture]) -> pa.RecordBatch:
    values = [
        {"uri": p.uri, "size": 1, "mtime_ns": 1, "run_id": run_id}
        | (
            {"status": FAILED, "error_type": "empty", "error": "This file is empty."}
            if p.content is None
            else {"sha256": key(p.content), "width": 4, "height": 3, "format": "png", "status": OK}
        )
        for p in rows
    ]
    return pa.RecordBatch.from_pylist(values, CATALOG)


def make_dataset(n: int = 400, d: int = 10, n_classes: int = 4, noise: float = 1.0, seed: int = 0) -> Dataset:
    """A dataset of overlapping classes; every second image is for training, the others for validation and test."""
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    X = rng.normal(size=(n_classes, d))[y] + noise * rng.normal(size=(n, d))
    return Dataset(
        feature_set="set-1",
        fingerprint="f" * 64,
        X=X.astype(np.float32),
        y=np.array([f"class {i}" for i in y]),
        keys=np.array([i.to_bytes(32, "big") for i in range(n)], "S32"),
        uris=np.array([f"/images/{i}.png" for i in range(n)]),
        splits=np.array(["train", "train", "val", "test"])[np.arange(n) % 4],
    )


DATASET = make_dataset()


def only(*names: str, **points: Sequence[Mapping[str, object]]) -> Search:
    """A search of some families: their own grids, or the points given."""
    return Search({name: tuple(points.get(name, ())) for name in names}, (None,))
