"""A run's journal: the plan, and for each finished shard what it wrote.

``staging/<run>/`` is a redo log. A shard is finished the moment its entry is linked into place; everything an
entry names was flushed before. If the run dies, the next writer commits the finished shards from here.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from featurestore.files import fsync, read_json, write_json
from featurestore.schema import CATALOG

PLAN = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("replaces", pa.bool_(), nullable=False),  # the catalog has a row of this uri
    ]
)


@dataclass(frozen=True)
class ShardEntry:
    """What one finished shard wrote; its file in the journal is the acknowledgement."""

    shard: int
    fragments: list[str]  # of the feature set, as JSON
    rows_file: str  # catalog rows, Arrow IPC, in the journal's folder
    embedded: int
    deduplicated: int
    failures: dict[str, int]
    seconds: dict[str, float]


class Staging:
    """The journal of one run, under ``STORE/staging/<run_id>``."""

    def __init__(self, store: Path, run_id: str) -> None:
        self.run_id = run_id
        self.folder = store / "staging" / run_id
        self._shards = self.folder / "shards"

    def begin(self, feature_set: str) -> None:
        """Make the folder and note the feature set that the run writes to."""
        self._shards.mkdir(parents=True)
        write_json(self.folder / "run.json", {"run_id": self.run_id, "feature_set": feature_set})
        fsync(self.folder.parent)

    @property
    def feature_set(self) -> str | None:
        """The set that the run writes to; None if it died before saying so."""
        path = self.folder / "run.json"
        return read_json(path)["feature_set"] if path.exists() else None

    @contextmanager
    def writer(self, name: str, schema: pa.Schema) -> Iterator[pa.RecordBatchFileWriter]:
        """Write ``<name>.arrow`` batch by batch; it appears whole, when the block ends."""
        path = self.folder / f"{name}.arrow"
        temporary = path.with_suffix(".tmp")
        with pa.ipc.new_file(temporary, schema) as writer:
            yield writer
        fsync(temporary)
        temporary.replace(path)
        fsync(self.folder)

    def shard_plan(self, shard: int) -> pa.RecordBatch:
        """The planned files of one shard."""
        with pa.OSFile(str(self.folder / "plan.arrow")) as source:
            return pa.ipc.open_file(source).get_batch(shard)

    def finish(self, entry: ShardEntry, rows: Iterable[pa.RecordBatch]) -> ShardEntry:
        """Write the catalog rows, then the entry. The first to finish a shard wins; return its entry."""
        temporary = self._shards / f".{entry.shard}.{secrets.token_hex(4)}.tmp"
        with pa.ipc.new_file(self._shards / entry.rows_file, CATALOG) as writer:
            for batch in rows:
                writer.write_batch(batch)
        fsync(self._shards / entry.rows_file)
        temporary.write_text(json.dumps(asdict(entry)), encoding="utf-8")
        fsync(temporary)
        try:
            os.link(temporary, self._entry_path(entry.shard))
        except FileExistsError:
            (self._shards / entry.rows_file).unlink()
        finally:
            temporary.unlink()
        fsync(self._shards)
        winner = self.entry(entry.shard)
        assert winner is not None
        return winner

    def entry(self, shard: int) -> ShardEntry | None:
        """The entry of a finished shard, or None."""
        path = self._entry_path(shard)
        return ShardEntry(**read_json(path)) if path.exists() else None

    def entries(self) -> Iterator[ShardEntry]:
        """All finished shards, by number."""
        if self._shards.is_dir():
            for path in sorted(self._shards.glob("*.json"), key=lambda p: int(p.stem)):
                yield ShardEntry(**read_json(path))

    def catalog_rows(self) -> Iterator[pa.RecordBatch]:
        """The catalog rows of all finished shards."""
        for entry in self.entries():
            yield from _batches(self._shards / entry.rows_file)

    def label_rows(self) -> Iterator[pa.RecordBatch]:
        """The planned label rows, in the schema LABELS; none if the plan did not end."""
        path = self.folder / "labels.arrow"
        yield from _batches(path) if path.exists() else ()

    def replaced_uris(self) -> pa.ChunkedArray:
        """Uris of finished shards that had a catalog row before."""
        plans = (self.shard_plan(entry.shard) for entry in self.entries())
        return pa.chunked_array([p.column("uri").filter(p.column("replaces")) for p in plans], pa.string())

    def note_progress(self, shard: int, images: int) -> None:
        """Say how many images of a running shard are done; lost without harm."""
        path = self._shards / f"{shard}.progress"
        path.with_suffix(".tmp").write_text(str(images), encoding="utf-8")
        path.with_suffix(".tmp").replace(path)

    def progress(self) -> int:
        """Images done so far over all shards, as far as the workers have said."""
        return sum(int(path.read_text(encoding="utf-8")) for path in self._shards.glob("*.progress"))

    def remove(self) -> None:
        """Forget the journal, after the commit."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _entry_path(self, shard: int) -> Path:
        return self._shards / f"{shard}.json"


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


def pending(store: Path) -> list[Staging]:
    """Journals that a dead run has left, oldest first."""
    folder = store / "staging"
    return [Staging(store, path.name) for path in sorted(folder.iterdir())] if folder.is_dir() else []
